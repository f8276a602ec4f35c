//! Volumes on a manual clock, two scripted stores (`a` and `b`) and a mounter that fails when it is told to.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use secretfs::{
    backend::{Backend, registry::Registry},
    caller::{Caller, Credentials, Identity},
    clock::Mono,
    error::{Code, Error, Result},
    mount::{
        MountOptions, Mounted, Mounter, Probe, Usage, VolumeId, memory::MemoryMounter,
        memory::Shown,
    },
    observe::{
        audit::Audit,
        events::{Event, Events},
        metrics::Metrics,
    },
    path::{Mode, Owner, RelPath, TargetPath},
    render::{Generation, Snapshot},
    source::pool::Rules,
    spec::{
        BackendName, Digest, FileRule, MountKind, ObjectRef, OnDenied, Origin, Refresh, Select,
        Share, VolumeLimits, VolumeSpec,
    },
    volume::{
        AskedSpec, Mounters, Parts, Placing, PublishRequest, Published, Settings, VolumeStatus,
        Volumes, record::Records,
    },
};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    clock::ManualClock,
    scripted::{Scripted, pod},
};

/// What a test of volumes stands on.
pub struct Bed {
    pub clock: Arc<ManualClock>,
    pub a: Scripted,
    pub b: Scripted,
    pub mounts: MemoryMounter,
    pub faults: Faults,
    pub settings: watch::Sender<Arc<Settings>>,
    pub volumes: Volumes,
    /// What the volumes count, through all restarts.
    pub metrics: Metrics,
    audit: Audit,
    runtime_dir: Option<TempDir>,
    events: (Events, Mutex<mpsc::Receiver<Event>>),
}

/// Makes the next call on a mount fail, and counts the looks at targets.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>, Arc<AtomicUsize>);

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Error(&'static Code),
    Panic,
}

impl Faults {
    /// The next calls of `publish`, `adopt`, `replace` or `unpublish` go wrong like this, one each.
    pub fn arm(&self, fault: Fault) {
        self.0.lock().unwrap().insert(0, fault);
    }

    /// No more of them.
    pub fn disarm(&self) {
        self.0.lock().unwrap().clear();
    }

    /// How often somebody looked at a target.
    pub fn probes(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    fn strike(&self) -> Result<()> {
        let fault = self.0.lock().unwrap().pop();
        match fault {
            None => Ok(()),
            Some(Fault::Error(code)) => Err(Error::new(code).step("as the test says")),
            Some(Fault::Panic) => panic!("as the test says"),
        }
    }
}

/// Another mounter, with faults.
struct Faulty {
    inner: Arc<dyn Mounter>,
    faults: Faults,
}

impl Faulty {
    fn wrap(&self, inner: Box<dyn Mounted>) -> Box<dyn Mounted> {
        let faults = self.faults.clone();
        Box::new(FaultyMounted { inner, faults })
    }
}

impl Mounter for Faulty {
    fn probe(&self, target: &TargetPath) -> Result<Probe> {
        self.faults.1.fetch_add(1, Ordering::Relaxed);
        self.inner.probe(target)
    }

    fn publish(
        &self,
        target: &TargetPath,
        first: &Snapshot,
        options: &MountOptions,
    ) -> Result<Box<dyn Mounted>> {
        self.faults.strike()?;
        Ok(self.wrap(self.inner.publish(target, first, options)?))
    }

    fn adopt(&self, target: &TargetPath, options: &MountOptions) -> Result<Box<dyn Mounted>> {
        self.faults.strike()?;
        Ok(self.wrap(self.inner.adopt(target, options)?))
    }

    fn unpublish(&self, target: &TargetPath, remove_target: bool) -> Result<()> {
        self.faults.strike()?;
        self.inner.unpublish(target, remove_target)
    }

    fn places(&self, volume: &VolumeId) -> Result<Vec<PathBuf>> {
        self.inner.places(volume)
    }

