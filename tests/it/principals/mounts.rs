//! Mounts in memory that note each set of files at the moment at which it is shown: no reader misses less.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use secretfs::{
    clock::{Clock as _, Mono},
    error::Result,
    mount::{MountOptions, Mounted, Mounter, Probe, Usage, VolumeId, memory::MemoryMounter},
    path::TargetPath,
    render::{Generation, Snapshot},
};

use crate::support::clock::ManualClock;

/// What readers of a target see since then.
pub struct Seen {
    pub at: Mono,
    pub target: TargetPath,
    pub files: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct Watched {
    inner: MemoryMounter,
    /// Comes with the bed that is made on these mounts.
    clock: Arc<Mutex<Option<Arc<ManualClock>>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Watched {
    pub fn new(inner: MemoryMounter) -> Self {
        Self {
            inner,
            clock: Arc::default(),
            seen: Arc::default(),
        }
    }

    pub fn go_by(&self, clock: Arc<ManualClock>) {
        *self.clock.lock().unwrap() = Some(clock);
    }

    /// What was shown since the last call, in its order.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn note(&self, target: &TargetPath) {
        let mut seen = self.seen.lock().unwrap();
        let clock = self.clock.lock().unwrap().clone();
        let shown = self.inner.shown(target).into_iter();
        let files = shown.flat_map(|shown| shown.files.0);
        let files = files.map(|(path, placed)| {
            let text = String::from_utf8(placed.bytes.expose().to_vec());
            (path.as_str().to_owned(), text.unwrap())
        });
        seen.push(Seen {
            at: clock.unwrap().now(),
            target: target.clone(),
            files: files.collect(),
        });
    }

    fn wrap(&self, target: &TargetPath, inner: Box<dyn Mounted>) -> Box<dyn Mounted> {
        let (mounts, target) = (self.clone(), target.clone());
        Box::new(WatchedMount {
            mounts,
            target,
            inner,
        })
    }
}

impl Mounter for Watched {
    fn probe(&self, target: &TargetPath) -> Result<Probe> {
        self.inner.probe(target)
    }

    fn publish(
        &self,
        target: &TargetPath,
        first: &Snapshot,
        options: &MountOptions,
    ) -> Result<Box<dyn Mounted>> {
        let mounted = self.inner.publish(target, first, options)?;
        self.note(target);
        Ok(self.wrap(target, mounted))
    }

    fn adopt(&self, target: &TargetPath, options: &MountOptions) -> Result<Box<dyn Mounted>> {
        Ok(self.wrap(target, self.inner.adopt(target, options)?))
    }

    fn unpublish(&self, target: &TargetPath, remove_target: bool) -> Result<()> {
        self.inner.unpublish(target, remove_target)
    }

    fn places(&self, volume: &VolumeId) -> Result<Vec<PathBuf>> {
        self.inner.places(volume)
    }

    fn all(&self) -> Result<Vec<(VolumeId, PathBuf)>> {
        self.inner.all()
    }
}

struct WatchedMount {
    mounts: Watched,
    target: TargetPath,
    inner: Box<dyn Mounted>,
}

impl Mounted for WatchedMount {
    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    fn replace(&mut self, next: &Snapshot) -> Result<bool> {
        let changed = self.inner.replace(next)?;
        self.mounts.note(&self.target);
        Ok(changed)
    }

    fn sweep(&mut self, now: Mono) -> Option<Mono> {
        self.inner.sweep(now)
    }

    fn attach(&mut self) -> Result<()> {
        self.inner.attach()
    }

    fn wipe(&mut self) -> Result<()> {
        self.inner.wipe()
    }

    fn usage(&self) -> Result<Usage> {
        self.inner.usage()
    }
}
