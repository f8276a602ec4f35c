//! The task's half that publishes: compare, look, decide, subscribe, and once the sources have answered, show.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    caller::Caller,
    error::{Error, Result, codes},
    limits,
    path::TargetPath,
    render::{Generation, Known},
    source::{
        SourceView,
        runner::{Subscription, Wanted},
    },
    spec::{MountKind, VolumeSpec},
    volume::{
        Placing, PublishRequest, Published, Settings,
        attempt::{Attempt, Waiting},
        decide::{Call, Decision, Phase, Remembered, Seen, decide},
        followed::Followed,
        record::VolumeRecord,
        resettle::frozen,
        served::{self, Job, Served},
        shortcut::is_taken,
        task::Task,
        trail::{About, Trail},
        wanted::{Judged, Unwanted, wanted_each},
    },
};

/// A publish whose spec has been read.
pub(super) struct Order {
    pub target: TargetPath,
    pub spec: Arc<VolumeSpec>,
    /// As it was written; `None`: it came parsed.
    pub raw: Option<Arc<str>>,
    pub caller: Caller,
    pub placing: Placing,
    /// By which it was read.
    pub settings: Arc<Settings>,
}

/// What a publish comes to at once.
enum Next {
    Answer(Published),
    /// Wait for these sources, then mount or update.
    Wait {
        order: Order,
        sources: Vec<Followed>,
        mount: bool,
    },
}

impl Task {
    /// Answers, or begins an [`Attempt`] that will.
    pub async fn publish(&mut self, request: PublishRequest, caller: Waiting) {
        if caller.has_gone() {
            return;
        }
        let _read = match self.shortcut(&request).await {
            Ok((order, sources)) => return self.mount_at_once(order, sources, caller),
            Err(order) => order, // while it is held its text need not be read again
        };
        self.look_first(request, caller).await;
    }

    pub async fn look_first(&mut self, request: PublishRequest, caller: Waiting) {
        tracing::trace!(volume_id = %self.id, "a publish begins with a look at its target");
        let deadline = self.shared.clock.now().after(limits::PUBLISH_DEADLINE);
        // a mount that is held is one the kubelet has had its answer for
        let mut served = self.served.is_some() || self.held.is_some();
        match self.next(request, &mut served).await {
            Ok(Next::Answer(published)) => self.answer(caller, Ok(published), served),
            Ok(Next::Wait {
                order,
                sources,
                mount,
            }) => {
                self.attempt = Some(Attempt {
                    order,
                    sources,
                    mount,
                    look: false,
                    deadline,
                    served,
                    caller,
                });
            }
            Err(error) => caller.tell(Err(error), served),
        }
    }

    /// 1. Compare what is asked with what is remembered. Nothing is read for that.
    /// 2. Look at the target, once. A mount of ours that is not as it was made is nothing to answer OK for.
    /// 3. The table says what to do. A mount that has gone is brought back first, if we hold what it needs.
    /// 4. Do it.
    async fn next(&mut self, request: PublishRequest, served: &mut bool) -> Result<Next> {
        let settings = self.shared.settings.borrow().clone();
        let (call, phase) = (self.call(&request), self.phase());
        let same = self.served.as_mut();
        let same = same.map(|served| served.is(&self.id, &request, &settings)); // 1
        let record = match same {
            None => Remembered::Nothing,
            Some(true) => Remembered::Same,
            Some(false) => Remembered::Other,
        };
        let probe = self.probe_whole(self.kind(), &request.target).await?; // 2
        let seen = Seen::of(&probe, &self.id);
        *served |= seen == Seen::Ours;
        if seen == Seen::Ours {
            let altered = probe.altered().map(|what| {
                let error = Error::new(&codes::MOUNT_ALTERED).object(&request.target);
                error.detail(format!("the mount is not as it was made: {what}"))
            });
            self.note_altered(&request.target, altered.clone());
            altered.map_or(Ok(()), Err)?;
        }
        let mut decision = decide(call, phase, record, seen); // 3
        if decision == Decision::Reattach {
            decision = match self.bring_back().await {
                true => decide(call, phase, record, Seen::Ours),
                false => Decision::Mount,
            };
        }
        match decision {
            Decision::Keep if self.shows_nothing() => self.begin_update(request, settings).await, // 4
            Decision::Keep => self.keep(request.caller).await.map(Next::Answer),
            Decision::Mount => {
                let order = self.read(&request, &settings)?;
                self.begin(order, true).await
            }
            Decision::Update => self.begin_update(request, settings).await,
            Decision::Adopt => {
                let adopted = self.adopt_asked(request.clone(), settings.clone()).await?;
                match self.shows_nothing() {
                    true => self.begin_update(request, settings).await,
                    false => Ok(Next::Answer(adopted)),
                }
            }
            Decision::Refuse(code) => {
                let error = Error::new(code).object(&request.target);
                self.note_hidden(&error);
                Err(error)
            }
            Decision::Reattach
            | Decision::Hold
            | Decision::Lose
            | Decision::Unmount
            | Decision::Forget => Err(Error::new(&codes::BUG)),
        }
    }

