//! All sources of the node as one state machine without I/O, clock or randomness: days run in a second, any order of
//! events is a test.
//!
//! Three nouns. A *source* (`source`) knows its subscribers, its object and its leases (`leases`), and when it wants
//! something of its backend. A *door* is one backend: a gate (`super::gate`) and a queue for each tenant of the
//! sources that wait before it, the most urgent first; tenants go in turn. *Alarms* are one sorted list of the moments at which a source or a door has something to
//! decide; the first of them is what [`Effect::WakeAt`] asks for.
//!
//! Every event runs in the same steps: see [`Pool::on`]. Permanent: subscribers, leases. Everything else can be lost.
//!
//! What it expects of the runner: each fetch, renewal and revocation is answered by one event, also after a `Cancel`; the end
//! of a watch is told unless a `Cancel` ended it.
//!
//! In flight per source: one fetch or renewal, and beside it one revocation (of a lease that is no longer the object's,
//! whose store may hang without making the source late).

mod doors;
mod leases;
mod source;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use self::{
    doors::{Door, sign, tenant},
    source::{Job, Source, Subscriber, Watch},
};
use crate::{
    backend::{Fetched, Pace},
    caller::{Caller, Identity},
    clock::Mono,
    error::{Error, Result},
    limits,
    path::VolumeId,
    secret::Known,
    secret::{Lease, Object, Version},
    source::{
        Effect, Event, SourceKey, Terms, Urgency,
        gate::{GateRules, Sign},
        schedule,
    },
    spec::BackendName,
};

/// What the pool goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Limits of each backend.
    pub gate: GateRules,
    /// The same, of one on this machine.
    pub local: GateRules,
    /// How long a replaced lease lives on after all readers see the new value.
    pub overlap: Duration,
    /// What jitter is made of, besides the source: differs between nodes, so that they do not ask in step.
    pub salt: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            gate: GateRules::default(),
            local: GateRules::local(),
            overlap: limits::LEASE_OVERLAP,
            salt: 0,
        }
    }
}

/// Whose alarm it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Who {
    Door(u64),
    Source(u64),
}

/// All sources of the node.
#[derive(Default)]
pub struct Pool {
    rules: Rules,
    ids: HashMap<SourceKey, u64>,
    sources: BTreeMap<u64, Source>,
    volumes: HashMap<VolumeId, BTreeSet<u64>>,
    door_ids: HashMap<(u64, BackendName), u64>,
    doors: BTreeMap<u64, Door>,
    alarms: BTreeSet<(Mono, Who)>,
    /// What the last `WakeAt` said.
    wake: Option<Mono>,
    /// Numbers sources, doors and credentials as they come.
    count: u64,
    /// Sources and doors that the event at hand has touched.
    touched: BTreeSet<u64>,
    touched_doors: BTreeSet<u64>,
    out: Vec<Effect>,
}

impl Pool {
    /// A pool without sources.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// What an event leads to.
    ///
    /// 1. Record it.
    /// 2. Collect the sources and doors whose alarm is due.
    /// 3. Each source touched says what it wants, and takes its place in its backend's queue.
    /// 4. Each door touched lets pass what its gate allows.
    /// 5. Each source touched is shown if its view changed, sets its alarm, and goes if it is over.
    /// 6. Ask to be woken at the first alarm.
    pub fn on(&mut self, now: Mono, event: Event) -> Vec<Effect> {
        if matches!(event, Event::Tick) {
            self.wake = None; // whoever sent it may have forgotten the former alarm
        }
        self.record(now, event); // 1
        self.ring(now); // 2
        let mut done = BTreeSet::new();
        while !self.touched.is_empty() || !self.touched_doors.is_empty() {
            while let Some(id) = self.touched.pop_first() {
                self.settle(now, id); // 3
                done.insert(id);
            }
            while let Some(id) = self.touched_doors.pop_first() {
                self.pump(now, id); // 4
            }
        }
        for id in done {
            self.conclude(now, id); // 5
        }
        let first = self.alarms.first().map(|(at, _)| *at);
        if first.is_some() && first != self.wake {
            self.out.extend(first.map(Effect::WakeAt)); // 6
            self.wake = first;
        }
        std::mem::take(&mut self.out)
    }

