//! The memory kind: what a mount shows, without one. For tests, and for programs that take secrets from their environment.
//!
//! A clone of a [`MemoryMounter`] sees the same targets: drop the [`Mounted`], and another clone adopts them, as after a restart. Limits,
//! kept files and refusals are those of the tmpfs kind; `plan` decides for both.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    MountOptions, Mounted, Mounter, Probe, Usage, VolumeId,
    plan::{Needs, Tree, plan},
    room,
};
use crate::{
    clock::Mono,
    error::{Error, Result, codes},
    path::TargetPath,
    render::{Generation, Snapshot},
    spec::MountKind,
    sys::fs::{own_ids, page_bytes},
};

/// Mounts volumes in memory.
#[derive(Clone, Default)]
pub struct MemoryMounter {
    targets: Arc<Mutex<HashMap<TargetPath, Spot>>>,
}

enum Spot {
    Ours(Shown),
    Foreign,
}

/// What a target shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Whose it is.
    pub volume: VolumeId,
    /// Which set.
    pub generation: Generation,
    /// Its files.
    pub files: Tree,
    /// How often readers saw another set since the first.
    pub swaps: u64,
    /// Tells a mount from a later one at the same target, as a device does.
    made: u64,
    /// What a tmpfs would have room for.
    room: Needs,
}

impl MemoryMounter {
    /// What a reader of `target` sees; `None` where nothing of ours is.
    pub fn shown(&self, target: &TargetPath) -> Option<Shown> {
        match self.lock().get(target) {
            Some(Spot::Ours(shown)) => Some(shown.clone()),
            Some(Spot::Foreign) | None => None,
        }
    }

    /// As if somebody unmounted what is at `target`.
    pub fn lose(&self, target: &TargetPath) {
        self.lock().remove(target);
    }

