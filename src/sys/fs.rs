//! The file system's system calls, behind a trait so that tests make each of them fail.
//!
//! One method of [`Fs`] is one system call (but [`Fs::getdents`] and [`Fs::mountinfo`], which read to the end), so "fail the Nth" and
//! "die at the Nth" mean something. The arguments are only as general as the mounters need. [`RealFs`] is the kernel.
//!
//! Closing is not here: an `OwnedFd` closes itself, and a death closes everything.

use std::{
    ffi::OsString,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

pub use rustix::io::Errno;

pub use super::real_fs::{RealFs, own_ids, page_bytes};

/// What a system call says.
pub type Sys<T> = std::result::Result<T, Errno>;

/// A name below an open directory; an absolute path where there is none.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The directory.
    pub dir: Option<BorrowedFd<'a>>,
    /// The name, or a path below it.
    pub path: &'a Path,
}

impl<'a> At<'a> {
    /// `path` below `dir`.
    pub fn below<P: AsRef<Path> + ?Sized>(dir: BorrowedFd<'a>, path: &'a P) -> Self {
        Self {
            dir: Some(dir),
            path: path.as_ref(),
        }
    }

    /// An absolute path.
    pub fn absolute(path: &'a Path) -> Self {
        Self { dir: None, path }
    }
}

/// What to open, and for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// O_PATH of a directory by its absolute path, links followed.
    Followed,
    /// O_PATH of a directory below `dir`, whatever is mounted there on top; a link on the way or at its end is ELOOP, a way out of
    /// `dir` EXDEV.
    Beneath,
    /// A directory, to list it and to name files below it; no link on the way, and none out.
    Directory,
    /// A file, to read; no link on the way.
    Read,
    /// A file, to overwrite it in place; no link on the way.
    Overwrite,
    /// A new file, to write; EEXIST if there is one. Mode 0600 until [`Fs::fchmod`].
    Create,
}

/// A kind of file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsKind {
    /// tmpfs.
    Tmpfs,
}

/// One step of configuring a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting<'a> {
    /// `key=value`.
    Text(&'a str, &'a str),
    /// `key`.
    Flag(&'a str),
    /// Make the superblock of what was set.
    Create,
    /// Apply what was set to the superblock that was picked.
    Reconfigure,
}

/// A change of one mount's attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Read-only.
    ReadOnly,
    /// Writable, and in no peer group: nothing that happens to it is seen elsewhere.
    WritableAndPrivate,
}

/// What stands in a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What a directory's entry is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A device, pipe, socket, or unknown.
    Other,
}

/// What [`Fs::unlinkat`] removes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Removed {
    /// Anything but a directory.
    File,
    /// An empty directory.
    Directory,
}

/// Of one open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Device of its superblock: major, minor.
    pub dev: (u32, u32),
    /// The mount that it was reached through; 0 before Linux 5.8.
    pub mount_id: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
}

/// Of one mount, as the kernel tells it when it is asked for that one alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountStat {
    /// Its id, as [`Stat::mount_id`] and mountinfo have it.
    pub id: u64,
    /// Id of the mount that it is attached to.
    pub parent: u64,
    /// The same, as [`Fs::unique_mount_id`] has it.
    pub parent_unique: u64,
    /// Device of its superblock: major, minor.
    pub dev: (u32, u32),
    /// The directory of the file system that it shows.
    pub root: OsString,
    /// Where it is attached.
    pub point: OsString,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// Its peer group.
    pub shared: Option<u32>,
    /// Kind of file system.
    pub fs_type: OsString,
    /// What it was made of; `None` where that is empty, and before Linux 6.13.
    pub source: Option<OsString>,
    /// The superblock's options; `None` where there is none, and before Linux 6.11.
    pub options: Option<OsString>,
}

/// Of one file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Whether it is a tmpfs.
    pub is_tmpfs: bool,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Blocks that it may hold.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Inodes that it may hold.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// The system calls of the mounters.
