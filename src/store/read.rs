//! Reading: no lock, no write access, no index. The directories say what there is.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    clock::Wall,
    error::{Error, Result, codes},
    secret::SecretBytes,
    store::{
        Identities, Name, Store,
        disk::read_at_most,
        io_error,
        seal::{SEALED_BYTES, unseal},
        version_file,
    },
    sys::file::open_regular,
};

/// How often a reader looks again when what it has just seen is gone: each time a writer has removed the secret, or a
/// hundred versions have been put, in the microseconds between listing and opening.
const LOOKS: usize = 16;

/// What a secret's directory holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Versions {
    /// Versions that can be read, ascending.
    pub kept: Vec<u64>,
    /// Versions that a removal has outdated and its writer could not unlink any more, ascending.
    pub outdated: Vec<u64>,
    /// Marks of removals, ascending.
    pub removed: Vec<u64>,
}

impl Versions {
    /// The highest number that was ever given.
    pub fn last(&self) -> u64 {
        let kept = self.kept.last().copied().unwrap_or(0);
        kept.max(self.removed.last().copied().unwrap_or(0))
    }
}

/// What is found under a name.
#[derive(Debug)]
pub enum Lookup {
    /// This.
    Found(Found),
    /// It was removed, and this number says when.
    Removed(u64),
    /// The secret is there, this version is not.
    NoVersion,
    /// No trace of it.
    Absent,
}

/// A version, open for reading, so that nobody can take it away any more.
#[derive(Debug)]
pub struct Found {
    /// Its number.
    pub version: u64,
    /// Which file it is.
    pub stamp: Stamp,
    path: PathBuf,
    file: File,
}

/// Tells files apart, so that version 7 of another store at the same place is not taken for this one's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// A secret in a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// Its current version.
    pub version: u64,
    /// How many versions are kept.
    pub kept: usize,
    /// When the current version was put: the file's time, which git does not keep.
    pub written_at: Wall,
}

/// All secrets, and those that could not be listed.
#[derive(Debug)]
pub struct Listing {
    /// By name.
    pub entries: Vec<Entry>,
    /// One for each directory that could not be read.
    pub problems: Vec<Error>,
}

/// A version in a history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionInfo {
    /// Its number.
    pub version: u64,
    /// When it was put: the file's time, which git does not keep.
    pub written_at: Wall,
}

impl Store {
    /// Looks a secret up: its current version, or the one that is asked for.
    ///
    /// 1. List the directory. A removal's mark outdates every lower number.
    /// 2. Open the version. If it has gone since, begin anew: there is a newer state.
    ///
    /// # Errors
    /// `store.io`, `store.corrupt`.
    pub fn look_up(&self, name: &Name, version: Option<u64>) -> Result<Lookup> {
        tracing::trace!(%name, version, "a secret is looked up");
        for _ in 0..LOOKS {
            let Some(versions) = self.versions(name)? else {
                return Ok(Lookup::Absent);
            };
            let Some(newest) = versions.kept.last() else {
                return Ok(match versions.removed.last() {
                    Some(at) => Lookup::Removed(*at),
                    None => Lookup::Absent,
                });
            };
            let version = version.unwrap_or(*newest);
            if !versions.kept.contains(&version) {
                return Ok(Lookup::NoVersion);
            }
            let path = self.secret_dir(name).join(version_file(version));
            match open(&path) {
                Ok((file, stamp)) => {
                    return Ok(Lookup::Found(Found {
                        version,
                        stamp,
                        path,
                        file,
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error(&path, "open it")(error)),
            }
        }
        Err(Error::new(&codes::STORE_IO)
            .object(self.secret_dir(name).display())
            .detail("changes faster than it can be read; try again"))
    }

    /// The value of a version (`None`: the current one), and its number.
    ///
    /// # Errors
    /// `backend.not_found`, `store.no_version`; `store.corrupt` with the file's name; `store.too_large`, `store.io`.
    pub fn get(
        &self,
        name: &Name,
        version: Option<u64>,
        with: &Identities,
    ) -> Result<(u64, SecretBytes)> {
        let found = self.look_up(name, version)?.or_error(name, version)?;
        Ok((found.version, found.read(with)?))
    }

    /// All secrets by name. What cannot be read spoils no other.
    ///
    /// # Errors
    /// `store.io`: not even the directory of all secrets can be read.
    pub fn list(&self) -> Result<Listing> {
        let mut listing = Listing {
            entries: Vec::new(),
            problems: Vec::new(),
        };
        for name in self.names()? {
            match self.entry(&name) {
                Ok(entry) => listing.entries.extend(entry),
                Err(error) => listing.problems.push(error),
            }
        }
        Ok(listing)
    }

    fn entry(&self, name: &Name) -> Result<Option<Entry>> {
        let Some((version, kept)) = self
            .versions(name)?
            .and_then(|versions| Some((*versions.kept.last()?, versions.kept.len())))
        else {
            return Ok(None);
        };
        let written_at = self.written_at(name, version)?;
        Ok(written_at.map(|written_at| Entry {
            name: name.clone(),
            version,
            kept,
            written_at,
        }))
    }

    /// The versions that are kept, the newest first.
    ///
    /// # Errors
    /// `backend.not_found`, `store.io`, `store.corrupt`.
    pub fn history(&self, name: &Name) -> Result<Vec<VersionInfo>> {
        self.look_up(name, None)?.or_error(name, None)?;
        let kept = self
            .versions(name)?
            .map(|versions| versions.kept)
            .unwrap_or_default();
        let mut history = Vec::with_capacity(kept.len());
        for version in kept.into_iter().rev() {
            if let Some(written_at) = self.written_at(name, version)? {
                history.push(VersionInfo {
                    version,
                    written_at,
                });
            }
        }
        Ok(history)
    }

    /// All names that have a directory, removed ones too.
    pub(super) fn names(&self) -> Result<Vec<Name>> {
        let dir = self.secrets();
        let names = match file_names(&dir) {
            Ok(names) => names,
            // git keeps no empty directory: a clone of an empty store has none
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error(&dir, "list it")(error)),
        };
        let mut names: Vec<_> = names.iter().filter_map(|dir| Name::from_dir(dir)).collect();
        names.sort();
        Ok(names)
    }

    /// What a secret's directory holds; `None` if there is none. Files of other names are not ours, and passed over.
    pub(super) fn versions(&self, name: &Name) -> Result<Option<Versions>> {
        let dir = self.secret_dir(name);
        let files = match file_names(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(Error::new(&codes::STORE_CORRUPT)
                    .object(dir.display())
                    .detail("is a file where a secret's directory belongs; move it away"));
            }
            Err(error) => return Err(io_error(&dir, "list it")(error)),
        };
        let numbers = |suffix: &str| {
            let mut numbers: Vec<_> = files
                .iter()
                .filter_map(|file| parse_version(file.strip_suffix(suffix)?))
                .collect();
            numbers.sort_unstable();
            numbers
        };
        let (all, removed) = (numbers(".age"), numbers(".removed"));
        let bound = removed.last().copied().unwrap_or(0);
        let (outdated, kept) = all.into_iter().partition(|version| *version <= bound);
        Ok(Some(Versions {
            kept,
            outdated,
            removed,
        }))
    }

    fn written_at(&self, name: &Name, version: u64) -> Result<Option<Wall>> {
        let path = self.secret_dir(name).join(version_file(version));
        match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(time) => Ok(Some(wall(time))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path, "look at it")(error)),
        }
    }
}

