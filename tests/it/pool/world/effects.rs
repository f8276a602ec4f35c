//! What the pool says, done: requests to stores and their ends.

use std::{sync::Arc, time::Duration};

use secretfs::{
    backend::Fetched,
    caller::Caller,
    error::{Error, Result, codes},
    render::Known,
    source::{Effect, Event, SourceView},
};

use super::{
    super::{
        checks::{self, Verdict},
        faults::Fault,
        store::{self, Mode},
    },
    What, World,
};

impl World {
    pub(super) fn tell(&mut self, event: Event) -> Verdict {
        let effects = self.pool.on(self.now, event);
        for effect in effects {
            self.note(&effect);
            self.perform(effect)?;
        }
        Ok(())
    }

    /// Into the trace: which effect, of which source, when.
    pub(super) fn note(&mut self, effect: &Effect) {
        let (kind, key) = match effect {
            Effect::Fetch { key, .. } => (1, Some(key)),
            Effect::Renew { key, .. } => (2, Some(key)),
            Effect::Revoke { key, .. } => (3, Some(key)),
            Effect::Watch { key, .. } => (4, Some(key)),
            Effect::Cancel(key) => (5, Some(key)),
            Effect::Show(key, _) => (6, Some(key)),
            Effect::WakeAt(at) => (at.as_nanos(), None),
        };
        let source = key.map_or(0, |key| self.index[key] as u64);
        for part in [kind, source, self.now.as_nanos()] {
            self.trace = (self.trace ^ part)
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(7);
        }
    }

    pub(super) fn perform(&mut self, effect: Effect) -> Verdict {
        match effect {
            Effect::Fetch {
                key, caller, have, ..
            } => {
                let n = self.index[&key];
                if self.fault == Some(Fault::AsksTwice) {
                    self.fetch(n, &caller, have.as_deref())?;
                }
                self.fetch(n, &caller, have.as_deref())
            }
            Effect::Renew { key, lease } => {
                let n = self.index[&key];
                self.sources[n].seen.renewing += 1;
                self.figures.renewals += 1;
                self.asked(n, true)?;
                let (wait, outcome) = self.outcome(n);
                let result =
                    outcome.and_then(|()| store::renew(&mut self.leases, self.now, &lease));
                self.later(wait, What::Renewed(n, result));
                Ok(())
            }
            Effect::Revoke { key, lease } => {
                let n = self.index[&key];
                let version = self.leases[store::number(&lease)].version;
                if self.sources[n]
                    .applied
                    .values()
                    .any(|shown| *shown == version)
                {
                    return Err("lease: revoked while readers see its object".into());
                }
                self.sources[n].seen.revoking += 1;
                self.figures.revocations += 1;
                self.asked(n, true)?;
                let (wait, outcome) = self.outcome(n);
                if outcome.is_ok() && self.fault != Some(Fault::ForgetsToRevoke) {
                    self.leases[store::number(&lease)].revoked = true;
                }
                self.later(wait, What::Revoked(n, outcome));
                Ok(())
            }
            Effect::Watch { key, caller } => self.watch(self.index[&key], &caller),
            Effect::Cancel(key) => {
                let n = self.index[&key];
                self.sources[n].watching = None; // its end is not told
                Ok(())
            }
            Effect::Show(key, view) => self.show(self.index[&key], &view),
            Effect::WakeAt(at) => {
                if let Some(old) = self.tick.take() {
                    self.queue.remove(&old);
                }
                let late = match self.fault {
                    Some(Fault::WakesLate) => Duration::from_secs(400),
                    _ => Duration::ZERO,
                };
                self.tick = Some(self.at(at.max(self.now).after(late), What::Tick));
                Ok(())
            }
        }
    }

    pub(super) fn asked(&mut self, n: usize, in_flight: bool) -> Verdict {
        checks::single_flight(&self.sources[n].seen)?;
        let store = &mut self.stores[self.sources[n].store];
        store.watched.request(self.now, in_flight)
    }

    /// How long a request takes, and whether the store works.
    pub(super) fn outcome(&mut self, n: usize) -> (std::ops::Range<u64>, Result<()>) {
        let store = &self.stores[self.sources[n].store].watched;
        let quick = 5..checks::LATENCY.as_millis() as u64;
        let fail = |code| Err(Error::new(code));
        let (wait, mut result) = match store.mode {
            Mode::Healthy => (quick, Ok(())),
            Mode::Down => (quick, fail(&codes::BACKEND_UNAVAILABLE)),
            Mode::Hang => (30_000..30_001, fail(&codes::BACKEND_TIMEOUT)),
            Mode::Flap if self.rng.bool() => (quick, Ok(())),
            Mode::Flap => (quick, fail(&codes::BACKEND_UNAVAILABLE)),
            Mode::Throttle if self.rng.u8(..10) < 3 => (quick, Ok(())),
            Mode::Throttle => {
                let wait = Duration::from_secs(self.rng.u64(1..=checks::THROTTLE.as_secs()));
                let error = Error::new(&codes::BACKEND_THROTTLED).retry_after(wait);
                (quick, Err(error))
            }
            Mode::Denied => (quick, fail(&codes::BACKEND_PERMISSION_DENIED)),
        };
        match self.fault {
            Some(Fault::HidesOutages) if store.mode.is_outage() => {
                result = fail(&codes::BACKEND_CORRUPT);
            }
            Some(Fault::SeesGhosts) if result.is_ok() && store.alive_at.is_none() => {
                result = fail(&codes::BACKEND_UNAVAILABLE);
            }
            _ => {}
        }
        (wait, result)
    }

