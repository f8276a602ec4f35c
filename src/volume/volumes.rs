//! All volumes of this process: a map from each id to the mailbox of the task that owns it.
//!
//! Callers send and wait. What must finish runs in the tasks, so a caller may go away at any moment. The map is behind the only lock;
//! it is never held while anything is waited for. A task leaves the map under that lock and only with an empty mailbox, so
//! no command is lost between two tasks of one volume, and there are never two.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot, watch,
};

use crate::{
    backend::registry::Registry,
    caller::Caller,
    clock::{Clock, Mono, Wall},
    config::NodeLimits,
    error::{Error, Result, codes},
    limits,
    mount::{Mounter, VolumeId},
    observe::{audit::Audit, events::Events, metrics::Metrics},
    path::TargetPath,
    policy::Policy,
    render::{Generation, Snapshot},
    source::{
        caught,
        pool::{Pool, Rules},
        runner::Sources,
    },
    spec::{MountKind, VolumeLimits, VolumeSpec},
    sys::stack,
    volume::{
        VolumeStatus,
        attempt::Waiting,
        complaint::Complaint,
        ledger::Ledger,
        record::Records,
        restore::{Found, Outcome},
        specs::Specs,
        status::{Boot, Report},
        task::Task,
    },
};

/// What volumes stand on.
pub struct Parts {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What the configuration says now. A source keeps the backend that it began with.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Who mounts.
    pub mounters: Mounters,
    /// When sources are asked.
    pub rules: Rules,
    /// What survives our death.
    pub records: Records,
    /// How a pod's author is told.
    pub events: Events,
    /// Where deliveries, denials and removals are recorded.
    pub audit: Audit,
    /// Where what happens is counted.
    pub metrics: Metrics,
}

/// What the node's configuration says of volumes. Replaced as a whole when the file changes.
#[derive(Clone, Default)]
pub struct Settings {
    /// The backends.
    pub registry: Registry,
    /// Who may read what of a backend that asks as the node.
    pub policy: Policy,
    /// Limits of each volume.
    pub volume_limits: VolumeLimits,
    /// Limits of pods, namespaces and the node.
    pub node_limits: NodeLimits,
}

/// One mounter for each kind of mount.
pub struct Mounters {
    /// For `mount: tmpfs`.
    pub tmpfs: Arc<dyn Mounter>,
}

impl Mounters {
    /// The one for `kind`.
    ///
    /// # Errors
    /// `spec.not_implemented`.
    pub fn of(&self, kind: MountKind) -> Result<&Arc<dyn Mounter>> {
        match kind {
            MountKind::Tmpfs => Ok(&self.tmpfs),
            MountKind::Fuse => Err(Error::new(&codes::SPEC_NOT_IMPLEMENTED).object("mount: fuse")),
        }
    }
}

/// "Serve this volume there."
#[derive(Clone)]
pub struct PublishRequest {
    /// Which volume.
    pub id: VolumeId,
    /// Where.
    pub target: TargetPath,
    /// What.
    pub spec: AskedSpec,
    /// For whom. The proof is handed to the sources and not kept here.
    pub caller: Caller,
    /// How its mount is to be.
    pub placing: Placing,
}

/// A spec as it was asked for.
#[derive(Clone, Debug)]
pub enum AskedSpec {
    /// As it was written: parsed only when it is not what is served already.
    Raw(Arc<str>),
    /// Parsed by whoever asks.
    Parsed(Arc<VolumeSpec>),
    /// None: what was written in its place is wrong in this way.
    Wrong(Error),
}

/// How a volume's mount is to be. Another one is another capability in CSI's sense.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placing {
    /// SELinux context of all files (`context="..."` of the mount flags).
    pub context: Option<String>,
    /// The pod's fsGroup: group of files whose spec names none.
    pub group: Option<u32>,
    /// The target is made by the publish and removed by the unpublish, as CSI wants it.
    pub make_target: bool,
}

/// A publish that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why.
    pub error: Error,
    /// Whether the volume had a mount of ours when it was asked for: then the answer must not be final for the kubelet, but where
    /// the call itself is wrong.
    pub served: bool,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// It is served.
