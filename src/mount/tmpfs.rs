//! The tmpfs kind: one superblock for each volume, which nobody ever sees half written or writable.
//!
//! Readers have the attached mount, which is read-only. We have a second mount of the same superblock, which is writable and has no path
//! (`regain`). Both are the kernel's; a process that dies leaves the first, and [`Mounter::adopt`] makes
//! the second anew from it. A mount is ours by its source string, `secretfs:<volume id>`, and is told apart by its id and device,
//! never by path: a path can lead elsewhere by the next call.
//!
//! `atomic` is what happens inside, `room` is how large it is.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use super::{
    MountOptions, Mounted, Mounter, Probe, Usage, VolumeId,
    atomic::AtomicDir,
    errno::{Step as _, patiently},
    mountinfo::{Mount, Mounts, source_of},
    plan::{Needs, Tree, plan},
    room,
};
use crate::{
    clock::Mono,
    error::{Code, Error, Result, codes},
    limits,
    path::TargetPath,
    render::{Generation, Snapshot},
    spec::MountKind,
    sys::fs::{
        At, Change, Errno, Fs, FsKind, How, RealFs, Removed, Setting, Space, Stat, own_ids,
        page_bytes,
    },
};

/// Layers that an unpublish removes before it takes it that somebody else is mounting at the same time.
const LAYERS: u32 = 64;

/// Mounts volumes as tmpfs.
#[derive(Clone)]
pub struct TmpfsMounter {
    fs: Arc<dyn Fs>,
}

impl Default for TmpfsMounter {
    fn default() -> Self {
        Self::new(Arc::new(RealFs))
    }
}

impl TmpfsMounter {
    /// Over these system calls.
    pub fn new(fs: Arc<dyn Fs>) -> Self {
        Self { fs }
    }
}

/// A target and its parent, as descriptors.
struct Spot {
    parent: OwnedFd,
    parent_stat: Stat,
    /// The root of the topmost mount at the target, or the directory itself.
    target: OwnedFd,
    stat: Stat,
}

impl Spot {
    fn is_mounted(&self) -> bool {
        self.stat.mount_id != self.parent_stat.mount_id
    }
}

impl Mounter for TmpfsMounter {
    fn probe(&self, target: &TargetPath) -> Result<Probe> {
        self.seen(target)
            .map(|(_, probe)| probe)
            .map_err(|error| error.object(target))
    }

    /// 1. Refuse a target that is not a directory, or at which something is mounted.
    /// 2. Make a tmpfs that has no path.
    /// 3. Write all files through its descriptor, and close each: one open writer makes step 4 fail with EBUSY.
    /// 4. Make the mount read-only.
    /// 5. Look at the target again: steps 2 to 4 took a while.
    /// 6. Attach it. From here on it can be seen.
    /// 7. Check that the target shows it, and it alone: a mount that somebody made since step 5 would lie below or above.
    /// 8. Regain the writable side from the attached mount.
    ///
    /// When step 7 or 8 fails, the mount is detached again. Cloning before step 6 would undo more simply, but needs Linux 6.15; this
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

    fn places(&self, volume: &VolumeId) -> Result<Vec<PathBuf>> {
        let mounts = self.mounts()?;
        let its = mounts
            .iter()
            .filter(|mount| mount.volume().as_ref() == Some(volume));
        Ok(its.map(|mount| PathBuf::from(&mount.mount_point)).collect())
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
        self.free_spot(target)?; // 1
        let mount = self.detached(&set, options)?; // 2
        let dir = AtomicDir::create(
            self.fs.clone(),
            mount,
            &set,
            first.made_at,
            first.generation,
        )?; // 3
        let (stat, swappable) = self.attach(target, dir.root(), &options.volume)?; // 4 to 7
        let writable = self.regain(dir.root()); // 8
        let writable = writable.inspect_err(|_| self.undo(target, dir.root()))?;
        Ok(TmpfsVolume {
            mounter: self.clone(),
            target: target.clone(),
            options: options.clone(),
            dir: dir.with_root(writable),
            dev: stat.dev,
            swappable,
        })
    }

