//! The one task that owns the pool: it waits, calls and records; what to do is the pool's decision.
//!
//! It waits for three things: messages of volumes, the moment that the pool asked for, and the end of requests. Every
//! request to a store is a task of its own, so a hung store delays nobody. Permanent while a source has subscribers: the
//! channel on which its view is shown. A view is put there without waiting; a volume looks when it has time.
//!
//! A request is never dropped halfway, because it may have made something in the store: it is told to end and then awaited,
//! also when the program stops. A backend that panics is an error of its request. A panic of the pool itself ends the
//! process: its state is not to be trusted, and the mounts outlive us.
//!
//! Does not: decide when to ask, retry, render, or know a volume's files.

mod proof;
mod shown;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::{
    proof::{is_his, want, watcher},
    shown::Shown,
};
use crate::{
    backend::{Backend, Cx},
    caller::{Caller, Credentials, Identity},
    clock::{Alarm, Clock, Mono},
    error::{Error, Result, codes},
    limits,
    observe::metrics::Metrics,
    path::VolumeId,
    secret::{Lease, Object, Version},
    source::{Effect, Event, SourceKey, SourceView, Terms, bell::Bell, caught::caught, pool::Pool},
    spec::BackendName,
};

/// One source that a volume wants.
#[derive(Clone)]
pub struct Wanted {
    /// Which.
    pub key: SourceKey,
    /// Asked at least this often; `None`: only by push and on demand.
    pub every: Option<Duration>,
    /// Whether the backend tells of changes.
    pub pushes: bool,
    /// Whether the volume can do without it.
    pub optional: bool,
    /// How old a confirmation may be for a volume that comes; see [`Terms::recent`].
    pub recent: Option<Duration>,
    /// Whom to ask: of the same configuration as the key's `epoch`, for as long as the source lives.
    pub backend: Arc<dyn Backend>,
}

/// What a volume wants.
pub struct Subscription {
    /// Who wants it.
    pub volume: VolumeId,
    /// Which sources.
    pub wanted: Vec<Wanted>,
    /// As whom.
    pub caller: Caller,
    /// Rung whenever one of them shows something new.
    pub wake: Arc<Bell>,
}

/// Sources that a volume goes over to, because the configuration has changed.
pub struct Moving {
    /// Who wants them.
    pub volume: VolumeId,
    /// Which sources.
    pub wanted: Vec<Wanted>,
    /// As whom. The proof is what the pool was given last for this volume and him; none, and a source that needs one waits for it.
    pub who: Identity,
    /// Rung whenever one of them shows something new.
    pub wake: Arc<Bell>,
}

/// What a source shows.
type View = watch::Receiver<SourceView>;

/// The node's sources, as volumes see them. Cloned freely; none of its calls waits for a store.
#[derive(Clone)]
pub struct Sources {
    inbox: mpsc::UnboundedSender<Message>,
}

/// Unbounded is safe here: volumes send one at a time and hints are merged.
enum Message {
    Subscribe(Subscription, oneshot::Sender<Vec<View>>),
    SubscribeKnown(Subscription, oneshot::Sender<Option<Vec<View>>>),
    Follow(Moving, oneshot::Sender<Vec<View>>),
    Tell(Event, Option<oneshot::Sender<()>>),
    Leases(oneshot::Sender<BTreeMap<BackendName, u64>>),
    Stop(oneshot::Sender<()>),
}

impl Sources {
    /// Starts the runner. `panics` counts those of backends.
    pub fn start(
        clock: Arc<dyn Clock>,
        pool: Pool,
        panics: Arc<AtomicU64>,
        metrics: Metrics,
    ) -> Self {
        let (inbox, messages) = mpsc::unbounded_channel();
        let (hint, hints) = mpsc::unbounded_channel();
        let runner = Runner {
            alarm: Alarm::new(clock.clone()),
            clock,
            pool,
            shown: HashMap::new(),
            backends: HashMap::new(),
            requests: JoinSet::new(),
            running: HashMap::new(),
            cancels: HashMap::new(),
            halt_questions: CancellationToken::new(),
            halt_upkeep: CancellationToken::new(),
            stopping: false,
            hint,
            panics,
            metrics,
            warned: HashMap::new(),
        };
        tokio::spawn(async move {
            if caught(runner.run(messages, hints)).await.is_none() {
                std::process::abort();
            }
        });
        Self { inbox }
    }

