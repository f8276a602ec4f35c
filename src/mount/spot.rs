//! Where a target is, and what is there: found by descriptors, each opened beneath the one before.
//!
//! Without a [`Root`] the path to a target's parent may hold links, followed once. With one, the path must lie below `dir` as text;
//! `dir` is opened with its own links followed, and **below it no link is**: what lies there is written by others, and a link could
//! lead a mount, or the removal of a directory, anywhere on the node. A link at the target's own name is never followed.
//!
//! The root is opened anew at each look. The loser, a descriptor held for the process' life, would go on naming what a remount of
//! the kubelet's directory has covered: volumes would be mounted where no pod looks.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Probe, Root, VolumeId, errno::Step as _, look, mountinfo::Mount};
use crate::{
    error::{Error, Result, codes},
    path::TargetPath,
    spec::MountKind,
    sys::fs::{At, Errno, Fs, How, Removed, Stat, Sys},
};

/// Mode of a target's directory that we make: a kubelet's own.
const TARGET_MODE: u32 = 0o750;
/// What the kubelet has below its directory for pods and their volumes.
const PODS: &str = "pods";

/// Finds targets.
#[derive(Clone)]
pub(super) struct Spots {
    pub fs: Arc<dyn Fs>,
    pub root: Option<Root>,
}

/// The directory that holds a target.
pub(super) struct Parent {
    pub dir: OwnedFd,
    pub stat: Stat,
    /// The root's directory, if this is another one.
    root: Option<OwnedFd>,
}

/// A target that is a directory.
pub(super) struct Spot {
    pub parent: Parent,
    /// The root of the topmost mount at the target, or the directory itself.
    pub target: OwnedFd,
    pub stat: Stat,
    /// Made by [`Spots::take`].
    is_made: bool,
}

impl Spot {
    pub fn is_mounted(&self) -> bool {
        self.stat.mount_id != self.parent.stat.mount_id
    }
}

/// What is at a target's name.
pub(super) enum Found {
    /// Not even its parent.
    NoParent,
    /// Nothing.
    Nothing(Parent),
    /// Something that is no directory.
    NoDirectory,
    /// A directory.
    Directory(Spot),
}

impl Spots {
    /// Looks for the target.
    ///
    /// # Errors
    /// `csi.bad_target`: it does not lie below the root. `mount.link`: a link is in the way.
    pub fn find(&self, target: &TargetPath) -> Result<Found> {
        tracing::trace!(%target, "a target is looked for");
        let Some(parent) = self.parent(target)? else {
            return Ok(Found::NoParent);
        };
        let opened = self.open_target(&parent, target);
        match opened {
            Ok((found, stat)) => Ok(Found::Directory(Spot {
                parent,
                target: found,
                stat,
                is_made: false,
            })),
            Err(Errno::NOENT) => Ok(Found::Nothing(parent)),
            Err(Errno::NOTDIR) => Ok(Found::NoDirectory),
            Err(Errno::LOOP) => Err(link("the target is a symbolic link")),
            Err(errno) => Err(errno).step("open the target"),
        }
    }

    /// The target, if it is a directory.
    pub fn spot(&self, target: &TargetPath) -> Result<Option<Spot>> {
        Ok(match self.find(target)? {
            Found::Directory(spot) => Some(spot),
            Found::NoParent | Found::Nothing(_) | Found::NoDirectory => None,
        })
    }

    /// Whether a publish at the target could succeed; changes nothing.
    pub fn admit(&self, target: &TargetPath, make: bool) -> Result<()> {
        let parent = match self.find(target)? {
            Found::Nothing(parent) if make => parent,
            Found::Directory(spot) => {
                self.refuse_taken(&spot, target, make)?;
                spot.parent
            }
            found => return Err(no_target(&found)),
        };
        if !self.must_be_shared() {
            return Ok(());
        }
        if let Some(root) = &parent.root
            && self.refuse_unshared_base(root.as_fd())? == parent.stat.mount_id
        {
            return Ok(());
        }
        self.refuse_unshared(parent.dir.as_fd(), &parent.stat)
    }

    /// The target, where nothing is mounted; with `make` its directory is made if it is not there.
    pub fn take(&self, target: &TargetPath, make: bool) -> Result<Spot> {
        match self.find(target)? {
            Found::Nothing(parent) if make => self.make(parent, target),
            Found::Directory(spot) => self.refuse_taken(&spot, target, make).map(|()| spot),
            found => Err(no_target(&found)),
        }
    }