    /// Whether what is mounted has no files: a former process died in an unpublish, between the wipe and the unmount. That is no volume to
    /// answer OK for.
    fn shows_nothing(&self) -> bool {
        let generation = match (&self.served, &self.held) {
            (Some(served), _) => Some(served.generation),
            (None, Some(held)) => Some(held.generation),
            (None, None) => None,
        };
        generation == Some(Generation(0))
    }

    /// Whether a publish that failed so is answered with what is mounted.
    pub fn stays(&self, error: &Error) -> bool {
        is_refusal(error) && !self.shows_nothing()
    }

    /// Where the task stands.
    pub fn phase(&self) -> Phase {
        match (&self.attempt, &self.served) {
            _ if self.closing => Phase::Closing,
            (Some(_), _) => Phase::Publishing,
            (None, Some(_)) => Phase::Serving,
            (None, None) => Phase::New,
        }
    }

    fn call(&self, request: &PublishRequest) -> Call {
        let elsewhere = match (&self.served, &self.held) {
            (Some(served), _) => {
                served.target != request.target || served.placing != request.placing
            }
            (None, Some(held)) => held.target != request.target,
            (None, None) => false,
        };
        if elsewhere {
            Call::PublishElsewhere
        } else {
            Call::Publish
        }
    }

    fn kind(&self) -> MountKind {
        let served = self.served.as_ref();
        served.map_or(MountKind::Tmpfs, |served| served.spec.mount)
    }

    async fn begin_update(
        &mut self,
        request: PublishRequest,
        settings: Arc<Settings>,
    ) -> Result<Next> {
        let begun = match self.read(&request, &settings) {
            Ok(order) => {
                let spec = order.spec.clone();
                let begun = self.begin(order, false).await;
                begun.map_err(|error| (Some(spec), error))
            }
            Err(error) => Err((None, error)),
        };
        match begun {
            Ok(next) => Ok(next),
            Err((spec, error)) if self.stays(&error) => self
                .refuse(request.spec, settings, spec, error)
                .map(Next::Answer),
            Err((_, error)) => Err(error),
        }
    }

    async fn begin(&mut self, order: Order, mount: bool) -> Result<Next> {
        let wanted = self.wanted(&order)?;
        self.shared.ledger.admit(&self.id, &order.caller.0)?;
        let sources = self.subscribe(&order, wanted).await?;
        Ok(Next::Wait {
            order,
            sources,
            mount,
        })
    }

    /// The sources of an order.
    fn wanted(&self, order: &Order) -> Result<Vec<Wanted>> {
        let judged = self.judged(order).into_iter();
        judged.map(|one| Ok(one?)).collect()
    }