    /// Subscribes; the answer has a view for each of the wanted, in their order. Subscribing again to the same source does
    /// no harm.
    ///
    /// # Errors
    /// `volume.stopped`.
    pub async fn subscribe(&self, subscription: Subscription) -> Result<Vec<View>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Subscribe(subscription, reply));
        answer.await.map_err(|_| Error::new(&codes::VOLUME_STOPPED))
    }

    /// Subscribes if an answer of each of the wanted is known; `None`: it is not, and nothing has been done.
    ///
    /// # Errors
    /// `volume.stopped`.
    pub async fn subscribe_known(&self, subscription: Subscription) -> Result<Option<Vec<View>>> {
        let (reply, answer) = oneshot::channel();
        let message = Message::SubscribeKnown(subscription, reply);
        let _ = self.inbox.send(message);
        answer.await.map_err(|_| Error::new(&codes::VOLUME_STOPPED))
    }

    /// The same with the proof that the volume has given before.
    ///
    /// # Errors
    /// `volume.stopped`.
    pub async fn follow(&self, moving: Moving) -> Result<Vec<View>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Follow(moving, reply));
        answer.await.map_err(|_| Error::new(&codes::VOLUME_STOPPED))
    }

    /// The volume wants these only.
    pub fn retain(&self, volume: &VolumeId, keys: Vec<SourceKey>) {
        self.tell(Event::Retain(volume.clone(), keys));
    }

    /// The volume wants nothing any more.
    pub fn unsubscribe(&self, volume: &VolumeId) {
        self.tell(Event::Unsubscribe(volume.clone()));
    }

    /// Fresh proof for the volume's sources.
    pub fn credentials(&self, volume: &VolumeId, caller: Caller) {
        self.tell(Event::Credentials(volume.clone(), caller));
    }

    /// The volume's readers see this version.
    pub fn applied(&self, volume: &VolumeId, key: SourceKey, version: Version) {
        self.tell(Event::Applied(volume.clone(), key, version));
    }

    /// Asks all of the volume's sources now that have not been asked since. Returns once the requests are under way.
    pub async fn refresh(&self, volume: &VolumeId, since: Mono) {
        let (reply, answer) = oneshot::channel();
        let event = Event::Refresh(volume.clone(), since);
        let _ = self.inbox.send(Message::Tell(event, Some(reply)));
        let _ = answer.await; // an error: stopped, and so are the volumes
    }

    /// Ends all requests, gives back the leases that nobody wants, and ends the runner. Leases that a volume still
    /// subscribes to are left alone.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Stop(reply));
        let _ = answer.await;
    }

    fn tell(&self, event: Event) {
        let _ = self.inbox.send(Message::Tell(event, None)); // an error: stopped
    }
}

/// What a request was, for when it ends in a panic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fetch,
    Renew,
    Revoke,
    Watch,
}

struct Runner {
    clock: Arc<dyn Clock>,
    pool: Pool,
    alarm: Alarm,
    shown: HashMap<SourceKey, Shown>,
    /// As the subscriptions named them. Kept, because a lease may have to be given back after the last volume left.
    backends: HashMap<(u64, BackendName), Arc<dyn Backend>>,
    /// `None`: a watch that was told to end.
    requests: JoinSet<Option<Event>>,
    running: HashMap<Id, (SourceKey, Kind)>,
    /// Ends a source's fetch and watch.
    cancels: HashMap<SourceKey, CancellationToken>,
    halt_questions: CancellationToken,
    halt_upkeep: CancellationToken,
    stopping: bool,
    hint: mpsc::UnboundedSender<Hint>,
    panics: Arc<AtomicU64>,
    metrics: Metrics,
    /// When the log last said that a backend's changes are not told.
    warned: HashMap<BackendName, Mono>,
}

