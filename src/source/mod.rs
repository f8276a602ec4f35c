//! Keeps every object that some volume needs current, with one request at a time for each.
//!
//! A *source* is one (backend, principal, request). The first volume that subscribes makes it, the last one to leave
//! ends it. Permanent while it lives: its key and subscribers. Cache: the object. Volatile: due time, failures, breaker.
//! `pool` decides (a state machine without I/O, clock or randomness); `runner` does (one task: wait, call, record).
//!
//! Does not: render, mount, know a path or a mode, or decide who may read what (`policy` did so before).

pub mod bell;
pub mod breaker;
mod caught;
pub mod gate;
pub mod pool;
pub mod runner;
pub mod schedule;

pub(crate) use caught::caught;

use std::{sync::Arc, time::Duration};

use crate::{
    backend::{Fetched, Pace},
    caller::{Caller, Principal},
    clock::Mono,
    error::{Error, Result},
    path::VolumeId,
    secret::{Known, Lease, Version},
    spec::ObjectRef,
};

/// Names a source.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SourceKey {
    /// What is asked for.
    pub object: ObjectRef,
    /// As whom.
    pub principal: Principal,
    /// For `Share::Volume`.
    pub volume: Option<VolumeId>,
    /// A backend whose configuration changed has another one.
    pub epoch: u64,
}

/// What volumes see of a source.
#[derive(Clone, Debug)]
pub struct SourceView {
    /// The object, as far as it is known. Absent is an answer like a value: whether a volume can do without it is for the
    /// render to say.
    pub known: Known,
    /// When the store last said that it is current.
    pub checked_at: Option<Mono>,
    /// Why it could not be asked the last time; `None` once it answered.
    pub error: Option<Arc<Error>>,
    /// Since when it has been failing.
    pub failing_since: Option<Mono>,
    /// Since when the store has been saying that we may not have it, or that there is none. An outage does not change that; an object does.
    pub refused_since: Option<Mono>,
    /// Whether a request is in flight: the volume waits for it a little before it renders.
    pub in_flight: bool,
    /// Why changes are not told at present; `None`: they are, or the backend never does.
    pub watch_error: Option<Arc<Error>>,
    /// When it will be asked next.
    pub next_at: Option<Mono>,
}

/// On what terms a volume wants a source.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Terms {
    /// How the source's backend may be asked.
    pub pace: Pace,
    /// It can do without the object: all files that are made of it are optional.
    pub optional: bool,
    /// What the store confirmed longer ago is not for a volume that comes: its own proof is shown first. `None`: it is, at any age.
    pub recent: Option<Duration>,
}

impl SourceView {
    /// Whether there is an answer that a volume which comes at `now` may be given: not where the store has changed its mind since.
    pub(crate) fn serves(&self, now: Mono, recent: Option<Duration>) -> bool {
        let is_recent = |longest| self.checked_at.is_some_and(|at| now.since(at) <= longest);
        let is_taken_back = match (&self.known, &self.error) {
            (_, None) => false,
            (Known::Object(_), Some(_)) => self.refused_since.is_some(),
            (_, Some(error)) => error.takes_back(),
        };
        !matches!(self.known, Known::Unknown) && !is_taken_back && recent.is_none_or(is_recent)
    }

    /// The same while the store does not answer, for a volume that takes what was confirmed at most `longest` ago.
    pub(crate) fn serves_stale(&self, now: Mono, longest: Duration) -> bool {
        let is_down = self.error.as_ref().is_some_and(|error| error.is_outage());
        is_down && !longest.is_zero() && self.serves(now, Some(longest))
    }

    /// Whether the store's last word is that we may not have it, or that there is none.
    pub(crate) fn is_refused(&self) -> bool {
        match &self.error {
            Some(error) => error.takes_back(),
            None => matches!(self.known, Known::Absent),
        }
    }

    /// Whether a volume would see no difference; when the source will be asked next does not matter to it.
    pub(crate) fn shows_the_same(&self, other: &Self) -> bool {
        self.says_the_same(other)
            && self.checked_at == other.checked_at
            && self.in_flight == other.in_flight
    }

    /// Whether all that differs is that the source was asked.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<Error>>, other: &Option<Arc<Error>>| {
            one.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr)
        };
        self.known.is_same(&other.known)
            && same(&self.error, &other.error)
            && same(&self.watch_error, &other.watch_error)
            && self.failing_since == other.failing_since
    }

    /// Of a source that was never asked.
    pub(crate) fn unknown() -> Self {
        Self {
            known: Known::Unknown,
            checked_at: None,
            error: None,
            failing_since: None,
            refused_since: None,
            in_flight: false,
            watch_error: None,
            next_at: None,
        }
    }
}

/// What happens to the pool.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Event {
    /// A volume wants a source, asked at least every `every` (`None`: only by push and on demand).
    Subscribe {
        volume: VolumeId,
        key: SourceKey,
        every: Option<Duration>,
        caller: Caller,
        pushes: bool,
        terms: Terms,
    },
    /// A volume is gone.
    Unsubscribe(VolumeId),
    /// A volume wants these sources only, of those it subscribed to.
    Retain(VolumeId, Vec<SourceKey>),
    /// Fresh proof.
    Credentials(VolumeId, Caller),
    /// "Fetch soon", from a watch.
    Hint(SourceKey),
    /// "Fetch now", from a person: all sources of a volume that have not been asked since he said so.
    Refresh(VolumeId, Mono),
    /// A request ended.
    Fetched(SourceKey, Result<Fetched>),
    /// A renewal ended.
    Renewed(SourceKey, Result<Lease>),
    /// A revocation ended.
    Revoked(SourceKey, Result<()>),
    /// A watch ended, or broke.
    WatchEnded(SourceKey, Result<()>),
    /// The time asked for by `WakeAt` has come (or any other moment: it does no harm).
    Tick,
    /// A lease kept across our restart: renew it while a volume subscribes, else revoke it. Its value is still Unknown.
    Found(SourceKey, Lease),
    /// Readers see this version; when all subscribers have said so, the old lease's overlap begins.
    Applied(VolumeId, SourceKey, Version),
}

/// What the pool wants done.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Effect {
    /// Ask the store, as this caller, having this.
    Fetch {
        key: SourceKey,
        urgency: Urgency,
        caller: Caller,
        have: Option<Arc<crate::secret::Object>>,
    },
    /// Prolong a lease.
    Renew { key: SourceKey, lease: Lease },
    /// Give a lease back.
    Revoke { key: SourceKey, lease: Lease },
    /// Start a watch.
    Watch { key: SourceKey, caller: Caller },
    /// The last subscriber left: no new request, and the watch ends; a lease that still comes back is revoked.
    Cancel(SourceKey),
    /// Show this to all subscribers.
    Show(SourceKey, SourceView),
    /// Send a Tick then. Replaces the former one.
    WakeAt(Mono),
}

/// Which of two requests goes first when a backend is at its limit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Urgency {
    /// A periodic look.
    Refresh,
    /// Something that would otherwise be lost: a renewal, a revocation.
    Upkeep,
    /// Somebody waits.
    Publish,
}
