//! Writing: one writer at a time, everything made in `.new`, shown by one link or rename.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::{
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
    store::{
        FORMAT, FORMAT_VERSION, Identities, Manifest, Name, Recipients, Store,
        disk::{Disk, RealDisk},
        io_error,
        keys::{make_dirs, parent},
        read::Versions,
        removed_file,
        seal::{seal, unseal},
        version_file,
    },
};

/// What git should pass over.
const GITIGNORE: &str = "/.lock\n/.new/\n";

impl Store {
    /// Makes a store at `dir`.
    ///
    /// 1. Refuse a directory that holds a store, or things that do not belong to one.
    /// 2. Make the directory (0700), and take the lock.
    /// 3. Make `recipients`, `.gitignore`, `secrets/`.
    /// 4. Make `store.json`, which makes it a store. A kill before leaves none, and another `init` completes it.
    ///
    /// # Errors
    /// `store.exists`; `usage` for a directory of other things; `store.io`.
    pub fn init(dir: impl Into<PathBuf>, recipients: &Recipients) -> Result<Self> {
        Self::init_on(dir.into(), Arc::new(RealDisk), recipients)
    }

    pub(super) fn init_on(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        recipients: &Recipients,
    ) -> Result<Self> {
        let store = Self { dir, disk };
        store.check_no_store()?; // 1
        make_dirs(&*store.disk, &store.dir).map_err(io_error(&store.dir, "make it"))?; // 2
        let writer = store.writer()?;
        store.check_no_store()?;
        writer.replace("recipients", recipients.to_text().as_bytes())?; // 3
        writer.replace(".gitignore", GITIGNORE.as_bytes())?;
        let manifest = Manifest {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
        };
        let text = serde_json::to_string(&manifest)
            .map_err(|error| Error::new(&codes::BUG).source(error))?;
        writer.replace("store.json", format!("{text}\n").as_bytes())?; // 4
        let above = parent(&store.dir);
        store
            .disk
            .sync_dir(above)
            .map_err(io_error(above, "sync it"))?;
        drop(writer);
        Ok(store)
    }

    fn check_no_store(&self) -> Result<()> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(&self.dir, "look at it")(error)),
        };
        for entry in entries {
            let entry = entry.map_err(io_error(&self.dir, "list it"))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == "store.json" {
                return Err(Error::new(&codes::STORE_EXISTS).object(self.dir.display()));
            }
            let ours = name == "recipients" || name == "secrets" || name.starts_with('.');
            if !ours && !name.starts_with("README") {
                return Err(Error::new(&codes::USAGE)
                    .object(self.dir.display())
                    .detail(format!(
                        "holds other things (`{}`) and no store; name an empty or a new directory with --store",
                        name.escape_debug()
                    )));
            }
        }
        Ok(())
    }

    /// Puts a new version, and says its number. Needs no identity.
    ///
    /// 1. Take the lock; encrypt to the recipients.
    /// 2. Make the file in `.new` and sync it.
    /// 3. Show it under the next number: link it into the secret's directory, or, for a new secret, make `.new` that
    ///    directory. Neither replaces anything. Sync the directory: from here on it is kept.
    /// 4. Remove what is above the limit of versions, oldest first.
    ///
    /// # Errors
    /// `store.too_large`, `store.bad_recipient`, `store.io`. After an error the version may be there or not.
    pub fn put(&self, name: &Name, value: &SecretBytes) -> Result<u64> {
        let writer = self.writer()?; // 1
        let sealed = seal(value, &self.recipients()?).map_err(|error| error.object(name))?;
        writer.add(name, &sealed) // 2-4
    }

    /// Puts the content of an old version as a new one. With identities it is read and encrypted to the present
    /// recipients; without, the old version's file is copied as it is.
    ///
    /// # Errors
    /// `backend.not_found`, `store.no_version`; `store.corrupt` when the old version cannot be read; as [`Store::put`].
    pub fn rollback(&self, name: &Name, version: u64, with: Option<&Identities>) -> Result<u64> {
        let writer = self.writer()?;
        let found = self
            .look_up(name, Some(version))?
            .or_error(name, Some(version))?;
        let path = self.secret_dir(name).join(version_file(version));
        let mut sealed = found.read_sealed()?;
        if let Some(with) = with {
            let value = unseal(&sealed, with).map_err(|error| error.object(path.display()))?;
            sealed = seal(&value, &self.recipients()?)?;
        } else if !sealed.starts_with(b"age-encryption.org/") {
            return Err(Error::new(&codes::STORE_CORRUPT)
                .object(path.display())
                .detail("is not an age file; choose another version"));
        }
        writer.add(name, &sealed)
    }

    /// Removes a secret with all its versions. The number under which it was removed.
    ///
    /// 1. Link the mark of the removal into its directory, under the next number, and sync: from here on it is gone.
    /// 2. Remove the versions, oldest first (a reader that missed the mark must not see an old one as the newest).
    ///
    /// # Errors
    /// `backend.not_found`, `store.io`. After an error it may be removed or not.
    pub fn remove(&self, name: &Name) -> Result<u64> {
        let writer = self.writer()?;
        self.look_up(name, None)?.or_error(name, None)?;
        let number = self.next_number(name)?;
        writer.show(name, &removed_file(number), &[])?; // 1, 2
        Ok(number)
    }

    fn next_number(&self, name: &Name) -> Result<u64> {
        let last = self.versions(name)?.map_or(0, |versions| versions.last());
        last.checked_add(1).ok_or_else(|| {
            Error::new(&codes::STORE_CORRUPT)
                .object(self.secret_dir(name).display())
                .detail("has the highest version number that there is; move that file away")
        })
    }

    /// Takes the lock, and removes what a killed writer left.
    pub(super) fn writer(&self) -> Result<Writer<'_>> {
        let path = self.dir.join(".lock");
        let lock = self
            .disk
            .lock(&path)
            .map_err(io_error(&path, "take the writers' lock"))?;
        tracing::trace!("the writers' lock is held");
        let writer = Writer {
            store: self,
            new: self.dir.join(".new"),
            _lock: lock,
        };
        writer.recover()?;
        let secrets = self.secrets();
        if !secrets.is_dir() {
            self.disk
                .mkdir(&secrets, 0o777)
                .and_then(|()| self.disk.sync_dir(&self.dir))
                .map_err(io_error(&secrets, "make it"))?;
        }
        Ok(writer)
    }
}