    fn record(&mut self, now: Mono, event: Event) {
        match event {
            Event::Subscribe {
                volume,
                key,
                every,
                caller,
                pushes,
                terms,
            } => self.subscribe(now, volume, key, (every, caller, pushes, terms)),
            Event::Unsubscribe(volume) => self.keep_only(now, &volume, &[]),
            Event::Retain(volume, keys) => self.keep_only(now, &volume, &keys),
            Event::Credentials(volume, caller) => self.credentials(now, &volume, caller),
            Event::Hint(key) => self.with(&key, |source| source.hinted(now)),
            Event::Refresh(volume, since) => self.refresh(now, &volume, since),
            Event::Fetched(key, result) => self.fetched(now, key, result),
            Event::Renewed(key, result) => self.renewed(now, &key, result),
            Event::Revoked(key, result) => self.revoked(now, &key, result),
            Event::WatchEnded(key, result) => self.watch_ended(now, &key, result),
            Event::Tick => {}
            Event::Found(key, lease) => {
                let id = self.source(key);
                if let Some(source) = self.sources.get_mut(&id) {
                    let subscribed = !source.subscribers.is_empty();
                    source.leases.found(now, lease, subscribed);
                    source.release_replaced(now, self.rules.overlap);
                }
            }
            Event::Applied(volume, key, version) => self.applied(now, &volume, &key, &version),
        }
    }

    /// The freshest proof that a volume has given of being him. It may have tried to be somebody else since: its account was made again.
    pub fn caller_of(&self, volume: &VolumeId, who: &Identity) -> Option<Caller> {
        let mine = self.volumes.get(volume)?.iter();
        let mine = mine.filter_map(|id| self.sources.get(id)?.subscribers.get(volume));
        let mine = mine.filter(|one| one.caller.0 == *who);
        let freshest = mine.max_by_key(|one| one.given)?;
        Some(freshest.caller.clone())
    }

    /// How many leases are held, by backend.
    pub fn leases(&self) -> BTreeMap<BackendName, u64> {
        let mut held = BTreeMap::new();
        for source in self.sources.values() {
            let leases = source.leases.len() as u64;
            if leases > 0 {
                *held.entry(source.key.object.backend.clone()).or_default() += leases;
            }
        }
        held
    }

    /// Whether there is a source of this backend.
    pub fn knows(&self, backend: &(u64, BackendName)) -> bool {
        let door = self.door_ids.get(backend);
        door.is_some_and(|id| {
            self.doors
                .get(id)
                .is_some_and(|one| !one.members.is_empty())
        })
    }

    /// Changes a source that has subscribers.
    fn with(&mut self, key: &SourceKey, change: impl FnOnce(&mut Source)) {
        let Some(&id) = self.ids.get(key) else { return };
        if let Some(source) = self.sources.get_mut(&id)
            && !source.subscribers.is_empty()
        {
            change(source);
            self.touched.insert(id);
        }
    }

    /// The source of this key, made if need be.
    fn source(&mut self, key: SourceKey) -> u64 {
        if let Some(&id) = self.ids.get(&key) {
            self.touched.insert(id);
            return id;
        }
        self.count += 1;
        let (id, door) = (self.count, self.door_of(&key));
        self.ids.insert(key.clone(), id);
        self.sources
            .insert(id, Source::new(key, door, self.rules.salt));
        if let Some(door) = self.doors.get_mut(&door) {
            door.members.insert(id);
        }
        self.touched.insert(id);
        id
    }

    /// 1. Share what there is: the newcomer is shown it at once.
    /// 2. Ask if there is nothing that the newcomer may be given, at once and by his proof: somebody waits. A source that has just failed,
    ///    or said that there is nothing, is given a second.
    /// 3. The first subscriber claims found leases and starts the watch.
    fn subscribe(
        &mut self,
        now: Mono,
        volume: VolumeId,
        key: SourceKey,
        (every, caller, pushes, terms): (Option<Duration>, Caller, bool, Terms),
    ) {
        let id = self.source(key);
        self.count += 1;
        let given = self.count;
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let first = source.subscribers.is_empty();
        let before = source.subscribers.get(&volume);
        let shown = if source.unknown() {
            0
        } else {
            source.leases.current()
        };
        let applied = before.map_or(shown, |before| before.applied);
        let serves =
            !source.unknown() && (before.is_some() || source.view.serves(now, terms.recent));
        let subscriber = Subscriber {
            every,
            tenant: tenant(&caller),
            caller,
            optional: terms.optional,
            given,
            applied,
        };
        source.subscribers.insert(volume.clone(), subscriber);
        source.view.in_flight = source.busy == Some(Job::Fetch);
        source.news = true; // 1
        if !serves && source.busy != Some(Job::Fetch) {
            (source.urgency, source.stale) = (Urgency::Publish, false); // 2
            source.ask_for_newcomer(now);
        }
        source.pushes |= pushes;
        source.local = terms.pace == Pace::Local;
        if first {
            source.leases.claim(now); // 3
            if pushes && source.watch == Watch::Off {
                source.watch = Watch::Due;
            }
        }
        source.follow_interval(now);
        let door = source.door;
        self.set_pace(door, terms.pace);
        self.volumes.entry(volume).or_default().insert(id);
        self.settle_tenant(id);
        self.probe_within(now, id);
    }

