//! One source as one volume sees it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    clock::Mono,
    error::{Error, codes},
    render::Known,
    secret::Version,
    source::{SourceKey, SourceView, runner::Wanted},
    volume::status::Failure,
};

/// One source of a volume; they stand in the order of the spec's objects.
pub(super) struct Followed {
    pub key: SourceKey,
    pub pushes: bool,
    pub view: watch::Receiver<SourceView>,
    /// The error that it showed when we came.
    pub before: Option<Arc<Error>>,
    /// What the store confirmed then is not for us: it was too long ago when we came.
    pub too_old: Option<Mono>,
    /// The version whose delivery is on record, and of which epoch of the backend: another store's may have the same name.
    pub delivered: Option<(u64, Version)>,
    /// That it is denied is on record.
    pub is_denied: bool,
    /// The volume can do without it.
    pub optional: bool,
    /// A volume that had it before has it still.
    pub is_kept_on: bool,
    /// Why it is missed, or not for readers any more: see `withdraw`.
    pub missed: Option<Failure>,
    pub is_withdrawn: bool,
}

impl Followed {
    /// A view that a volume gets, in place of a former one if it had one.
    pub fn new(
        want: Wanted,
        view: watch::Receiver<SourceView>,
        former: Option<&Self>,
        now: Mono,
    ) -> Self {
        let shown = view.borrow();
        let serves = former.is_some() || shown.serves(now, want.recent);
        let (too_old, before) = (shown.checked_at.filter(|_| !serves), shown.error.clone());
        drop(shown);
        Self {
            key: want.key,
            pushes: want.pushes,
            view,
            before,
            too_old,
            delivered: former.and_then(|former| former.delivered.clone()),
            is_denied: former.is_some_and(|former| former.is_denied),
            optional: want.optional,
            is_kept_on: former.is_some(),
            missed: former.and_then(|former| former.missed.clone()),
            is_withdrawn: former.is_some_and(|former| former.is_withdrawn),
        }
    }

    /// What this volume may show of it. What it needs, and the store says it does not have, stays as it is until it is withdrawn.
    pub fn known(&self) -> Known {
        match (self.is_withdrawn, &self.missed) {
            (true, _) => Known::Withdrawn,
            (false, Some(_)) => Known::Unknown,
            (false, None) => self.view.borrow().known.clone(),
        }
    }

    /// Whether this error is what a publish that waits gets: it has come since, or nobody asks at the moment. That somebody's token was too old
    /// says nothing of the one that we have brought.
    pub fn is_answered_by(&self, view: &SourceView, error: &Arc<Error>) -> bool {
        let before = self.before.as_ref();
        let is_new = !before.is_some_and(|before| Arc::ptr_eq(before, error));
        match error.code() == &codes::IDENTITY_TOKEN_STALE {
            true => is_new && !view.in_flight,
            false => is_new || !view.in_flight,
        }
    }

    /// Whether the pool keeps it current.
    pub fn is_live(&self) -> bool {
        self.view.has_changed().is_ok()
    }
}
