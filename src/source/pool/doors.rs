//! One backend's door: its gate, and the sources that wait before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use super::{
    Pool, Who,
    source::{Job, Place, Source, Watch},
};
use crate::{
    backend::Pace,
    caller::{Caller, Identity},
    clock::Mono,
    error::{Code, Error, ErrorKind, codes},
    limits,
    secret::Known,
    source::{
        Effect, SourceKey, Urgency,
        gate::{Gate, GateRules, Pass, Sign, Tenant, Verdict},
        schedule,
    },
    spec::BackendName,
};

pub(super) struct Door {
    name: (u64, BackendName),
    pub(super) gate: Gate,
    pub(super) pace: Pace,
    /// Who waits, by tenant; none of them is empty.
    queues: BTreeMap<Tenant, BTreeSet<Place>>,
    /// Who went last: the next in order goes next.
    turn: Tenant,
    pub(super) members: BTreeSet<u64>,
    pub(super) alarm: Option<Mono>,
    /// The last sign of trouble, for those who wait because of it.
    trouble: &'static Code,
    /// Probes and failures so far, for jitter.
    round: u64,
}

/// What a door does next.
enum Next {
    Go(Tenant, Place),
    At(Mono),
    Wait,
}

impl Door {
    fn enter(&mut self, tenant: &Tenant, place: Place) {
        self.queues.entry(tenant.clone()).or_default().insert(place);
    }

    pub(super) fn leave(&mut self, tenant: &Tenant, place: &Place) {
        if let Some(queue) = self.queues.get_mut(tenant) {
            queue.remove(place);
            if queue.is_empty() {
                self.queues.remove(tenant);
            }
        }
    }

    /// The first of the next tenant that the gate lets pass; else when it may let one.
    fn next(&self, now: Mono) -> Next {
        let after = self.queues.range((Excluded(&self.turn), Unbounded));
        let rest = self.queues.range(..=&self.turn);
        let mut earliest: Option<Mono> = None;
        for (tenant, queue) in after.chain(rest) {
            let Some(&first) = queue.first() else {
                continue;
            };
            match self.gate.verdict(tenant, now, first.rank == 0) {
                Verdict::Go => return Next::Go(tenant.clone(), first),
                Verdict::NotBefore(at) => {
                    earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
                }
                Verdict::Full => {}
            }
        }
        earliest.map_or(Next::Wait, Next::At)
    }
}

impl Pool {
    /// The door of a source's backend, made if need be.
    pub(super) fn door_of(&mut self, key: &SourceKey) -> u64 {
        let name = (key.epoch, key.object.backend.clone());
        if let Some(&id) = self.door_ids.get(&name) {
            return id;
        }
        self.close_old_doors(&name.1);
        self.count += 1;
        self.door_ids.insert(name.clone(), self.count);
        let door = Door {
            name,
            gate: Gate::new(self.rules.gate.clone()),
            pace: Pace::Remote,
            queues: BTreeMap::new(),
            turn: None,
            members: BTreeSet::new(),
            alarm: None,
            trouble: &codes::BACKEND_UNAVAILABLE,
            round: 0,
        };
        self.doors.insert(self.count, door);
        self.count
    }

    /// A subscriber says how the backend may be asked.
    pub(super) fn set_pace(&mut self, id: u64, pace: Pace) {
        let Some(door) = self.doors.get_mut(&id) else {
            return;
        };
        if door.pace != pace {
            door.pace = pace;
            door.gate.rule(match pace {
                Pace::Remote => self.rules.gate.clone(),
                Pace::Within(allowed) => GateRules {
                    in_flight: allowed.in_flight,
                    per_second: Some(allowed.per_second),
                    burst: allowed.burst,
                    ..self.rules.gate.clone()
                },
                Pace::Local => self.rules.local.clone(),
            });
        }
    }

