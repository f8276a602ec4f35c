//! Looks at mounts: at one alone where the kernel tells of one, else at all of them.
//!
//! With 500 volumes /proc/self/mountinfo is 110 KB and takes the kernel 1.6 ms to write, at each look of each volume. statmount(2)
//! (Linux 6.8; all that is needed since 6.13) takes microseconds. Where it fails, for whatever reason, mountinfo is read: a
//! container's seccomp profile may not know the call either.

use std::os::fd::BorrowedFd;

use super::{
    errno::Step as _,
    mountinfo::{Mount, Mounts},
};
use crate::{
    error::Result,
    sys::fs::{Errno, Fs, MountStat, Sys},
};

/// Mounts on each other that are looked at; more is an accident of any kind.
const LAYERS: usize = 64;

/// All mounts of this thread's namespace.
pub(super) fn mounts(fs: &dyn Fs) -> Result<Mounts> {
    let text = fs.mountinfo().step("read the mounts")?;
    Ok(Mounts::parse(&text))
}

/// The mount that `at` was reached through, whose id is `id`; `None` if it has been unmounted.
pub(super) fn mount(fs: &dyn Fs, at: BorrowedFd<'_>, id: u64) -> Result<Option<Mount>> {
    tracing::trace!(id, "a look at a mount");
    let told = fs.unique_mount_id(at).and_then(|unique| one(fs, unique));
    match told {
        Ok((mount, _)) => Ok(Some(mount)),
        Err(_) => Ok(mounts(fs)?.by_id(id).cloned()),
    }
}

/// The mounts that lie on each other where `at` is, topmost first; none if the one whose id is `top` has been unmounted.
pub(super) fn layers(fs: &dyn Fs, at: BorrowedFd<'_>, top: u64) -> Result<Vec<Mount>> {
    let told = fs.unique_mount_id(at).and_then(|unique| down(fs, unique));
    match told {
        Ok(layers) => Ok(layers),
        Err(_) => Ok(mounts(fs)?.layers(top).into_iter().cloned().collect()),
    }
}

fn down(fs: &dyn Fs, mut unique: u64) -> Sys<Vec<Mount>> {
    let mut layers: Vec<Mount> = Vec::new();
    while layers.len() < LAYERS {
        let (mount, parent) = one(fs, unique)?;
        let top = layers.first();
        if top.is_some_and(|top| top.mount_point != mount.mount_point) {
            break;
        }
        let is_root = mount.id == mount.parent;
        layers.push(mount);
        if is_root {
            break;
        }
        unique = parent;
    }
    Ok(layers)
}

/// A mount, and its parent's unique id.
fn one(fs: &dyn Fs, unique: u64) -> Sys<(Mount, u64)> {
    let stat = fs.statmount(unique)?;
    let parent = stat.parent_unique;
    whole(stat)
        .map(|mount| (mount, parent))
        .ok_or(Errno::OPNOTSUPP)
}

/// `None` if it leaves out what says whose the mount is: the kernel does so for what is empty, and before Linux 6.13.
fn whole(stat: MountStat) -> Option<Mount> {
    let is_told = stat.source.is_some() && stat.options.is_some();
    (stat.fs_type != "tmpfs" || is_told).then(|| Mount {
        id: stat.id,
        parent: stat.parent,
        dev: stat.dev,
        root: stat.root,
        mount_point: stat.point,
        read_only: stat.read_only,
        shared: stat.shared,
        fs_type: stat.fs_type,
        source: stat.source.unwrap_or_default(),
        super_options: stat.options.unwrap_or_default(),
    })
}
