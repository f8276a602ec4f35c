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
    clock::Clock,
    error::{Error, Result, codes},
    limits,
    mount::{Mounter, VolumeId},
    path::TargetPath,
    render::{Generation, Snapshot},
    source::{
        pool::{Pool, Rules},
        runner::{Sources, caught},
    },
    spec::{MountKind, VolumeSpec},
    volume::{VolumeStatus, status::Report, task::Task},
};

/// What volumes stand on.
pub struct Parts {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The backends, as the configuration has them now. A source keeps the backend that it began with.
    pub registry: watch::Receiver<Arc<Registry>>,
    /// Who mounts.
    pub mounters: Mounters,
    /// When sources are asked.
    pub rules: Rules,
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
    pub spec: Arc<VolumeSpec>,
    /// For whom. The proof is handed to the sources and not kept here.
    pub caller: Caller,
}

/// It is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// What readers see.
    pub generation: Generation,
    /// How many files they see; `None`: taken over from a former process and not yet rendered.
    pub files: Option<usize>,
    /// Whether it was taken over as a former process left it.
    pub adopted: bool,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

pub(super) enum Command {
    Publish(PublishRequest, Reply<Published>),
    Refresh(Reply<()>),
    Unpublish {
        target: Option<TargetPath>,
        remove_target: bool,
        reply: Reply<()>,
    },
    /// End, and leave the mount as it is.
    Drain(oneshot::Sender<()>),
}

/// The way to one volume's task.
struct VolumeHandle {
    mailbox: mpsc::Sender<Command>,
    report: watch::Receiver<Option<Arc<Report>>>,
    follow: watch::Receiver<Option<Arc<Snapshot>>>,
}

#[derive(Default)]
struct Map {
    volumes: BTreeMap<VolumeId, VolumeHandle>,
    stopping: bool,
}

/// What all tasks share.
pub(super) struct Shared {
    pub clock: Arc<dyn Clock>,
    pub registry: watch::Receiver<Arc<Registry>>,
    pub mounters: Mounters,
    pub sources: Sources,
    pub panics: Arc<AtomicU64>,
    map: Mutex<Map>,
}

impl Shared {
    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the task out of the map, unless a command came in the meantime. After `true` none will come.
    pub fn leave(&self, id: &VolumeId, mailbox: &mpsc::Receiver<Command>) -> bool {
        let mut map = self.map();
        if !mailbox.is_empty() {
            return false;
        }
        map.volumes.remove(id);
        true
    }

    /// Runs `call` on a blocking thread. A panic in it is counted and becomes an error.
    pub async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        tokio::task::spawn_blocking(call).await.map_err(|_| {
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
            registry,
            mounters,
            rules,
        } = parts;
        let panics = Arc::new(AtomicU64::new(0));
        let sources = Sources::start(clock.clone(), Pool::new(rules), panics.clone());
        Self {
            shared: Arc::new(Shared {
                clock,
                registry,
                mounters,
                sources,
                panics,
                map: Mutex::default(),
            }),
        }
    }

    /// Serves a volume, or sees to it that it is served: `decide` has the table.
    ///
    /// The first time it waits until every source is known, and fails with the first error; then nothing is left behind. A
    /// mount that a former process left is taken over as it is, without waiting. Called again with the same spec it hands over
    /// the credentials and looks at the mount; with another spec it waits for what is new and replaces the files, or leaves
    /// them as they are if it fails.
    ///
    /// # Errors
    /// Those of the spec's backends, of the render and of the mount; `mount.foreign`, `mount.held`, `mount.busy`,
    /// `volume.closed`, `volume.stopped`.
    pub async fn publish(&self, request: PublishRequest) -> Result<Published> {
        let id = request.id.clone();
        self.ask(&id, true, |reply| Command::Publish(request, reply))
            .await
    }