    /// The same, with a verdict on each; those that the policy denies go on record.
    fn judged(&self, order: &Order) -> Vec<Judged> {
        let (spec, who) = (&order.spec, &order.caller.0);
        let each = wanted_each(&self.id, spec, who, &order.settings);
        let pairs = spec.objects.iter().zip(&each);
        let denied = pairs.filter_map(|(object, wanted)| {
            let refused = wanted.as_ref().err();
            let error = refused.map(|refused| &refused.error);
            Some((object, error.filter(|error| error.is_denial())?.code()))
        });
        self.put_refusals_on_record(self.about(order), &order.asked(), denied);
        each
    }

    /// Sources of a mount that is there: what the policy denies is followed as if it had done so while we served it.
    async fn follow_judged(
        &mut self,
        order: &Order,
        judged: Vec<(Wanted, Option<Error>)>,
    ) -> Result<Vec<Followed>> {
        let wanted = judged.iter().filter(|(_, refused)| refused.is_none());
        let wanted = wanted.map(|(want, _)| want.clone()).collect();
        let mut followed = self.subscribe(order, wanted).await?.into_iter();
        let now = self.shared.clock.now();
        let each = judged
            .into_iter()
            .filter_map(|(want, refused)| match refused {
                None => followed.next(),
                Some(error) => {
                    let view = frozen(&SourceView::unknown(), error, now);
                    Some(Followed {
                        is_denied: true, // that is on record
                        ..Followed::new(want, view, None, now)
                    })
                }
            });
        Ok(each.collect())
    }

    fn about<'v>(&'v self, order: &'v Order) -> About<'v> {
        About {
            id: &self.id,
            who: Some(&order.caller.0),
            target: &order.target,
        }
    }

    pub async fn subscribe(&mut self, order: &Order, wanted: Vec<Wanted>) -> Result<Vec<Followed>> {
        let subscription = self.subscription(order, wanted.clone());
        let views = self.shared.sources.subscribe(subscription).await?;
        Ok(self.followed(wanted, views))
    }

    pub fn subscription(&self, order: &Order, wanted: Vec<Wanted>) -> Subscription {
        Subscription {
            volume: self.id.clone(),
            wanted,
            caller: order.caller.clone(),
            wake: self.wake.clone(),
        }
    }

    /// The views that came of what is wanted.
    pub fn followed(
        &self,
        wanted: Vec<Wanted>,
        views: Vec<watch::Receiver<SourceView>>,
    ) -> Vec<Followed> {
        let before = self.served.as_ref().map(|served| &served.sources);
        let now = self.shared.clock.now();
        let pairs = wanted.into_iter().zip(views);
        pairs
            .map(|(want, view)| {
                let former = before.and_then(|all| all.iter().find(|one| one.key == want.key));
                Followed::new(want, view, former, now)
            })
            .collect()
    }

    /// Ends the publish that is under way, if its caller has gone; finishes it, if its sources have answered or its time is up.
    pub async fn progress(&mut self) {
        let now = self.shared.clock.now();
        let Some(attempt) = &self.attempt else {
            return;
        };
        let gone = attempt.caller.has_gone();
        let outcome = match attempt.outcome(now) {
            None if !gone => return,
            outcome => outcome,
        };
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let Some(outcome) = outcome.filter(|_| !gone) else {
            tracing::debug!(volume_id = %self.id, "a publish was given up by its caller");
            return self.undo();
        };
        if outcome.is_err() {
            let (denied, order) = (attempt.denied(now), &attempt.order);
            let denied = denied.iter().map(|(object, code)| (object, *code));
            self.put_refusals_on_record(self.about(order), &order.asked(), denied);
        }
        if let (Ok(_), Some(age)) = (&outcome, attempt.stale_for(now)) {
            let age_s = age.as_secs();
            tracing::warn!(volume_id = %self.id, age_s, "a volume starts from this node's cache: a store does not answer");
        }
        let Attempt {
            order,
            sources,
            mount,
            look,
            served,
            caller,
            ..
        } = attempt;
        let (spec, settings) = (order.spec.clone(), order.settings.clone());
        let asked = order.asked();
        let request = look.then(|| order.again(self.id.clone()));
        let result = match outcome {
            Ok(known) if mount => self.mount(order, sources, known, look).await,
            Ok(known) => self.update(order, sources, known).await,
            Err(error) => Err(error),
        };
        if let (Err(error), Some(request)) = (&result, request)
            && is_taken(error)
        {
            self.undo();
            self.wake.ring(); // its sources are known, so nobody else would
            return self.look_first(request, caller).await;
        }
        let result = match result {
            Ok(published) => {
                self.refusal = None;
                Ok(published)
            }
            Err(error) => {
                self.undo();
                if !mount && self.stays(&error) {
                    self.refuse(asked, settings, Some(spec), error)
                } else {
                    Err(error)
                }
            }
        };
        self.answer(caller, result, served);
    }