    /// Steps 4 to 7 of a publish.
    fn attach(
        &self,
        target: &TargetPath,
        mount: BorrowedFd<'_>,
        volume: &VolumeId,
    ) -> Result<(Stat, bool)> {
        patiently(|| self.fs.mount_setattr(mount, Change::ReadOnly)).step("make it read-only")?; // 4
        let spot = self.free_spot(target)?; // 5
        let moved = self.fs.move_mount(mount, spot.target.as_fd());
        moved.step("attach it")?; // 6
        let shown = self.check_attached(target, mount, volume); // 7
        shown.inspect_err(|_| self.undo(target, mount))
    }

    /// 1. Clone what the target shows.
    /// 2. Check, on the clone's own descriptor, that it is ours: a clone of an unmounted target is a writable view of the
    ///    **node's disk** (measured), and a secret written through it would lie there.
    /// 3. Make it writable.
    /// 4. Put in order what a crash left.
    fn adopt_at(&self, target: &TargetPath, options: &MountOptions) -> Result<TmpfsVolume> {
        let Some(spot) = self.spot(target)? else {
            return Err(Error::new(&codes::MOUNT_GONE));
        };
        let clone = match self.fs.open_tree_clone(spot.target.as_fd()) {
            // It was unmounted since we opened it, or is of a kind that cannot be cloned.
            Err(Errno::INVAL) => return Err(refusal(&self.probe_spot(&spot)?, options)),
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
            let (spot, probe) = match self.seen(target)? {
                (Some(spot), probe) => (spot, probe),
                (None, _) => return Ok(()),
            };
            match probe {
                Probe::Foreign => return Ok(()),
                Probe::Absent if !remove_target => return Ok(()),
                Probe::Absent => {
                    let name = At::below(spot.parent.as_fd(), target.name());
                    return match self.fs.unlinkat(name, Removed::Directory) {
                        Err(Errno::NOENT) => Ok(()),
                        result => result.step("remove the target directory"),
                    };
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
        let context = self.fs.fsopen(FsKind::Tmpfs).step("make the tmpfs")?;
        let set = |setting: Setting<'_>| self.fs.fsconfig(context.as_fd(), setting);
        set(Setting::Text("source", &source_of(&options.volume))).step("name the tmpfs")?;
        set(Setting::Text("mode", "0755")).step("set the root's mode")?;
        self.set_size(context.as_fd(), size)?;
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

    /// The target, if it is a directory. Links on the way to its parent are followed, here and once; none at its own name.
    fn spot(&self, target: &TargetPath) -> Result<Option<Spot>> {
        let opened = |result| match result {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        };
        let parent = self.fs.openat2(At::absolute(target.parent()), How::Parent);
        let Some(parent) = opened(parent).step("open the target's parent")? else {
            return Ok(None);
        };
        let name = At::below(parent.as_fd(), target.name());
        let found = self.fs.openat2(name, How::Spot);
        let Some(found) = opened(found).step("open the target")? else {
            return Ok(None);
        };
        Ok(Some(Spot {
            parent_stat: self
                .fs
                .statx(parent.as_fd())
                .step("look at the target's parent")?,
            stat: self.fs.statx(found.as_fd()).step("look at the target")?,
            parent,
            target: found,
        }))
    }

    /// The target, where nothing is mounted.
    fn free_spot(&self, target: &TargetPath) -> Result<Spot> {
        let Some(spot) = self.spot(target)? else {
            return Err(Error::new(&codes::MOUNT_NO_TARGET));
        };
        match self.probe_spot(&spot)? {
            Probe::Absent => Ok(spot),
            Probe::Ours { .. } => Err(Error::new(&codes::MOUNT_HELD)),
            Probe::Foreign => Err(Error::new(&codes::MOUNT_FOREIGN)),
        }
    }

    /// The target, and what is mounted there. A mount that went while we looked is looked for again.
    fn seen(&self, target: &TargetPath) -> Result<(Option<Spot>, Probe)> {
        let Some(spot) = self.spot(target)? else {
            return Ok((None, Probe::Absent));
        };
        let probe = self.probe_spot(&spot)?;
        Ok((Some(spot), probe))
    }

    fn probe_spot(&self, spot: &Spot) -> Result<Probe> {
        if !spot.is_mounted() {
            return Ok(Probe::Absent);
        }
        let mounts = self.mounts()?;
        let layers = mounts.layers(spot.stat.mount_id);
        let ours = layers.iter().map_while(|mount| mount.volume());
        let count = ours.count() as u32;
        Ok(match layers.first() {
            None => Probe::Absent, // unmounted since it was opened
            Some(top) => match top.volume() {
                Some(volume) => Probe::Ours {
                    kind: MountKind::Tmpfs,
                    volume,
                    layers: count,
                },
                None => Probe::Foreign,
            },
        })
    }

    fn mounts(&self) -> Result<Mounts> {
        let text = self.fs.mountinfo().step("read the mounts")?;
        Ok(Mounts::parse(&text))
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
        let Some(spot) = self.spot(target)? else {
            return refuse(&codes::MOUNT_GONE, "the target went away");
        };
        if spot.stat.mount_id != own.mount_id {
            return refuse(&codes::MOUNT_FOREIGN, "the target shows another mount");
        }
        let mounts = self.mounts()?;
        match mounts.layers(own.mount_id)[..] {
            [only] if only.volume().as_ref() != Some(volume) || only.dev != own.dev => {
                refuse(&codes::MOUNT_KERNEL, "the mount is not as it was made")
            }
            [only] if !only.read_only => refuse(&codes::MOUNT_KERNEL, "the mount is writable"),
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
        if stat.dev == spot.parent_stat.dev || !space.is_tmpfs {
            return Err(refusal(&self.probe_spot(spot)?, options));
        }
        let mounts = self.mounts()?;
        match mounts.by_id(spot.stat.mount_id) {
            Some(mount)
                if mount.dev == stat.dev && mount.volume().as_ref() == Some(&options.volume) =>
            {
                Ok(mount.clone())
            }
            _ => Err(refusal(&self.probe_spot(spot)?, options)),
        }
    }

    /// Detaches what a publish attached, unless something is seen to lie on it: that would go with it.
    fn undo(&self, target: &TargetPath, mount: BorrowedFd<'_>) {
        let shown = self.spot(target).ok().flatten();
        let own = self.fs.statx(mount).ok();
        let is_covered = shown
            .zip(own)
            .is_some_and(|(spot, own)| spot.stat.mount_id != own.mount_id);
        if !is_covered {
            let _ = self.fs.umount2(mount);
        }
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

/// One volume's tmpfs.
struct TmpfsVolume {
    mounter: TmpfsMounter,
    target: TargetPath,
    options: MountOptions,
    dir: AtomicDir,
    dev: (u32, u32),
    swappable: bool,
}

impl Mounted for TmpfsVolume {
    fn generation(&self) -> Generation {
        self.dir.generation()
    }

    fn replace(&mut self, next: &Snapshot) -> Result<bool> {
        let replaced = self.replace_with(next);
        let changed = replaced.as_ref().is_ok_and(|changed| *changed);
        tracing::trace!(target = %self.target, generation = next.generation.0, changed, "replace");
        replaced.map_err(|error| error.object(&self.target))
    }

    fn sweep(&mut self, now: Mono) -> Option<Mono> {
        let most = room::most(&self.options, page_bytes());
        let short = self
            .space()
            .is_ok_and(|space| room::is_short(used(&space), most));
        let grace = if short {
            limits::OLD_GENERATION_MIN
        } else {
            limits::OLD_GENERATION
        };
        self.dir.sweep(now, grace)
    }

    /// A clone is attached, so that the writable side stays as it is whatever happens.
    fn attach(&mut self) -> Result<()> {
        let mounter = &self.mounter;
        let attached = match mounter.fs.open_tree_clone(self.dir.root()) {
            Err(Errno::INVAL) => Err(Error::new(&codes::MOUNT_GONE)),
            clone => clone.step("clone the mount").and_then(|clone| {
                mounter.attach(&self.target, clone.as_fd(), &self.options.volume)
            }),
        };
        attached.map_err(|error| error.object(&self.target))?;
        Ok(())
    }

    fn wipe(&mut self) -> Result<()> {
        let wiped = self.dir.wipe().step("wipe the files");
        wiped.map_err(|error| error.object(&self.target))
    }

    fn usage(&self) -> Result<Usage> {
        let space = self.space().map_err(|error| error.object(&self.target))?;
        let used = used(&space);
        Ok(Usage {
            bytes: used.pages * space.block_bytes,
            bytes_capacity: space.blocks * space.block_bytes,
            inodes: used.inodes,
            inodes_capacity: space.inodes,
            swappable: self.swappable,
        })
    }
}

impl TmpfsVolume {
    /// 1. Check that the target still shows our superblock.
    /// 2. Make up for what an earlier call left undone.
    /// 3. Compare with what is mounted; nothing to do is nothing done.
    /// 4. Make room, and swap. When the tmpfs is full all the same, once more with all the room that it may have.
    fn replace_with(&mut self, next: &Snapshot) -> Result<bool> {
        match self.mounter.spot(&self.target)? {
            Some(spot) if spot.is_mounted() && spot.stat.dev == self.dev => {}
            _ => return Err(Error::new(&codes::MOUNT_GONE)),
        } // 1
        self.dir.settle_if_needed()?; // 2
        let old = self.dir.read()?;
        let plan = plan(&old, &next.files, own_ids());
        if plan.is_nothing() {
            return Ok(self.dir.take_untold());
        } // 3
        room::check(&plan.next, &self.options, page_bytes())?;
        let more = room::of_swap(&old, &plan.next, page_bytes());
        self.make_room(more)?; // 4
        let (made_at, generation) = (next.made_at, next.generation);
        match self.dir.swap(&old, &plan, made_at, generation) {
            Err(error) if error.code() == &codes::MOUNT_NO_SPACE && !self.dir.has_untold() => {
                self.dir.remove_early(limits::OLD_GENERATION_MIN)?;
                self.dir.settle_if_needed()?;
                self.grow(room::most(&self.options, page_bytes()))?;
                self.dir.swap(&old, &plan, made_at, generation)?;
            }
            result => result?,
        }
        self.dir.take_untold();
        Ok(true)
    }

    /// Grows the tmpfs if a swap needs it; then removes superseded generations before their time, but never before the least time.
    fn make_room(&mut self, more: Needs) -> Result<()> {
        let most = room::most(&self.options, page_bytes());
        let space = self.space()?;
        if fits(&space, more) {
            return Ok(());
        }
        let capacity = Needs {
            pages: space.blocks,
            inodes: space.inodes,
        };
        let grown = room::grown(capacity, used(&space), more, most);
        if grown != capacity {
            self.grow(grown)?;
        }
        if fits(&self.space()?, more) {
            return Ok(());
        }
        self.dir.remove_early(limits::OLD_GENERATION_MIN)?;
        if fits(&self.space()?, more) {
            return Ok(());
        }
        Err(Error::new(&codes::MOUNT_NO_SPACE)
            .detail("superseded generations still take the room; the next sweep frees it"))
    }

    fn grow(&self, size: Needs) -> Result<()> {
        let fs = &self.mounter.fs;
        let context = fs.fspick(self.dir.root()).step("grow the tmpfs")?;
        self.mounter.set_size(context.as_fd(), size)?;
        fs.fsconfig(context.as_fd(), Setting::Reconfigure)
            .step("grow the tmpfs")
    }

    fn space(&self) -> Result<Space> {
        self.mounter
            .fs
            .fstatfs(self.dir.root())
            .step("look at the tmpfs")
    }
}

fn used(space: &Space) -> Needs {
    Needs {
        pages: space.blocks.saturating_sub(space.blocks_free),
        inodes: space.inodes.saturating_sub(space.inodes_free),
    }
}

fn fits(space: &Space, more: Needs) -> bool {
    space.blocks_free >= more.pages && space.inodes_free >= more.inodes
}