    /// Asks all of a volume's sources now. Returns when they have answered and readers see what came.
    ///
    /// # Errors
    /// Why the volume is not fresh now; `volume.unknown`.
    pub async fn refresh(&self, id: &VolumeId) -> Result<()> {
        self.ask(id, false, Command::Refresh).await
    }

    /// [`Self::refresh`] for all volumes at once.
    pub async fn refresh_all(&self) -> Vec<(VolumeId, Result<()>)> {
        let ids: Vec<VolumeId> = self.shared.map().volumes.keys().cloned().collect();
        let asked: Vec<_> = ids
            .into_iter()
            .map(|id| (self.send(&id, false, Command::Refresh), id))
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
        let (now, wall) = (self.shared.clock.now(), self.shared.clock.wall());
        let reports: Vec<_> = {
            let map = self.shared.map();
            let reports = map
                .volumes
                .values()
                .map(|handle| handle.report.borrow().clone());
            reports.collect()
        };
        reports
            .iter()
            .flatten()
            .map(|report| report.at(now, wall))
            .collect()
    }

    /// A volume's snapshots from now on; `None` until there is one. A snapshot of an unchanged generation may come again.
    ///
    /// # Errors
    /// `volume.unknown`.
    pub fn follow(&self, id: &VolumeId) -> Result<watch::Receiver<Option<Arc<Snapshot>>>> {
        let map = self.shared.map();
        map.volumes
            .get(id)
            .map(|handle| handle.follow.clone())
            .ok_or_else(|| Error::new(&codes::VOLUME_UNKNOWN).object(id))
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
        for handle in volumes.into_values() {
            let (reply, drained) = oneshot::channel();
            if handle.mailbox.send(Command::Drain(reply)).await.is_ok() {
                let _ = drained.await; // an error: it has just ended by itself
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
        answer(self.send(id, create, command)).await
    }

    /// Never waits: so a caller that goes away has sent a command or has not, and nothing is between.
    fn send<T>(
        &self,
        id: &VolumeId,
        create: bool,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = oneshot::channel();
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
        match handle.mailbox.try_send(command(reply)) {
            Ok(()) => Ok(answer),
            Err(TrySendError::Full(_)) => Err(Error::new(&codes::MOUNT_BUSY).object(id)),
            Err(TrySendError::Closed(_)) => Err(Error::new(&codes::VOLUME_STOPPED).object(id)),
        }
    }
}

async fn answer<T>(sent: Result<oneshot::Receiver<Result<T>>>) -> Result<T> {
    let gone = |_| Error::new(&codes::BUG).detail("the volume's task panicked");
    sent?.await.unwrap_or_else(|error| Err(gone(error)))
}

fn spawn(shared: Arc<Shared>, id: VolumeId) -> VolumeHandle {
    let (mailbox, commands) = mpsc::channel(limits::MAILBOX);
    let (report, reports) = watch::channel(None);
    let (follow, followers) = watch::channel(None);
    tokio::spawn(own(shared, id, commands, report, follow));
    VolumeHandle {
        mailbox,
        report: reports,
        follow: followers,
    }
}

/// Owns a volume until it is gone. A panic of its task is counted; the mount stays as it is, and the next publish, perhaps
/// already in the mailbox, begins with a new task and adopts the mount.
async fn own(
    shared: Arc<Shared>,
    id: VolumeId,
    mut commands: mpsc::Receiver<Command>,
    report: watch::Sender<Option<Arc<Report>>>,
    follow: watch::Sender<Option<Arc<Snapshot>>>,
) {
    loop {
        let task = Task::new(shared.clone(), id.clone(), report.clone(), follow.clone());
        if caught(task.run(&mut commands)).await.is_some() {
            return;
        }
        shared.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(volume_id = %id, "the task of a volume panicked");
        shared.sources.unsubscribe(&id);
        report.send_replace(None);
        follow.send_replace(None);
        if shared.leave(&id, &commands) {
            return;
        }
    }
}