    fn all(&self) -> Result<Vec<(VolumeId, PathBuf)>> {
        self.inner.all()
    }
}

struct FaultyMounted {
    inner: Box<dyn Mounted>,
    faults: Faults,
}

impl Mounted for FaultyMounted {
    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    fn replace(&mut self, next: &Snapshot) -> Result<bool> {
        self.faults.strike()?;
        self.inner.replace(next)
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

impl Bed {
    /// On mounts in memory.
    pub fn new() -> Self {
        let mounts = MemoryMounter::default();
        Self::on(Arc::new(mounts.clone()), mounts)
    }

    /// On mounts in memory, with records.
    pub fn with_records() -> Self {
        let mounts = MemoryMounter::default();
        Self::with_records_on(Arc::new(mounts.clone()), mounts)
    }

    /// On these mounts, with records.
    pub fn with_records_on(mounter: Arc<dyn Mounter>, mounts: MemoryMounter) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::set_up(mounter, mounts, Some(dir), ManualClock::new(), Audit::off())
    }

    /// On mounts in memory, with records, and with an audit log of its own clock.
    pub fn audited(audit: impl FnOnce(&Arc<ManualClock>) -> Audit) -> Self {
        let (mounts, clock) = (MemoryMounter::default(), ManualClock::new());
        let (audit, dir) = (audit(&clock), tempfile::tempdir().unwrap());
        Self::set_up(Arc::new(mounts.clone()), mounts, Some(dir), clock, audit)
    }

    /// On these mounts; `mounts` is what `shown` and `read` look at.
    pub fn on(mounter: Arc<dyn Mounter>, mounts: MemoryMounter) -> Self {
        Self::set_up(mounter, mounts, None, ManualClock::new(), Audit::off())
    }

    fn set_up(
        mounter: Arc<dyn Mounter>,
        mounts: MemoryMounter,
        dir: Option<TempDir>,
        clock: Arc<ManualClock>,
        audit: Audit,
    ) -> Self {
        let (a, b) = (Scripted::default(), Scripted::default());
        let settings = watch::Sender::new(settings(&a, &b, 0));
        let faults = Faults::default();
        let (events, told) = Events::channel();
        let told_to = (events, Metrics::default(), audit);
        let records = records(dir.as_ref());
        let parts = parts(&clock, &settings, mounter, &faults, records, &told_to);
        let volumes = Volumes::start(parts);
        let (events, metrics, audit) = told_to;
        Self {
            clock,
            a,
            b,
            mounts,
            faults,
            settings,
            volumes,
            metrics,
            audit,
            runtime_dir: dir,
            events: (events, Mutex::new(told)),
        }
    }

    /// Where the volumes' records are.
    pub fn records(&self) -> PathBuf {
        let dir = self.runtime_dir.as_ref().unwrap();
        dir.path().join("volumes")
    }

    /// Reasons of the Events since the last call.
    pub fn told(&self) -> Vec<&'static str> {
        let mut events = self.events.1.lock().unwrap();
        std::iter::from_fn(|| events.try_recv().ok())
            .map(|event| event.reason)
            .collect()
    }

    /// Another process on the same mounts and stores; the old one is gone.
    pub async fn restart(&mut self) {
        self.restart_on(Arc::new(self.mounts.clone())).await;
    }

    /// The same on these mounts.
    pub async fn restart_on(&mut self, mounter: Arc<dyn Mounter>) {
        self.volumes.shutdown().await;
        let records = records(self.runtime_dir.as_ref());
        let clock = &self.clock;
        let told_to = (
            self.events.0.clone(),
            self.metrics.clone(),
            self.audit.clone(),
        );
        let parts = parts(
            clock,
            &self.settings,
            mounter,
            &self.faults,
            records,
            &told_to,
        );
        self.volumes = Volumes::start(parts);
    }

    /// The configuration is read again.
    pub fn reconfigure(&self, epoch: u64) {
        self.settings
            .send_replace(settings(&self.a, &self.b, epoch));
    }