impl Lookup {
    /// The version, or the error that says why there is none.
    ///
    /// # Errors
    /// `backend.not_found`, `store.no_version`.
    pub fn or_error(self, name: &Name, version: Option<u64>) -> Result<Found> {
        match self {
            Lookup::Found(found) => Ok(found),
            Lookup::Removed(at) => Err(Error::new(&codes::BACKEND_NOT_FOUND)
                .object(name)
                .detail(format!("was removed from the store (as version {at})"))),
            Lookup::Absent => Err(Error::new(&codes::BACKEND_NOT_FOUND)
                .object(name)
                .detail("the store has no secret of this name; see `secretfs store list`")),
            Lookup::NoVersion => {
                Err(Error::new(&codes::STORE_NO_VERSION)
                    .object(name)
                    .detail(format!(
                        "the store does not keep version {}; see `secretfs store history`",
                        version.unwrap_or_default()
                    )))
            }
        }
    }
}

impl Found {
    /// Decrypts it.
    ///
    /// # Errors
    /// `store.corrupt` with the file's name, `store.too_large`, `store.io`.
    pub fn read(self, with: &Identities) -> Result<SecretBytes> {
        let path = self.path.clone();
        unseal(&self.read_sealed()?, with).map_err(|error| error.object(path.display()))
    }

    /// The age file as it is.
    pub(super) fn read_sealed(mut self) -> Result<Vec<u8>> {
        read_at_most(&mut self.file, self.stamp.bytes, SEALED_BYTES)
            .map_err(io_error(&self.path, "read it"))?
            .ok_or_else(|| Error::new(&codes::STORE_TOO_LARGE).object(self.path.display()))
    }

    /// The file's time.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.file.metadata().and_then(|meta| meta.modified()).ok()
    }
}

/// A version's number as it is written: digits, from 1, without leading zeros.
pub fn parse_version(text: &str) -> Option<u64> {
    let digits = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// All bytes of a file; `None` if there are more than `limit`.
pub(super) fn read_file(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut file = open_regular(path)?;
    let bytes = file.metadata()?.len();
    read_at_most(&mut file, bytes, limit)
}

fn open(path: &Path) -> io::Result<(File, Stamp)> {
    let file = open_regular(path)?;
    let meta = file.metadata()?;
    let stamp = Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        bytes: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
    };
    Ok((file, stamp))
}

/// The names in a directory that are text; others are not ours.
fn file_names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

fn wall(time: SystemTime) -> Wall {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn a_version_is_written_in_one_way_only() {
        for (text, expect) in [
            ("1", Some(1)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("0", None),
            ("01", None),
            ("", None),
            ("+1", None),
            ("1a", None),
        ] {
            assert_eq!(parse_version(text), expect, "{text:?}");
        }
    }
}