    pub(super) fn fetch(
        &mut self,
        n: usize,
        caller: &Caller,
        have: Option<&secretfs::secret::Object>,
    ) -> Verdict {
        self.look(n)?;
        self.figures.fetches += 1;
        let source = &mut self.sources[n];
        source.seen.fetching += 1;
        source.seen.asked_at = Some(self.now);
        let (uid, of) = (source.uid, have.map(store::owner));
        if store::uid(caller) != uid || of.is_some_and(|owner| owner != uid) {
            return Err(format!("principal: asked for {uid} by another"));
        }
        self.asked(n, true)?;
        let (wait, mut outcome) = self.outcome(n);
        let current = Arc::ptr_eq(caller, &self.callers[uid as usize]);
        if self.now < self.stale_until[uid as usize] && !current && outcome.is_ok() {
            self.figures.stale += 1;
            outcome = Err(Error::new(&codes::IDENTITY_TOKEN_STALE));
        }
        let source = &self.sources[n];
        let version = (self.now.as_nanos() / 1_000_000_000) / source.rotation;
        let result = outcome.map(|()| {
            let before = self.leases.len();
            let what = (n, source.life, version);
            let answer = store::answer(&mut self.leases, self.now, what, caller, have);
            self.live.extend(before..self.leases.len());
            answer
        });
        self.later(wait, What::Fetched(n, result));
        Ok(())
    }

    pub(super) fn fetched(&mut self, n: usize, result: Result<Fetched>) -> Verdict {
        self.sources[n].seen.fetching -= 1;
        self.ended(n, result.is_ok());
        if result.is_ok() {
            self.sources[n].seen.ok_at = Some(self.now);
        }
        self.tell(Event::Fetched(self.sources[n].key.clone(), result))
    }

    pub(super) fn ended(&mut self, n: usize, well: bool) {
        let store = &mut self.stores[self.sources[n].store].watched;
        store.in_flight -= 1;
        if well || store.mode == Mode::Denied {
            store.answered(self.now);
        }
    }

    pub(super) fn watch(&mut self, n: usize, caller: &Caller) -> Verdict {
        self.figures.watches += 1;
        if self.sources[n].watching.is_some() {
            return Err("single flight: two watches".into());
        }
        if store::uid(caller) != self.sources[n].uid {
            return Err("principal: watched by another".into());
        }
        self.count += 1;
        let watch = self.count;
        self.sources[n].watching = Some(watch);
        self.asked(n, false)?;
        let mode = self.stores[self.sources[n].store].watched.mode;
        if mode != Mode::Healthy {
            let error = Error::new(&codes::BACKEND_UNAVAILABLE);
            self.later(5..150, What::WatchEnded(n, watch, Err(error)));
        } else if self.rng.u8(..10) == 0 {
            self.later(1000..3_600_000, What::WatchEnded(n, watch, Ok(())));
        }
        Ok(())
    }

    /// Shown to all subscribers, who show it to their readers a little later.
    pub(super) fn show(&mut self, n: usize, view: &SourceView) -> Verdict {
        self.figures.shown += 1;
        let source = &mut self.sources[n];
        if view.in_flight != (source.seen.fetching > 0) {
            return Err("view: says another thing about requests in flight than is true".into());
        }
        let Known::Object(object) = &view.known else {
            return Ok(());
        };
        let owner = store::owner(object);
        let mut told: Vec<usize> = source.subscribers.keys().copied().collect();
        if self.fault == Some(Fault::ShowsToOthers) {
            told.extend(self.volumes.iter().position(|one| one.uid != source.uid));
        }
        for &volume in &told {
            if self.volumes[volume].uid != owner {
                return Err(format!("principal: an object of {owner} shown to another"));
            }
        }
        let version: u64 = object.version.as_str().parse().unwrap();
        if source.shown != Some(version) {
            source.shown = Some(version);
            for volume in told {
                self.later(50..20_000, What::Applied(volume, n, version));
            }
        }
        Ok(())
    }
}
