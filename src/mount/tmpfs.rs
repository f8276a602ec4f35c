//! The tmpfs kind: one superblock for each volume, which nobody ever sees half written or writable.
//!
//! Readers have the attached mount, which is read-only. We have a second mount of the same superblock, which is writable and has no path
//! (`regain`). Both are the kernel's; a process that dies leaves the first, and [`Mounter::adopt`] makes
//! the second anew from it. A mount is ours by its source string, `secretfs:<volume id>`, and is told apart by its id and device,
//! never by path: a path can lead elsewhere by the next call.
//!
//! `spot` finds a target and what is there, `tmpfs/volume` serves what is mounted, `atomic` is what happens inside, `room` is how large
//! it is.

mod volume;

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use super::{
    MountOptions, Mounted, Mounter, Probe, Root, VolumeId,
    atomic::AtomicDir,
    errno::{Step as _, patiently},
    look,
    mountinfo::{Mount, source_of},
    plan::{Needs, Tree, plan},
    room,
    spot::{Spot, Spots, unshared},
};
use crate::{
    error::{Code, Error, Result, codes},
    path::TargetPath,
    render::Snapshot,
    sys::fs::{At, Change, Errno, Fs, FsKind, RealFs, Removed, Setting, Stat, own_ids, page_bytes},
};
use volume::TmpfsVolume;

/// Layers that an unpublish removes before it takes it that somebody else is mounting at the same time.
const LAYERS: u32 = 64;

/// Mounts volumes as tmpfs.
#[derive(Clone)]
pub struct TmpfsMounter {
    fs: Arc<dyn Fs>,
    spots: Spots,
}

impl Default for TmpfsMounter {
    fn default() -> Self {
        Self::new(Arc::new(RealFs))
    }
}

impl TmpfsMounter {
    /// Over these system calls.
    pub fn new(fs: Arc<dyn Fs>) -> Self {
        let spots = Spots {
            fs: fs.clone(),
            root: None,
        };
        Self { fs, spots }
    }

    /// For targets below a kubelet's directory.
    pub fn below(mut self, root: Root) -> Self {
        self.spots.root = Some(root);
        self
    }

    /// Whether what is mounted below the root reaches other mount namespaces, if it must.
    ///
    /// # Errors
    /// `mount.no_propagation`: the mount that holds `kubeletDir` is not shared. `mount.kernel`: it cannot be looked at.
    pub fn propagates(&self) -> Result<()> {
        self.spots.propagates()
    }
}

/// What steps 4 to 7 of a publish have done.
struct Attached {
    spot: Spot,
    stat: Stat,
    swappable: bool,
}

impl Mounter for TmpfsMounter {
    fn probe(&self, target: &TargetPath) -> Result<Probe> {
        self.spots
            .seen(target)
            .map(|(_, probe)| probe)
            .map_err(|error| error.object(target))
    }

    /// 1. Refuse a target that is not a directory and cannot become one, at which something is mounted, whose files we could not remove, or from which nothing would
    ///    reach a pod.
    /// 2. Make a tmpfs that has no path.
    /// 3. Write all files through its descriptor, and close each: one open writer makes step 4 fail with EBUSY.
    /// 4. Make the mount read-only.
    /// 5. Look at the target again: steps 2 to 4 took a while. Make its directory, if that is asked for.
    /// 6. Attach it. From here on it can be seen.
    /// 7. Check that the target shows it, and it alone (a mount that somebody made since step 5 would lie below or above), and that it
    ///    is in a peer group, where it must be: without one `move_mount` succeeds all the same, and no pod sees anything.
    /// 8. Regain the writable side from the attached mount.
    ///
    /// When step 6, 7 or 8 fails, the mount is detached again, and a directory that step 5 made is removed. What cannot be detached (the kernel
    /// refuses, or somebody has mounted above it) is `mount.left`: not undone, so whoever asked must ask again or unpublish. Cloning before step 6 would undo more simply, but needs Linux 6.15; this
    /// order needs 5.12, and step 8 is what [`Mounter::adopt`] does, so every publish tests the restart.
    fn publish(
        &self,
        target: &TargetPath,
        first: &Snapshot,
        options: &MountOptions,
    ) -> Result<Box<dyn Mounted>> {
        let published = self.publish_at(target, first, options);
        tracing::debug!(volume_id = %options.volume, %target, mounted = published.is_ok(), "publish");
        published
            .map(|volume| Box::new(volume) as _)
            .map_err(|error| error.object(target))
    }

