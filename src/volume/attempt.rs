//! A publish that waits for its sources, as a state of the volume's task.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    clock::Mono,
    error::{Code, Error, Result, codes},
    render::Known,
    source::SourceView,
    spec::ObjectRef,
    volume::{
        Published, Refused,
        publish::Order,
        served::{Followed, known},
    },
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
    /// and is being asked again does not yet.
    pub fn outcome(&self, now: Mono) -> Option<Result<Vec<Known>>> {
        let mut waiting = None;
        for source in &self.sources {
            let view = source.view.borrow();
            match (source.is_unanswered(&view), &view.error) {
                (true, Some(error)) if !view.in_flight || source.has_failed_since(error) => {
                    return Some(Err((**error).clone()));
                }
                (true, _) => waiting = Some(source),
                (false, _) => {}
            }
        }
        match waiting {
            None => Some(Ok(known(&self.sources))),
            Some(source) if self.deadline <= now => {
                let error = Error::new(&codes::BACKEND_TIMEOUT).object(&source.key.object);
                Some(Err(error))
            }
            Some(_) => None,
        }
    }

    /// The secrets of which nothing is known because they are denied.
    pub fn denied(&self) -> Vec<(ObjectRef, &'static Code)> {
        let denied = |source: &Followed| {
            let view = source.view.borrow();
            let error = view.error.as_deref().filter(|error| error.is_denial())?;
            let is_unknown = source.is_unanswered(&view);
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

impl Followed {
    /// Whether there is nothing yet that this volume may be given.
    fn is_unanswered(&self, view: &SourceView) -> bool {
        let is_too_old = self.too_old.is_some() && self.too_old == view.checked_at;
        matches!(view.known, Known::Unknown) || is_too_old
    }

    fn has_failed_since(&self, error: &Arc<Error>) -> bool {
        let before = self.before.as_ref();
        !before.is_some_and(|before| Arc::ptr_eq(before, error))
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