#[derive(Clone, Debug)]
pub struct Published {
    /// What readers see.
    pub generation: Generation,
    /// How many files they see; `None`: taken over from a former process and not yet rendered.
    pub files: Option<usize>,
    /// Whether it was taken over as a former process left it.
    pub adopted: bool,
    /// Why the spec that is asked for is not the one that is served: it is invalid, or its sources or its render fail. The one before
    /// stays. The pod's author has been told.
    pub refused: Option<Error>,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

pub(super) enum Command {
    Publish(PublishRequest, Waiting),
    /// All sources that have not been asked since.
    Refresh(Mono, Reply<()>),
    Unpublish {
        target: Option<TargetPath>,
        remove_target: bool,
        reply: Reply<()>,
    },
    Follow(Reply<watch::Receiver<Option<Arc<Snapshot>>>>),
    Restore(Box<Found>, oneshot::Sender<Outcome>),
    /// End, and leave the mount as it is.
    Drain(oneshot::Sender<()>),
}

/// The way to one volume's task.
struct VolumeHandle {
    mailbox: mpsc::Sender<Box<Command>>,
    report: watch::Receiver<Option<Arc<Report>>>,
}

#[derive(Default)]
struct Map {
    volumes: BTreeMap<VolumeId, VolumeHandle>,
    /// Nothing is taken any more.
    stopping: bool,
}

/// What all tasks share.
pub(super) struct Shared {
    pub clock: Arc<dyn Clock>,
    pub settings: watch::Receiver<Arc<Settings>>,
    pub mounters: Mounters,
    pub records: Records,
    pub events: Events,
    pub audit: Audit,
    pub metrics: Metrics,
    /// Since when this process serves.
    pub started: Mono,
    boot: Boot,
    pub sources: Sources,
    pub panics: Arc<AtomicU64>,
    pub specs: Specs,
    /// About records that cannot be written.
    complaint: Mutex<Complaint>,
    pub ledger: Ledger,
    map: Mutex<Map>,
}

impl Shared {
    /// Now, and when the machine booted.
    fn now(&self) -> (Mono, Wall) {
        let now = self.clock.now();
        (now, self.boot.at(now, self.clock.wall()))
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the task out of the map, unless a command came in the meantime. After `true` none will come.
    pub fn leave(&self, id: &VolumeId, mailbox: &mpsc::Receiver<Box<Command>>) -> bool {
        let mut map = self.map();
        if !mailbox.is_empty() {
            return false;
        }
        map.volumes.remove(id);
        true
    }

    /// What came of writing or removing a record. It fails nothing: a restart will adopt the mount without.
    pub fn recorded(&self, result: Result<()>) {
        let mut complaint = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Err(error) = result else {
            return;
        };
        self.metrics.failed(error.code());
        if let Some(times) = complaint.failed(self.clock.now(), error.code()) {
            tracing::warn!(code = error.code().name, %error, times, "a volume's record cannot be kept");
        }
    }

    /// Runs `call` on a blocking thread, whose stack keeps nothing of it. A panic in it is counted and becomes an error.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(move || stack::clean(call))
            .await
            .map_err(|_| {
                self.panics.fetch_add(1, Ordering::Relaxed);
                Error::new(&codes::BUG).detail("a call on the mount panicked")
            })
    }
}

/// All volumes of this process. Cloned freely.
#[derive(Clone)]
pub struct Volumes {
    shared: Arc<Shared>,
}

impl Volumes {
    /// Starts the pool of sources. Call it inside a runtime.
    pub fn start(parts: Parts) -> Self {
        let Parts {
            clock,
            settings,
            mounters,
            rules,
            records,
            events,
            audit,
            metrics,
        } = parts;
        let panics = Arc::new(AtomicU64::new(0));
        let pool = Pool::new(rules);
        let sources = Sources::start(clock.clone(), pool, panics.clone(), metrics.clone());
        Self {
            shared: Arc::new(Shared {
                started: clock.now(),
                boot: Boot::new(clock.now(), clock.wall()),
                clock,
                ledger: Ledger::new(settings.clone()),
                settings,
                mounters,
                records,
                events,
                audit,
                metrics,
                sources,
                panics,
                specs: Specs::default(),
                complaint: Mutex::default(),
                map: Mutex::default(),
            }),
        }
    }

