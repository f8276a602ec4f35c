//! [`RealFs`]: the kernel behind [`Fs`].

use std::{
    ffi::{OsStr, OsString},
    io::Read as _,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, StatxFlags, Timespec,
        Timestamps, UTIME_NOW, Uid,
    },
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
        UnmountFlags,
    },
};

use super::fs::{
    At, Change, Entry, EntryKind, Errno, Fs, FsKind, How, MountStat, Removed, Setting, Space, Stat,
    Sys,
};
use super::statmount::statmount;

/// Magic number of tmpfs (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// `STATX_MNT_ID_UNIQUE` (linux/stat.h).
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// The kernel.
pub struct RealFs;

/// User and group that new files belong to.
pub fn own_ids() -> (u32, u32) {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    (uid.as_raw(), gid.as_raw())
}

/// Bytes of a memory page: what the smallest file of a tmpfs takes.
pub fn page_bytes() -> u64 {
    // SAFETY: sysconf takes a number, touches no memory of ours, and says -1 to a number that it does not know.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes > 0)
        .unwrap_or(4096)
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn dir_of(at: At<'_>) -> BorrowedFd<'_> {
    at.dir.unwrap_or(CWD)
}

impl Fs for RealFs {
    fn fsopen(&self, kind: FsKind) -> Sys<OwnedFd> {
        let name = match kind {
            FsKind::Tmpfs => "tmpfs",
        };
        rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)
    }

    fn fsconfig(&self, context: BorrowedFd<'_>, setting: Setting<'_>) -> Sys<()> {
        match setting {
            Setting::Text(key, value) => rustix::mount::fsconfig_set_string(context, key, value),
            Setting::Flag(key) => rustix::mount::fsconfig_set_flag(context, key),
            Setting::Create => rustix::mount::fsconfig_create(context),
            Setting::Reconfigure => rustix::mount::fsconfig_reconfigure(context),
        }
    }

    fn fsmount(&self, context: BorrowedFd<'_>) -> Sys<OwnedFd> {
        let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
    }

    fn fspick(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd> {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        rustix::mount::fspick(mount, "", flags)
    }

    fn mount_setattr(&self, mount: BorrowedFd<'_>, change: Change) -> Sys<()> {
        let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
        let attr = match change {
            Change::ReadOnly => MountAttr {
                attr_set: read_only,
                ..MountAttr::default()
            },
            Change::WritableAndPrivate => MountAttr {
                attr_clr: read_only,
                propagation: libc::MS_PRIVATE,
                ..MountAttr::default()
            },
        };
        // JUSTIFICATION: neither rustix 1.1 nor nix 0.31 has mount_setattr.
        // SAFETY: `mount` is open during the call, because it is borrowed for it. The path is a C literal. `attr` is repr(C)
        // with four u64, as in linux/mount.h (checked by `mount_attr_has_the_kernels_layout`), outlives the call, and its
        // own size goes with it; the kernel only reads it.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attr,
                size_of::<MountAttr>(),
            )
        };
        if rc == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn open_tree_clone(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        rustix::mount::open_tree(mount, "", flags)
    }

    fn move_mount(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Sys<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(mount, "", target, "", flags)
    }

    /// By the descriptor's own link in /proc: a path could lead to another mount by now, and no call takes a descriptor.
    fn umount2(&self, mount: BorrowedFd<'_>) -> Sys<()> {
        let link = format!("/proc/thread-self/fd/{}", mount.as_raw_fd());
        rustix::mount::unmount(link, UnmountFlags::DETACH)
    }

    /// Of the thread: `self` would show the mounts of the main thread, which can be in another namespace.
    fn mountinfo(&self) -> Sys<Vec<u8>> {
        let read = || {
            let mut text = Vec::with_capacity(16 << 10);
            std::fs::File::open("/proc/thread-self/mountinfo")?.read_to_end(&mut text)?;
            Ok::<_, std::io::Error>(text)
        };
        read().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn unique_mount_id(&self, file: BorrowedFd<'_>) -> Sys<u64> {
        let mask = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask)?;
        if stat.stx_mask & STATX_MNT_ID_UNIQUE == 0 {
            return Err(Errno::NOSYS);
        }
        Ok(stat.stx_mnt_id)
    }

    fn statmount(&self, unique: u64) -> Sys<MountStat> {
        statmount(unique)
    }

    fn openat2(&self, at: At<'_>, how: How) -> Sys<OwnedFd> {
        // no magic links either, by NO_SYMLINKS; mounts are crossed
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let (flags, mode, resolve) = match how {
            How::Followed => (
                OFlags::PATH | OFlags::DIRECTORY,
                0,
                ResolveFlags::NO_MAGICLINKS,
            ),
            // Not O_NOFOLLOW: with it a link at the end would be opened itself, and be ENOTDIR.
            How::Beneath => (OFlags::PATH | OFlags::DIRECTORY, 0, beneath),
            How::Directory => (OFlags::RDONLY | OFlags::DIRECTORY, 0, beneath),
            How::Read => (OFlags::RDONLY | OFlags::NONBLOCK, 0, beneath),
            How::Overwrite => (OFlags::WRONLY | OFlags::NONBLOCK, 0, beneath),
            How::Create => (
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
                0o600,
                beneath,
            ),
        };
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::openat2(dir_of(at), at.path, flags | OFlags::CLOEXEC, mode, resolve)
    }

    fn mkdirat(&self, at: At<'_>, mode: u32) -> Sys<()> {
        rustix::fs::mkdirat(dir_of(at), at.path, Mode::from_raw_mode(mode))
    }

    fn symlinkat(&self, to: &Path, at: At<'_>) -> Sys<()> {
        rustix::fs::symlinkat(to, dir_of(at), at.path)
    }

    fn renameat(&self, from: At<'_>, to: At<'_>) -> Sys<()> {
        rustix::fs::renameat(dir_of(from), from.path, dir_of(to), to.path)
    }

    fn unlinkat(&self, at: At<'_>, what: Removed) -> Sys<()> {
        let flags = match what {
            Removed::File => AtFlags::empty(),
            Removed::Directory => AtFlags::REMOVEDIR,
        };
        rustix::fs::unlinkat(dir_of(at), at.path, flags)
    }

    fn readlinkat(&self, at: At<'_>) -> Sys<OsString> {
        let to = rustix::fs::readlinkat(dir_of(at), at.path, Vec::new())?;
        Ok(OsString::from_vec(to.into_bytes()))
    }

    fn read(&self, file: BorrowedFd<'_>, into: &mut [u8]) -> Sys<usize> {
        rustix::io::read(file, into)
    }

    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Sys<usize> {
        rustix::io::write(file, bytes)
    }

    fn fchmod(&self, file: BorrowedFd<'_>, mode: u32) -> Sys<()> {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
    }

    fn fchown(&self, file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Sys<()> {
        rustix::fs::fchown(file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
    }

    fn utimensat(&self, at: At<'_>) -> Sys<()> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::utimensat(dir_of(at), at.path, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn getdents(&self, dir: BorrowedFd<'_>) -> Sys<Vec<Entry>> {
        let mut buffer = Vec::with_capacity(8 << 10);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Directory => EntryKind::Directory,
                FileType::RegularFile => EntryKind::File,
                FileType::Symlink => EntryKind::Link,
                _ => EntryKind::Other,
            };
            found.push(Entry {
                name: name.to_owned(),
                kind,
            });
        }
        Ok(found)
    }

    fn statx(&self, file: BorrowedFd<'_>) -> Sys<Stat> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask)?;
        Ok(Stat {
            dev: (stat.stx_dev_major, stat.stx_dev_minor),
            mount_id: stat.stx_mnt_id,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
        })
    }

    fn fstatfs(&self, file: BorrowedFd<'_>) -> Sys<Space> {
        let stat = rustix::fs::fstatfs(file)?;
        Ok(Space {
            is_tmpfs: stat.f_type as u64 == TMPFS_MAGIC,
            block_bytes: stat.f_bsize as u64,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_attr_has_the_kernels_layout() {
        assert_eq!(size_of::<MountAttr>(), libc::MOUNT_ATTR_SIZE_VER0 as usize);
        assert_eq!(std::mem::offset_of!(MountAttr, attr_set), 0);
        assert_eq!(std::mem::offset_of!(MountAttr, attr_clr), 8);
        assert_eq!(std::mem::offset_of!(MountAttr, propagation), 16);
        assert_eq!(std::mem::offset_of!(MountAttr, userns_fd), 24);
    }

    #[test]
    fn a_page_is_a_power_of_two() {
        assert!(page_bytes().is_power_of_two() && page_bytes() >= 4096);
    }
}
