//! Shows snapshots at a target, so that nobody ever sees one half written.
//!
//! A [`Mounter`] is a kind of mount; a [`Mounted`] is one volume's. All calls block and run on blocking threads. The kernel
//! holds the truth: a mount is ours if its source string says so, and dropping a [`Mounted`] leaves the mount as it is, as
//! `kill -9` would. A mounter never sees a backend or an object's name.

pub mod tmpfs;

pub mod atomic;
pub mod layout;
pub mod plan;
pub mod room;

mod errno;
mod look;
pub mod mountinfo;
mod spot;

pub mod memory;

use std::{fmt, path::PathBuf, sync::Arc};

pub use crate::path::VolumeId;
use crate::{
    clock::Mono,
    error::Result,
    path::TargetPath,
    render::{Generation, Snapshot},
    spec::MountKind,
};

/// What a mount needs besides its files.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Whose it is; stands in the source string.
    pub volume: VolumeId,
    /// Most bytes of one set of files (`limits.bytesPerVolume`); the tmpfs grows up to what a swap of that needs.
    pub bytes_limit: u64,
    /// Most files of one set.
    pub files_limit: u32,
    /// SELinux context of all files.
    pub context: Option<String>,
    /// The target's directory is made by the publish, where it is not there, and goes with a publish that fails.
    pub make_target: bool,
    /// Asked before the mount is made or grown.
    pub grant: Grant,
}

/// Whether a mount may hold so many bytes: what a mounter asks before it makes or grows one. The default grants all.
#[derive(Clone, Default)]
pub struct Grant(Option<Arc<dyn Fn(u64) -> Result<()> + Send + Sync>>);

impl Grant {
    /// Decided by `decide`, which is given the bytes that the mount as a whole may hold.
    pub fn new(decide: impl Fn(u64) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(decide)))
    }

    /// # Errors
    /// Why not; then the mount stays as it is.
    pub fn ask(&self, bytes: u64) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |decide| decide(bytes))
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grant")
    }
}

/// Where targets lie, for a mounter that serves a kubelet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Root {
    /// `kubeletDir`. Its own links are followed; below it none is.
    pub dir: PathBuf,
    /// The mount that holds it must be shared, and ours with it: else nothing reaches a pod.
    pub shared: bool,
}

/// What is at a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// No mount.
    Absent,
    /// Ours.
    Ours {
        /// Which kind.
        kind: MountKind,
        /// The id in its source string.
        volume: VolumeId,
        /// How many of ours lie on each other there; more than one is an accident.
        layers: u32,
        /// In what it is not as we made it: writable, not alone, in no peer group where it must be in one. A publish is not answered OK then.
        altered: Option<&'static str>,
    },
    /// Somebody else's.
    Foreign,
}

impl Probe {
    /// In what a mount of ours is not as it was made.
    pub fn altered(&self) -> Option<&'static str> {
        match self {
            Probe::Ours { altered, .. } => *altered,
            Probe::Absent | Probe::Foreign => None,
        }
    }
}

/// What a volume takes of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Bytes in use, old generations included.
    pub bytes: u64,
    /// Bytes that the mount may hold now.
    pub bytes_capacity: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that it may hold.
    pub inodes_capacity: u64,
    /// Whether the kernel could write it to swap (no `noswap`).
    pub swappable: bool,
}

/// A kind of mount: tmpfs, fuse, and memory (the fake; also what `exec --spec` uses).
pub trait Mounter: Send + Sync {
    /// What is at `target`, as the kernel shows it.
    fn probe(&self, target: &TargetPath) -> Result<Probe>;
    /// Ok: attached and verified. Err: the target is as it was.
    fn publish(
        &self,
        target: &TargetPath,
        first: &Snapshot,
        options: &MountOptions,
    ) -> Result<Box<dyn Mounted>>;
    /// After a restart. Sweeps what a crash left.
    fn adopt(&self, target: &TargetPath, options: &MountOptions) -> Result<Box<dyn Mounted>>;
    /// Empties the files (another mount namespace may hold a copy of the mount), detaches every layer of ours, and, with
    /// `remove_target`, removes the directory. Nothing there is success; a foreign mount is not ours to undo, and success.
    fn unpublish(&self, target: &TargetPath, remove_target: bool) -> Result<()>;
    /// Where a mount of this volume is, as the kernel shows it: also below another one, and under a parent that was renamed.
    fn places(&self, volume: &VolumeId) -> Result<Vec<PathBuf>>;
    /// All mounts of ours that the kernel shows, of whatever volume: what a restarted process begins with.
    fn all(&self) -> Result<Vec<(VolumeId, PathBuf)>>;
}

/// One volume's mount. Dropping it closes descriptors and nothing else: the mount stays, as after kill -9.
pub trait Mounted: Send {
    /// What readers see now.
    fn generation(&self) -> Generation;
    /// Readers see all of `next` or none. Equal content and metadata: touches nothing, Ok(false).
    ///
    /// `mount.gone` when the target shows our mount no longer; nothing was written then.
    fn replace(&mut self, next: &Snapshot) -> Result<bool>;
    /// Removes generations that were superseded long enough ago (10 s; 1 s when memory is short). When to call again.
    fn sweep(&mut self, now: Mono) -> Option<Mono>;
    /// Shows it at its target again, where nothing is mounted now: the same mount as before for those who have a copy of it.
    ///
    /// `mount.gone` where that cannot be (before Linux 6.15).
    fn attach(&mut self) -> Result<()>;
    /// Overwrites and removes all files, wherever the mount is by now, and whoever holds a copy of it. Again is no error; a
    /// `replace` shows a whole set.
    fn wipe(&mut self) -> Result<()>;
    /// What it takes.
    fn usage(&self) -> Result<Usage>;
}