pub trait Fs: Send + Sync {
    /// Begins to make a file system.
    fn fsopen(&self, kind: FsKind) -> Sys<OwnedFd>;
    /// Configures one that was begun or picked.
    fn fsconfig(&self, context: BorrowedFd<'_>, setting: Setting<'_>) -> Sys<()>;
    /// A mount of it that has no path: nosuid, nodev, noexec, writable.
    fn fsmount(&self, context: BorrowedFd<'_>) -> Sys<OwnedFd>;
    /// Begins to reconfigure the superblock of a mount.
    fn fspick(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd>;
    /// Changes a mount's attributes. EBUSY for [`Change::ReadOnly`] while a file is open for writing.
    fn mount_setattr(&self, mount: BorrowedFd<'_>, change: Change) -> Sys<()>;
    /// Another mount, without a path, of what `mount` shows. **Of any directory**: who calls it checks what came.
    fn open_tree_clone(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd>;
    /// Attaches a mount that has no path at the directory `target`.
    fn move_mount(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Sys<()>;
    /// Detaches exactly this mount, and what is mounted on it, however busy.
    fn umount2(&self, mount: BorrowedFd<'_>) -> Sys<()>;
    /// The mounts of this thread's namespace, as text.
    fn mountinfo(&self) -> Sys<Vec<u8>>;
    /// The id of the mount that a file was reached through, as no other mount has it until the next boot. ENOSYS before Linux 6.8.
    fn unique_mount_id(&self, file: BorrowedFd<'_>) -> Sys<u64>;
    /// The mount with this unique id. ENOSYS before Linux 6.8.
    fn statmount(&self, unique: u64) -> Sys<MountStat>;
    /// Opens.
    fn openat2(&self, at: At<'_>, how: How) -> Sys<OwnedFd>;
    /// Makes a directory; its mode is subject to the umask.
    fn mkdirat(&self, at: At<'_>, mode: u32) -> Sys<()>;
    /// Makes a symbolic link at `at` that leads to `to`.
    fn symlinkat(&self, to: &Path, at: At<'_>) -> Sys<()>;
    /// Renames, over what is there.
    fn renameat(&self, from: At<'_>, to: At<'_>) -> Sys<()>;
    /// Removes.
    fn unlinkat(&self, at: At<'_>, what: Removed) -> Sys<()>;
    /// Where a symbolic link leads.
    fn readlinkat(&self, at: At<'_>) -> Sys<OsString>;
    /// Reads at the descriptor's position; 0 at the end.
    fn read(&self, file: BorrowedFd<'_>, into: &mut [u8]) -> Sys<usize>;
    /// Writes at the descriptor's position; how many bytes were taken.
    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Sys<usize>;
    /// Sets permission bits.
    fn fchmod(&self, file: BorrowedFd<'_>, mode: u32) -> Sys<()>;
    /// Sets owner and group; `None` leaves it.
    fn fchown(&self, file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Sys<()>;
    /// Sets both times of what stands at `at` (of a link itself) to now.
    fn utimensat(&self, at: At<'_>) -> Sys<()>;
    /// All entries of a directory but `.` and `..`; `dir` is freshly opened by [`How::Directory`].
    fn getdents(&self, dir: BorrowedFd<'_>) -> Sys<Vec<Entry>>;
    /// Of an open file, or one named by O_PATH.
    fn statx(&self, file: BorrowedFd<'_>) -> Sys<Stat>;
    /// Of the file system that it is on.
    fn fstatfs(&self, file: BorrowedFd<'_>) -> Sys<Space>;
}

/// Writes all of `bytes`; tmpfs takes fewer when it fills up, and says ENOSPC at the next call.
pub fn write_all(fs: &dyn Fs, file: BorrowedFd<'_>, mut bytes: &[u8]) -> Sys<()> {
    while !bytes.is_empty() {
        match fs.write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads `size` bytes, or as many as there are.
pub fn read_up_to(fs: &dyn Fs, file: BorrowedFd<'_>, size: usize) -> Sys<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match fs.read(file, rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
