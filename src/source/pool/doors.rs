//! One backend's door: its gate, and the sources that wait before it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Pool, Who,
    source::{Job, Place, Source, Watch},
};
use crate::{
    backend::Pace,
    clock::Mono,
    error::{Code, Error, ErrorKind, codes},
    limits,
    secret::Known,
    source::{
        Effect, SourceKey, Urgency,
        gate::{Gate, Sign, Verdict},
        schedule,
    },
    spec::BackendName,
};

pub(super) struct Door {
    name: (u64, BackendName),
    pub(super) gate: Gate,
    pub(super) pace: Pace,
    pub(super) queue: BTreeSet<Place>,
    pub(super) members: BTreeSet<u64>,
    pub(super) alarm: Option<Mono>,
    /// The last sign of trouble, for those who wait because of it.
    trouble: &'static Code,
    /// Probes and failures so far, for jitter.
    round: u64,
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
            queue: BTreeSet::new(),
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
                door.queue.remove(&old);
            }
            let new = Place {
                rank,
                since: now,
                source: id,
                job,
            };
            *place = Some(new);
            door.queue.insert(new);
            self.touched_doors.insert(source.door);
        }
        if job == Job::Fetch {
            hold_back(now, source, door);
        }
    }

    /// Step 4 of [`Pool::on`]: the first of the queue goes while the gate lets it.
    pub(super) fn pump(&mut self, now: Mono, id: u64) {
        let at = loop {
            let Some(door) = self.doors.get_mut(&id) else {
                return;
            };
            let Some(first) = door.queue.first().copied() else {
                break None;
            };
            match door.gate.verdict(now, first.rank == 0) {
                Verdict::Full => break None,
                Verdict::NotBefore(at) => break Some(at),
                Verdict::Go => {
                    door.queue.remove(&first);
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
        let closed = door.gate.is_closed();
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
                source.probe = door.gate.started(now);
                let urgency = match place.rank {
                    0 | 1 => Urgency::Publish,
                    2 => Urgency::Upkeep,
                    _ => Urgency::Refresh,
                };
                let have = match &source.view.known {
                    Known::Object(object) if !source.replace => Some(object.clone()),
                    Known::Unknown | Known::Absent | Known::Object(_) => None,
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
                    source.probe = door.gate.started(now);
                    source.busy = Some(Job::Renew);
                    let key = source.key.clone();
                    self.out.push(Effect::Renew { key, lease });
                }
            }
            Job::Revoke => {
                if let Some(lease) = source.leases.revoke(now) {
                    source.revoke_probe = door.gate.started(now);
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
    /// 3. Whoever waits longer than a moment is told why.
    pub(super) fn ended(
        &mut self,
        now: Mono,
        id: u64,
        probe: bool,
        sign: Sign,
        code: Option<&'static Code>,
    ) {
        self.touched_doors.insert(id);
        let failed = matches!(sign, Sign::Down | Sign::Throttled(_));
        let cap = if failed {
            self.probe_cap(id)
        } else {
            limits::PROBE_MAX
        };
        let Some(door) = self.doors.get_mut(&id) else {
            return;
        };
        door.round = door.round.wrapping_add(1);
        door.gate.ended(now, probe, sign, cap, door.round); // 1
        if !failed || door.gate.is_closed() {
            return;
        }
        door.trouble = code.unwrap_or(door.trouble);
        let forced: Vec<Place> = door
            .queue
            .iter()
            .take_while(|place| place.rank == 0)
            .copied()
            .collect();
        for old in forced.into_iter().filter(|_| probe) {
            door.queue.remove(&old); // 2
            let new = Place { rank: 1, ..old };
            door.queue.insert(new);
            if let Some(source) = self.sources.get_mut(&old.source) {
                source.forced = false;
                if let Some(place) = source.places.get_mut(old.job as usize) {
                    *place = Some(new);
                }
            }
        }
        for place in door.queue.iter().filter(|place| place.job == Job::Fetch) {
            if let Some(source) = self.sources.get_mut(&place.source) {
                hold_back(now, source, door); // 3
                if source.news {
                    self.touched.insert(place.source);
                }
            }
        }
    }

    /// A subscriber came: the wait for the next probe suits him as well.
    pub(super) fn probe_within(&mut self, now: Mono, id: u64) {
        if self
            .doors
            .get(&id)
            .is_some_and(|door| !door.gate.is_closed())
        {
            let cap = self.probe_cap(id);
            if let Some(door) = self.doors.get_mut(&id) {
                door.gate.probe_within(now, cap);
                self.touched_doors.insert(id);
            }
        }
    }

    /// The longest wait between two probes of this backend.
    fn probe_cap(&self, id: u64) -> Duration {
        let Some(door) = self.doors.get(&id) else {
            return limits::PROBE_MAX;
        };
        let members = door.members.iter().filter_map(|id| self.sources.get(id));
        let (mut rate, mut shortest) = (0.0, limits::REFRESH_MAX);
        for every in members.filter_map(Source::interval) {
            rate += 1.0 / every.as_secs_f64();
            shortest = shortest.min(every);
        }
        if rate == 0.0 {
            return limits::PROBE_MAX;
        }
        schedule::probe_cap(rate, shortest)
    }

    /// A source goes. The door stays, with what it knows of the backend: volumes that come and go do not get past its rate.
    pub(super) fn leave_door(&mut self, id: u64, source: u64, places: &[Option<Place>]) {
        let Some(door) = self.doors.get_mut(&id) else {
            return;
        };
        door.members.remove(&source);
        for place in places.iter().flatten() {
            door.queue.remove(place);
        }
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

/// Says on a source that waits, and showed no error so far, that its backend is in trouble.
fn hold_back(now: Mono, source: &mut Source, door: &Door) {
    let long = now.after(limits::HELD_BACK);
    let shut = door.gate.shut_until(now);
    if source.view.error.is_none() && shut.is_some_and(|until| until > long) {
        let error = Error::new(door.trouble)
            .object(&source.key.object)
            .detail("the store has not been answering; it will be asked again");
        source.trouble(now, error);
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
