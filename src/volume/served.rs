//! What a volume serves: a spec, views of its sources, and a mount.
//!
//! `tried` is what the last render was given, whether it succeeded or not; a view that differs from it is a change.
//! `rendered` is what readers see. Nothing here waits but for the blocking thread that renders and replaces.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    caller::Identity,
    clock::{Mono, Wall},
    error::{Error, Result, codes},
    limits,
    mount::{MountOptions, Mounted, Mounter, Usage, VolumeId},
    path::TargetPath,
    render::{Generation, Known, Snapshot, render},
    secret::Version,
    source::{SourceKey, SourceView},
    spec::VolumeSpec,
    volume::{
        status::{Failure, Report, SourceReport},
        volumes::{PublishRequest, Shared},
    },
};

/// One source of a volume; they stand in the order of the spec's objects.
pub(super) struct Followed {
    pub key: SourceKey,
    pub pushes: bool,
    pub view: watch::Receiver<SourceView>,
    /// The error that it showed when we came.
    pub before: Option<Arc<Error>>,
}

/// A volume's state while it is served.
pub(super) struct Served {
    pub spec: Arc<VolumeSpec>,
    pub target: TargetPath,
    pub identity: Identity,
    pub sources: Vec<Followed>,
    /// `None`: a call on it panicked.
    pub mounted: Option<Box<dyn Mounted>>,
    /// Of mounts that went away and were made anew: who had them still reads them. They are wiped with the volume.
    pub former: Vec<Box<dyn Mounted>>,
    pub generation: Generation,
    pub changed_at: Option<Wall>,
    pub files: Option<usize>,
    pub usage: Option<Usage>,
    pub tried: Vec<Known>,
    pub rendered: Vec<Known>,
    /// Since when there has been something to render.
    pub changed_since: Option<Mono>,
    /// The volume's own failure.
    pub failure: Option<Failure>,
    pub failures: u32,
    pub retry_at: Option<Mono>,
    pub sweep_at: Option<Mono>,
    /// The target does not show our mount any more.
    pub gone: bool,
    /// The mount went away under a running program, which sees no later one.
    pub lost: bool,
    /// Taken over; not every source has been known since.
    pub adopted: bool,
}

/// What a blocking call on the mount brings back.
pub(super) struct Shown {
    pub mounted: Box<dyn Mounted>,
    pub snapshot: Arc<Snapshot>,
    pub changed: bool,
    pub usage: Option<Usage>,
    pub sweep_at: Option<Mono>,
}

/// What to render.
pub(super) struct Job {
    pub spec: Arc<VolumeSpec>,
    pub known: Vec<Known>,
    pub generation: Generation,
}

impl Job {
    fn snapshot(&self, wall: Wall) -> Result<Snapshot> {
        Ok(Snapshot {
            generation: self.generation,
            made_at: wall,
            versions: self.known.iter().map(version).collect(),
            files: render(&self.spec, &self.known)?,
        })
    }
}

/// Renders and mounts for the first time.
pub(super) async fn mount(
    shared: &Arc<Shared>,
    id: &VolumeId,
    target: &TargetPath,
    job: Job,
) -> Result<Shown> {
    let mounter = shared.mounters.of(job.spec.mount)?.clone();
    let (options, target) = (options(id, &job.spec), target.clone());
    let clock = shared.clock.clone();
    shared
        .blocking(move || {
            let snapshot = Arc::new(job.snapshot(clock.wall())?);
            let mounted = mounter.publish(&target, &snapshot, &options)?;
            Ok(Shown {
                usage: mounted.usage().ok(),
                mounted,
                snapshot,
                changed: true,
                sweep_at: None,
            })
        })
        .await?
}

/// Takes a former process's mount over.
pub(super) async fn adopt(
    shared: &Arc<Shared>,
    id: &VolumeId,
    target: &TargetPath,
    spec: &VolumeSpec,
) -> Result<(Box<dyn Mounted>, Option<Usage>, Option<Mono>)> {
    let mounter = shared.mounters.of(spec.mount)?.clone();
    let (options, target) = (options(id, spec), target.clone());
    let clock = shared.clock.clone();
    shared
        .blocking(move || {
            let mut mounted = mounter.adopt(&target, &options)?;
            let sweep_at = mounted.sweep(clock.now());
            let usage = mounted.usage().ok();
            Ok((mounted, usage, sweep_at))
        })
        .await?
}

