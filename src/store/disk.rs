//! One method per file system step of the store, so that a test can fail the Nth, or die at it.

use std::{
    fs::{DirBuilder, File, FileTimes, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    time::SystemTime,
};

/// The steps. A path is always one that this program has put together itself.
pub trait Disk: Send + Sync {
    /// Opens the lock file, making it if need be, and waits for the exclusive lock; closing the file, or death, frees it.
    fn lock(&self, path: &Path) -> io::Result<File>;
    /// Makes a directory, less the umask.
    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Makes a file, less the umask; fails if something is there.
    fn create(&self, path: &Path, mode: u32) -> io::Result<File>;
    /// Writes all of `bytes`.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file the time of the one that it replaces.
    fn set_modified(&self, file: &File, at: SystemTime) -> io::Result<()>;
    /// To the medium: a file's bytes.
    fn sync(&self, file: &File) -> io::Result<()>;
    /// To the medium: a directory's names.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Another name for a file; fails if something is there.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Replaces `to`, or takes its place if it is an empty directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, path: &Path) -> io::Result<()>;
}

/// The machine's.
pub struct RealDisk;

impl Disk for RealDisk {
    fn lock(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true) // NFS locks exclusively only what is open for writing
            .create(true)
            .truncate(false)
            .open(path)?;
        loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|()| file),
            }
        }
    }

    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(mode).create(path)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn set_modified(&self, file: &File, at: SystemTime) -> io::Result<()> {
        file.set_times(FileTimes::new().set_modified(at))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rmdir(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }
}

/// The bytes of a reader, at most `limit` of them; `None` if there are more. `expected` bytes are set aside at once, so
/// that the buffer does not move while it fills.
pub fn read_at_most(from: &mut dyn Read, expected: u64, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let capacity = usize::try_from(expected.min(limit)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(capacity.saturating_add(1));
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}