    /// Who hears that a volume is served finds it in the status.
    fn answer(&mut self, caller: Waiting, result: Result<Published>, served: bool) {
        if result.is_ok() && self.report.borrow().is_none() {
            self.tell(self.shared.clock.now());
        }
        caller.tell(result, served);
    }

    /// Lets go of what a failed publish subscribed to.
    fn undo(&self) {
        match &self.served {
            Some(served) => {
                let keys = served.sources.iter().map(|source| source.key.clone());
                let keys = keys.chain(served.leaving.iter().cloned());
                self.shared.sources.retain(&self.id, keys.collect());
            }
            None => self.shared.sources.unsubscribe(&self.id),
        }
    }

    async fn mount(
        &mut self,
        order: Order,
        sources: Vec<Followed>,
        known: Vec<Known>,
        look: bool,
    ) -> Result<Published> {
        let served = self.served.as_ref();
        let before = served.map_or(Generation(0), |served| served.generation);
        let trail = Trail::of(self.about(&order), &sources, &known);
        let mut job = Job::new(&order.spec, &known, before, trail);
        job.record = self.record(&order);
        job.look = look;
        let (target, placing) = (&order.target, &order.placing);
        let shown = served::mount(&self.shared, &self.id, target, placing, job).await?;
        let keys = sources.iter().map(|source| source.key.clone()).collect();
        self.shared.sources.retain(&self.id, keys);
        let mut served = Served::new(&order, sources, Generation(0));
        let before = self.served.take();
        let anew = before.is_some();
        if let Some(before) = before {
            served.former = before.former;
            served.former.extend(before.mounted);
        }
        self.served = Some(served);
        self.took(shown, known);
        if anew {
            self.lost();
        }
        self.published()
    }

    async fn update(
        &mut self,
        order: Order,
        sources: Vec<Followed>,
        known: Vec<Known>,
    ) -> Result<Published> {
        let record = self.record(&order);
        let Some(served) = &mut self.served else {
            return Err(Error::new(&codes::BUG).detail("an update of nothing"));
        };
        let about = About {
            id: &self.id,
            who: Some(&order.caller.0),
            target: &order.target,
        };
        let trail = Trail::of(about, &sources, &known).without(about, &served.sources, &sources);
        let mut job = Job::new(&order.spec, &known, served.generation, trail);
        job.record = record;
        let shown = match served.replace(&self.shared, &self.id, job).await {
            Ok(shown) => shown,
            Err(error) => {
                if error.code() == &codes::MOUNT_GONE {
                    served.failed(self.shared.clock.now(), error.clone());
                }
                return Err(error);
            }
        };
        let keys = sources.iter().map(|source| source.key.clone()).collect();
        self.shared.sources.retain(&self.id, keys);
        let unknown = vec![Known::Unknown; sources.len()];
        served.spec = order.spec;
        served.raw = order.raw;
        served.identity = order.caller.0.clone();
        served.settings = order.settings;
        served.sources = sources;
        served.rendered = unknown;
        self.took(shown, known);
        self.published()
    }