/// The one writer, for as long as it holds the lock.
pub(super) struct Writer<'a> {
    store: &'a Store,
    new: PathBuf,
    _lock: File,
}

impl Writer<'_> {
    /// Completes what a killed writer may have left undone, and removes `.new`, which says that there is such a thing.
    fn recover(&self) -> Result<()> {
        if !self.new.is_dir() {
            return Ok(());
        }
        for name in self.store.names()? {
            self.tidy(&name)?;
        }
        self.unstage()
            .map_err(io_error(&self.new, "remove what a killed writer left"))
    }

    /// Shows `sealed` as the next version of `name`.
    fn add(&self, name: &Name, sealed: &[u8]) -> Result<u64> {
        let number = self.store.next_number(name)?;
        self.show(name, &version_file(number), sealed)?;
        Ok(number)
    }

    /// Makes `file` in `.new`, shows it in the secret's directory, where nothing has that name, and removes what it
    /// outdates.
    fn show(&self, name: &Name, file: &str, bytes: &[u8]) -> Result<()> {
        let disk = &*self.store.disk;
        let dir = self.store.secret_dir(name);
        let shown = self.stage(file, bytes, None).and_then(|staged| {
            let to_new_dir = match disk.link(&staged, &dir.join(file)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => true,
                result => result.map(|()| false)?,
            };
            if to_new_dir {
                disk.sync_dir(&self.new)?;
                disk.rename(&self.new, &dir)?;
                disk.sync_dir(&self.store.secrets())
            } else {
                disk.sync_dir(&dir)
            }
        });
        // It is shown, or it is not; either way this is only about leftovers. Where they cannot be removed, `.new` stays
        // and the next command does it.
        if self.tidy(name).is_ok() {
            let _ = self.unstage();
        }
        shown.map_err(io_error(&dir, "write a version"))
    }

    /// Replaces a file of the store by one with these bytes, durably.
    pub(super) fn replace(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.replace_at(&self.store.dir.join(path), bytes, None)
    }

    /// As [`Writer::replace`], anywhere in the store. `modified`: the time that the file shall show.
    pub(super) fn replace_at(
        &self,
        path: &Path,
        bytes: &[u8],
        modified: Option<SystemTime>,
    ) -> Result<()> {
        let disk = &*self.store.disk;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let replaced = self
            .stage(&file, bytes, modified)
            .and_then(|staged| disk.rename(&staged, path))
            .and_then(|()| disk.sync_dir(parent(path)));
        let _ = self.unstage();
        replaced.map_err(io_error(path, "replace it"))
    }

    /// Makes `.new/FILE`, on the medium.
    fn stage(&self, file: &str, bytes: &[u8], modified: Option<SystemTime>) -> io::Result<PathBuf> {
        let disk = &*self.store.disk;
        disk.mkdir(&self.new, 0o777)?;
        let path = self.new.join(file);
        let mut made = disk.create(&path, 0o666)?;
        disk.write(&mut made, bytes)?;
        if let Some(at) = modified {
            disk.set_modified(&made, at)?;
        }
        disk.sync(&made)?;
        Ok(path)
    }

    /// Removes `.new`, if it is there.
    fn unstage(&self) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            self.store.disk.unlink(&entry?.path())?;
        }
        self.store.disk.rmdir(&self.new)
    }

    /// Removes from a secret's directory what is outdated: versions below a removal, all but the last removal's mark,
    /// versions above the limit; each oldest first. Removes the directory if it is empty.
    fn tidy(&self, name: &Name) -> Result<()> {
        let disk = &*self.store.disk;
        let dir = self.store.secret_dir(name);
        let Ok(Some(versions)) = self.store.versions(name) else {
            return Ok(()); // nothing there, or damage that is not for us to mend
        };
        let Versions {
            kept,
            outdated,
            removed,
        } = &versions;
        if versions.last() == 0 {
            let _ = disk.rmdir(&dir); // it may hold a file that is not ours, and then stays
            return Ok(());
        }
        let limit = limits::STORE_VERSIONS as usize;
        let above_limit = kept.get(..kept.len().saturating_sub(limit)).unwrap_or(&[]);
        let old_marks = removed.split_last().map_or(&[][..], |(_, older)| older);
        let files: Vec<_> = outdated
            .iter()
            .chain(above_limit)
            .map(|version| version_file(*version))
            .chain(old_marks.iter().map(|version| removed_file(*version)))
            .collect();
        let removed = files
            .iter()
            .try_for_each(|file| disk.unlink(&dir.join(file)));
        let synced = removed.and_then(|()| match files.is_empty() {
            true => Ok(()),
            false => disk.sync_dir(&dir),
        });
        synced.map_err(io_error(&dir, "remove old versions"))
    }
}