    /// A volume leaves all its sources but these. A source that nobody wants ends.
    fn keep_only(&mut self, now: Mono, volume: &VolumeId, keys: &[SourceKey]) {
        let Some(mut mine) = self.volumes.remove(volume) else {
            return;
        };
        let kept: BTreeSet<u64> = keys
            .iter()
            .filter_map(|key| self.ids.get(key))
            .copied()
            .collect();
        for &id in mine.iter().filter(|id| !kept.contains(id)) {
            let Some(source) = self.sources.get_mut(&id) else {
                continue;
            };
            source.subscribers.remove(volume);
            source.release_replaced(now, self.rules.overlap);
            if source.subscribers.is_empty() {
                source.leave(now);
                self.out.push(Effect::Cancel(source.key.clone()));
                let places = [source.places[0].take(), source.places[1].take()];
                if let Some(door) = self.doors.get_mut(&source.door) {
                    for place in places.iter().flatten() {
                        door.leave(&source.tenant, place);
                    }
                    self.touched_doors.insert(source.door);
                }
            }
            self.settle_tenant(id);
            self.touched.insert(id);
        }
        mine.retain(|id| kept.contains(id));
        if !mine.is_empty() {
            self.volumes.insert(volume.clone(), mine);
        }
    }

    fn credentials(&mut self, now: Mono, volume: &VolumeId, caller: Caller) {
        for &id in self.volumes.get(volume).into_iter().flatten() {
            let Some(source) = self.sources.get_mut(&id) else {
                continue;
            };
            self.count += 1;
            if let Some(subscriber) = source.subscribers.get_mut(volume) {
                (subscriber.caller, subscriber.given) = (caller.clone(), self.count);
            }
            if std::mem::take(&mut source.stale) {
                source.ask_by(now);
                self.touched.insert(id);
            }
        }
    }

    /// What went out after `since` was asked for another of the volumes that a person meant at once.
    fn refresh(&mut self, now: Mono, volume: &VolumeId, since: Mono) {
        for &id in self.volumes.get(volume).into_iter().flatten() {
            if let Some(source) = self.sources.get_mut(&id)
                && source.asked_at.is_none_or(|at| at <= since)
            {
                (source.forced, source.urgency) = (true, Urgency::Publish);
                source.ask_by(now);
                self.touched.insert(id);
            }
        }
    }

    /// A request ended.
    ///
    /// 1. Tell the gate what it says about the backend.
    /// 2. Nobody wants it any more: give a lease back.
    /// 3. It was told to end, and somebody came since: ask again.
    /// 4. Else take the answer.
    fn fetched(&mut self, now: Mono, key: SourceKey, result: Result<Fetched>) {
        let id = self.source(key);
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        if source.busy != Some(Job::Fetch) {
            if let Ok(Fetched::Object(Object {
                lease: Some(lease), ..
            })) = result
            {
                source.leases.stray(now, lease);
            }
            return;
        }
        source.busy = None;
        source.view.in_flight = false;
        source.news = true;
        let cancelled = std::mem::take(&mut source.cancelled);
        let sign = match &result {
            Ok(_) => Sign::Alive,
            // Cancelled: it may not have got there; but what the store asked for holds.
            Err(error) if cancelled && error.wait().is_none() => Sign::None,
            Err(error) => sign(error),
        };
        let code = result.as_ref().err().map(Error::code);
        let (door, pass) = (source.door, std::mem::take(&mut source.pass));
        if source.subscribers.is_empty() {
            if let Ok(Fetched::Object(Object {
                lease: Some(lease), ..
            })) = result
            {
                source.leases.stray(now, lease); // 2
            }
        } else if cancelled && !matches!(result, Ok(Fetched::Object(_))) {
            (source.due, source.urgency) = (Some(now), Urgency::Publish); // 3
        } else {
            source.take(now, result, self.rules.overlap); // 4
        }
        self.ended(now, door, &pass, sign, code); // 1
    }

    fn renewed(&mut self, now: Mono, key: &SourceKey, result: Result<Lease>) {
        let Some(&id) = self.ids.get(key) else { return };
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        if source.busy != Some(Job::Renew) {
            return;
        }
        source.busy = None;
        self.touched.insert(id);
        let sign = result.as_ref().map_or_else(sign, |_| Sign::Alive);
        let code = result.as_ref().err().map(Error::code);
        if source.leases.renewed(now, result.as_ref().cloned()) {
            source.replace = true;
            source.ask_by(now);
        }
        let (door, pass) = (source.door, std::mem::take(&mut source.pass));
        self.ended(now, door, &pass, sign, code);
    }

