//! One source: who wants it, what is known, what is in flight, what is due.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::leases::Leases;
use crate::{
    backend::Fetched,
    caller::{Caller, Principal},
    clock::Mono,
    error::{Error, ErrorKind, Result, codes},
    limits,
    path::VolumeId,
    secret::Known,
    source::{
        SourceKey, SourceView, Urgency,
        gate::{Pass, Tenant},
        schedule,
    },
};

/// What a source can ask of its backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Job {
    Fetch,
    Renew,
    Revoke,
}

/// A place in a backend's queue: the first goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    /// 0: a person asked; then by urgency.
    pub(super) rank: u8,
    pub(super) since: Mono,
    pub(super) source: u64,
    pub(super) job: Job,
}

#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) every: Option<Duration>,
    pub(super) caller: Caller,
    pub(super) tenant: Tenant,
    /// It can do without the object.
    pub(super) optional: bool,
    /// The higher, the fresher the proof.
    pub(super) given: u64,
    /// Number of the object that its readers see.
    pub(super) applied: u64,
}

/// A watch's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Watch {
    /// There is none, and none is wanted.
    Off,
    /// To be started with the next fetch that an untroubled backend lets through.
    Due,
    /// Started then.
    On(Mono),
    /// To be started again then.
    Rest(Mono),
}

pub(super) struct Source {
    pub(super) key: SourceKey,
    pub(super) seed: u64,
    pub(super) door: u64,
    pub(super) subscribers: BTreeMap<VolumeId, Subscriber>,
    /// On whose account it is asked for: see [`Source::whose`]. After the last has left, as it was then.
    pub(super) tenant: Tenant,
    pub(super) pushes: bool,
    /// Its backend is on this machine.
    pub(super) local: bool,
    pub(super) view: SourceView,
    /// The view has changed since it was shown.
    pub(super) news: bool,

    /// When the last fetch went out.
    pub(super) asked_at: Option<Mono>,
    /// When the next one is due; `None` while none is.
    pub(super) due: Option<Mono>,
    pub(super) failures: u32,
    pub(super) round: u32,
    pub(super) urgency: Urgency,
    /// A person asked.
    pub(super) forced: bool,
    /// Once more after the one in flight.
    pub(super) again: bool,
    /// The object in hand dies: a new one is needed, not "not modified".
    pub(super) replace: bool,
    /// Waits for credentials.
    pub(super) stale: bool,
    /// The fetch in flight was told to end.
    pub(super) cancelled: bool,
    /// The fetch or renewal in flight.
    pub(super) busy: Option<Job>,
    /// With what the fetch or renewal in flight went through the gate; and the revocation.
    pub(super) pass: Pass,
    pub(super) revoke_pass: Pass,
    /// Whether the fetch in flight was given an object to compare with.
    pub(super) had: bool,
    /// The age of the proof that it was given.
    pub(super) proof: u64,
    /// The proof that the store refused last: another goes first.
    pub(super) refused: Option<u64>,
    /// The fetch in flight is the second try, after a refusal that does not count yet.
    pub(super) second_try: bool,

    pub(super) watch: Watch,
    pub(super) watch_failures: u32,
    /// A fetch that is due is held until the watch has begun.
    pub(super) waits_for_watch: bool,
    pub(super) leases: Leases,
    /// Places in the backend's queue, by job.
    pub(super) places: [Option<Place>; 3],
    /// The moment in the pool's list of alarms.
    pub(super) alarm: Option<Mono>,
}

impl Source {
    pub(super) fn new(key: SourceKey, door: u64, salt: u64) -> Self {
        let seed = schedule::seed(&key, salt);
        Self {
            key,
            seed,
            door,
            subscribers: BTreeMap::new(),
            tenant: None,
            pushes: false,
            local: false,
            view: SourceView::unknown(),
            news: false,
            asked_at: None,
            due: None,
            failures: 0,
            round: 0,
            urgency: Urgency::Refresh,
            forced: false,
            again: false,
            replace: false,
            stale: false,
            cancelled: false,
            busy: None,
            pass: Pass::default(),
            revoke_pass: Pass::default(),
            had: false,
            proof: 0,
            refused: None,
            second_try: false,
            watch: Watch::Off,
            watch_failures: 0,
            waits_for_watch: false,
            leases: Leases::new(seed),
            places: [None; 3],
            alarm: None,
        }
    }

