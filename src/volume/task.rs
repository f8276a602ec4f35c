//! The task that owns one volume: it waits for a command, a source's change or a moment, and then does what is due.
//!
//! Nothing but a call on the mount is waited for inside a step. A publish that waits for its sources is a state
//! ([`Attempt`]), so an unpublish, which comes through the same mailbox, is heard at once.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};

use crate::{
    clock::{Alarm, Mono},
    error::{Code, Error, codes},
    limits,
    mount::VolumeId,
    render::{Generation, Known, Snapshot},
    volume::{
        attempt::Attempt,
        complaint::Complaint,
        served::{Job, Served, Shown, same},
        status::{Report, trouble},
        volumes::{Command, Reply, Shared},
    },
};

pub(super) struct Task {
    pub shared: Arc<Shared>,
    pub id: VolumeId,
    /// Rung by the sources.
    pub wake: Arc<Notify>,
    pub alarm: Alarm,
    pub served: Option<Served>,
    pub attempt: Option<Attempt>,
    /// An unpublish could not be finished.
    pub closing: bool,
    pub refreshing: Vec<Refreshing>,
    pub report: watch::Sender<Option<Arc<Report>>>,
    pub follow: watch::Sender<Option<Arc<Snapshot>>>,
    pub complaint: Complaint,
    /// The failure that was counted last.
    pub complained: Option<Arc<Error>>,
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
        follow: watch::Sender<Option<Arc<Snapshot>>>,
    ) -> Self {
        Self {
            alarm: Alarm::new(shared.clock.clone()),
            shared,
            id,
            wake: Arc::new(Notify::new()),
            served: None,
            attempt: None,
            closing: false,
            refreshing: Vec::new(),
            report,
            follow,
            complaint: Complaint::default(),
            complained: None,
        }
    }

    /// Ends when it serves nothing and nobody wants anything, or when it is drained.
    pub async fn run(mut self, mailbox: &mut mpsc::Receiver<Command>) {
        loop {
            self.alarm.set(self.next_moment());
            tokio::select! {
                biased;
                command = mailbox.recv() => match command {
                    Some(Command::Drain(reply)) => {
                        self.drain();
                        let _ = reply.send(());
                        return;
                    }
                    Some(command) => self.command(command).await,
                    None => return self.drain(),
                },
                () = self.wake.notified() => {}
                () = self.alarm.ring() => {}
            }
            self.step().await;
            let idle = self.served.is_none() && self.attempt.is_none();
            if idle && self.shared.leave(&self.id, mailbox) {
                return;
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Publish(request, reply) => self.publish(request, reply).await,
            Command::Refresh(reply) => self.refresh(reply).await,
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
    /// 2. look whether the mount is still there,
    /// 3. show what changed,
    /// 4. sweep,
    /// 5. answer those who wait for a refresh,
    /// 6. tell.
    async fn step(&mut self) {
        self.progress().await; // 1
        if self.is_to_look() {
            self.look().await; // 2
        }
        let now = self.shared.clock.now();
        if self
            .served
            .as_mut()
            .is_some_and(|served| served.is_due(now))
        {
            self.rotate().await; // 3
        }
        if let Some(served) = &mut self.served
            && served.sweep_at.is_some_and(|at| at <= now)
        {
            served.sweep(&self.shared, now).await; // 4
        }
        self.answer_refreshes(now); // 5
        self.tell(now); // 6
    }

    fn next_moment(&self) -> Option<Mono> {
        let served = self.served.as_ref().and_then(Served::next_moment);
        let attempt = self.attempt.as_ref().map(|attempt| attempt.deadline);
        let refresh = self.refreshing.iter().map(|waiting| waiting.deadline).min();
        [served, attempt, refresh].into_iter().flatten().min()
    }

    async fn rotate(&mut self) {
        let Some(served) = &mut self.served else {
            return;
        };
        let known = served.known();
        let job = Job {
            spec: served.spec.clone(),
            known: known.clone(),
            generation: Generation(served.generation.0 + 1),
        };
        served.tried.clone_from(&known);
        match served.replace(&self.shared, &self.id, job).await {
            Ok(shown) => self.took(shown, known),
            Err(error) => served.failed(self.shared.clock.now(), error),
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
        served.hold(mounted, usage, sweep_at);
        served.files = Some(snapshot.files.len());
        if changed {
            served.generation = snapshot.generation;
            served.changed_at = Some(snapshot.made_at);
            tracing::info!(volume_id = %self.id, generation = snapshot.generation.0, files = snapshot.files.len(), "a new generation");
        }
        for ((source, rendered), known) in served.sources.iter().zip(&served.rendered).zip(&known) {
            if let Known::Object(object) = known
                && !same(rendered, known)
            {
                let (key, version) = (source.key.clone(), object.version.clone());
                self.shared.sources.applied(&self.id, key, version);
            }
        }
        served.adopted &= known.iter().any(|known| matches!(known, Known::Unknown));
        served.tried.clone_from(&known);
        served.rendered = known;
        served.changed_since = None;
        served.retry_at = None;
        served.failure = None;
        served.failures = 0;
        if changed || self.follow.borrow().is_none() {
            self.follow.send_replace(Some(snapshot));
        }
    }

    // --- refresh

    async fn refresh(&mut self, reply: Reply<()>) {
        if self.served.is_none() || self.closing {
            let code = if self.attempt.is_some() {
                &codes::MOUNT_BUSY
            } else {
                &codes::VOLUME_UNKNOWN
            };
            let _ = reply.send(Err(Error::new(code).object(&self.id)));
            return;
        }
        self.shared.sources.refresh(&self.id).await;
        let deadline = self.shared.clock.now().after(limits::PUBLISH_DEADLINE);
        self.refreshing.push(Refreshing { deadline, reply });
    }

    fn answer_refreshes(&mut self, now: Mono) {
        let Some(served) = &self.served else {
            return;
        };
        let views = served.views();
        let settled = served.changed_since.is_none() && views.iter().all(|view| !view.in_flight);
        let failure = trouble(served.failure.as_ref(), &views);
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
    }

    pub fn end_waiting(&mut self, code: &'static Code) {
        let error = || Error::new(code).object(&self.id);
        if let Some(attempt) = self.attempt.take() {
            for reply in attempt.replies {
                let _ = reply.send(Err(error()));
            }
        }
        for waiting in self.refreshing.drain(..) {
            let _ = waiting.reply.send(Err(error()));
        }
    }

    // --- tell

    fn tell(&mut self, now: Mono) {
        let Some(served) = &self.served else {
            return;
        };
        let views = served.views();
        match trouble(served.failure.as_ref(), &views) {
            Some(_) if self.closing => {} // the unpublish has told it
            Some(failure) => {
                let counted = self.complained.as_ref();
                if !counted.is_some_and(|counted| Arc::ptr_eq(counted, &failure.error)) {
                    let error = self.complained.insert(failure.error);
                    if let Some(times) = self.complaint.failed(now, error.code()) {
                        tracing::warn!(volume_id = %self.id, generation = served.generation.0, code = error.code().name, %error, times, "a volume cannot be kept current");
                    }
                }
            }
            None => {
                self.complained = None;
                if let Some(since) = self.complaint.recovered() {
                    let after_s = now.since(since).as_secs();
                    tracing::info!(volume_id = %self.id, generation = served.generation.0, after_s, "a volume has recovered");
                }
            }
        }
        self.report
            .send_replace(Some(Arc::new(served.report(&self.id))));
    }
}