    fn revoked(&mut self, now: Mono, key: &SourceKey, result: Result<()>) {
        let Some(&id) = self.ids.get(key) else { return };
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        if !source.leases.revoking() {
            return;
        }
        source.leases.revoked(now, result.is_ok());
        self.touched.insert(id);
        let sign = result.as_ref().map_or_else(sign, |()| Sign::Alive);
        let code = result.as_ref().err().map(Error::code);
        let (door, pass) = (source.door, std::mem::take(&mut source.revoke_pass));
        self.ended(now, door, &pass, sign, code);
    }

    /// A watch ended by itself; the end of one that a `Cancel` ended is no news, and is not told. One that lived for a while
    /// is started again after a second, one that did not after longer and longer. Until then it is shown why changes are not told.
    fn watch_ended(&mut self, now: Mono, key: &SourceKey, result: Result<()>) {
        self.with(key, |source| {
            let Watch::On(since) = source.watch else {
                return;
            };
            source.go_ahead(now);
            if now.since(since) > limits::RETRY_MAX {
                source.watch_failures = 0;
            }
            let wait = schedule::backoff(source.watch_failures, limits::RETRY_MAX, source.seed);
            source.watch_failures = source.watch_failures.saturating_add(1);
            source.watch = Watch::Rest(now.after(wait));
            source.view.watch_error = result.err().map(Arc::new);
            source.news = true;
        });
    }

    fn applied(&mut self, now: Mono, volume: &VolumeId, key: &SourceKey, version: &Version) {
        let overlap = self.rules.overlap;
        self.with(key, |source| {
            let current = source.leases.current();
            let is_current =
                matches!(&source.view.known, Known::Object(object) if object.version == *version);
            if let Some(subscriber) = source.subscribers.get_mut(volume)
                && is_current
            {
                subscriber.applied = current;
                source.release_replaced(now, overlap);
            }
        });
    }

    /// Step 2 of [`Pool::on`].
    fn ring(&mut self, now: Mono) {
        while let Some(&(at, who)) = self.alarms.first()
            && at <= now
        {
            self.alarms.pop_first();
            match who {
                Who::Source(id) => {
                    if let Some(source) = self.sources.get_mut(&id) {
                        source.alarm = None;
                        self.touched.insert(id);
                    }
                }
                Who::Door(id) => {
                    if let Some(door) = self.doors.get_mut(&id) {
                        door.alarm = None;
                        self.touched_doors.insert(id);
                    }
                }
            }
        }
    }

    /// Step 3 of [`Pool::on`].
    fn settle(&mut self, now: Mono, id: u64) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let died = source.leases.expire(now);
        let dying = source.leases.wants_replacement(now);
        if !source.subscribers.is_empty() {
            if died || dying {
                source.replace = true;
                if source.failures == 0 && !source.stale {
                    let earliest = source.asked_at.map(|at| at.after(limits::RETRY_FIRST));
                    source.ask_by(earliest.unwrap_or(now).max(now));
                }
            }
            if matches!(source.watch, Watch::Rest(at) if at <= now) {
                source.watch = Watch::Due;
                source.ask_soon(now);
            }
            if source.busy.is_none() {
                if source.due.is_some_and(|due| due <= now) {
                    self.queue(now, id, Job::Fetch);
                }
                if self
                    .sources
                    .get(&id)
                    .is_some_and(|source| source.leases.wants_renewal(now))
                {
                    self.queue(now, id, Job::Renew);
                }
            }
        }
        if self
            .sources
            .get(&id)
            .is_some_and(|source| source.leases.wants_revocation(now))
        {
            self.queue(now, id, Job::Revoke);
        }
    }

    /// Step 5 of [`Pool::on`].
    fn conclude(&mut self, now: Mono, id: u64) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut source.news) && !source.subscribers.is_empty() {
            let shut = self
                .doors
                .get(&source.door)
                .and_then(|door| door.gate.shut_until(&source.tenant, now));
            let due = source.next_fetch();
            source.view.next_at = due.map(|due| shut.map_or(due, |shut| due.max(shut)));
            let (key, view) = (source.key.clone(), source.view.clone());
            self.out.push(Effect::Show(key, view));
        }
        let next = source.next_moment();
        if source.alarm != next {
            if let Some(old) = source.alarm {
                self.alarms.remove(&(old, Who::Source(id)));
            }
            if let Some(next) = next {
                self.alarms.insert((next, Who::Source(id)));
            }
            source.alarm = next;
        }
        if source.is_over() {
            self.forget(now, id);
        }
    }

    fn forget(&mut self, now: Mono, id: u64) {
        let Some(source) = self.sources.remove(&id) else {
            return;
        };
        self.ids.remove(&source.key);
        if let Some(at) = source.alarm {
            self.alarms.remove(&(at, Who::Source(id)));
        }
        self.leave_door(now, id, &source);
    }
}