    /// Publishes in a task of its own.
    pub fn begin(&self, request: PublishRequest) -> JoinHandle<Result<Published>> {
        let volumes = self.volumes.clone();
        tokio::spawn(async move { Ok(volumes.publish(request).await?) })
    }

    /// Publishes for the pod `web`, and lets the work of the moment be done.
    pub async fn publish(&self, id: &str, spec: &Arc<VolumeSpec>) -> Result<Published> {
        let published = self.volumes.publish(request(id, spec)).await;
        self.clock.settle().await;
        Ok(published?)
    }

    pub async fn unpublish(&self, id: &str) -> Result<()> {
        let (id, target) = (volume(id), target(id));
        self.volumes.unpublish(&id, Some(target), true).await
    }

    /// Unpublishes the volume `v` at another target than its own.
    pub async fn unpublish_at(&self, target: &TargetPath) -> Result<()> {
        let target = Some(target.clone());
        self.volumes.unpublish(&volume("v"), target, false).await
    }

    pub async fn pass(&self, seconds: u64) {
        self.clock.pass(Duration::from_secs(seconds)).await;
    }

    pub async fn pass_ms(&self, millis: u64) {
        self.clock.pass(Duration::from_millis(millis)).await;
    }

    /// What is mounted for the volume `id`.
    pub fn shown(&self, id: &str) -> Option<Shown> {
        self.mounts.shown(&target(id))
    }

    /// A file as a reader of the volume `id` sees it.
    pub fn read(&self, id: &str, file: &str) -> Option<String> {
        let files = self.shown(id)?.files;
        let file = files.0.get(&RelPath::parse(file).unwrap())?;
        Some(String::from_utf8(file.bytes.expose().to_vec()).unwrap())
    }

    pub fn status(&self, id: &str) -> Option<VolumeStatus> {
        let all = self.volumes.status();
        all.into_iter().find(|status| status.id == id)
    }