    /// Serves a volume, or sees to it that it is served: `decide` has the table.
    ///
    /// The first time it waits until every source is known, and fails with the first error; then nothing is left behind. Whoever
    /// drops the call before its mount is attached ends it; after that the volume stays, complete. A mount that a former process
    /// left is taken over as it is, without waiting. Called again with the same text it hands over the credentials and looks at
    /// the mount: nothing is read or fetched. With another text it waits for what is new and replaces the files; where that
    /// fails they stay as they are, and [`Published::refused`] says why.
    ///
    /// # Errors
    /// Those of the spec's backends, of the render and of the mount; `mount.foreign`, `mount.held`, `volume.elsewhere`,
    /// `mount.busy`, `volume.closed`, `volume.stopped`.
    pub async fn publish(&self, request: PublishRequest) -> Result<Published, Refused> {
        let id = request.id.clone();
        let (caller, answer) = Waiting::new();
        let served = self.is_served(&id);
        match self.send(&id, true, Command::Publish(request, caller)) {
            Ok(()) => answer.await.unwrap_or_else(|_| {
                let error = panicked();
                Err(Refused { error, served })
            }),
            Err(error) => Err(Refused { error, served }),
        }
    }

    fn is_served(&self, id: &VolumeId) -> bool {
        let map = self.shared.map();
        let handle = map.volumes.get(id);
        handle.is_some_and(|handle| handle.report.borrow().is_some())
    }

    /// Asks all of a volume's sources now. Returns when they have answered and readers see what came.
    ///
    /// # Errors
    /// Why the volume is not fresh now; `volume.unknown`.
    pub async fn refresh(&self, id: &VolumeId) -> Result<()> {
        let since = self.shared.clock.now();
        let command = |reply| Command::Refresh(since, reply);
        self.ask(id, false, command).await
    }