    fn adopt(&self, target: &TargetPath, options: &MountOptions) -> Result<Box<dyn Mounted>> {
        let adopted = self.adopt_at(target, options);
        tracing::debug!(volume_id = %options.volume, %target, mounted = adopted.is_ok(), "adopt");
        adopted
            .map(|volume| Box::new(volume) as _)
            .map_err(|error| error.object(target))
    }

    fn unpublish(&self, target: &TargetPath, remove_target: bool) -> Result<()> {
        let gone = self.unpublish_at(target, remove_target);
        tracing::debug!(%target, unmounted = gone.is_ok(), "unpublish");
        gone.map_err(|error| error.object(target))
    }

    fn all(&self) -> Result<Vec<(VolumeId, PathBuf)>> {
        self.spots.ours()
    }

    fn places(&self, volume: &VolumeId) -> Result<Vec<PathBuf>> {
        let ours = self.spots.ours()?.into_iter();
        let its = ours.filter(|(id, _)| id == volume);
        Ok(its.map(|(_, place)| place).collect())
    }
}

impl TmpfsMounter {
    fn publish_at(
        &self,
        target: &TargetPath,
        first: &Snapshot,
        options: &MountOptions,
    ) -> Result<TmpfsVolume> {
        let set = plan(&Tree::default(), &first.files, own_ids()).next;
        room::check(&set, options, page_bytes())?;
        self.spots.admit(target, options.make_target)?; // 1
        let mount = self.detached(&set, options)?; // 2
        let dir = AtomicDir::create(
            self.fs.clone(),
            mount,
            &set,
            first.made_at,
            first.generation,
        )?; // 3
        let attached = self.attach(target, dir.root(), options)?; // 4 to 7
        let writable = self.regain(dir.root()); // 8
        let writable =
            writable.map_err(|error| self.undo(target, &attached.spot, dir.root(), error))?;
        Ok(TmpfsVolume {
            mounter: self.clone(),
            target: target.clone(),
            options: options.clone(),
            dir: dir.with_root(writable),
            dev: attached.stat.dev,
            swappable: attached.swappable,
        })
    }

    /// Steps 4 to 7 of a publish.
    fn attach(
        &self,
        target: &TargetPath,
        mount: BorrowedFd<'_>,
        options: &MountOptions,
    ) -> Result<Attached> {
        patiently(|| self.fs.mount_setattr(mount, Change::ReadOnly)).step("make it read-only")?; // 4
        let spot = self.spots.take(target, options.make_target)?; // 5
        if let Err(errno) = self.fs.move_mount(mount, spot.target.as_fd()) {
            self.spots.unmake(&spot, target);
            return Err(errno).step("attach it"); // 6
        }
        match self.check_attached(target, mount, &options.volume) {
            Ok((stat, swappable)) => Ok(Attached {
                spot,
                stat,
                swappable,
            }),
            Err(error) => Err(self.undo(target, &spot, mount, error)), // 7
        }
    }

    /// 1. Clone what the target shows.
    /// 2. Check, on the clone's own descriptor, that it is ours: a clone of an unmounted target is a writable view of the
    ///    **node's disk** (measured), and a secret written through it would lie there.
    /// 3. Make it writable.
    /// 4. Put in order what a crash left.
    fn adopt_at(&self, target: &TargetPath, options: &MountOptions) -> Result<TmpfsVolume> {
        let Some(spot) = self.spots.spot(target)? else {
            return Err(Error::new(&codes::MOUNT_GONE));
        };
        let clone = match self.fs.open_tree_clone(spot.target.as_fd()) {
            // It was unmounted since we opened it, or is of a kind that cannot be cloned.
            Err(Errno::INVAL) => return Err(refusal(&self.spots.probe(&spot)?, options)),
            clone => clone.step("clone the mount")?, // 1
        };
        let mount = self.check_clone(&spot, clone.as_fd(), options)?; // 2
        self.fs
            .mount_setattr(clone.as_fd(), Change::WritableAndPrivate)
            .step("make our side writable")?; // 3
        Ok(TmpfsVolume {
            mounter: self.clone(),
            target: target.clone(),
            options: options.clone(),
            dir: AtomicDir::open(self.fs.clone(), clone)?, // 4
            dev: mount.dev,
            swappable: !mount.has_option("noswap"),
        })
    }