/// "Fetch soon". `pending` is true from the first call of a watch until we have heard it, so that a chatty store fills
/// no queue.
struct Hint {
    key: SourceKey,
    pending: Arc<AtomicBool>,
}

impl Runner {
    async fn run(
        mut self,
        mut messages: mpsc::UnboundedReceiver<Message>,
        mut hints: mpsc::UnboundedReceiver<Hint>,
    ) {
        let stopped = loop {
            tokio::select! {
                biased; // results first: they free a place in the queue of a backend
                Some(ended) = self.requests.join_next_with_id() => self.ended(ended),
                () = self.alarm.ring() => self.on(Event::Tick),
                message = messages.recv() => match message {
                    Some(Message::Subscribe(subscription, reply)) => {
                        let _ = reply.send(self.subscribe(subscription));
                    }
                    Some(Message::SubscribeKnown(subscription, reply)) => {
                        let known = self.knows_all(&subscription.wanted);
                        let _ = reply.send(known.then(|| self.subscribe(subscription)));
                    }
                    Some(Message::Follow(moving, reply)) => {
                        let _ = reply.send(self.follow(moving));
                    }
                    Some(Message::Tell(event, reply)) => {
                        self.told(event);
                        reply.map(|reply| reply.send(()));
                    }
                    Some(Message::Leases(reply)) => drop(reply.send(self.pool.leases())),
                    Some(Message::Stop(reply)) => break Some(reply),
                    None => break None,
                },
                Some(hint) = hints.recv() => {
                    hint.pending.store(false, Ordering::Release);
                    self.on(Event::Hint(hint.key));
                }
            }
        };
        self.wind_down().await;
        stopped.map(|reply| reply.send(()));
    }

    fn knows_all(&self, wanted: &[Wanted]) -> bool {
        let now = self.clock.now();
        wanted.iter().all(|want| {
            let shown = self.shown.get(&want.key);
            shown.is_some_and(|shown| shown.view.borrow().serves(now, want.recent))
        })
    }

    fn subscribe(&mut self, subscription: Subscription) -> Vec<View> {
        let Subscription {
            volume,
            wanted,
            caller,
            wake,
        } = subscription;
        let mut views = Vec::with_capacity(wanted.len());
        for want in wanted {
            let name = (want.key.epoch, want.key.object.backend.clone());
            let terms = Terms {
                pace: want.backend.pace(),
                optional: want.optional,
                recent: want.recent,
            };
            self.backends.entry(name).or_insert(want.backend);
            let shown = self.shown.entry(want.key.clone());
            let shown = shown.or_insert_with(Shown::unknown);
            let meter = self.metrics.backend(&want.key.object.backend);
            meter.lookup(shown.found_by(&volume, self.clock.now(), want.recent));
            shown.subscribers.insert(volume.clone(), wake.clone());
            views.push(shown.view.subscribe());
            self.on(Event::Subscribe {
                volume: volume.clone(),
                key: want.key,
                every: want.every,
                caller: caller.clone(),
                pushes: want.pushes,
                terms,
            });
        }
        views
    }

    /// Subscribes with the proof that is in hand, and lets go of backends that nobody can ask any more.
    fn follow(&mut self, moving: Moving) -> Vec<View> {
        let proof = self.pool.caller_of(&moving.volume, &moving.who);
        let none = || Arc::new((moving.who.clone(), Credentials::default()));
        let caller = proof.unwrap_or_else(none);
        let views = self.subscribe(Subscription {
            volume: moving.volume,
            wanted: moving.wanted,
            caller,
            wake: moving.wake,
        });
        let pool = &self.pool;
        self.backends.retain(|name, _| pool.knows(name));
        views
    }

