//! One instance serves a node: whoever holds `<runtimeDir>/lock`.
//!
//! The lock is the kernel's (flock) and ends with its holder, however that ends. The file says who holds it, for people only. In a
//! directory that is read-only, and has no such file, the directory itself is locked.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    cli::rundir,
    error::{Error, Result, codes},
    sys::process,
};

/// Bytes of the file that are shown.
const SHOWN: u64 = 200;

/// Held until it is dropped.
pub struct NodeLock {
    _file: File,
}

/// Takes the lock of `dir`, which is made if it is not there (0700). While another instance holds it, says so once and waits.
///
/// 1. Lock the file, on a thread of its own if that takes waiting.
/// 2. See that the name still leads to it: somebody may have cleaned up meanwhile, and then another has locked the new file.
/// 3. Write down who we are.
///
/// # Errors
/// `node.io`.
pub async fn take(dir: &Path) -> Result<NodeLock> {
    let failed = |path: &Path, step| {
        let error = Error::new(&codes::NODE_IO).object(path.display());
        move |source: io::Error| error.step(step).source(source)
    };
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(dir);
    made.map_err(failed(dir, "make runtimeDir"))?;
    rundir::usable(dir).map_err(failed(dir, "use it as runtimeDir"))?;
    let file = dir.join("lock");
    loop {
        let opened = open(&file, dir).map_err(failed(&file, "open the lock"));
        let (file, path) = opened?;
        let locked = lock(file, &path).await; // 1
        let mut file = locked.map_err(failed(&path, "lock it"))?;
        let mine = file.metadata().map(|found| found.ino());
        let there = path.symlink_metadata().map(|found| found.ino());
        if there.is_ok_and(|there| mine.is_ok_and(|mine| mine == there)) {
            let who = format!(
                "process {} on {}\n",
                std::process::id(),
                process::host_name()
            );
            tracing::trace!(path = %path.display(), "the lock is held");
            let written = file
                .set_len(0)
                .and_then(|()| file.write_all(who.as_bytes())); // 3
            if let Err(error) = written {
                tracing::debug!(%error, "the lock does not say who holds it"); // a disk that is full or read-only is no reason
            }
            return Ok(NodeLock { _file: file });
        } // 2
    }
}

/// What is to be locked, and where it is.
fn open(path: &Path, dir: &Path) -> io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).read(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => match File::open(path) {
            Ok(file) => Ok((file, path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok((File::open(dir)?, dir.to_owned()))
            }
            Err(error) => Err(error),
        },
        opened => Ok((opened?, path.to_owned())),
    }
}

async fn lock(file: File, path: &Path) -> io::Result<File> {
    if process::try_lock(&file)? {
        return Ok(file);
    }
    eprintln!(
        "secretfs: waiting: {} serves this node (it holds {})",
        holder(path),
        path.display()
    );
    let waited = tokio::task::spawn_blocking(move || process::lock(&file).map(|()| file));
    waited.await.map_err(io::Error::other)?
}

/// Who holds the lock, as it says itself.
fn holder(path: &Path) -> String {
    let read = File::open(path).and_then(|file| io::read_to_string(io::Read::take(file, SHOWN)));
    let who = read.unwrap_or_default();
    let line: String = who
        .lines()
        .take(1)
        .flat_map(|line| line.escape_debug())
        .collect();
    match line.as_str() {
        "" => "another instance".to_owned(),
        line => format!("another instance, {line},"),
    }
}
