//! A publish that waits for its sources, as a state of the volume's task.

use std::sync::Arc;

use crate::{
    caller::Identity,
    clock::Mono,
    error::{Error, Result, codes},
    path::TargetPath,
    render::Known,
    source::runner::Wanted,
    spec::VolumeSpec,
    volume::{
        served::{Followed, Served, known},
        volumes::{PublishRequest, Published, Reply},
    },
};

/// It is dropped when it has succeeded, failed, or been overtaken by an unpublish.
pub(super) struct Attempt {
    pub request: PublishRequest,
    pub sources: Vec<Followed>,
    /// Mount, or replace the files of the mount that is there.
    pub mount: bool,
    pub deadline: Mono,
    /// Everybody who asked for it.
    pub replies: Vec<Reply<Published>>,
}

impl Attempt {
    /// `None`: wait. A source that fails while nothing is known of it fails the publish; one that had failed before and is
    /// being asked again does not yet.
    pub fn outcome(&self, now: Mono) -> Option<Result<Vec<Known>>> {
        let mut waiting = None;
        for source in &self.sources {
            let view = source.view.borrow();
            match (&view.known, &view.error) {
                (Known::Unknown, Some(error))
                    if !view.in_flight || source.has_failed_since(error) =>
                {
                    return Some(Err((**error).clone()));
                }
                (Known::Unknown, _) => waiting = Some(source),
                (Known::Absent | Known::Object(_), _) => {}
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
}

impl Followed {
    fn has_failed_since(&self, error: &Arc<Error>) -> bool {
        let before = self.before.as_ref();
        !before.is_some_and(|before| Arc::ptr_eq(before, error))
    }
}

/// What a task serves or is about to serve.
pub(super) struct Current<'a> {
    pub target: &'a TargetPath,
    pub spec: &'a VolumeSpec,
    identity: &'a Identity,
    sources: &'a [Followed],
}

impl<'a> Current<'a> {
    pub fn of_attempt(attempt: &'a Attempt) -> Self {
        Self {
            target: &attempt.request.target,
            spec: &attempt.request.spec,
            identity: &attempt.request.caller.0,
            sources: &attempt.sources,
        }
    }

    pub fn of_served(served: &'a Served) -> Self {
        Self {
            target: &served.target,
            spec: &served.spec,
            identity: &served.identity,
            sources: &served.sources,
        }
    }

    /// Whether it is for this caller and from these sources. `wanted` is `None` when the sources cannot be named any more (a
    /// backend has left the configuration): what is served stays.
    pub fn is_of(&self, identity: &Identity, wanted: Option<&[Wanted]>) -> bool {
        let same = |wanted: &[Wanted]| {
            let keys = wanted.iter().map(|want| &want.key);
            keys.eq(self.sources.iter().map(|source| &source.key))
        };
        self.identity == identity && wanted.is_none_or(same)
    }
}