    /// Code of the error that the status of `id` shows.
    pub fn trouble(&self, id: &str) -> Option<String> {
        Some(self.status(id)?.error?.code)
    }
}

fn parts(
    clock: &Arc<ManualClock>,
    settings: &watch::Sender<Arc<Settings>>,
    mounter: Arc<dyn Mounter>,
    faults: &Faults,
    records: Records,
    (events, metrics, audit): &(Events, Metrics, Audit),
) -> Parts {
    Parts {
        clock: clock.clone(),
        settings: settings.subscribe(),
        mounters: Mounters {
            tmpfs: Arc::new(Faulty {
                inner: mounter,
                faults: faults.clone(),
            }),
        },
        rules: Rules::default(),
        records,
        events: events.clone(),
        audit: audit.clone(),
        metrics: metrics.clone(),
    }
}

fn records(runtime_dir: Option<&TempDir>) -> Records {
    runtime_dir.map_or_else(Records::off, |dir| Records::below(dir.path()))
}

fn settings(a: &Scripted, b: &Scripted, epoch: u64) -> Arc<Settings> {
    let backends: [(&str, Arc<dyn Backend>); 2] =
        [("a", Arc::new(a.clone())), ("b", Arc::new(b.clone()))];
    let by_name: BTreeMap<_, _> = backends
        .into_iter()
        .map(|(name, backend)| (BackendName::parse(name).unwrap(), backend))
        .collect();
    Arc::new(Settings {
        registry: Registry::new(by_name, epoch),
        ..Settings::default()
    })
}

pub fn volume(id: &str) -> VolumeId {
    VolumeId::parse(id).unwrap()
}

pub fn target(id: &str) -> TargetPath {
    TargetPath::parse(&Path::new("/pods").join(id)).unwrap()
}

/// For the pod `web` of the account `shop`.
pub fn request(id: &str, spec: &Arc<VolumeSpec>) -> PublishRequest {
    request_as(pod("web", "shop"), id, spec)
}

pub fn request_as(who: Identity, id: &str, spec: &Arc<VolumeSpec>) -> PublishRequest {
    PublishRequest {
        id: volume(id),
        target: target(id),
        spec: AskedSpec::Parsed(spec.clone()),
        caller: caller(who),
        placing: Placing::default(),
    }
}

/// For the pod `web` of the account `shop`, as text.
pub fn asked(id: &str, text: &str) -> PublishRequest {
    PublishRequest {
        spec: AskedSpec::Raw(text.into()),
        ..request(id, &spec(&[]))
    }
}

pub fn caller(who: Identity) -> Caller {
    Arc::new((who, Credentials::default()))
}

/// A spec of lines `FILE < BACKEND:PATH[#FIELD]`; `FILE?` is optional, `/` as FILE and `*` as FIELD are all fields in the root, and `~` before a
/// reference asks for an object of the volume's own. Asked every minute.
pub fn spec(lines: &[&str]) -> Arc<VolumeSpec> {
    spec_every(Refresh::Every(Duration::from_secs(60)), lines)
}

pub fn spec_every(refresh: Refresh, lines: &[&str]) -> Arc<VolumeSpec> {
    let mut objects: Vec<ObjectRef> = Vec::new();
    let mut files = Vec::new();
    for line in lines {
        let (file, reference) = line.split_once(" < ").unwrap();
        let (name, optional) = file
            .strip_suffix('?')
            .map_or((file, false), |file| (file, true));
        let (reference, field) = reference
            .split_once('#')
            .map_or((reference, None), |(r, f)| (r, Some(f)));
        let own = reference.strip_prefix('~');
        let (backend, path) = own.unwrap_or(reference).split_once(':').unwrap();
        let wanted = ObjectRef {
            backend: BackendName::parse(backend).unwrap(),
            path: path.into(),
            version: None,
            params: "".into(),
            share: if own.is_some() {
                Share::Volume
            } else {
                Share::Principal
            },
        };
        let known = objects.iter().position(|object| *object == wanted);
        let object = known.unwrap_or_else(|| {
            objects.push(wanted);
            objects.len() - 1
        });
        let origin = match field {
            Some("*") => Origin::AllFields {
                object,
                decode: None,
            },
            Some(field) => Origin::Value {
                object,
                select: Select::Field(field.into()),
                decode: None,
            },
            None => Origin::Value {
                object,
                select: Select::Whole,
                decode: None,
            },
        };
        let path = (name != "/").then(|| RelPath::parse(name).unwrap());
        files.push(FileRule {
            path,
            origin,
            mode: None,
            optional,
        });
    }
    let mut hash = DefaultHasher::new();
    format!("{lines:?} {refresh:?}").hash(&mut hash);
    let mut digest = Digest([0; 32]);
    digest.0[..8].copy_from_slice(&hash.finish().to_le_bytes());
    Arc::new(VolumeSpec {
        mount: MountKind::Tmpfs,
        refresh,
        serve_stale_for: Duration::ZERO,
        on_denied: OnDenied::RemoveAfter(secretfs::limits::DENIED_GRACE),
        objects,
        files,
        default_mode: Mode::literal(0o444),
        owner: Owner::default(),
        limits: VolumeLimits::default(),
        digest,
        places: secretfs::spec::Places::default(),
    })
}

/// The same, with files that stay whatever is refused.
pub fn kept(spec: Arc<VolumeSpec>) -> Arc<VolumeSpec> {
    Arc::new(VolumeSpec {
        on_denied: OnDenied::Keep,
        ..(*spec).clone()
    })
}

/// Why what was asked for is not what is served, or "ok".
pub fn refused(result: &Result<Published>) -> &'static str {
    let refused = result.as_ref().unwrap().refused.as_ref();
    refused.map_or("ok", |error| error.code().name)
}

/// Name of an error's code, or "ok".
pub fn code<T, E: Clone + Into<Error>>(result: &Result<T, E>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.clone().into().code().name,
    }
}
