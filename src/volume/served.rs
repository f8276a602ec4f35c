//! What a volume serves: a spec, views of its sources, and a mount.
//!
//! `tried` is what the last render was given, whether it succeeded or not; a view that differs from it is a change.
//! `rendered` is what readers see. Nothing here waits but for the blocking thread that renders and replaces.

use std::sync::Arc;

use crate::{
    caller::Identity,
    clock::{Mono, Wall},
    error::{Code, Error, Result, codes},
    limits,
    mount::{MountOptions, Mounted, Mounter, Usage, VolumeId},
    path::TargetPath,
    render::{Generation, Known, Snapshot, render},
    secret::Version,
    source::{SourceKey, SourceView},
    spec::VolumeSpec,
    volume::{
        AskedSpec, Placing, PublishRequest, Settings,
        followed::Followed,
        publish::Order,
        record::VolumeRecord,
        shortcut::refuse_taken,
        status::{Failure, Report, SourceReport},
        trail::Trail,
        volumes::Shared,
        wanted::wanted,
    },
};

/// A volume's state while it is served.
pub(super) struct Served {
    pub spec: Arc<VolumeSpec>,
    /// As it was written; `None`: it came parsed.
    pub raw: Option<Arc<str>>,
    pub target: TargetPath,
    pub placing: Placing,
    pub identity: Identity,
    /// With which the sources were chosen, or found to be the same.
    pub settings: Arc<Settings>,
    pub sources: Vec<Followed>,
    /// Sources with a lease, whose successors are not yet rendered.
    pub leaving: Vec<SourceKey>,
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
    /// Since when readers have not seen all that is known; tries that failed do not change it.
    pub behind_since: Option<Mono>,
    /// The volume's own failure.
    pub failure: Option<Failure>,
    /// The mount is there and not as it was made. What is rendered does not mend that.
    pub altered: Option<Failure>,
    pub failures: u32,
    pub retry_at: Option<Mono>,
    pub sweep_at: Option<Mono>,
    /// The target does not show our mount any more.
    pub gone: bool,
    /// That is on record.
    pub is_loss_told: bool,
    /// A mount was made anew under a running pod, which does not see it.
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

/// What to render and show.
pub(super) struct Job {
    pub spec: Arc<VolumeSpec>,
    pub known: Vec<Known>,
    pub generation: Generation,
    /// To be written before it is shown.
    pub record: Option<VolumeRecord>,
    /// See first that nothing is mounted at the target.
    pub look: bool,
    /// What is to be put on record when it is shown.
    pub trail: Trail,
}

impl Job {
    /// The next set of a volume.
    pub fn new(spec: &Arc<VolumeSpec>, known: &[Known], before: Generation, trail: Trail) -> Self {
        Self {
            spec: spec.clone(),
            known: known.to_vec(),
            generation: Generation(before.0 + 1),
            record: None,
            look: false,
            trail,
        }
    }

    fn snapshot(&self, wall: Wall) -> Result<Snapshot> {
        Ok(Snapshot {
            generation: self.generation,
            made_at: wall,
            versions: self.known.iter().map(version).collect(),
            files: render(&self.spec, &self.known)?,
        })
    }

