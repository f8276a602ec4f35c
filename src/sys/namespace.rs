//! Namespaces of the calling thread.

use rustix::thread::{UnshareFlags, unshare_unsafe};

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