    /// As if somebody mounted something of theirs at `target`.
    pub fn occupy(&self, target: &TargetPath) {
        self.lock().insert(target.clone(), Spot::Foreign);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetPath, Spot>> {
        // A panic elsewhere cannot leave it half changed: each change is one insert or remove.
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volume(&self, target: &TargetPath, options: &MountOptions, shown: &Shown) -> MemoryVolume {
        MemoryVolume {
            mounter: self.clone(),
            target: target.clone(),
            options: options.clone(),
            generation: shown.generation,
            made: shown.made,
        }
    }
}

impl Mounter for MemoryMounter {
    fn probe(&self, target: &TargetPath) -> Result<Probe> {
        Ok(match self.lock().get(target) {
            None => Probe::Absent,
            Some(Spot::Foreign) => Probe::Foreign,
            Some(Spot::Ours(shown)) => Probe::Ours {
                kind: MountKind::Tmpfs,
                volume: shown.volume.clone(),
                layers: 1,
                altered: None,
            },
        })
    }

    fn publish(
        &self,
        target: &TargetPath,
        first: &Snapshot,
        options: &MountOptions,
    ) -> Result<Box<dyn Mounted>> {
        let files = plan(&Tree::default(), &first.files, own_ids()).next;
        room::check(&files, options, page_bytes()).map_err(|error| error.object(target))?;
        let mut targets = self.lock();
        match targets.get(target) {
            None => {}
            Some(Spot::Ours(_)) => return Err(Error::new(&codes::MOUNT_HELD).object(target)),
            Some(Spot::Foreign) => return Err(Error::new(&codes::MOUNT_FOREIGN).object(target)),
        }
        let page = page_bytes();
        let room = room::first(files.needs(page), room::most(options, page));
        options.grant.ask(room.pages * page)?;
        let shown = Shown {
            volume: options.volume.clone(),
            generation: first.generation,
            files,
            swaps: 0,
            made: fastrand::u64(..),
            room,
        };
        let volume = self.volume(target, options, &shown);
        targets.insert(target.clone(), Spot::Ours(shown));
        Ok(Box::new(volume))
    }

    fn adopt(&self, target: &TargetPath, options: &MountOptions) -> Result<Box<dyn Mounted>> {
        let code = match self.lock().get(target) {
            Some(Spot::Ours(shown)) if shown.volume == options.volume => {
                return Ok(Box::new(self.volume(target, options, shown)));
            }
            Some(Spot::Ours(_)) => &codes::MOUNT_HELD,
            Some(Spot::Foreign) => &codes::MOUNT_FOREIGN,
            None => &codes::MOUNT_GONE,
        };
        Err(Error::new(code).object(target))
    }

    fn unpublish(&self, target: &TargetPath, _remove_target: bool) -> Result<()> {
        let mut targets = self.lock();
        if let Some(Spot::Ours(_)) = targets.get(target) {
            targets.remove(target);
        }
        Ok(())
    }

    fn all(&self) -> Result<Vec<(VolumeId, PathBuf)>> {
        let targets = self.lock();
        let ours = targets.iter().filter_map(|(target, spot)| match spot {
            Spot::Ours(shown) => Some((shown.volume.clone(), target.as_path().to_owned())),
            _ => None,
        });
        Ok(ours.collect())
    }

    fn places(&self, volume: &VolumeId) -> Result<Vec<PathBuf>> {
        let targets = self.lock();
        let is_its = |spot: &Spot| matches!(spot, Spot::Ours(shown) if shown.volume == *volume);
        let its = targets.iter().filter(|(_, spot)| is_its(spot));
        Ok(its.map(|(target, _)| target.as_path().to_owned()).collect())
    }
}

struct MemoryVolume {
    mounter: MemoryMounter,
    target: TargetPath,
    options: MountOptions,
    generation: Generation,
    made: u64,
}

impl Mounted for MemoryVolume {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn replace(&mut self, next: &Snapshot) -> Result<bool> {
        let mut targets = self.mounter.lock();
        let shown = match targets.get_mut(&self.target) {
            Some(Spot::Ours(shown)) if shown.made == self.made => shown,
            _ => return Err(Error::new(&codes::MOUNT_GONE).object(&self.target)),
        };
        let plan = plan(&shown.files, &next.files, own_ids());
        if plan.is_nothing() {
            return Ok(false);
        }
        room::check(&plan.next, &self.options, page_bytes())
            .map_err(|error| error.object(&self.target))?;
        let page = page_bytes();
        let (needs, most) = (plan.next.needs(page), room::most(&self.options, page));
        if room::first(needs, most).pages > shown.room.pages {
            let room = room::grown(shown.room, shown.room, needs, most);
            self.options.grant.ask(room.pages * page)?;
            shown.room = room;
        }
        shown.files = plan.next;
        shown.generation = next.generation;
        shown.swaps += 1;
        self.generation = next.generation;
        Ok(true)
    }

    /// Nothing is superseded here: a reader has a whole set or none.
    fn sweep(&mut self, _now: Mono) -> Option<Mono> {
        None
    }

    /// What was lost here is nowhere any more.
    fn attach(&mut self) -> Result<()> {
        Err(Error::new(&codes::MOUNT_GONE).object(&self.target))
    }

    fn wipe(&mut self) -> Result<()> {
        match self.mounter.lock().get_mut(&self.target) {
            Some(Spot::Ours(shown)) if shown.made == self.made => {
                shown.files = Tree::default();
                shown.generation = Generation(0);
                self.generation = Generation(0);
            }
            _ => {}
        }
        Ok(())
    }

    fn usage(&self) -> Result<Usage> {
        let shown = self.mounter.shown(&self.target);
        let files = shown.map(|shown| shown.files).unwrap_or_default();
        Ok(Usage {
            bytes: files.bytes(),
            bytes_capacity: self.options.bytes_limit,
            inodes: files.0.len() as u64,
            inodes_capacity: u64::from(self.options.files_limit),
            swappable: true,
        })
    }
}
