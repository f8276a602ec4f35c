//! The task that owns one volume: it waits for a command, a source's change or a moment, and then does what is due.
//!
//! Nothing but a call on the mount is waited for inside a step. A publish that waits for its sources is a state
//! ([`Attempt`]), so an unpublish, which comes through the same mailbox, is heard at once.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::{
    caller::Identity,
    clock::{Alarm, Mono},
    error::{Code, Error, Result, codes},
    limits,
    mount::VolumeId,
    observe::metrics::Rotation,
    render::{Known, Snapshot},
    source::bell::Bell,
    volume::{
        attempt::Attempt,
        complaint::Complaint,
        read::Refusal,
        restore::Held,
        served::{Adopted, Job, Served, Shown},
        status::{Report, trouble},
        volumes::{Command, Reply, Settings, Shared},
    },
};

/// The settings, of which the present ones are known.
fn seen(shared: &Shared) -> watch::Receiver<Arc<Settings>> {
    let mut settings = shared.settings.clone();
    settings.borrow_and_update();
    settings
}

pub(super) struct Task {
    pub shared: Arc<Shared>,
    /// What is new there has not been followed yet.
    pub settings: watch::Receiver<Arc<Settings>>,
    pub id: VolumeId,
    /// Rung by the sources.
    pub wake: Arc<Bell>,
    pub alarm: Alarm,
    pub served: Option<Served>,
    /// A former process's mount that cannot be served, but is there. Never beside `served`.
    pub held: Option<Held>,
    pub attempt: Option<Attempt>,
    /// Another spec than the one that is served, which cannot be.
    pub refusal: Option<Refusal>,
    /// An unpublish could not be finished.
    pub closing: bool,
    pub refreshing: Vec<Refreshing>,
    pub report: watch::Sender<Option<Arc<Report>>>,
    /// `None`: nobody follows, and no snapshot is kept.
    pub follow: Option<watch::Sender<Option<Arc<Snapshot>>>>,
    pub complaint: Complaint,
    /// The failure that was counted last.
    pub complained: Option<Arc<Error>>,
    /// Since when, as the pod was told: of trouble that lasts always in the same words, so that the same Event is not written again and again.
    pub told_since: Option<String>,
}

/// Somebody waits for a refresh.
pub(super) struct Refreshing {
    deadline: Mono,
    reply: Reply<()>,
}

impl Task {
    pub fn new(
        shared: Arc<Shared>,
        id: VolumeId,
        report: watch::Sender<Option<Arc<Report>>>,
    ) -> Self {
        Self {
            alarm: Alarm::new(shared.clock.clone()),
            settings: seen(&shared),
            shared,
            id,
            wake: Arc::default(),
            served: None,
            held: None,
            attempt: None,
            refusal: None,
            closing: false,
            refreshing: Vec::new(),
            report,
            follow: None,
            complaint: Complaint::default(),
            complained: None,
            told_since: None,
        }
    }

    /// Whose volume it is, if that is known.
    pub fn owner(&self) -> Option<&Identity> {
        match (&self.served, &self.held) {
            (Some(served), _) => Some(&served.identity),
            (None, Some(held)) => held.owner.as_ref(),
            (None, None) => None,
        }
    }

