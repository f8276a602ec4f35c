//! `--from DIR`: the files of a directory, of one generation where it has the layout of a volume.
//!
//! That layout (the kubelet's, and ours) has a link `..data` to the directory of the current generation. It is read once, and all files
//! below what it names. A kubelet removes a superseded generation at once, so where `..data` has moved by the end, all of it is read again.
//!
//! Does not: follow a link below DIR, or name variables.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use inotify::{EventMask, WatchMask};

use super::names::Naming;
use crate::{
    error::{Error, Result, codes},
    limits,
    mount::layout,
    path::RelPath,
    secret::SecretBytes,
    sys::{
        fs::{At, EntryKind, Errno, Fs, How, RealFs},
        inotify::Watcher,
    },
};

/// How often a directory is read that changes meanwhile.
const TRIES: u32 = 100;

/// Files with their contents.
pub type Files = BTreeMap<RelPath, Arc<SecretBytes>>;

/// A directory with secrets.
pub struct Dir {
    path: PathBuf,
    root: OwnedFd,
    /// Bytes of a file that are read: one more than a variable takes.
    most: usize,
}

/// Why a pass failed: `Moved` is not wrong, but old.
enum Failed {
    Moved,
    For(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::For(error)
    }
}

impl Dir {
    /// Opens it. No file larger than `longest` is read to its end.
    ///
    /// # Errors
    /// `exec.no_file`.
    pub fn open(path: &Path, longest: usize) -> Result<Self> {
        let unusable = |error: io::Error| {
            Error::new(&codes::EXEC_NO_FILE)
                .object(path.display())
                .detail("it cannot be read as a directory")
                .source(error)
        };
        let absolute = std::path::absolute(path).map_err(unusable)?;
        let root = RealFs.openat2(At::absolute(&absolute), How::Followed);
        Ok(Self {
            path: path.to_owned(),
            root: root.map_err(|errno| unusable(errno.into()))?,
            most: longest + 1,
        })
    }

    /// Whether it has generations.
    ///
    /// # Errors
    /// `node.io`.
    pub fn is_volume(&self) -> Result<bool> {
        Ok(self.current()?.is_some())
    }

