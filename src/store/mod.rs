//! The embedded store: a directory of age files.
//!
//! ```text
//! DIR/store.json            the format and its version; its presence makes DIR a store
//! DIR/recipients            who can read: public keys, as `age -R` takes them; all that a writer needs
//! DIR/secrets/a%b/7.age     version 7 of `a/b`: one age file, whose content is the value byte for byte
//! DIR/secrets/a%b/8.removed `a/b` was removed then: keeps its numbers from being used twice
//! DIR/.lock                 writers hold it, one at a time; readers never touch it
//! DIR/.new/                 what a writer is making; there only while one works, or after one was killed
//! ```
//!
//! Permanent: the numbers. A version, once it has been seen, never changes its content and its number is never given
//! again, so equal numbers mean equal values. A secret is the highest number in its directory; there is no index that
//! could disagree with the files. A reader needs no write access and no lock: it lists a directory and opens a file.
//!
//! A writer makes everything in `.new`, makes it durable, and shows it by one link or rename. So a kill at any step leaves
//! old or new, and the next writer removes `.new`. docs/store.md says the same for people, with `age` and git.
//!
//! Does not: watch (`backend::store` does), cache, or know who may read what.

pub mod document;
pub mod keys;
pub mod name;

mod disk;
mod read;
mod rekey;
mod seal;
mod write;

#[cfg(test)]
mod fault;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    error::{Error, Result, codes},
    limits,
};

pub use keys::{Identities, Recipients};
pub use name::Name;
pub use read::{Entry, Found, Listing, Lookup, Stamp, VersionInfo, parse_version};
pub use rekey::Rekeyed;
pub use seal::{mark_of, unseal};

pub(crate) use disk::read_at_most;
use disk::{Disk, RealDisk};

/// The number that store.json holds. A store of a higher one is refused.
pub const FORMAT_VERSION: u64 = 1;
/// The `format` of store.json.
const FORMAT: &str = "secretfs-store";

/// A store that is there and of a format that this program knows.
pub struct Store {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

/// store.json.
#[derive(serde::Serialize, serde::Deserialize)]
struct Manifest {
    format: String,
    version: u64,
}

impl Store {
    /// Opens the store at `dir`, to read or to write.
    ///
    /// # Errors
    /// `store.missing`; `store.format` for one of a newer version; `store.corrupt`, `store.io`.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::open_on(dir.into(), Arc::new(RealDisk))
    }

    fn open_on(dir: PathBuf, disk: Arc<dyn Disk>) -> Result<Self> {
        let store = Self { dir, disk };
        tracing::trace!(dir = %store.dir.display(), "a store");
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<()> {
        let path = self.manifest();
        let bytes = match read::read_file(&path, limits::KEY_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(&codes::STORE_MISSING).object(self.dir.display()));
            }
            Err(error) => return Err(io_error(&path, "read it")(error)),
        };
        check_manifest(bytes.as_deref(), &path)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whom new versions are encrypted to.
    ///
    /// # Errors
    /// `store.bad_recipient`, with file and line; `store.corrupt` if there is no such file; `store.io`.
    pub fn recipients(&self) -> Result<Recipients> {
        let path = self.dir.join("recipients");
        let bytes = match read::read_file(&path, limits::KEY_FILE_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                return Err(Error::new(&codes::STORE_BAD_RECIPIENT)
                    .object(path.display())
                    .detail("is larger than 64 KiB"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::new(&codes::STORE_CORRUPT)
                    .object(path.display())
                    .detail(
                        "is missing; restore it, or run `secretfs store rekey --recipient AGE_KEY`",
                    ));
            }
            Err(error) => return Err(io_error(&path, "read it")(error)),
        };
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::new(&codes::STORE_BAD_RECIPIENT)
                .object(path.display())
                .detail("is not text")
        })?;
        Recipients::parse(&text).map_err(|error| error.object(path.display()))
    }

    fn manifest(&self) -> PathBuf {
        self.dir.join("store.json")
    }

    fn secrets(&self) -> PathBuf {
        self.dir.join("secrets")
    }

    /// The directory of one secret.
    pub fn secret_dir(&self, name: &Name) -> PathBuf {
        secret_dir(&self.dir, name)
    }
}

/// Whether these bytes, `None` for more than there may be, describe a store that this program knows. `path` is where they are from.
///
/// # Errors
/// `store.corrupt`; `store.format` for one of a newer version.
#[doc(hidden)] // public for the fuzz target
pub fn check_manifest(bytes: Option<&[u8]>, path: &Path) -> Result<()> {
    let manifest = bytes
        .and_then(|bytes| serde_json::from_slice::<Manifest>(bytes).ok())
        .filter(|manifest| manifest.format == FORMAT)
        .ok_or_else(|| {
            Error::new(&codes::STORE_CORRUPT)
                .object(path.display())
                .detail(format!(
                    "is not the description of a store ({{\"format\": \"{FORMAT}\", \"version\": N}}); restore it"
                ))
        })?;
    if manifest.version == 0 || manifest.version > FORMAT_VERSION {
        return Err(Error::new(&codes::STORE_FORMAT)
            .object(path.display())
            .detail(format!(
                "the store has format version {}, and this program knows {FORMAT_VERSION}; use a newer secretfs",
                manifest.version
            )));
    }
    Ok(())
}

/// The directory of the secret `name` in the store at `dir`, whether or not one of them is there.
pub fn secret_dir(dir: &Path, name: &Name) -> PathBuf {
    dir.join("secrets").join(name.to_dir())
}

/// A version's file name.
fn version_file(version: u64) -> String {
    format!("{version}.age")
}

/// The name of the file that says: removed then.
fn removed_file(version: u64) -> String {
    format!("{version}.removed")
}

/// Makes a `store.io` of an error of the file system.
fn io_error(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        Error::new(&codes::STORE_IO)
            .object(path.display())
            .step(step)
            .source(error)
    }
}