    /// Gives a source a place in the queue, or a better one.
    pub(super) fn queue(&mut self, now: Mono, id: u64, job: Job) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let Some(door) = self.doors.get_mut(&source.door) else {
            return;
        };
        let urgency = match job {
            Job::Fetch if source.replace => source.urgency.max(Urgency::Upkeep),
            Job::Fetch => source.urgency,
            Job::Renew | Job::Revoke => Urgency::Upkeep,
        };
        let rank = match urgency {
            Urgency::Publish if source.forced => 0,
            Urgency::Publish => 1,
            Urgency::Upkeep => 2,
            Urgency::Refresh => 3,
        };
        let Some(place) = source.places.get_mut(job as usize) else {
            return;
        };
        let better = place.is_none_or(|old| rank < old.rank);
        if better {
            if let Some(old) = place.take() {
                door.leave(&source.tenant, &old);
            }
            let new = Place {
                rank,
                since: now,
                source: id,
                job,
            };
            *place = Some(new);
            door.enter(&source.tenant, new);
            self.touched_doors.insert(source.door);
        }
        if job == Job::Fetch {
            hold_back(now, source, door);
        }
    }

    /// Step 4 of [`Pool::on`]: tenants go in turn, each with the first of its queue, while the gate lets them.
    pub(super) fn pump(&mut self, now: Mono, id: u64) {
        let at = loop {
            let Some(door) = self.doors.get_mut(&id) else {
                return;
            };
            match door.next(now) {
                Next::Wait => break None,
                Next::At(at) => break Some(at),
                Next::Go(tenant, first) => {
                    door.leave(&tenant, &first);
                    door.turn = tenant;
                    self.start(now, first);
                }
            }
        };
        if let Some(door) = self.doors.get_mut(&id)
            && door.alarm != at
        {
            if let Some(old) = door.alarm {
                self.alarms.remove(&(old, Who::Door(id)));
            }
            if let Some(at) = at {
                self.alarms.insert((at, Who::Door(id)));
            }
            door.alarm = at;
        }
    }

    /// Sends a request, unless it is of no use any more.
    fn start(&mut self, now: Mono, place: Place) {
        self.touched.insert(place.source);
        let Some(source) = self.sources.get_mut(&place.source) else {
            return;
        };
        if let Some(mine) = source.places.get_mut(place.job as usize) {
            *mine = None;
        }
        let busy = source.busy.is_some();
        let Some(door) = self.doors.get_mut(&source.door) else {
            return;
        };
        let closed = door.gate.is_closed(&source.tenant);
        match place.job {
            Job::Fetch | Job::Renew if busy => {}
            Job::Fetch => {
                let Some(freshest) = source.freshest() else {
                    return;
                };
                let (caller, proof) = (freshest.caller.clone(), freshest.given);
                if source.watch == Watch::Due && closed {
                    source.watch = Watch::On(now);
                    let (key, caller) = (source.key.clone(), caller.clone());
                    self.out.push(Effect::Watch { key, caller });
                    if door.pace == Pace::Local {
                        source.watch_goes_first(now);
                        return;
                    }
                }
                source.pass = door.gate.started(&source.tenant, now);
                let urgency = match place.rank {
                    0 | 1 => Urgency::Publish,
                    2 => Urgency::Upkeep,
                    _ => Urgency::Refresh,
                };
                let have = match &source.view.known {
                    Known::Object(object) if !source.replace => Some(object.clone()),
                    Known::Unknown | Known::Absent | Known::Withdrawn | Known::Object(_) => None,
                };
                (source.had, source.proof) = (have.is_some(), proof);
                source.busy = Some(Job::Fetch);
                (source.asked_at, source.due) = (Some(now), None);
                source.waits_for_watch = false;
                (source.urgency, source.forced, source.again) = (Urgency::Refresh, false, false);
                (source.view.in_flight, source.news) = (true, true);
                self.out.push(Effect::Fetch {
                    key: source.key.clone(),
                    urgency,
                    caller,
                    have,
                });
            }
            Job::Renew => {
                if let Some(lease) = source.leases.renew(now) {
                    source.pass = door.gate.started(&source.tenant, now);
                    source.busy = Some(Job::Renew);
                    let key = source.key.clone();
                    self.out.push(Effect::Renew { key, lease });
                }
            }
            Job::Revoke => {
                if let Some(lease) = source.leases.revoke(now) {
                    source.revoke_pass = door.gate.started(&source.tenant, now);
                    let key = source.key.clone();
                    self.out.push(Effect::Revoke { key, lease });
                }
            }
        }
    }

    /// A request to a backend ended.
    ///
    /// 1. Tell the gate; only a failure needs to know how rarely to probe.
    /// 2. After a failed probe, persons' wishes wait as all others do: else each of them would be a probe.
    /// 3. Whoever waits longer than a moment is told why: after a failed probe also those who share it.
    pub(super) fn ended(
        &mut self,
        now: Mono,
        id: u64,
        pass: &Pass,
        sign: Sign,
        code: Option<&'static Code>,
    ) {
        self.touched_doors.insert(id);
        let failed = matches!(sign, Sign::Down | Sign::Throttled(_));
        let caps = if failed {
            self.probe_caps(id, pass.tenant())
        } else {
            [limits::PROBE_MAX; 2]
        };
        let Some(door) = self.doors.get_mut(&id) else {
            return;
        };
        door.round = door.round.wrapping_add(1);
        door.gate.ended(now, pass, sign, caps, door.round); // 1
        if !failed || door.gate.is_closed(pass.tenant()) {
            return;
        }
        door.trouble = code.unwrap_or(door.trouble);
        let waiting = door.queues.get(pass.tenant()).into_iter().flatten();
        let forced = waiting.take_while(|place| place.rank == 0);
        let forced: Vec<Place> = forced.copied().collect();
        for old in forced.into_iter().filter(|_| pass.is_probe()) {
            door.leave(pass.tenant(), &old); // 2
            let new = Place { rank: 1, ..old };
            door.enter(pass.tenant(), new);
            if let Some(source) = self.sources.get_mut(&old.source) {
                source.forced = false;
                if let Some(place) = source.places.get_mut(old.job as usize) {
                    *place = Some(new);
                }
            }
        }
        let told = door.queues.iter().filter(|(tenant, _)| {
            *tenant == pass.tenant() || pass.is_probe() && !door.gate.is_closed(tenant)
        });
        let told: Vec<Place> = told.flat_map(|(_, queue)| queue).copied().collect();
        for place in told.iter().filter(|place| place.job == Job::Fetch) {
            if let Some(source) = self.sources.get_mut(&place.source) {
                hold_back(now, source, door); // 3
                if source.news {
                    self.touched.insert(place.source);
                }
            }
        }
    }

    /// A subscriber of this source came: the wait for the next probe suits him as well.
    pub(super) fn probe_within(&mut self, now: Mono, id: u64) {
        let Some(source) = self.sources.get(&id) else {
            return;
        };
        let (id, tenant) = (source.door, source.tenant.clone());
        let is_closed = |door: &Door| door.gate.is_closed(&tenant);
        if self.doors.get(&id).is_some_and(|door| !is_closed(door)) {
            let caps = self.probe_caps(id, &tenant);
            if let Some(door) = self.doors.get_mut(&id) {
                door.gate.probe_within(&tenant, now, caps);
                self.touched_doors.insert(id);
            }
        }
    }

    /// The longest wait between two probes of this backend, for one tenant and for the whole.
    fn probe_caps(&self, id: u64, tenant: &Tenant) -> [Duration; 2] {
        let Some(door) = self.doors.get(&id) else {
            return [limits::PROBE_MAX; 2];
        };
        let (mut rates, mut shortest) = ([0.0; 2], [limits::REFRESH_MAX; 2]);
        for source in door.members.iter().filter_map(|id| self.sources.get(id)) {
            let Some(every) = source.interval() else {
                continue;
            };
            let skipped = usize::from(source.tenant != *tenant);
            for (rate, shortest) in rates.iter_mut().zip(&mut shortest).skip(skipped) {
                *rate += 1.0 / every.as_secs_f64();
                *shortest = (*shortest).min(every);
            }
        }
        let [own, whole] = rates;
        let [own_shortest, whole_shortest] = shortest;
        [(own, own_shortest), (whole, whole_shortest)].map(|(rate, shortest)| {
            if rate == 0.0 {
                return limits::PROBE_MAX;
            }
            schedule::probe_cap(rate, shortest)
        })
    }

    /// Subscribers came or went: the source goes on the account of those that it has now, with its places.
    pub(super) fn settle_tenant(&mut self, id: u64) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let whose = source.whose();
        if source.subscribers.is_empty() || whose == source.tenant {
            return;
        }
        let before = std::mem::replace(&mut source.tenant, whose);
        if let Some(door) = self.doors.get_mut(&source.door) {
            for place in source.places.iter().flatten() {
                door.leave(&before, place);
                door.enter(&source.tenant, *place);
            }
            self.touched_doors.insert(source.door);
        }
    }

    /// A source goes. The door stays, with what it knows of the backend: volumes that come and go do not get past its rate. Of
    /// tenants who have gone it keeps as long as it has to what it knows.
    pub(super) fn leave_door(&mut self, now: Mono, id: u64, source: &Source) {
        let Some(door) = self.doors.get_mut(&source.door) else {
            return;
        };
        door.members.remove(&id);
        for place in source.places.iter().flatten() {
            door.leave(&source.tenant, place);
        }
        let (members, sources) = (&door.members, &self.sources);
        door.gate.forget(now, |tenant| {
            let mut left = members.iter().filter_map(|id| sources.get(id));
            tenant.is_none() || left.any(|one| one.tenant == *tenant)
        });
    }

    /// Another configuration of a backend makes another door; its empty former ones go.
    fn close_old_doors(&mut self, name: &BackendName) {
        let empty = |door: &Door| door.name.1 == *name && door.members.is_empty();
        let old: Vec<u64> = self
            .doors
            .iter()
            .filter(|(_, door)| empty(door))
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            if let Some(door) = self.doors.remove(&id) {
                self.door_ids.remove(&door.name);
                if let Some(at) = door.alarm {
                    self.alarms.remove(&(at, Who::Door(id)));
                }
            }
        }
    }
}