    /// The namespace of all its subscribers; nobody's when they are of several: who shares a secret with others does not wait in
    /// line behind what hangs for one of them. (The loser: the namespace that came first.)
    pub(super) fn whose(&self) -> Tenant {
        let mut all = self.subscribers.values().map(|one| &one.tenant);
        let first = all.next()?;
        all.all(|one| one == first).then(|| first.clone())?
    }

    /// The shortest interval that subscribers ask for.
    pub(super) fn interval(&self) -> Option<Duration> {
        let all = self.subscribers.values().filter_map(|one| one.every);
        all.min().map(|every| every.max(limits::REFRESH_MIN))
    }

    /// Who asks: the subscriber with the freshest proof, of those that were not refused last.
    pub(super) fn freshest(&self) -> Option<&Subscriber> {
        let all = self.subscribers.values();
        all.max_by_key(|one| (self.refused != Some(one.given), one.given))
    }

    /// Whether a refusal does not count yet: it may be about the token only, which is void once its pod is gone, and another pod of the
    /// same account has one too. One more request, and only where it begins to fail: a refusal that stays costs no more than before.
    fn may_be_the_tokens_fault(&mut self, error: &Error) -> bool {
        if !error.is_denial() || !matches!(self.key.principal, Principal::ServiceAccount { .. }) {
            return false;
        }
        self.refused = Some(self.proof);
        let others = self.freshest().is_some_and(|one| one.given != self.proof);
        let is_first = self.failures == 0 && !std::mem::take(&mut self.second_try);
        self.second_try = others && is_first;
        self.second_try
    }

    pub(super) fn unknown(&self) -> bool {
        !matches!(self.view.known, Known::Object(_))
    }

    /// Nothing is left to be done or waited for.
    pub(super) fn is_over(&self) -> bool {
        self.subscribers.is_empty() && self.busy.is_none() && self.leases.is_empty()
    }