    fn make(&self, parent: Parent, target: &TargetPath) -> Result<Spot> {
        let name = At::below(parent.dir.as_fd(), target.name());
        let is_made = match self.fs.mkdirat(name, TARGET_MODE) {
            Ok(()) => true,
            Err(Errno::EXIST) => false, // by somebody else, since we looked
            Err(errno) => return Err(errno).step("make the target's directory"),
        };
        match self.open_target(&parent, target) {
            Ok((found, stat)) => {
                let spot = Spot {
                    parent,
                    target: found,
                    stat,
                    is_made,
                };
                let free = self.refuse_mounted(&spot);
                free.inspect_err(|_| self.unmake(&spot, target))?;
                Ok(spot)
            }
            Err(errno) => {
                if is_made {
                    let _ = self.fs.unlinkat(name, Removed::Directory);
                }
                match errno {
                    // by somebody who was faster than we
                    Errno::LOOP => Err(link("the target has become a symbolic link")),
                    errno => Err(errno).step("open the target that was made"),
                }
            }
        }
    }

    /// Removes the directory, if [`Self::take`] made it: by its parent's descriptor, so wherever that is by now, and only while it is
    /// empty and nothing is mounted on it.
    pub fn unmake(&self, spot: &Spot, target: &TargetPath) {
        if spot.is_made {
            let name = At::below(spot.parent.dir.as_fd(), target.name());
            let _ = self.fs.unlinkat(name, Removed::Directory);
        }
    }

    /// The target, and what is mounted there. A mount that went while we looked is looked for again.
    pub fn seen(&self, target: &TargetPath) -> Result<(Option<Spot>, Probe)> {
        let Some(spot) = self.spot(target)? else {
            return Ok((None, Probe::Absent));
        };
        let probe = self.probe(&spot)?;
        Ok((Some(spot), probe))
    }

    pub fn probe(&self, spot: &Spot) -> Result<Probe> {
        if !spot.is_mounted() {
            return Ok(Probe::Absent);
        }
        let layers = look::layers(&*self.fs, spot.target.as_fd(), spot.stat.mount_id)?;
        let ours = layers.iter().map_while(|mount| mount.volume());
        let count = ours.count() as u32;
        Ok(match layers.first() {
            None => Probe::Absent, // unmounted since it was opened
            Some(top) => match top.volume() {
                Some(volume) => Probe::Ours {
                    kind: MountKind::Tmpfs,
                    volume,
                    layers: count,
                    altered: self.altered(top, layers.len()),
                },
                None => Probe::Foreign,
            },
        })
    }