    /// While a mount of ours is on top:
    ///
    /// 1. Clone it, check that the clone is ours, and make it writable.
    /// 2. Overwrite and remove its files: another mount namespace may hold a copy of the mount, and would read on.
    /// 3. Detach it.
    ///
    /// Then remove the directory, if it is to be removed and nothing is mounted there.
    fn unpublish_at(&self, target: &TargetPath, remove_target: bool) -> Result<()> {
        for _ in 0..LAYERS {
            let (spot, probe) = match self.spots.seen(target)? {
                (Some(spot), probe) => (spot, probe),
                (None, _) => return Ok(()),
            };
            match probe {
                Probe::Foreign => return Ok(()),
                Probe::Absent if !remove_target => return Ok(()),
                Probe::Absent => {
                    let name = At::below(spot.parent.dir.as_fd(), target.name());
                    match self.fs.unlinkat(name, Removed::Directory) {
                        Err(Errno::NOENT) => return Ok(()),
                        Err(Errno::NOTEMPTY) => return Err(Error::new(&codes::MOUNT_NOT_EMPTY)),
                        Err(Errno::NOTDIR) => {} // it has become something else: the next look says what
                        result => return result.step("remove the target directory"),
                    }
                }
                Probe::Ours { .. } => self.empty_and_detach(&spot)?,
            }
        }
        Err(Error::new(&codes::MOUNT_KERNEL)
            .detail("the mount cannot be detached")
            .step("detach every layer"))
    }

    /// EINVAL is how the kernel says that somebody else has unmounted it: the caller looks again.
    fn empty_and_detach(&self, spot: &Spot) -> Result<()> {
        let clone = match self.fs.open_tree_clone(spot.target.as_fd()) {
            Err(Errno::INVAL) => return Ok(()),
            clone => clone.step("clone the mount")?, // 1
        };
        let stat = self.fs.statx(clone.as_fd()).step("look at the clone")?;
        if stat.dev != spot.stat.dev {
            return Err(Error::new(&codes::MOUNT_GONE).step("check the clone"));
        }
        self.fs
            .mount_setattr(clone.as_fd(), Change::WritableAndPrivate)
            .step("make our side writable")?;
        AtomicDir::wipe_all(&*self.fs, clone.as_fd()).step("wipe the files")?; // 2
        match self.fs.umount2(spot.target.as_fd()) {
            Err(Errno::INVAL) => Ok(()),
            result => result.step("detach it"), // 3
        }
    }

    /// A mount of an empty tmpfs. It has no path, and goes when its descriptor is closed.
    fn detached(&self, set: &Tree, options: &MountOptions) -> Result<OwnedFd> {
        let page = page_bytes();
        let size = room::first(set.needs(page), room::most(options, page));
        options.grant.ask(size.pages * page)?;
        let context = self.fs.fsopen(FsKind::Tmpfs).step("make the tmpfs")?;
        let set = |setting: Setting<'_>| self.fs.fsconfig(context.as_fd(), setting);
        set(Setting::Text("source", &source_of(&options.volume))).step("name the tmpfs")?;
        set(Setting::Text("mode", "0755")).step("set the root's mode")?;
        self.set_size(context.as_fd(), size)?;
        if let Some(label) = &options.context {
            // Who has no SELinux does not know the key: EINVAL, as for a text that is no context.
            set(Setting::Text("context", label)).map_err(|errno| {
                Error::new(&codes::MOUNT_CONTEXT)
                    .step("set the files' SELinux context")
                    .source(errno)
            })?;
        }
        match set(Setting::Flag("noswap")) {
            // Before Linux 6.4, and in a user namespace. Usage::swappable says so.
            Err(Errno::INVAL) => {}
            result => result.step("forbid swapping")?,
        }
        set(Setting::Create).step("make the tmpfs")?;
        self.fs.fsmount(context.as_fd()).step("make its mount")
    }

    fn set_size(&self, context: BorrowedFd<'_>, size: Needs) -> Result<()> {
        let (bytes, inodes) = (size.pages * page_bytes(), size.inodes);
        for (key, value) in [("size", bytes), ("nr_inodes", inodes)] {
            self.fs
                .fsconfig(context, Setting::Text(key, &value.to_string()))
                .step("set the tmpfs' size")?;
        }
        Ok(())
    }

    /// A writable mount of the superblock that `mount` shows, without a path. Only for a mount that we made or checked.
    fn regain(&self, mount: BorrowedFd<'_>) -> Result<OwnedFd> {
        let clone = self.fs.open_tree_clone(mount).step("clone the mount")?;
        self.fs
            .mount_setattr(clone.as_fd(), Change::WritableAndPrivate)
            .step("make our side writable")?;
        Ok(clone)
    }

