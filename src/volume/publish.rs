//! The task's half that publishes: look, decide, subscribe, and once the sources have answered, show.

use crate::{
    caller::Identity,
    error::{Error, Result, codes},
    limits,
    render::{Generation, Known},
    source::{
        SourceKey,
        runner::{Subscription, Wanted},
    },
    volume::{
        attempt::{Attempt, Current},
        decide::{Call, Decision, Phase, decide},
        served::{self, Followed, Job, Served},
        task::Task,
        volumes::{PublishRequest, Published, Reply},
        wanted::wanted,
    },
};

impl Task {
    pub async fn publish(&mut self, request: PublishRequest, reply: Reply<Published>) {
        let (decision, wanted) = match self.decide_publish(&request).await {
            Ok(decided) => decided,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let result = match decision {
            Decision::Mount | Decision::Update => {
                let mount = decision == Decision::Mount;
                self.begin(request, wanted, mount, reply).await;
                return;
            }
            Decision::Join => {
                self.shared.sources.credentials(&self.id, request.caller);
                if let Some(attempt) = &mut self.attempt {
                    attempt.replies.push(reply);
                }
                return;
            }
            Decision::Keep => self.keep(request).await,
            Decision::Adopt => self.adopt(request, wanted).await,
            Decision::Refuse(code) => Err(Error::new(code).object(&request.target)),
            Decision::Unmount | Decision::Forget => Err(Error::new(&codes::BUG)),
        };
        let _ = reply.send(result);
    }

    /// Looks at the mount and into the table. A volume that is served as asked is not judged again: its spec was good.
    async fn decide_publish(
        &mut self,
        request: &PublishRequest,
    ) -> Result<(Decision, Vec<Wanted>)> {
        let registry = self.shared.registry.borrow().clone();
        let wanted = wanted(&request.id, &request.spec, &request.caller.0, &registry);
        let seen = self.probe(request.spec.mount, &request.target).await?;
        let (phase, current) = match (&self.attempt, &self.served) {
            _ if self.closing => (Phase::Closing, None),
            (Some(attempt), _) => (Phase::Publishing, Some(Current::of_attempt(attempt))),
            (None, Some(served)) => (Phase::Serving, Some(Current::of_served(served))),
            (None, None) => (Phase::New, None),
        };
        let call = match &current {
            Some(current) if *current.target != request.target => Call::PublishElsewhere,
            _ => Call::Publish(request.spec.digest),
        };
        let remembered = current
            .filter(|current| current.is_of(&request.caller.0, wanted.as_deref().ok()))
            .map(|current| current.spec.digest);
        let decision = decide(call, phase, remembered, seen);
        match (decision, wanted) {
            (Decision::Mount | Decision::Update | Decision::Adopt, wanted) => {
                Ok((decision, wanted?))
            }
            (_, wanted) => Ok((decision, wanted.unwrap_or_default())),
        }
    }

    async fn begin(
        &mut self,
        request: PublishRequest,
        wanted: Vec<Wanted>,
        mount: bool,
        reply: Reply<Published>,
    ) {
        match self.subscribe(&request, wanted).await {
            Ok(sources) => {
                let deadline = self.shared.clock.now().after(limits::PUBLISH_DEADLINE);
                self.attempt = Some(Attempt {
                    request,
                    sources,
                    mount,
                    deadline,
                    replies: vec![reply],
                });
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    async fn subscribe(
        &mut self,
        request: &PublishRequest,
        wanted: Vec<Wanted>,
    ) -> Result<Vec<Followed>> {
        let keys: Vec<(SourceKey, bool)> = wanted
            .iter()
            .map(|want| (want.key.clone(), want.pushes))
            .collect();
        let subscription = Subscription {
            volume: self.id.clone(),
            wanted,
            caller: request.caller.clone(),
            wake: self.wake.clone(),
        };
        let views = self.shared.sources.subscribe(subscription).await?;
        Ok(keys
            .into_iter()
            .zip(views)
            .map(|((key, pushes), view)| {
                let before = view.borrow().error.clone();
                Followed {
                    key,
                    pushes,
                    view,
                    before,
                }
            })
            .collect())
    }

    /// Finishes the publish that is under way, if its sources have answered or its time is up.
    pub async fn progress(&mut self) {
        let now = self.shared.clock.now();
        let Some(outcome) = self
            .attempt
            .as_ref()
            .and_then(|attempt| attempt.outcome(now))
        else {
            return;
        };
        let Some(mut attempt) = self.attempt.take() else {
            return;
        };
        let replies = std::mem::take(&mut attempt.replies);
        let result = match outcome {
            Ok(known) if attempt.mount => self.mount(attempt, known).await,
            Ok(known) => self.update(attempt, known).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.undo();
        }
        let mut told = false;
        for reply in replies {
            told |= reply.send(result.clone()).is_ok();
        }
        if let (Err(error), false) = (&result, told) {
            // every caller has gone: else it is theirs to tell
            tracing::warn!(volume_id = %self.id, code = error.code().name, %error, "a publish failed that nobody waited for");
        }
    }

    /// Lets go of what a failed publish subscribed to.
    fn undo(&self) {
        match &self.served {
            Some(served) => {
                let keys = served.sources.iter().map(|source| source.key.clone());
                self.shared.sources.retain(&self.id, keys.collect());
            }
            None => self.shared.sources.unsubscribe(&self.id),
        }
    }

    async fn mount(&mut self, attempt: Attempt, known: Vec<Known>) -> Result<Published> {
        let Attempt {
            request, sources, ..
        } = attempt;
        let before = self.served.as_ref().map(|served| served.generation.0);
        let job = Job {
            spec: request.spec.clone(),
            known: known.clone(),
            generation: Generation(before.unwrap_or(0) + 1),
        };
        // a new mount never reaches a container that runs already: its pod has to be started again
        let lost = before.is_some() && matches!(request.caller.0, Identity::Pod(_));
        let shown = served::mount(&self.shared, &self.id, &request.target, job).await?;
        let keys = sources.iter().map(|source| source.key.clone()).collect();
        self.shared.sources.retain(&self.id, keys);
        let mut served = Served::new(&request, sources, Generation(0));
        served.lost = lost;
        if let Some(before) = self.served.take() {
            served.former = before.former;
            served.former.extend(before.mounted);
        }
        self.served = Some(served);
        self.took(shown, known);
        self.published()
    }

    async fn update(&mut self, attempt: Attempt, known: Vec<Known>) -> Result<Published> {
        let Attempt {
            request, sources, ..
        } = attempt;
        let Some(served) = &mut self.served else {
            return Err(Error::new(&codes::BUG).detail("an update of nothing"));
        };
        let job = Job {
            spec: request.spec.clone(),
            known: known.clone(),
            generation: Generation(served.generation.0 + 1),
        };
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
        served.spec = request.spec;
        served.identity = request.caller.0.clone();
        served.sources = sources;
        served.rendered = unknown;
        self.took(shown, known);
        self.published()
    }

    /// Called again with what is served: no fetch, no parse, no unmount.
    async fn keep(&mut self, request: PublishRequest) -> Result<Published> {
        self.shared.sources.credentials(&self.id, request.caller);
        let Some(served) = &mut self.served else {
            return Err(Error::new(&codes::BUG).detail("nothing to keep"));
        };
        if served.mounted.is_none() {
            let adopted = served::adopt(&self.shared, &self.id, &served.target, &served.spec);
            let (mounted, usage, sweep_at) = adopted.await?;
            served.hold(mounted, usage, sweep_at);
            served.shows_again();
        } else if served.gone {
            served.shows_again();
        }
        self.published()
    }

    /// Serves a former process's mount as it is; it is completed when the sources are known.
    async fn adopt(&mut self, request: PublishRequest, wanted: Vec<Wanted>) -> Result<Published> {
        let adopted = served::adopt(&self.shared, &self.id, &request.target, &request.spec);
        let (mounted, usage, sweep_at) = adopted.await?;
        let sources = self.subscribe(&request, wanted).await?;
        let mut served = Served::new(&request, sources, mounted.generation());
        served.adopted = true;
        served.hold(mounted, usage, sweep_at);
        tracing::info!(volume_id = %self.id, target = %request.target, generation = served.generation.0, "adopted a mount");
        self.served = Some(served);
        self.published()
    }

    fn published(&self) -> Result<Published> {
        let served = self.served.as_ref();
        served
            .map(|served| Published {
                generation: served.generation,
                files: served.files,
                adopted: served.adopted,
            })
            .ok_or_else(|| Error::new(&codes::BUG).detail("nothing is served"))
    }
}