/// Says on a source that waits that its backend is in trouble, if nothing else is wrong with it. That it was refused before is not known any more.
fn hold_back(now: Mono, source: &mut Source, door: &Door) {
    let long = now.after(limits::HELD_BACK);
    let shut = door.gate.shut_until(&source.tenant, now);
    let said = source.view.error.as_deref();
    if said.is_none_or(Error::takes_back) && shut.is_some_and(|until| until > long) {
        let error = Error::new(door.trouble)
            .object(&source.key.object)
            .detail("the store has not been answering; it will be asked again");
        source.trouble(now, error);
    }
}

/// On whose account a caller's requests go.
pub(super) fn tenant(caller: &Caller) -> Tenant {
    match &caller.0 {
        Identity::Pod(pod) => Some((*pod.namespace).into()),
        Identity::Local { .. } => None,
    }
}

/// What an error says about its backend.
pub(super) fn sign(error: &Error) -> Sign {
    if let Some(wait) = error.wait() {
        return Sign::Throttled(wait);
    }
    let code = error.code();
    if *code == codes::IDENTITY_TOKEN_STALE || *code == codes::BACKEND_CANCELLED {
        return Sign::None;
    }
    match code.kind {
        ErrorKind::Unavailable | ErrorKind::Timeout => Sign::Down,
        ErrorKind::Exhausted | ErrorKind::Node | ErrorKind::Bug | ErrorKind::Busy => Sign::None,
        ErrorKind::InvalidSpec
        | ErrorKind::Conflict
        | ErrorKind::SecretNotFound
        | ErrorKind::Unauthenticated
        | ErrorKind::PermissionDenied
        | ErrorKind::Corrupt => Sign::Alive,
    }
}