    /// 1. See to it that the deliveries can be put on record. Where that must be and cannot, nothing is shown.
    /// 2. Write the volume's record; `show`; and let the record count or not.
    /// 3. Put on record what has been shown.
    fn run<T>(
        &mut self,
        shared: &Shared,
        id: &VolumeId,
        show: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let record = self.record.take();
        self.trail.shown(&shared.audit, || {
            // 1, 3
            let written = record.map(|record| shared.records.write(&record)); // 2
            let result = show();
            match (&result, written) {
                (Ok(_), Some(Ok(()))) => shared.recorded(shared.records.settle(id)),
                (Ok(_), Some(error)) => shared.recorded(error),
                (Err(_), Some(_)) => shared.records.withdraw(id),
                (_, None) => {}
            }
            result
        })
    }
}

/// Renders and mounts for the first time.
pub(super) async fn mount(
    shared: &Arc<Shared>,
    id: &VolumeId,
    target: &TargetPath,
    placing: &Placing,
    mut job: Job,
) -> Result<Shown> {
    let mounter = shared.mounters.of(job.spec.mount)?.clone();
    let (options, target) = (options(shared, id, placing, &job.spec), target.clone());
    let (context, id) = (shared.clone(), id.clone());
    shared
        .blocking(move || {
            if job.look {
                refuse_taken(&*mounter, &target)?;
            }
            let snapshot = Arc::new(job.snapshot(context.clock.wall())?);
            let show = || mounter.publish(&target, &snapshot, &options);
            let mounted = job.run(&context, &id, show)?;
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

/// Takes a former process's mount over, and notes whose it is.
pub(super) async fn adopt(
    shared: &Arc<Shared>,
    id: &VolumeId,
    target: &TargetPath,
    placing: &Placing,
    spec: &VolumeSpec,
    record: Option<VolumeRecord>,
) -> Result<Adopted> {
    let mounter = shared.mounters.of(spec.mount)?.clone();
    let (options, target) = (options(shared, id, placing, spec), target.clone());
    let context = shared.clone();
    shared
        .blocking(move || {
            let mut mounted = mounter.adopt(&target, &options)?;
            if let Some(record) = record {
                let written = context.records.write(&record);
                let settled = written.and_then(|()| context.records.settle(&record.id));
                context.recorded(settled);
            }
            Ok(Adopted {
                sweep_at: mounted.sweep(context.clock.now()),
                usage: mounted.usage().ok(),
                mounted,
            })
        })
        .await?
}

/// A mount that was taken over.
pub(super) struct Adopted {
    pub mounted: Box<dyn Mounted>,
    pub usage: Option<Usage>,
    pub sweep_at: Option<Mono>,
}

impl Adopted {
    /// What it may hold.
    pub fn bytes(&self) -> u64 {
        self.usage.map_or(0, |usage| usage.bytes_capacity)
    }
}

/// What a mount of this spec needs.
fn options(shared: &Shared, id: &VolumeId, placing: &Placing, spec: &VolumeSpec) -> MountOptions {
    MountOptions {
        volume: id.clone(),
        bytes_limit: spec.limits.bytes_per_volume,
        files_limit: spec.limits.files_per_volume,
        context: placing.context.clone(),
        make_target: placing.make_target,
        grant: shared.ledger.grant(id),
    }
}

fn version(known: &Known) -> Option<Version> {
    match known {
        Known::Object(object) => Some(object.version.clone()),
        Known::Unknown | Known::Absent | Known::Withdrawn => None,
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

    /// Whether this is what is asked for, from the sources that the configuration names now. What was asked for before is not
    /// read again.
    pub fn is(&mut self, id: &VolumeId, request: &PublishRequest, now: &Arc<Settings>) -> bool {
        self.is_text(&request.spec) && self.identity == request.caller.0 && self.is_current(id, now)
    }

    /// Whether it is this spec.
    pub fn is_text(&self, asked: &AskedSpec) -> bool {
        match (asked, &self.raw) {
            (AskedSpec::Raw(text), Some(raw)) => text == raw,
            (AskedSpec::Raw(_), None) | (AskedSpec::Wrong(_), _) => false,
            (AskedSpec::Parsed(spec), _) => spec.digest == self.spec.digest,
        }
    }

    /// Whether its sources are those of these settings. Where they cannot be named any more (a backend has left the
    /// configuration) what is served stays.
    fn is_current(&mut self, id: &VolumeId, settings: &Arc<Settings>) -> bool {
        if Arc::ptr_eq(&self.settings, settings) {
            return true;
        }
        let wanted = wanted(id, &self.spec, &self.identity, settings);
        let same = wanted.map_or(true, |wanted| {
            let keys = wanted.iter().map(|want| &want.key);
            keys.eq(self.sources.iter().map(|source| &source.key))
        });
        if same {
            self.settings = settings.clone();
        }
        same
    }

    /// A volume that shows nothing yet.
    pub fn new(request: &Order, sources: Vec<Followed>, generation: Generation) -> Self {
        let unknown = vec![Known::Unknown; sources.len()];
        Self {
            spec: request.spec.clone(),
            raw: request.raw.clone(),
            target: request.target.clone(),
            placing: request.placing.clone(),
            identity: request.caller.0.clone(),
            settings: request.settings.clone(),
            sources,
            leaving: Vec::new(),
            mounted: None,
            former: Vec::new(),
            generation,
            changed_at: None,
            files: None,
            usage: None,
            tried: unknown.clone(),
            rendered: unknown,
            changed_since: None,
            behind_since: None,
            failure: None,
            altered: None,
            failures: 0,
            retry_at: None,
            sweep_at: None,
            gone: false,
            is_loss_told: false,
            lost: false,
            adopted: false,
        }
    }

    /// Takes the handle (back).
    pub fn hold(&mut self, adopted: Adopted) {
        self.mounted = Some(adopted.mounted);
        self.usage = adopted.usage;
        self.sweep_at = adopted.sweep_at;
    }

    /// Lets go of all views; nothing more is due. The handle stays, to wipe the files by.
    pub fn close(&mut self) {
        self.sources.clear();
        self.tried.clear();
        self.rendered.clear();
        self.changed_since = None;
        self.behind_since = None;
        self.retry_at = None;
        self.sweep_at = None;
    }

    /// The sources' objects as they are now.
    pub fn known(&self) -> Vec<Known> {
        self.sources.iter().map(Followed::known).collect()
    }

    /// Notes whether there is something to render, and says whether it is time: none of the sources is in flight, or the
    /// first change is `RENDER_DELAY` old. Where the mount is gone nobody would read it.
    pub fn is_due(&mut self, now: Mono) -> bool {
        let mut changed = false;
        let mut in_flight = false;
        self.judge(now);
        for (source, tried) in self.sources.iter().zip(&self.tried) {
            let view = source.view.borrow();
            if !source.known().is_same(tried) {
                changed = true;
                // the answer that brought it; where we forgot what was tried (a mount came back) it need not have been new
                let is_news = !matches!(tried, Known::Unknown) && !source.is_withdrawn;
                let known_at = view.checked_at.filter(|_| is_news);
                self.behind_since.get_or_insert(known_at.unwrap_or(now));
            }
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
            None if self.gone => None,
            None => [self.retry_at, self.withdraws_at()]
                .into_iter()
                .flatten()
                .min(),
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
        mut job: Job,
    ) -> Result<Shown> {
        tracing::trace!(volume_id = %id, "a volume is rendered");
        let mounter: Arc<dyn Mounter> = shared.mounters.of(job.spec.mount)?.clone();
        let (options, target) = (
            options(shared, id, &self.placing, &job.spec),
            self.target.clone(),
        );
        let (context, id, held) = (shared.clone(), id.clone(), self.mounted.take());
        let call = move || {
            let mut mounted = match held {
                Some(mounted) => mounted, // 1
                None => mounter
                    .adopt(&target, &options)
                    .map_err(|error| (None, error))?,
            };
            let replaced = match job.snapshot(context.clock.wall()) {
                Ok(snapshot) => job
                    .run(&context, &id, || mounted.replace(&snapshot)) // 2, 3
                    .map(|changed| (changed, snapshot)),
                Err(error) => Err(error),
            };
            match replaced {
                Ok((changed, snapshot)) => Ok(Shown {
                    sweep_at: mounted.sweep(context.clock.now()), // 4
                    usage: mounted.usage().ok(),
                    mounted,
                    snapshot: Arc::new(snapshot),
                    changed,
                }),
                Err(failed) => Err((Some(mounted), failed)),
            }
        };
        match shared.blocking(call).await? {
            Ok(shown) => Ok(shown),
            Err((mounted, failed)) => {
                self.mounted = mounted;
                Err(failed)
            }
        }
    }

    /// To render what readers see once more; `None` while that is not known.
    pub fn again(&self) -> Option<impl FnOnce(Wall) -> Result<Snapshot> + Send + use<>> {
        let job = Job {
            spec: self.spec.clone(),
            known: self.rendered.clone(),
            generation: self.generation,
            record: None,
            look: false,
            trail: Trail::default(),
        };
        let made_at = self.changed_at;
        (!self.adopted).then_some(move |now: Wall| job.snapshot(made_at.unwrap_or(now)))
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
        if hides_the_mount(error.code()) {
            self.gone = true;
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
        self.is_loss_told = false;
        self.failure = None;
        self.tried = vec![Known::Unknown; self.sources.len()];
    }

    /// Notes whether the mount is as it was made.
    pub fn seen(&mut self, now: Mono, altered: Option<Error>) {
        let before = self.altered.take();
        self.altered = altered.map(|error| match before {
            Some(before) if before.error.to_string() == error.to_string() => before,
            before => Failure {
                since: before.map_or(now, |before| before.since),
                error: Arc::new(error),
            },
        });
    }

    /// What it has of failures that are not its sources'.
    pub fn own_failure(&self) -> Option<&Failure> {
        let own = self.failure.as_ref().or(self.altered.as_ref());
        own.or_else(|| {
            self.sources
                .iter()
                .find_map(|source| source.missed.as_ref())
        })
    }

    /// What to tell of it.
    pub fn report(&self, id: &VolumeId, refusal: Option<&Failure>) -> Report {
        Report {
            id: id.clone(),
            owner: self.identity.to_string(),
            target: self.target.to_string(),
            mount: self.spec.mount,
            generation: self.generation,
            changed_at: self.changed_at,
            lost: self.gone || self.lost,
            adopted: self.adopted,
            failure: self.own_failure().or(refusal).cloned(),
            sources: self
                .sources
                .iter()
                .zip(&self.rendered)
                .map(|(source, rendered)| SourceReport {
                    reference: source.key.object.to_string(),
                    pushes: source.pushes,
                    version: version(rendered),
                    removed: matches!(rendered, Known::Withdrawn),
                    view: source.view.clone(),
                })
                .collect(),
            usage: self.usage,
        }
    }
}

/// Whether it says that the target does not show our mount: it has gone, or something lies on it.
pub(super) fn hides_the_mount(code: &Code) -> bool {
    let all = [
        &codes::MOUNT_GONE,
        &codes::MOUNT_FOREIGN,
        &codes::MOUNT_HELD,
    ];
    all.contains(&code)
}
