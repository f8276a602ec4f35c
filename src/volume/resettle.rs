//! The task's half that follows the configuration: a volume moves to other backends and another policy without being asked.
//!
//! A source whose backend is as it was is kept, and nothing is asked for it. Files stay as they are until what is new has answered.
//! A source that may not be read any more, or whose backend has left the configuration, is *frozen*: it shows what was known last,
//! and why; nobody asks for it. Its view is a channel that nobody writes to, so a view without a writer is a source to be taken up
//! again as soon as the configuration allows it.
//!
//! Does not: end a publish that waits (it ends by what it began with; then the volume moves), judge a spec again, remove a file.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    clock::Mono,
    error::{Error, codes},
    render::Known,
    source::{
        SourceView,
        runner::{Moving, Wanted},
    },
    volume::{
        Settings,
        followed::Followed,
        served::Served,
        task::Task,
        wanted::{Judged, Unwanted, wanted_each},
    },
};

/// What becomes of one source.
enum Step {
    Keep,
    Freeze(Error),
    Follow(Wanted),
}

impl Task {
    /// The settings have changed.
    ///
    /// 1. Say of each source whether it is kept, frozen, or followed anew.
    /// 2. Subscribe to what is new, with the proof that the pool has of this volume.
    /// 3. Take the new views. Nothing is to be rendered before they know something.
    /// 4. Let go of the others; of one with a lease only once its successor is rendered: its credentials are in use.
    pub async fn resettle(&mut self) {
        let settings = self.settings.borrow_and_update().clone();
        let Some(served) = self.served.as_ref().filter(|_| !self.closing) else {
            return;
        };
        let judged = wanted_each(&self.id, &served.spec, &served.identity, &settings);
        let mut wanted = Vec::new();
        let pairs = served.sources.iter().zip(judged);
        let steps: Vec<Step> = pairs
            .map(|(source, judged)| step(source, judged, &mut wanted)) // 1
            .collect();
        if steps.iter().all(|step| matches!(step, Step::Keep)) {
            self.settled(settings);
            return;
        }
        let moving = Moving {
            volume: self.id.clone(),
            wanted,
            who: served.identity.clone(),
            wake: self.wake.clone(),
        };
        let Ok(views) = self.shared.sources.follow(moving).await else {
            return; // stopping
        };
        let now = self.shared.clock.now();
        if let Some(served) = &mut self.served {
            served.take_steps(now, steps, views); // 2, 3
            let held = served.sources.iter().filter(|source| source.is_live());
            let held = held.map(|source| source.key.clone());
            let keys = held.chain(served.leaving.iter().cloned()).collect();
            self.shared.sources.retain(&self.id, keys); // 4
        }
        self.settled(settings);
        tracing::info!(volume_id = %self.id, "the configuration has changed; the volume follows it");
    }

    fn settled(&mut self, settings: Arc<Settings>) {
        if let Some(served) = &mut self.served {
            served.settings = settings;
        }
    }

    /// What replaced these sources is rendered: they are let go.
    pub fn let_go(&mut self) {
        let Some(served) = &mut self.served else {
            return;
        };
        let is_known = |known: &Known| !matches!(known, Known::Unknown);
        if !served.leaving.is_empty() && served.rendered.iter().all(is_known) {
            served.leaving.clear();
            let held = served.sources.iter().filter(|source| source.is_live());
            let keys = held.map(|source| source.key.clone()).collect();
            self.shared.sources.retain(&self.id, keys);
        }
    }
}

fn step(source: &Followed, judged: Judged, wanted: &mut Vec<Wanted>) -> Step {
    match judged {
        Ok(want) if want.key == source.key && source.is_live() => Step::Keep,
        Ok(want) => {
            wanted.push(want.clone());
            Step::Follow(want)
        }
        Err(Unwanted { error, .. }) => {
            let (shown, error) = (source.view.borrow(), denied(&error));
            let is_same = |old: &Arc<Error>| old.to_string() == error.to_string();
            match !source.is_live() && shown.error.as_ref().is_some_and(is_same) {
                true => Step::Keep,
                false => Step::Freeze(error),
            }
        }
    }
}

/// To the volume a backend that is gone is a right that is gone: it comes back with the configuration.
fn denied(error: &Error) -> Error {
    if error.code() == &codes::POLICY_DENIED {
        return error.clone();
    }
    Error::new(&codes::POLICY_UNKNOWN_BACKEND).detail(format!(
        "{error}: its backend is no longer in the node's configuration"
    ))
}

impl Served {
    fn take_steps(&mut self, now: Mono, steps: Vec<Step>, views: Vec<watch::Receiver<SourceView>>) {
        let mut views = views.into_iter();
        let tried = self.tried.iter_mut();
        for ((source, tried), step) in self.sources.iter_mut().zip(tried).zip(steps) {
            match step {
                Step::Keep => {}
                Step::Freeze(error) => {
                    let view = frozen(&source.view.borrow(), error, now);
                    source.view = view;
                }
                Step::Follow(want) => {
                    let Some(view) = views.next() else { continue };
                    let has_lease = matches!(&source.view.borrow().known, Known::Object(object) if object.lease.is_some());
                    if has_lease && source.is_live() {
                        self.leaving.push(source.key.clone());
                    }
                    if matches!(view.borrow().known, Known::Unknown) {
                        *tried = Known::Unknown;
                    }
                    *source = Followed {
                        is_denied: false,
                        ..Followed::new(want, view, Some(source), now)
                    };
                }
            }
        }
    }
}

/// A view that stays as it is.
pub(super) fn frozen(last: &SourceView, error: Error, now: Mono) -> watch::Receiver<SourceView> {
    let is_refusal = error.takes_back();
    let refused_since = last.refused_since.or(is_refusal.then_some(now));
    let view = SourceView {
        known: last.known.clone(),
        checked_at: last.checked_at,
        error: Some(Arc::new(error)),
        failing_since: Some(now),
        refused_since,
        in_flight: false,
        watch_error: None,
        next_at: None,
    };
    watch::channel(view).1
}