    /// Step 7 of a publish. What the mount is, and whether the kernel could swap it.
    fn check_attached(
        &self,
        target: &TargetPath,
        mount: BorrowedFd<'_>,
        volume: &VolumeId,
    ) -> Result<(Stat, bool)> {
        let refuse = |code: &'static Code, what: &'static str| {
            Err(Error::new(code)
                .detail(what)
                .step("check what was attached"))
        };
        let own = self.fs.statx(mount).step("look at our mount")?;
        let Some(spot) = self.spots.spot(target)? else {
            return refuse(&codes::MOUNT_GONE, "the target went away");
        };
        if spot.stat.mount_id != own.mount_id {
            return refuse(&codes::MOUNT_FOREIGN, "the target shows another mount");
        }
        match &look::layers(&*self.fs, mount, own.mount_id)?[..] {
            [only] if only.volume().as_ref() != Some(volume) || only.dev != own.dev => {
                refuse(&codes::MOUNT_KERNEL, "the mount is not as it was made")
            }
            [only] if !only.read_only => refuse(&codes::MOUNT_KERNEL, "the mount is writable"),
            [only] if self.spots.must_be_shared() && only.shared.is_none() => {
                Err(unshared(target.as_path()).step("check what was attached"))
            }
            [only] => Ok((own, !only.has_option("noswap"))),
            [] => refuse(&codes::MOUNT_GONE, "the mount went away"),
            _ => refuse(&codes::MOUNT_FOREIGN, "another mount lies below ours"),
        }
    }

    /// Step 2 of an adopt.
    fn check_clone(
        &self,
        spot: &Spot,
        clone: BorrowedFd<'_>,
        options: &MountOptions,
    ) -> Result<Mount> {
        let stat = self.fs.statx(clone).step("look at the clone")?;
        let space = self.fs.fstatfs(clone).step("look at the clone")?;
        if stat.dev == spot.parent.stat.dev || !space.is_tmpfs {
            return Err(refusal(&self.spots.probe(spot)?, options));
        }
        match look::mount(&*self.fs, spot.target.as_fd(), spot.stat.mount_id)? {
            Some(mount)
                if mount.dev == stat.dev && mount.volume().as_ref() == Some(&options.volume) =>
            {
                Ok(mount)
            }
            _ => Err(refusal(&self.spots.probe(spot)?, options)),
        }
    }

    /// Detaches what a publish attached, unless something is seen to lie on it: that would go with it. Removes the directory, if it
    /// was made for it. What to say: why the publish failed, or, if the mount is still there, that.
    fn undo(&self, target: &TargetPath, spot: &Spot, mount: BorrowedFd<'_>, why: Error) -> Error {
        let shown = self.spots.spot(target).ok().flatten();
        let own = self.fs.statx(mount).ok();
        let is_covered = shown
            .zip(own)
            .is_some_and(|(shown, own)| shown.stat.mount_id != own.mount_id);
        let left = if is_covered {
            self.is_attached(mount)
                .then(|| "another mount lies above it".to_owned())
        } else {
            match self.fs.umount2(mount) {
                Ok(()) | Err(Errno::INVAL) => None, // somebody else has unmounted it
                Err(errno) => Some(errno.to_string()),
            }
        };
        self.spots.unmake(spot, target);
        match left {
            None => why,
            Some(left) => Error::new(&codes::MOUNT_LEFT)
                .detail(format!("{why}; and the mount is still there: {left}"))
                .step("undo the publish"),
        }
    }

    /// Whether the mount can be reached; where that cannot be seen it is taken to be so.
    fn is_attached(&self, mount: BorrowedFd<'_>) -> bool {
        let own = self.fs.statx(mount);
        let layers = own.map(|own| look::layers(&*self.fs, mount, own.mount_id));
        !matches!(layers, Ok(Ok(layers)) if layers.is_empty())
    }
}

/// Why a mount is not adopted.
fn refusal(seen: &Probe, options: &MountOptions) -> Error {
    Error::new(match seen {
        Probe::Foreign => &codes::MOUNT_FOREIGN,
        Probe::Ours { volume, .. } if *volume != options.volume => &codes::MOUNT_HELD,
        Probe::Ours { .. } | Probe::Absent => &codes::MOUNT_GONE,
    })
    .step("check that the mount is ours")
}