    /// Passes an event of a volume on, and forgets the channels that nobody looks at any more.
    fn told(&mut self, event: Event) {
        match &event {
            Event::Unsubscribe(volume) => self.leave(volume, &[]),
            Event::Retain(volume, keys) => self.leave(volume, keys),
            _ => {}
        }
        self.on(event);
    }

    fn leave(&mut self, volume: &VolumeId, except: &[SourceKey]) {
        self.shown.retain(|key, shown| {
            if !except.contains(key) {
                shown.subscribers.remove(volume);
            }
            !shown.subscribers.is_empty()
        });
    }

    fn on(&mut self, event: Event) {
        for effect in self.pool.on(self.clock.now(), event) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Show(key, view) => {
                if let Some(shown) = self.shown.get(&key) {
                    shown.show(view);
                }
            }
            Effect::WakeAt(at) => self.alarm.set(Some(at)),
            Effect::Cancel(key) => {
                if let Some(cancel) = self.cancels.remove(&key) {
                    cancel.cancel();
                }
            }
            Effect::Revoke { key, lease } => self.revoke(key, lease),
            Effect::Fetch { .. } | Effect::Renew { .. } | Effect::Watch { .. } if self.stopping => {
            }
            Effect::Fetch {
                key, caller, have, ..
            } => self.fetch(key, caller, have),
            Effect::Renew { key, lease } => self.renew(key, lease),
            Effect::Watch { key, caller } => self.watch(key, caller),
        }
    }

    fn fetch(&mut self, key: SourceKey, caller: Caller, have: Option<Arc<Object>>) {
        tracing::trace!(object = %key.object, "a store is asked");
        let backend = is_his(&key, &caller).and_then(|()| self.backend(&key));
        let cx = self.question(&key, self.deadline());
        self.spawn(key.clone(), Kind::Fetch, async move {
            let want = want(&key, &caller, have.as_deref());
            let result = match backend {
                Ok(backend) => backend.fetch(&cx, want).await,
                Err(error) => Err(error),
            };
            Some(Event::Fetched(key, result))
        });
    }

    fn watch(&mut self, key: SourceKey, caller: Caller) {
        let backend = is_his(&key, &caller).and_then(|()| self.backend(&key));
        let cx = self.question(&key, Mono::from_nanos(u64::MAX));
        let caller = watcher(&key, caller);
        let (hint, pending) = (self.hint.clone(), Arc::new(AtomicBool::new(false)));
        self.spawn(key.clone(), Kind::Watch, async move {
            let tell = || {
                if !pending.swap(true, Ordering::AcqRel) {
                    let (key, pending) = (key.clone(), pending.clone());
                    let _ = hint.send(Hint { key, pending }); // an error: stopping
                }
            };
            let result = match backend {
                Ok(backend) => backend.watch(&cx, want(&key, &caller, None), &tell).await,
                Err(error) => Err(error),
            };
            // who has it end knows that it does; a later watch of the same source may be running already
            (!cx.cancel.is_cancelled()).then_some(Event::WatchEnded(key, result))
        });
    }

    fn renew(&mut self, key: SourceKey, lease: Lease) {
        let (backend, cx) = (self.backend(&key), self.upkeep());
        self.spawn(key.clone(), Kind::Renew, async move {
            let result = match backend {
                Ok(backend) => backend.renew(&cx, &lease).await,
                Err(error) => Err(error),
            };
            Some(Event::Renewed(key, result))
        });
    }

    fn revoke(&mut self, key: SourceKey, lease: Lease) {
        let (backend, cx) = (self.backend(&key), self.upkeep());
        self.spawn(key.clone(), Kind::Revoke, async move {
            let result = match backend {
                Ok(backend) => backend.revoke(&cx, &lease).await,
                Err(error) => Err(error),
            };
            Some(Event::Revoked(key, result))
        });
    }

    fn spawn(
        &mut self,
        key: SourceKey,
        kind: Kind,
        request: impl Future<Output = Option<Event>> + Send + 'static,
    ) {
        let id = self.requests.spawn(request).id();
        self.running.insert(id, (key, kind));
    }

    fn ended(&mut self, ended: Result<(Id, Option<Event>), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some((key, kind)) = self.running.remove(&id) else {
            return;
        };
        let event = match ended {
            Ok((_, event)) => event.map(about),
            Err(_) => Some(self.panicked(key, kind)),
        };
        if let Some(event) = event {
            if let Event::WatchEnded(key, Err(error)) = &event {
                self.warn_of_watch(key, error);
            }
            self.on(event);
        }
    }

    /// A store's watches mostly break together, and again with each try: one line for all of them.
    fn warn_of_watch(&mut self, key: &SourceKey, error: &Error) {
        let (now, backend) = (self.clock.now(), &key.object.backend);
        let last = self.warned.get(backend);
        if last.is_none_or(|last| now.since(*last) >= limits::WARN_INTERVAL) {
            self.warned.insert(backend.clone(), now);
            let code = error.code().name;
            tracing::warn!(%backend, code, %error, "changes are not told; the store is looked at from time to time");
        }
    }

    fn panicked(&self, key: SourceKey, kind: Kind) -> Event {
        self.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(backend = %key.object.backend, "a backend panicked");
        let error = Error::new(&codes::BUG)
            .object(&key.object)
            .detail("the backend panicked");
        match kind {
            Kind::Fetch => Event::Fetched(key, Err(error)),
            Kind::Renew => Event::Renewed(key, Err(error)),
            Kind::Revoke => Event::Revoked(key, Err(error)),
            Kind::Watch => Event::WatchEnded(key, Err(error)),
        }
    }

    /// 1. End questions (fetches, watches); nothing new is asked.
    /// 2. Wait for them to return, and for leases to be given back, up to the limit.
    /// 3. End those as well, and wait a last time.
    async fn wind_down(&mut self) {
        self.stopping = true;
        self.halt_questions.cancel(); // 1
        self.drain(limits::STOP_GRACE).await; // 2
        self.halt_upkeep.cancel(); // 3
        self.drain(limits::STOP_GRACE).await;
        if !self.requests.is_empty() {
            let left = self.requests.len();
            tracing::warn!(left, "requests did not end when they were told to");
        }
    }

    async fn drain(&mut self, grace: Duration) {
        let mut alarm = Alarm::new(self.clock.clone());
        alarm.set(Some(self.clock.now().after(grace)));
        loop {
            tokio::select! {
                biased;
                ended = self.requests.join_next_with_id() => match ended {
                    Some(ended) => self.ended(ended),
                    None => return,
                },
                () = alarm.ring() => return,
            }
        }
    }

    fn backend(&self, key: &SourceKey) -> Result<Arc<dyn Backend>> {
        let name = (key.epoch, key.object.backend.clone());
        let found = self.backends.get(&name).cloned();
        found.ok_or_else(|| Error::new(&codes::SPEC_UNKNOWN_BACKEND).object(&key.object))
    }

    fn deadline(&self) -> Mono {
        self.clock.now().after(limits::FETCH_DEADLINE)
    }

    fn question(&mut self, key: &SourceKey, deadline: Mono) -> Cx {
        let halt = &self.halt_questions;
        let cancel = self.cancels.entry(key.clone());
        Cx {
            deadline,
            cancel: cancel.or_insert_with(|| halt.child_token()).clone(),
            clock: self.clock.clone(),
        }
    }

    fn upkeep(&self) -> Cx {
        Cx {
            deadline: self.deadline(),
            cancel: self.halt_upkeep.child_token(),
            clock: self.clock.clone(),
        }
    }
}

/// Names the object in the error: a backend need not.
fn about(event: Event) -> Event {
    match event {
        Event::Fetched(key, Err(error)) => {
            let error = error.object(&key.object);
            Event::Fetched(key, Err(error))
        }
        Event::Renewed(key, Err(error)) => {
            let error = error.object(&key.object);
            Event::Renewed(key, Err(error))
        }
        other => other,
    }
}