    /// Ends when it serves nothing and nobody wants anything, or when it is drained.
    ///
    /// What a command and a step need while they run is boxed, so that a volume at rest does not keep the room for it; so is each
    /// command in the mailbox.
    pub async fn run(mut self, mailbox: &mut mpsc::Receiver<Box<Command>>) {
        loop {
            self.alarm.set(self.next_moment());
            tokio::select! {
                biased;
                // first: a republish is to find the volume settled; a publish that waits ends by what it began with
                Ok(()) = self.settings.changed(), if self.attempt.is_none() => Box::pin(self.resettle()).await,
                command = mailbox.recv() => match command.map(|command| *command) {
                    Some(Command::Drain(reply)) => {
                        self.drain();
                        let _ = reply.send(());
                        return;
                    }
                    Some(command) => Box::pin(self.command(command)).await,
                    None => return self.drain(),
                },
                () = Attempt::abandoned(self.attempt.as_mut()) => {}
                () = self.wake.rung() => {}
                () = self.alarm.ring() => {}
            }
            Box::pin(self.step()).await;
            let idle = self.served.is_none() && self.held.is_none() && self.attempt.is_none();
            if idle {
                self.shared.ledger.release(&self.id);
            }
            if idle && self.shared.leave(&self.id, mailbox) {
                return;
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Publish(request, caller) => self.publish(request, caller).await,
            Command::Refresh(since, reply) => self.refresh(since, reply).await,
            Command::Follow(reply) => {
                let follow = self.follow().await;
                let _ = reply.send(follow);
            }
            Command::Restore(found, reply) => {
                let restored = self.restore(*found).await;
                let _ = reply.send(restored);
            }
            Command::Unpublish {
                target,
                remove_target,
                reply,
            } => {
                let result = self.unpublish(target, remove_target).await;
                let _ = reply.send(result);
            }
            Command::Drain(_) => {} // `run` takes it
        }
    }

    /// Everything that is due:
    ///
    /// 1. finish a publish whose sources have answered,
    /// 2. show what changed,
    /// 3. where nothing was shown, look whether the mount is still there,
    /// 4. sweep,
    /// 5. put on record what has begun by itself,
    /// 6. answer those who wait for a refresh,
    /// 7. tell.
    async fn step(&mut self) {
        self.wake.listen(true);
        self.progress().await; // 1
        let now = self.shared.clock.now();
        let is_to_look = self.is_to_look();
        let has_shown = self.is_due(now) && self.rotate().await; // 2
        if is_to_look && !has_shown {
            self.look().await; // 3
            if self.is_due(now) {
                self.rotate().await; // what was missed while the mount was gone
            }
        }
        if let Some(served) = &mut self.served
            && served.sweep_at.is_some_and(|at| at <= now)
        {
            served.sweep(&self.shared, now).await; // 4
        }
        self.put_changes_on_record(); // 5
        self.answer_refreshes(now); // 6
        self.tell(now); // 7
        self.wake.listen(self.is_waiting());
    }

    /// Whether it matters that a store is asked or has answered, though nothing is new: a publish, a refresh or a render waits
    /// for it, or it is time to look after a local mount. A pod's mount is looked at by each republish.
    fn is_waiting(&self) -> bool {
        let of_served = self.served.as_ref().is_some_and(|served| {
            served.changed_since.is_some() || matches!(served.identity, Identity::Local { .. })
        });
        of_served || self.attempt.is_some() || !self.refreshing.is_empty()
    }

    fn next_moment(&self) -> Option<Mono> {
        let served = self.served.as_ref().and_then(Served::next_moment);
        let attempt = self.attempt.as_ref().map(|attempt| attempt.deadline);
        let refresh = self.refreshing.iter().map(|waiting| waiting.deadline).min();
        [served, attempt, refresh].into_iter().flatten().min()
    }

    fn is_due(&mut self, now: Mono) -> bool {
        let served = self.served.as_mut();
        served.is_some_and(|served| served.is_due(now))
    }

    /// Whether readers see what is known now.
    async fn rotate(&mut self) -> bool {
        let Some(served) = &mut self.served else {
            return false;
        };
        let known = served.known();
        let trail = served.trail(&self.id, &known);
        let job = Job::new(&served.spec, &known, served.generation, trail);
        served.tried.clone_from(&known);
        let since = served.behind_since;
        let replaced = served.replace(&self.shared, &self.id, job).await;
        let rotation = match &replaced {
            Ok(shown) if shown.changed => Rotation::Ok,
            Ok(_) => Rotation::Unchanged,
            Err(_) => Rotation::Failed,
        };
        let now = self.shared.clock.now();
        let took = since.map(|since| now.since(since)).unwrap_or_default();
        self.shared.metrics.rotated(rotation, took);
        match replaced {
            Ok(shown) => {
                self.took(shown, known);
                true
            }
            Err(error) => {
                let withdrawn = served.only_withdrawn(&known);
                served.failed(now, error);
                if let Some(known) = withdrawn {
                    self.withdraw(known).await;
                }
                false
            }
        }
    }

    /// What is new cannot be shown; what has to go goes all the same.
    async fn withdraw(&mut self, known: Vec<Known>) {
        let Some(served) = &mut self.served else {
            return;
        };
        let trail = served.trail(&self.id, &known);
        let job = Job::new(&served.spec, &known, served.generation, trail);
        let (tried, failure) = (served.tried.clone(), served.failure.clone());
        let (failures, retry_at) = (served.failures, served.retry_at);
        let replaced = served.replace(&self.shared, &self.id, job).await;
        let Ok(shown) = replaced else {
            return; // what failed first is told
        };
        self.took(shown, known);
        if let Some(served) = &mut self.served {
            (served.tried, served.failure) = (tried, failure);
            (served.failures, served.retry_at) = (failures, retry_at);
        }
    }

    /// Readers see it: notes that, and tells the sources and the followers.
    pub fn took(&mut self, shown: Shown, known: Vec<Known>) {
        let Some(served) = &mut self.served else {
            return;
        };
        let Shown {
            mounted,
            snapshot,
            changed,
            usage,
            sweep_at,
        } = shown;
        served.hold(Adopted {
            mounted,
            usage,
            sweep_at,
        });
        let gone = served.withdrawals(&known);
        served.delivered(&known);
        served.files = Some(snapshot.files.len());
        if changed {
            served.generation = snapshot.generation;
            served.changed_at = Some(snapshot.made_at);
            tracing::info!(volume_id = %self.id, generation = snapshot.generation.0, files = snapshot.files.len(), "a new generation");
        }
        for ((source, rendered), known) in served.sources.iter().zip(&served.rendered).zip(&known) {
            if let Known::Object(object) = known
                && !rendered.is_same(known)
            {
                let (key, version) = (source.key.clone(), object.version.clone());
                self.shared.sources.applied(&self.id, key, version);
            }
        }
        served.adopted &= known.iter().any(|known| matches!(known, Known::Unknown));
        served.tried.clone_from(&known);
        served.rendered = known;
        served.changed_since = None;
        served.behind_since = None;
        served.retry_at = None;
        served.failure = None;
        served.failures = 0;
        self.follow.take_if(|follow| follow.receiver_count() == 0);
        if let Some(follow) = &self.follow
            && (changed || follow.borrow().is_none())
        {
            follow.send_replace(Some(snapshot));
        }
        if changed {
            self.tell_withdrawals(&gone);
        }
        self.let_go();
    }

    /// Somebody wants all snapshots from now on. While nobody did none was kept: what readers see is rendered once more.
    async fn follow(&mut self) -> Result<watch::Receiver<Option<Arc<Snapshot>>>> {
        let Some(served) = self.served.as_ref().filter(|_| !self.closing) else {
            return Err(Error::new(&codes::VOLUME_UNKNOWN).object(&self.id));
        };
        if let Some(follow) = &self.follow {
            return Ok(follow.subscribe());
        }
        let snapshot = match served.again() {
            Some(again) => {
                let now = self.shared.clock.wall();
                Some(Arc::new(self.shared.blocking(move || again(now)).await??))
            }
            None => None,
        };
        let (follow, follower) = watch::channel(snapshot);
        self.follow = Some(follow);
        Ok(follower)
    }

    // --- refresh

    async fn refresh(&mut self, since: Mono, reply: Reply<()>) {
        if self.served.is_none() || self.closing {
            let code = if self.attempt.is_some() {
                &codes::MOUNT_BUSY
            } else {
                &codes::VOLUME_UNKNOWN
            };
            let _ = reply.send(Err(Error::new(code).object(&self.id)));
            return;
        }
        self.shared.sources.refresh(&self.id, since).await;
        let deadline = self.shared.clock.now().after(limits::PUBLISH_DEADLINE);
        self.refreshing.push(Refreshing { deadline, reply });
    }

    fn answer_refreshes(&mut self, now: Mono) {
        let Some(served) = &self.served else {
            return;
        };
        let views = served.views();
        let settled = served.changed_since.is_none() && views.iter().all(|view| !view.in_flight);
        let refusal = self.refusal.as_ref().map(|refusal| &refusal.failure);
        let failure = trouble(served.own_failure().or(refusal), &views);
        for waiting in std::mem::take(&mut self.refreshing) {
            if settled {
                let result = failure
                    .as_ref()
                    .map(|f| (*f.error).clone())
                    .map_or(Ok(()), Err);
                let _ = waiting.reply.send(result);
            } else if waiting.deadline <= now {
                let error = Error::new(&codes::BACKEND_TIMEOUT).object(&self.id);
                let _ = waiting.reply.send(Err(error));
            } else {
                self.refreshing.push(waiting);
            }
        }
    }

    // --- the end

    /// Leaves the mount for the next process.
    fn drain(&mut self) {
        if self.served.is_none() {
            self.shared.sources.unsubscribe(&self.id);
        }
        self.end_waiting(&codes::VOLUME_STOPPED);
        self.served = None;
        self.held = None;
    }

    pub fn end_waiting(&mut self, code: &'static Code) {
        let error = || Error::new(code).object(&self.id);
        if let Some(attempt) = self.attempt.take() {
            attempt.caller.tell(Err(error()), attempt.served);
        }
        for waiting in self.refreshing.drain(..) {
            let _ = waiting.reply.send(Err(error()));
        }
    }

    // --- tell

    pub fn tell(&mut self, now: Mono) {
        let refusal = self.refusal.as_ref().map(|refusal| &refusal.failure);
        let Some(served) = &self.served else {
            if let Some(held) = &self.held {
                let report = held.report(&self.id, refusal);
                self.report.send_replace(Some(Arc::new(report)));
            }
            return;
        };
        let views = served.views();
        let mut news = None;
        match trouble(served.own_failure(), &views) {
            Some(_) if self.closing => {} // the unpublish has told it
            Some(failure) => {
                let counted = self.complained.as_ref();
                if !counted.is_some_and(|counted| Arc::ptr_eq(counted, &failure.error)) {
                    let error = self.complained.insert(failure.error.clone());
                    self.shared.metrics.failed(error.code());
                    if let Some(times) = self.complaint.failed(now, error.code()) {
                        tracing::warn!(volume_id = %self.id, generation = served.generation.0, code = error.code().name, %error, times, "a volume cannot be kept current");
                        news = Some(Some(failure));
                    }
                }
            }
            None => {
                self.complained = None;
                news = Some(None);
                if let Some(since) = self.complaint.recovered() {
                    let after_s = now.since(since).as_secs();
                    tracing::info!(volume_id = %self.id, generation = served.generation.0, after_s, "a volume has recovered");
                }
            }
        }
        self.report
            .send_replace(Some(Arc::new(served.report(&self.id, refusal))));
        match news {
            Some(Some(failure)) => self.tell_trouble(now, &failure),
            Some(None) => self.tell_recovery(),
            None => {}
        }
    }
}
