//! A publish that waits for its sources, as a state of the volume's task.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::{
    clock::Mono,
    error::{Code, Error, Result, codes},
    render::Known,
    source::SourceView,
    spec::ObjectRef,
    volume::{Published, Refused, followed::Followed, publish::Order},
};

/// It is dropped when it has succeeded or failed, when its caller has gone, or when an unpublish overtakes it.
pub(super) struct Attempt {
    pub order: Order,
    pub sources: Vec<Followed>,
    /// Mount, or replace the files of the mount that is there.
    pub mount: bool,
    /// Nobody has looked at the target yet: the call that mounts does.
    pub look: bool,
    pub deadline: Mono,
    /// Whether the volume had a mount of ours when it was asked for.
    pub served: bool,
    pub caller: Waiting,
}

impl Attempt {
    /// `None`: wait. A source that fails while nothing is known of it that we may be given fails the publish; one that had failed before
    /// and is being asked again does not yet. While its store is down, what is known of it may do (`serveStaleFor`).
    pub fn outcome(&self, now: Mono) -> Option<Result<Vec<Known>>> {
        let mut waiting = None;
        for source in &self.sources {
            let view = source.view.borrow();
            if !self.is_unanswered(source, &view, now) || self.is_stale(source, now) {
                continue;
            }
            match &view.error {
                Some(error) if source.is_answered_by(&view, error) => {
                    return Some(Err((**error).clone()));
                }
                _ => waiting = Some(source),
            }
        }
        match waiting {
            None => Some(Ok(self.known())),
            Some(source) if self.deadline <= now => {
                let error = Error::new(&codes::BACKEND_TIMEOUT).object(&source.key.object);
                Some(Err(error))
            }
            Some(_) => None,
        }
    }

    fn known(&self) -> Vec<Known> {
        let all = self.sources.iter();
        all.map(|source| source.view.borrow().known.clone())
            .collect()
    }

    /// Whether there is nothing yet that this volume may be given. What would have to go at once is not given to it again.
    fn is_unanswered(&self, source: &Followed, view: &SourceView, now: Mono) -> bool {
        let is_too_old = source.too_old.is_some() && source.too_old == view.checked_at;
        let is_taken_back = match source.is_kept_on {
            true => view.error.is_some() && source.is_over(view, self.order.spec.on_denied, now),
            false => !view.serves(now, None),
        };
        matches!(view.known, Known::Unknown) || is_too_old || is_taken_back
    }

    /// Whether the volume may have what it would not get if the store answered.
    fn is_stale(&self, source: &Followed, now: Mono) -> bool {
        let view = source.view.borrow();
        let longest = self.order.spec.serve_stale_for;
        source.too_old.is_some() && view.serves_stale(now, longest)
    }

    /// How long ago the oldest of the secrets was confirmed that it gets only because their store does not answer.
    pub fn stale_for(&self, now: Mono) -> Option<Duration> {
        let is_stale = |source: &&Followed| self.is_stale(source, now);
        let confirmed = self
            .sources
            .iter()
            .filter(is_stale)
            .filter_map(|source| source.too_old);
        confirmed.min().map(|at| now.since(at))
    }

    /// The secrets of which nothing is known because they are denied.
    pub fn denied(&self, now: Mono) -> Vec<(ObjectRef, &'static Code)> {
        let denied = |source: &Followed| {
            let view = source.view.borrow();
            let error = view.error.as_deref().filter(|error| error.is_denial())?;
            let is_unknown = self.is_unanswered(source, &view, now);
            is_unknown.then(|| (source.key.object.clone(), error.code()))
        };
        self.sources.iter().filter_map(denied).collect()
    }

    /// Returns when nobody waits for it any more; never, where there is none.
    pub async fn abandoned(this: Option<&mut Self>) {
        match this {
            Some(attempt) => attempt.caller.reply.closed().await,
            None => std::future::pending().await,
        }
    }
}

/// Somebody who waits for a publish.
pub(super) struct Waiting {
    reply: oneshot::Sender<Result<Published, Refused>>,
}

impl Waiting {
    /// And the end at which he waits.
    pub fn new() -> (Self, oneshot::Receiver<Result<Published, Refused>>) {
        tracing::trace!("a publish is handed over");
        let (reply, answer) = oneshot::channel();
        (Self { reply }, answer)
    }

    /// Whether he has gone.
    pub fn has_gone(&self) -> bool {
        self.reply.is_closed()
    }

    /// `served`: whether the volume had a mount of ours when it was asked for.
    pub fn tell(self, result: Result<Published>, served: bool) {
        let _ = self
            .reply
            .send(result.map_err(|error| Refused { error, served }));
    }
}