    /// [`Self::refresh`] for all volumes at once: what several of them share is asked once.
    pub async fn refresh_all(&self) -> Vec<(VolumeId, Result<()>)> {
        let since = self.shared.clock.now();
        let ids: Vec<VolumeId> = self.shared.map().volumes.keys().cloned().collect();
        let asked: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let (reply, answer) = oneshot::channel();
                let sent = self.send(&id, false, Command::Refresh(since, reply));
                (sent.map(|()| answer), id)
            })
            .collect();
        let mut answers = Vec::with_capacity(asked.len());
        for (sent, id) in asked {
            answers.push((id, answer(sent).await));
        }
        answers
    }

    /// Takes a volume down: its files are overwritten and removed, its mount detached, its sources let go, their leases
    /// revoked. With `remove_target` the directory goes too. Overtakes a publish that waits, which fails with
    /// `volume.closed`. What is not there is success, and `target` tells where to look for what a former process left.
    ///
    /// # Errors
    /// Those of the mount. Then the volume takes no more publish; call this again.
    pub async fn unpublish(
        &self,
        id: &VolumeId,
        target: Option<TargetPath>,
        remove_target: bool,
    ) -> Result<()> {
        let known = target.is_some() || self.shared.map().volumes.contains_key(id);
        if !known {
            return Ok(());
        }
        self.ask(id, true, |reply| Command::Unpublish {
            target,
            remove_target,
            reply,
        })
        .await
    }

    /// How all volumes are, by id. Asks no task.
    pub fn status(&self) -> Vec<VolumeStatus> {
        let (now, boot) = self.shared.now();
        let reports = self.reports();
        reports.iter().map(|report| report.at(now, boot)).collect()
    }

    /// What all tasks told last.
    pub(super) fn reports(&self) -> Vec<Arc<Report>> {
        let map = self.shared.map();
        let handles = map.volumes.values();
        handles
            .filter_map(|handle| handle.report.borrow().clone())
            .collect()
    }

    /// How one volume is. Asks no task.
    pub fn one(&self, id: &VolumeId) -> Option<VolumeStatus> {
        let report = self.shared.map().volumes.get(id)?.report.borrow().clone();
        let (now, boot) = self.shared.now();
        Some(report?.at(now, boot))
    }

    /// A volume's snapshots, the one that readers see now and those that follow; `None` while that is not known. A snapshot of
    /// an unchanged generation may come again. As long as somebody follows, the newest is kept in memory.
    ///
    /// # Errors
    /// `volume.unknown`.
    pub async fn follow(&self, id: &VolumeId) -> Result<watch::Receiver<Option<Arc<Snapshot>>>> {
        self.ask(id, false, Command::Follow).await
    }

    /// Whether a volume is served, or about to be.
    pub fn knows(&self, id: &VolumeId) -> bool {
        self.shared.map().volumes.contains_key(id)
    }

    /// How many panics were caught: in volumes' tasks, backends and mounts.
    pub fn panics(&self) -> u64 {
        self.shared.panics.load(Ordering::Relaxed)
    }

    /// Ends all tasks and requests. Mounts stay, with their files, for the next process; unpublish first what should go.
    pub async fn shutdown(&self) {
        let volumes = {
            let mut map = self.shared.map();
            map.stopping = true;
            std::mem::take(&mut map.volumes)
        };
        for VolumeHandle { mailbox, .. } in volumes.into_values() {
            let (reply, drained) = oneshot::channel();
            let sent = mailbox.send(Box::new(Command::Drain(reply))).await;
            // Into a task that is just ending by itself: nobody takes the command out, and it goes with the last end of its channel, this one.
            drop(mailbox);
            if sent.is_ok() {
                let _ = drained.await; // an error: it has ended
            }
        }
        self.shared.sources.stop().await;
    }

    async fn ask<T>(
        &self,
        id: &VolumeId,
        create: bool,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let (reply, waiting) = oneshot::channel();
        let sent = self.send(id, create, command(reply));
        answer(sent.map(|()| waiting)).await
    }

    /// Never waits: so a caller that goes away has sent a command or has not, and nothing is between.
    pub(super) fn send(&self, id: &VolumeId, create: bool, command: Command) -> Result<()> {
        let mut map = self.shared.map();
        if map.stopping {
            return Err(Error::new(&codes::VOLUME_STOPPED).object(id));
        }
        if !create && !map.volumes.contains_key(id) {
            return Err(Error::new(&codes::VOLUME_UNKNOWN).object(id));
        }
        let handle = map
            .volumes
            .entry(id.clone())
            .or_insert_with(|| spawn(self.shared.clone(), id.clone()));
        handle
            .mailbox
            .try_send(Box::new(command))
            .map_err(|refused| {
                let code = match refused {
                    TrySendError::Full(_) => &codes::MOUNT_BUSY,
                    TrySendError::Closed(_) => &codes::VOLUME_STOPPED,
                };
                Error::new(code).object(id)
            })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

async fn answer<T>(sent: Result<oneshot::Receiver<Result<T>>>) -> Result<T> {
    sent?.await.unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(&codes::BUG).detail("the volume's task panicked")
}

fn spawn(shared: Arc<Shared>, id: VolumeId) -> VolumeHandle {
    tracing::trace!(volume_id = %id, "a volume has a task");
    let (mailbox, commands) = mpsc::channel(limits::MAILBOX);
    let (report, reports) = watch::channel(None);
    tokio::spawn(own(shared, id, commands, report));
    VolumeHandle {
        mailbox,
        report: reports,
    }
}

/// Owns a volume until it is gone. A panic of its task is counted; the mount stays as it is, and the next publish, perhaps
/// already in the mailbox, begins with a new task and adopts the mount.
async fn own(
    shared: Arc<Shared>,
    id: VolumeId,
    mut commands: mpsc::Receiver<Box<Command>>,
    report: watch::Sender<Option<Arc<Report>>>,
) {
    loop {
        let task = Task::new(shared.clone(), id.clone(), report.clone());
        if caught(task.run(&mut commands)).await.is_some() {
            return;
        }
        shared.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(volume_id = %id, "the task of a volume panicked");
        shared.sources.unsubscribe(&id);
        report.send_replace(None);
        if shared.leave(&id, &commands) {
            return;
        }
    }
}