    fn altered(&self, top: &Mount, layers: usize) -> Option<&'static str> {
        let must_be_shared = self.root.as_ref().is_some_and(|root| root.shared);
        match (layers, top.read_only) {
            (2.., _) => Some("another mount lies below or above it"),
            (_, false) => Some("it is writable"),
            _ if must_be_shared && top.shared.is_none() => Some("it is in no peer group"),
            _ => None,
        }
    }

    /// Our mounts and where they are, named as targets are: with a root only those below it, by the root's own name and not by where
    /// its links lead. A copy elsewhere is what propagation made of one of those.
    pub fn ours(&self) -> Result<Vec<(VolumeId, PathBuf)>> {
        let real = match &self.root {
            None => None,
            Some(root) => Some((self.real(root)?, root)),
        };
        let named = |mount: &Mount| {
            let point = Path::new(&mount.mount_point);
            let path = match &real {
                None => point.to_owned(),
                Some((real, root)) => root.dir.join(point.strip_prefix(real).ok()?),
            };
            Some((mount.volume()?, path))
        };
        Ok(look::mounts(&*self.fs)?.iter().filter_map(named).collect())
    }

    /// Whether what is mounted below the root would be seen outside of our mount namespace, where it must be.
    pub fn propagates(&self) -> Result<()> {
        match &self.root {
            Some(root) if root.shared => {
                let dir = self.open_root(root)?;
                self.refuse_unshared_base(dir.as_fd()).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Whether a mount must be in a peer group.
    pub fn must_be_shared(&self) -> bool {
        self.root.as_ref().is_some_and(|root| root.shared)
    }

    /// Refuses a root whose mount is not shared, unless that of its `pods` is: a container may have one for them alone. The id of the shared one.
    fn refuse_unshared_base(&self, root: BorrowedFd<'_>) -> Result<u64> {
        let stat = self.fs.statx(root).step("look at kubeletDir")?;
        let Err(error) = self.refuse_unshared(root, &stat) else {
            return Ok(stat.mount_id);
        };
        let pods = self.fs.openat2(At::below(root, PODS), How::Beneath);
        let pods = pods.map_err(|_| error)?;
        let stat = self.fs.statx(pods.as_fd()).step("look at kubeletDir")?;
        self.refuse_unshared(pods.as_fd(), &stat)?;
        Ok(stat.mount_id)
    }

    fn refuse_unshared(&self, dir: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
        match look::mount(&*self.fs, dir, stat.mount_id)? {
            Some(mount) if mount.shared.is_some() => Ok(()),
            Some(mount) => Err(unshared(Path::new(&mount.mount_point))),
            None => Err(Error::new(&codes::MOUNT_GONE).step("look at kubeletDir")),
        }
    }

    /// Refuses a directory at which something is mounted; and, where it is ours to make and to remove, one that is not empty: neither we nor the
    /// kubelet could remove it after the unpublish, and its pod would be terminating for ever.
    fn refuse_taken(&self, spot: &Spot, target: &TargetPath, make: bool) -> Result<()> {
        self.refuse_mounted(spot)?;
        if !make {
            return Ok(());
        }
        let name = At::below(spot.parent.dir.as_fd(), target.name());
        let listed = self.fs.openat2(name, How::Directory);
        match listed.and_then(|dir| self.fs.getdents(dir.as_fd())) {
            Ok(entries) if entries.is_empty() => Ok(()),
            Ok(_) => Err(Error::new(&codes::MOUNT_NOT_EMPTY)),
            // since it was found
            Err(Errno::LOOP) => Err(link("the target has become a symbolic link")),
            Err(errno) => Err(errno).step("look into the target's directory"),
        }
    }

    fn refuse_mounted(&self, spot: &Spot) -> Result<()> {
        match self.probe(spot)? {
            Probe::Absent => Ok(()),
            Probe::Ours { .. } => Err(Error::new(&codes::MOUNT_HELD)),
            Probe::Foreign => Err(Error::new(&codes::MOUNT_FOREIGN)),
        }
    }

    fn open_root(&self, root: &Root) -> Result<OwnedFd> {
        let opened = self.fs.openat2(At::absolute(&root.dir), How::Followed);
        opened
            .step("open kubeletDir")
            .map_err(|error| error.object(root.dir.display()))
    }

    /// Where the root is, without links.
    fn real(&self, root: &Root) -> Result<PathBuf> {
        let dir = self.open_root(root)?;
        let link = PathBuf::from(format!("/proc/thread-self/fd/{}", dir.as_raw_fd()));
        let path = self.fs.readlinkat(At::absolute(&link));
        Ok(PathBuf::from(path.step("see where kubeletDir is")?))
    }

    fn parent(&self, target: &TargetPath) -> Result<Option<Parent>> {
        let (opened, root) = match &self.root {
            None => {
                let path = At::absolute(target.parent());
                (self.fs.openat2(path, How::Followed), None)
            }
            Some(root) => self.parent_below(root, target)?,
        };
        let dir = match opened {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::LOOP) if self.root.is_some() => {
                return Err(link(
                    "a symbolic link lies between kubeletDir and the target",
                ));
            }
            Err(errno) => return Err(errno).step("open the target's parent"),
        };
        let stat = self.fs.statx(dir.as_fd());
        let stat = stat.step("look at the target's parent")?;
        Ok(Some(Parent { dir, stat, root }))
    }

    fn parent_below(
        &self,
        root: &Root,
        target: &TargetPath,
    ) -> Result<(Sys<OwnedFd>, Option<OwnedFd>)> {
        let Some(below) = target.below(&root.dir) else {
            return Err(Error::new(&codes::CSI_BAD_TARGET).detail(format_args!(
                "the target does not lie below kubeletDir, {}",
                root.dir.display()
            )));
        };
        let dir = self.open_root(root)?;
        match below.parent() {
            Some(way) if way != Path::new("") => {
                let opened = self.fs.openat2(At::below(dir.as_fd(), way), How::Beneath);
                Ok((opened, Some(dir)))
            }
            _ => Ok((Ok(dir), None)),
        }
    }

    fn open_target(&self, parent: &Parent, target: &TargetPath) -> Sys<(OwnedFd, Stat)> {
        let name = At::below(parent.dir.as_fd(), target.name());
        let found = self.fs.openat2(name, How::Beneath)?;
        let stat = self.fs.statx(found.as_fd())?;
        Ok((found, stat))
    }
}

/// Why a mount that nobody else would see is refused.
pub(super) fn unshared(at: &Path) -> Error {
    Error::new(&codes::MOUNT_NO_PROPAGATION).detail(format_args!(
        "the mount at {} is not shared, so no pod would see the volume; the plugin's container needs `mountPropagation: Bidirectional` \
         for kubeletDir, and the node a shared mount there",
        at.display()
    ))
}

fn link(what: &'static str) -> Error {
    Error::new(&codes::MOUNT_LINK).detail(what)
}

fn no_target(found: &Found) -> Error {
    Error::new(&codes::MOUNT_NO_TARGET).detail(match found {
        Found::NoParent => "the directory that is to hold the target does not exist",
        Found::Nothing(_) => "the target directory does not exist",
        Found::NoDirectory | Found::Directory(_) => "the target is not a directory",
    })
}