/// What a mount of this spec needs.
fn options(id: &VolumeId, spec: &VolumeSpec) -> MountOptions {
    MountOptions {
        volume: id.clone(),
        bytes_limit: spec.limits.bytes_per_volume,
        files_limit: spec.limits.files_per_volume,
    }
}

fn version(known: &Known) -> Option<Version> {
    match known {
        Known::Object(object) => Some(object.version.clone()),
        Known::Unknown | Known::Absent => None,
    }
}

/// Whether both are the same answer of the store: the same object, not only an equal one.
pub(super) fn same(a: &Known, b: &Known) -> bool {
    match (a, b) {
        (Known::Unknown, Known::Unknown) | (Known::Absent, Known::Absent) => true,
        (Known::Object(a), Known::Object(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

impl Served {
    /// What its sources show now.
    pub fn views(&self) -> Vec<SourceView> {
        let views = self
            .sources
            .iter()
            .map(|source| source.view.borrow().clone());
        views.collect()
    }

    /// A volume that shows nothing yet.
    pub fn new(request: &PublishRequest, sources: Vec<Followed>, generation: Generation) -> Self {
        let unknown = vec![Known::Unknown; sources.len()];
        Self {
            spec: request.spec.clone(),
            target: request.target.clone(),
            identity: request.caller.0.clone(),
            sources,
            mounted: None,
            former: Vec::new(),
            generation,
            changed_at: None,
            files: None,
            usage: None,
            tried: unknown.clone(),
            rendered: unknown,
            changed_since: None,
            failure: None,
            failures: 0,
            retry_at: None,
            sweep_at: None,
            gone: false,
            lost: false,
            adopted: false,
        }
    }

    /// Takes the handle (back).
    pub fn hold(
        &mut self,
        mounted: Box<dyn Mounted>,
        usage: Option<Usage>,
        sweep_at: Option<Mono>,
    ) {
        self.mounted = Some(mounted);
        self.usage = usage;
        self.sweep_at = sweep_at;
    }

    /// Lets go of all views; nothing more is due. The handle stays, to wipe the files by.
    pub fn close(&mut self) {
        self.sources.clear();
        self.tried.clear();
        self.rendered.clear();
        self.changed_since = None;
        self.retry_at = None;
        self.sweep_at = None;
    }

    /// The sources' objects as they are now.
    pub fn known(&self) -> Vec<Known> {
        known(&self.sources)
    }

    /// Notes whether there is something to render, and says whether it is time: none of the sources is in flight, or the
    /// first change is `RENDER_DELAY` old. Where the mount is gone nobody would read it.
    pub fn is_due(&mut self, now: Mono) -> bool {
        let mut changed = false;
        let mut in_flight = false;
        for (source, tried) in self.sources.iter().zip(&self.tried) {
            let view = source.view.borrow();
            changed |= !same(&view.known, tried);
            in_flight |= view.in_flight;
        }
        changed |= self.retry_at.is_some_and(|at| at <= now);
        if !changed || self.gone {
            self.changed_since = None;
            return false;
        }
        let since = *self.changed_since.get_or_insert(now);
        !in_flight || now.since(since) >= limits::RENDER_DELAY
    }

    /// The next moment at which something is due without anybody calling.
    pub fn next_moment(&self) -> Option<Mono> {
        let render = match self.changed_since {
            Some(since) => Some(since.after(limits::RENDER_DELAY)),
            None => self.retry_at,
        };
        [render, self.sweep_at].into_iter().flatten().min()
    }

    /// Renders what is known and replaces the files. On an error readers see what they saw before.
    ///
    /// 1. Take the handle, or regain it from the mount.
    /// 2. Render.
    /// 3. Replace; equal files change nothing.
    /// 4. Sweep what is old enough, and see when to do so next.
    ///
    /// The blocking thread gives the handle back, whatever happened; only a panic loses it, and the next call regains it.
    pub async fn replace(
        &mut self,
        shared: &Arc<Shared>,
        id: &VolumeId,
        job: Job,
    ) -> Result<Shown> {
        let mounter: Arc<dyn Mounter> = shared.mounters.of(job.spec.mount)?.clone();
        let (options, target) = (options(id, &job.spec), self.target.clone());
        let (clock, held) = (shared.clock.clone(), self.mounted.take());
        let call = move || {
            let mut mounted = match held {
                Some(mounted) => mounted, // 1
                None => mounter
                    .adopt(&target, &options)
                    .map_err(|error| (None, error))?,
            };
            let replaced = job.snapshot(clock.wall()).and_then(|snapshot| {
                let changed = mounted.replace(&snapshot)?; // 2, 3
                Ok((changed, snapshot))
            });
            match replaced {
                Ok((changed, snapshot)) => Ok(Shown {
                    sweep_at: mounted.sweep(clock.now()), // 4
                    usage: mounted.usage().ok(),
                    mounted,
                    snapshot: Arc::new(snapshot),
                    changed,
                }),
                Err(error) => Err((Some(mounted), error)),
            }
        };
        match shared.blocking(call).await? {
            Ok(shown) => Ok(shown),
            Err((mounted, error)) => {
                self.mounted = mounted;
                Err(error)
            }
        }
    }

    /// Removes what is old enough.
    pub async fn sweep(&mut self, shared: &Arc<Shared>, now: Mono) {
        self.sweep_at = None;
        let Some(mut mounted) = self.mounted.take() else {
            return;
        };
        let call = move || {
            let next = mounted.sweep(now);
            (next, mounted.usage().ok(), mounted)
        };
        if let Ok((next, usage, mounted)) = shared.blocking(call).await {
            self.mounted = Some(mounted);
            self.sweep_at = next;
            self.usage = usage;
        }
    }

    /// The mount's calls failed: readers see what they saw before.
    pub fn failed(&mut self, now: Mono, error: Error) {
        self.changed_since = None;
        self.retry_at = None;
        if error.code() == &codes::MOUNT_GONE {
            self.gone = true;
            self.lost = true;
            self.sweep_at = None;
        } else if !error.code().name.starts_with("render.") {
            // a render of the same objects would fail again; a mount may have recovered
            let doubled = limits::REPLACE_RETRY.saturating_mul(1 << self.failures.min(10));
            self.retry_at = Some(now.after(doubled.min(limits::REPLACE_RETRY_MAX)));
            self.failures += 1;
        }
        let since = self.failure.as_ref().map_or(now, |failure| failure.since);
        self.failure = Some(Failure {
            error: Arc::new(error),
            since,
        });
    }

    /// The target shows our mount after all: what was missed is rendered.
    pub fn shows_again(&mut self) {
        self.gone = false;
        self.lost &= matches!(self.identity, Identity::Pod(_));
        self.failure = None;
        self.tried = vec![Known::Unknown; self.sources.len()];
    }

    /// What to tell of it.
    pub fn report(&self, id: &VolumeId) -> Report {
        Report {
            id: id.clone(),
            owner: self.identity.to_string(),
            target: self.target.to_string(),
            mount: self.spec.mount,
            generation: self.generation,
            changed_at: self.changed_at,
            lost: self.lost,
            adopted: self.adopted,
            failure: self.failure.clone(),
            sources: self
                .sources
                .iter()
                .zip(&self.rendered)
                .map(|(source, rendered)| SourceReport {
                    reference: source.key.object.to_string(),
                    pushes: source.pushes,
                    version: version(rendered),
                    view: source.view.clone(),
                })
                .collect(),
            usage: self.usage,
        }
    }
}

/// What is known of each of these.
pub(super) fn known(sources: &[Followed]) -> Vec<Known> {
    sources
        .iter()
        .map(|source| source.view.borrow().known.clone())
        .collect()
}