    /// Makes the next fetch due at `at` at the latest; once more after the one in flight.
    pub(super) fn ask_by(&mut self, at: Mono) {
        if self.busy == Some(Job::Fetch) {
            self.again = true;
        } else {
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    /// The watch begins at once: the fetch that was about to go waits for it, for a moment. What it brings is then known
    /// to be the state under the watch, and the hint with which a watch begins asks for nothing more.
    pub(super) fn watch_goes_first(&mut self, now: Mono) {
        self.waits_for_watch = true;
        self.due = Some(now.after(limits::WATCH_HEAD_START));
    }

    /// The watch has begun, or will not: what waited for it goes. False: nothing did.
    pub(super) fn go_ahead(&mut self, now: Mono) -> bool {
        let waited = std::mem::take(&mut self.waits_for_watch);
        if waited {
            self.ask_by(now);
        }
        waited
    }

    /// A hint from the watch: it works.
    pub(super) fn hinted(&mut self, now: Mono) {
        self.news |= self.view.watch_error.take().is_some();
        if !self.go_ahead(now) {
            self.ask_soon(now);
        }
    }

    /// As soon as the gap after the last one allows.
    pub(super) fn ask_soon(&mut self, now: Mono) {
        let gap = if self.failures > 0 {
            limits::RETRY_FIRST
        } else if self.local {
            limits::HINT_GAP_LOCAL
        } else {
            limits::HINT_GAP
        };
        self.ask_after(now, gap);
    }

    /// For a volume that has come. Many of them do not ask again and again for what is not there.
    pub(super) fn ask_for_newcomer(&mut self, now: Mono) {
        match self.view.known {
            Known::Absent => self.ask_after(now, limits::RETRY_FIRST),
            Known::Unknown | Known::Object(_) | Known::Withdrawn => self.ask_soon(now),
        }
    }

    fn ask_after(&mut self, now: Mono, gap: Duration) {
        if self.waits_for_watch {
            return; // it is on its way
        }
        let earliest = self.asked_at.map_or(now, |asked| asked.after(gap));
        self.ask_by(earliest.max(now));
    }

    /// Subscribers came or went: a shorter interval moves the due time, a wait after a failure included.
    pub(super) fn follow_interval(&mut self, now: Mono) {
        if self.stale || self.busy == Some(Job::Fetch) {
            return;
        }
        let at = if self.failures == 0 {
            self.periodic(now)
        } else {
            let exact = self.asked_at.zip(self.interval());
            exact.map(|(asked, every)| asked.after(every).max(now.after(limits::RETRY_FIRST)))
        };
        if let Some(at) = at {
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    fn periodic(&self, now: Mono) -> Option<Mono> {
        let interval = self.interval()?;
        let asked = self.asked_at?;
        Some(schedule::next_due(
            asked, now, interval, self.seed, self.round,
        ))
    }

    /// Step 4 of `Pool::fetched`.
    ///
    /// 1. Another version, or another lease of the same: the object is replaced; a lease of the former one waits until
    ///    nobody shows it.
    /// 2. The same: only the time of the check moves.
    pub(super) fn take(&mut self, now: Mono, result: Result<Fetched>, overlap: Duration) {
        let fetched = match result {
            Ok(Fetched::NotModified) if !self.had => Err(Error::new(&codes::BUG)
                .object(&self.key.object)
                .detail("the backend said that nothing has changed since nothing")),
            other => other,
        };
        match fetched {
            Err(error) if error.kind() == ErrorKind::SecretNotFound && self.may_be_absent() => {
                return self.absent(now, overlap);
            }
            Err(error) => return self.failed(now, error),
            Ok(Fetched::NotModified) => {}
            Ok(Fetched::Object(object)) => {
                self.replace = false;
                let same =
                    matches!(&self.view.known, Known::Object(old) if old.version == object.version);
                let other_lease =
                    matches!(&object.lease, Some(lease) if self.leases.is_other(lease));
                if !same || other_lease {
                    let before = self.leases.current(); // 1
                    let number = self.leases.object(now, object.lease.clone());
                    if same {
                        let shown = self.subscribers.values_mut();
                        let current = shown.filter(|one| one.applied == before);
                        current.for_each(|one| one.applied = number);
                    }
                    self.view.known = Known::Object(Arc::new(object));
                } else if let Some(lease) = object.lease {
                    self.leases.hold(now, lease); // 2
                }
                self.release_replaced(now, overlap);
            }
        }
        self.confirmed(now);
    }

    /// The store answered that this is current.
    fn confirmed(&mut self, now: Mono) {
        self.round = self.round.wrapping_add(1);
        (self.failures, self.stale, self.second_try) = (0, false, false);
        self.view.checked_at = Some(now);
        (self.view.error, self.view.failing_since) = (None, None);
        match self.view.known {
            Known::Absent => _ = self.view.refused_since.get_or_insert(now),
            _ => self.view.refused_since = None,
        }
        if matches!(self.watch, Watch::On(since) if now.since(since) > limits::RETRY_FIRST) {
            self.view.watch_error = None; // it runs; not every one tells that it has begun
        }
        self.due = self.periodic(now);
        if std::mem::take(&mut self.again) || self.watch == Watch::Due {
            self.ask_soon(now);
        }
    }

    /// Whether "no such secret" is believed. A good value stays while somebody needs it: a removal may be a mistake.
    fn may_be_absent(&self) -> bool {
        self.unknown() || self.subscribers.values().all(|one| one.optional)
    }

    /// The store answered that there is no such secret, which is as good an answer as a value.
    ///
    /// 1. A lease of the former object is of no use any more.
    /// 2. Where neither an interval nor a push would find it, it is looked for as after a failure.
    fn absent(&mut self, now: Mono, overlap: Duration) {
        self.replace = false;
        if matches!(self.view.known, Known::Object(_)) {
            let number = self.leases.object(now, None); // 1
            self.subscribers
                .values_mut()
                .for_each(|one| one.applied = number);
            self.release_replaced(now, overlap);
        }
        self.view.known = Known::Absent;
        self.confirmed(now);
        if !self.pushes {
            self.due = self.due.or(Some(now.after(limits::RETRY_MAX))); // 2
        }
    }

    /// The store did not answer, or said no. What is known stays. No fresh proof: wait for it. Everything else is tried
    /// again, more and more rarely.
    fn failed(&mut self, now: Mono, error: Error) {
        self.round = self.round.wrapping_add(1);
        let again = std::mem::take(&mut self.again);
        if self.may_be_the_tokens_fault(&error) {
            (self.due, self.urgency) = (Some(now), Urgency::Publish);
            return;
        }
        self.second_try = false;
        if *error.code() == codes::IDENTITY_TOKEN_STALE {
            let newer = self.freshest().is_some_and(|one| one.given > self.proof);
            (self.stale, self.due) = (!newer, newer.then_some(now)); // it may have come meanwhile
        } else {
            let cap = self.interval().unwrap_or(limits::RETRY_MAX);
            let cap = cap.min(limits::RETRY_MAX);
            let wait = schedule::backoff(self.failures, cap, self.seed);
            let asked_for = error.wait().unwrap_or_default();
            let asked_for = asked_for.min(limits::RETRY_AFTER_MAX);
            self.due = Some(now.after(wait.max(asked_for)));
            self.failures = self.failures.saturating_add(1);
            if again {
                self.ask_by(now.after(asked_for.max(limits::RETRY_FIRST)));
            }
        }
        self.trouble(now, error);
    }

    /// Shows an error.
    pub(super) fn trouble(&mut self, now: Mono, error: Error) {
        if error.takes_back() {
            self.view.refused_since.get_or_insert(now);
        }
        self.view.error = Some(Arc::new(error));
        self.view.failing_since.get_or_insert(now);
        self.news = true;
    }

    /// The last subscriber left: nothing of the object stays.
    pub(super) fn leave(&mut self, now: Mono) {
        self.view = SourceView::unknown();
        (self.due, self.failures, self.urgency) = (None, 0, Urgency::Refresh);
        (self.refused, self.second_try) = (None, false);
        if self.busy != Some(Job::Fetch) {
            self.asked_at = None; // the next volume need not wait
        }
        (self.forced, self.again, self.replace, self.stale) = (false, false, false, false);
        self.cancelled = self.busy == Some(Job::Fetch);
        (self.watch, self.watch_failures) = (Watch::Off, 0);
        self.waits_for_watch = false;
        self.leases.release_all(now);
        self.news = false;
    }

    /// Leases of objects that no subscriber shows any more live on for `overlap`.
    pub(super) fn release_replaced(&mut self, now: Mono, overlap: Duration) {
        if let Some(applied) = self.subscribers.values().map(|one| one.applied).min() {
            self.leases.release_before(applied, now.after(overlap));
        }
    }

    /// When the backend will be asked next by itself: when that is due, or with the watch that is started again.
    pub(super) fn next_fetch(&self) -> Option<Mono> {
        let rest = match self.watch {
            Watch::Rest(at) => Some(at),
            Watch::Off | Watch::Due | Watch::On(_) => None,
        };
        [self.due, rest].into_iter().flatten().min()
    }

    /// The next moment at which something is to be decided that is not decided by an event.
    pub(super) fn next_moment(&self) -> Option<Mono> {
        let idle = self.busy.is_none() && !self.subscribers.is_empty();
        let queued = |job: Job| self.places.get(job as usize).is_some_and(Option::is_some);
        let rest = match self.watch {
            Watch::Rest(at) => Some(at),
            Watch::Off | Watch::Due | Watch::On(_) => None,
        };
        let moments = [
            self.due.filter(|_| idle && !queued(Job::Fetch)),
            self.leases
                .plan_at()
                .filter(|_| idle && !queued(Job::Renew)),
            self.leases
                .revoke_at()
                .filter(|_| !self.leases.revoking() && !queued(Job::Revoke)),
            self.leases.expires_at(),
            rest,
        ];
        moments.into_iter().flatten().min()
    }
}