    /// Where `..data` leads; `None`: there is none.
    fn current(&self) -> Result<Option<OsString>> {
        match RealFs.readlinkat(At::below(self.root.as_fd(), layout::DATA)) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(errno) => Err(self.failed(&self.path, "read `..data`", errno)),
        }
    }

    /// All its files, or those that are named; of one generation.
    ///
    /// # Errors
    /// `exec.no_file`, `exec.bad_name`, `exec.too_large`, `exec.unsettled`, `node.io`.
    pub fn read(&self, naming: &Naming) -> Result<Files> {
        tracing::trace!(dir = %self.path.display(), "a directory is read");
        for _ in 0..TRIES {
            match self.pass(naming) {
                Ok(files) => return Ok(files),
                Err(Failed::Moved) => tracing::debug!("it changed meanwhile, and is read again"),
                Err(Failed::For(error)) => return Err(error),
            }
        }
        Err(Error::new(&codes::EXEC_UNSETTLED).object(self.path.display()))
    }

    /// 1. Where `..data` leads.
    /// 2. That directory is opened; in one without generations the directory itself.
    /// 3. Its files are read.
    /// 4. What was found counts, an error too, only if `..data` has not moved.
    fn pass(&self, naming: &Naming) -> Result<Files, Failed> {
        let current = self.current()?; // 1
        let below = current.clone().unwrap_or_else(|| ".".into());
        let at = At::below(self.root.as_fd(), &below);
        let found = match RealFs.openat2(at, How::Directory) {
            Ok(dir) => self.files(dir, naming), // 2, 3
            Err(errno) => Err(self.failed(&self.path, "open its files", errno)),
        };
        if self.current()? != current {
            return Err(Failed::Moved); // 4
        }
        Ok(found?)
    }

    fn files(&self, dir: OwnedFd, naming: &Naming) -> Result<Files> {
        let mut files = Files::new();
        match naming.wanted() {
            Some(wanted) => {
                for path in wanted {
                    files.insert(path.clone(), self.file(dir.as_fd(), path.as_str(), path)?);
                }
            }
            None => self.all(dir, "", 0, &mut files)?,
        }
        if files.is_empty() {
            let error = Error::new(&codes::EXEC_NO_FILE).object(self.path.display());
            return Err(error.detail("it holds no file"));
        }
        Ok(files)
    }

    /// All files below `dir`, whose own path ends in `/` or is "".
    fn all(&self, dir: OwnedFd, prefix: &str, depth: usize, files: &mut Files) -> Result<()> {
        let shown = || self.path.join(prefix);
        let failed = |errno| self.failed(&shown(), "list it", errno);
        if depth > limits::NESTING {
            return Err(self.too_much());
        }
        for entry in RealFs.getdents(dir.as_fd()).map_err(failed)? {
            if depth == 0 && entry.name.to_string_lossy().starts_with("..") {
                continue; // names of the layout
            }
            let bad = |why: &str| {
                Error::new(&codes::EXEC_BAD_NAME)
                    .object(shown().join(&entry.name).display())
                    .detail(format!("it {why}"))
            };
            let name = entry.name.to_str().ok_or_else(|| bad("is not UTF-8"))?;
            let path = format!("{prefix}{name}");
            match entry.kind {
                EntryKind::Directory => {
                    let at = At::below(dir.as_fd(), name);
                    let below = RealFs.openat2(at, How::Directory).map_err(failed)?;
                    self.all(below, &format!("{path}/"), depth + 1, files)?;
                }
                EntryKind::File if files.len() == limits::EXEC_FILES => {
                    return Err(self.too_much());
                }
                EntryKind::File => {
                    let path = RelPath::parse(&path).map_err(&bad)?;
                    let file = self.file(dir.as_fd(), name, &path)?;
                    files.insert(path, file);
                }
                EntryKind::Link | EntryKind::Other => return Err(not_regular(&shown().join(name))),
            }
        }
        Ok(())
    }

    fn too_much(&self) -> Error {
        let (files, nesting) = (limits::EXEC_FILES, limits::NESTING);
        let error = Error::new(&codes::EXEC_TOO_LARGE).object(self.path.display());
        error.detail(format!(
            "more than {files} files, or {nesting} directories in each other, are no secrets for one program"
        ))
    }

    /// The content of the file that `name` leads to from `dir`.
    fn file(&self, dir: BorrowedFd<'_>, name: &str, path: &RelPath) -> Result<Arc<SecretBytes>> {
        let shown = self.path.join(path.as_str());
        let file = match RealFs.openat2(At::below(dir, name), How::Read) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Error::new(&codes::EXEC_NO_FILE).object(shown.display()));
            }
            Err(Errno::LOOP) => return Err(not_regular(&shown)),
            Err(errno) => return Err(self.failed(&shown, "open it", errno)),
        };
        let failed = |error: io::Error| {
            let error = Error::new(&codes::NODE_IO).source(error);
            error.object(shown.display()).step("read it")
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(not_regular(&shown));
        }
        let mut bytes = Vec::new();
        let mut file = file.take(self.most as u64);
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(Arc::new(SecretBytes::new(bytes)))
    }

    fn failed(&self, path: &Path, step: &'static str, errno: Errno) -> Error {
        Error::new(&codes::NODE_IO)
            .object(path.display())
            .step(step)
            .source(io::Error::from(errno))
    }

    /// Tells of changes from now on. Call it inside a runtime, and before what is read shall be the latest.
    ///
    /// # Errors
    /// `usage` where there are no generations: several files there cannot change at once. `node.io`.
    pub fn watch(&self) -> Result<Watch> {
        if !self.is_volume()? {
            let why = "it has no `..data`, as a volume has: changes of several files cannot be seen as one; \
                       leave --restart-on-change and --signal away";
            let error = Error::new(&codes::USAGE).object(self.path.display());
            return Err(error.detail(why));
        }
        let failed = |error: io::Error| {
            Error::new(&codes::NODE_IO)
                .object(self.path.display())
                .step("watch it")
                .source(error)
        };
        let watcher = Watcher::new().map_err(failed)?;
        let mask = WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        watcher.add(&self.path, mask).map_err(failed)?;
        Ok(Watch {
            watcher,
            shown: self.path.display().to_string(),
        })
    }
}

fn not_regular(path: &Path) -> Error {
    let error = Error::new(&codes::EXEC_NO_FILE).object(path.display());
    error.detail("it is not a regular file; name others with --env, or take it away")
}

/// Hears of another `..data`.
pub struct Watch {
    watcher: Watcher,
    shown: String,
}

impl Watch {
    /// Returns when there may be another generation. Losing the future loses no change that was not told.
    pub async fn changed(&mut self) {
        loop {
            match self.watcher.events().await {
                Ok(events) => {
                    let is_new = |event: &inotify::EventOwned| {
                        event.mask.contains(EventMask::Q_OVERFLOW)
                            || event.name.as_ref().is_some_and(|name| name == layout::DATA)
                    };
                    if events.iter().any(is_new) {
                        return;
                    }
                    if events
                        .iter()
                        .any(|event| event.mask.contains(EventMask::IGNORED))
                    {
                        tracing::warn!(
                            dir = self.shown,
                            "the directory is gone: no change will be seen any more"
                        );
                        return std::future::pending().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(dir = self.shown, %error, "changes are not seen any more");
                    return std::future::pending().await;
                }
            }
        }
    }
}