    /// Called again with what is served: no fetch, no parse, no unmount.
    async fn keep(&mut self, caller: Caller) -> Result<Published> {
        self.shared.sources.credentials(&self.id, caller);
        self.refusal = None;
        let Some(served) = &mut self.served else {
            return Err(Error::new(&codes::BUG).detail("nothing to keep"));
        };
        if served.mounted.is_none() {
            let (target, placing) = (&served.target, &served.placing);
            let spec = &served.spec;
            let adopted = served::adopt(&self.shared, &self.id, target, placing, spec, None);
            served.hold(adopted.await?);
            served.shows_again();
        } else if served.gone {
            served.shows_again();
        }
        self.published()
    }

    /// Takes over a mount that a former process left. Where the spec cannot be served it stays as it is.
    async fn adopt_asked(
        &mut self,
        request: PublishRequest,
        settings: Arc<Settings>,
    ) -> Result<Published> {
        let order = self.read(&request, &settings);
        let spec = order.as_ref().ok().map(|order| order.spec.clone());
        let adopted = match order {
            Ok(order) => {
                let record = self.record(&order);
                self.adopt(order, record).await
            }
            Err(error) => Err(error),
        };
        match adopted {
            Ok(published) => Ok(published),
            Err(error) if self.held.is_some() && self.stays(&error) => {
                self.refuse(request.spec, settings, spec, error)
            }
            Err(error) => Err(error),
        }
    }

    /// Serves a former process's mount as it is; it is completed when the sources are known.
    pub async fn adopt(&mut self, order: Order, record: Option<VolumeRecord>) -> Result<Published> {
        let who = &order.caller.0;
        let judged = self.judged(&order).into_iter().map(adoptable);
        let judged: Vec<_> = judged.collect::<Result<_>>()?;
        let (target, placing) = (&order.target, &order.placing);
        let adopted = served::adopt(&self.shared, &self.id, target, placing, &order.spec, record);
        let adopted = adopted.await?;
        self.shared
            .ledger
            .adopt(&self.id, Some(who), adopted.bytes());
        let sources = self.follow_judged(&order, judged).await?;
        let mut served = Served::new(&order, sources, adopted.mounted.generation());
        served.adopted = true;
        served.hold(adopted);
        tracing::info!(volume_id = %self.id, target = %order.target, generation = served.generation.0, "adopted a mount");
        self.served = Some(served);
        self.held = None;
        self.refusal = None;
        self.published()
    }

    /// What to keep of an order for the next process; `None` where nothing is kept, or the spec has no text.
    fn record(&self, order: &Order) -> Option<VolumeRecord> {
        let spec = order.raw.clone().filter(|_| self.shared.records.are_kept());
        Some(VolumeRecord {
            id: self.id.clone(),
            target: order.target.clone(),
            who: order.caller.0.clone(),
            spec: spec?,
            kind: order.spec.mount,
            placing: order.placing.clone(),
        })
    }

    /// What readers see, as an answer.
    pub fn published(&self) -> Result<Published> {
        let nothing = || Error::new(&codes::BUG).detail("nothing is served");
        let (generation, files, adopted) = match (&self.served, &self.held) {
            (Some(served), _) => (served.generation, served.files, served.adopted),
            (None, Some(held)) => (held.generation, None, true),
            (None, None) => return Err(nothing()),
        };
        Ok(Published {
            generation,
            files,
            adopted,
            refused: None,
        })
    }
}

/// A source, and why it is denied. What is wrong in another way cannot be followed.
fn adoptable(judged: Judged) -> Result<(Wanted, Option<Error>)> {
    match judged {
        Ok(want) => Ok((want, None)),
        Err(Unwanted {
            want: Some(want),
            error,
        }) => Ok((*want, Some(error))),
        Err(Unwanted { want: None, error }) => Err(error),
    }
}

/// Whether a served volume's other spec is to blame, so that the old one stays and the call is answered with OK: the kubelet
/// would take any final code for the end of the volume (kubernetes#121271). Not where the mount itself is in doubt.
fn is_refusal(error: &Error) -> bool {
    let code = error.code();
    let doubt = code == &codes::MOUNT_GONE || code == &codes::VOLUME_STOPPED || code == &codes::BUG;
    !doubt
}
