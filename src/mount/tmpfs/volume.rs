//! One volume's tmpfs while we serve it: its writable side, and how it grows.

use std::os::fd::AsFd as _;

use super::TmpfsMounter;
use crate::{
    clock::Mono,
    error::{Error, Result, codes},
    limits,
    mount::{
        MountOptions, Mounted, Usage,
        atomic::AtomicDir,
        errno::Step as _,
        plan::{Needs, plan},
        room,
    },
    path::TargetPath,
    render::{Generation, Snapshot},
    sys::fs::{Errno, Setting, Space, own_ids, page_bytes},
};

/// One volume's tmpfs.
pub(super) struct TmpfsVolume {
    pub mounter: TmpfsMounter,
    pub target: TargetPath,
    pub options: MountOptions,
    pub dir: AtomicDir,
    /// Its superblock's.
    pub dev: (u32, u32),
    pub swappable: bool,
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
        let attached = self.attach_clone();
        attached.map_err(|error| error.object(&self.target))
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
    fn attach_clone(&self) -> Result<()> {
        let mounter = &self.mounter;
        let make = self.options.make_target;
        mounter.spots.admit(&self.target, make)?;
        let clone = match mounter.fs.open_tree_clone(self.dir.root()) {
            Err(Errno::INVAL) => return Err(Error::new(&codes::MOUNT_GONE)),
            clone => clone.step("clone the mount")?,
        };
        mounter.attach(&self.target, clone.as_fd(), &self.options)?;
        Ok(())
    }

    /// 1. Check that the target still shows our superblock.
    /// 2. Make up for what an earlier call left undone.
    /// 3. Compare with what is mounted; nothing to do is nothing done.
    /// 4. Make room, and swap. When the tmpfs is full all the same, once more with all the room that it may have.
    fn replace_with(&mut self, next: &Snapshot) -> Result<bool> {
        match self.mounter.spots.spot(&self.target)? {
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
        let mut refused = None;
        let grown = room::grown(capacity, used(&space), more, most);
        if grown != capacity {
            match self.grow(grown) {
                // what is removed early may do
                Err(error) if error.code() == &codes::LIMIT_EXCEEDED => refused = Some(error),
                result => result?,
            }
        }
        if fits(&self.space()?, more) {
            return Ok(());
        }
        self.dir.remove_early(limits::OLD_GENERATION_MIN)?;
        if fits(&self.space()?, more) {
            return Ok(());
        }
        Err(refused.unwrap_or_else(|| {
            Error::new(&codes::MOUNT_NO_SPACE)
                .detail("superseded generations still take the room; the next sweep frees it")
        }))
    }

    fn grow(&self, size: Needs) -> Result<()> {
        self.options.grant.ask(size.pages * page_bytes())?;
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
