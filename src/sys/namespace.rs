//! Namespaces of the calling thread.

use std::path::Path;

use rustix::{
    mount::MountPropagationFlags,
    thread::{UnshareFlags, unshare_unsafe},
};

use super::fs::Sys;

/// Gives the calling thread mounts of its own, a copy of those it had; threads and children that it starts inherit them.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn unshare_mounts() -> Sys<()> {
    // SAFETY: CLONE_NEWNS gives the thread its own mounts and its own root and working directory. Its descriptors and memory
    // stay shared: no safe code relies on two threads seeing the same mounts.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
}

/// Binds `dir` on itself, as a shared mount of its own: what is mounted below it from now on reaches every namespace that is copied
/// from this one. What a container's runtime makes of a volume with `mountPropagation: Bidirectional`.
///
/// Private first: a bind begins in the peer group of the mount that it was made from, and would share that one's fate.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOENT and the like of `dir`.
pub fn make_shared(dir: &Path) -> Sys<()> {
    rustix::mount::mount_bind(dir, dir)?;
    rustix::mount::mount_change(dir, MountPropagationFlags::PRIVATE)?;
    rustix::mount::mount_change(dir, MountPropagationFlags::SHARED)
}

/// Shows the directory `from` at `to` as well, as a container's runtime does with a volume.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ENOENT and the like of both.
pub fn bind(from: &Path, to: &Path) -> Sys<()> {
    rustix::mount::mount_bind(from, to)
}

/// Takes the topmost mount at `dir` out of this namespace, with all that lies below it.
///
/// # Errors
/// EINVAL if `dir` is not a mount.
pub fn detach(dir: &Path) -> Sys<()> {
    let how = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(dir, how)
}
