//! What stores do by their script, and the looks at everything.

use std::time::Duration;

use secretfs::error::{Error, codes};

use super::{
    super::{
        checks::{self, SWEEP, Verdict},
        store::Mode,
    },
    What, World, seconds,
};

impl World {
    pub(super) fn turn(&mut self, n: usize) -> Verdict {
        let store = &mut self.stores[n];
        let mode = store.script[store.next].mode;
        store.next += 1;
        let next = store.script.get(store.next).map(|stretch| stretch.from);
        if let Some(next) = next {
            self.at(next, What::Turn(n));
        }
        if matches!(mode, Mode::Down | Mode::Hang) {
            for source in 0..self.sources.len() {
                let on = self.sources[source].watching;
                if let Some(watch) = on.filter(|_| self.sources[source].store == n) {
                    let error = Error::new(&codes::BACKEND_UNAVAILABLE);
                    self.later(1..500, What::WatchEnded(source, watch, Err(error)));
                }
            }
        }
        let now = self.now;
        self.stores[n].watched.turn(now, mode, &mut self.figures)
    }

    pub(super) fn look(&self, n: usize) -> Verdict {
        let source = &self.sources[n];
        let store = &self.stores[source.store];
        let verdict = checks::overdue(self.now, self.awake_since, &source.seen, &store.watched);
        verdict.map_err(|why| {
            let (seen, store) = (&source.seen, &store.watched);
            let object = &source.key.object;
            format!("{why} ({object}, {}) {seen:?} {store:?}", self.when())
        })
    }

    pub(super) fn when(&self) -> String {
        let secs = self.now.since(seconds(0)).as_secs();
        format!(
            "day {} {:02}:{:02}",
            secs / 86_400,
            secs / 3600 % 24,
            secs / 60 % 60
        )
    }

    pub(super) fn sweep(&mut self) -> Verdict {
        let passed = self.now.since(self.swept_at).min(SWEEP);
        self.swept_at = self.now;
        for store in &mut self.stores {
            store.watched.time_passes(self.now, store.rate, passed);
        }
        for n in 0..self.sources.len() {
            self.look(n)?;
            let source = &self.sources[n];
            let store = &self.stores[source.store];
            let (seen, watched) = (&source.seen, &store.watched);
            let looked =
                checks::recovered(self.now, self.awake_since, seen, watched, store.shortest);
            let looked =
                looked.map_err(|why| format!("{why} ({}, {})", source.key.object, self.when()))?;
            self.figures.recoveries += u64::from(looked);
        }
        self.look_at_leases()?;
        let next = self.now.after(SWEEP);
        self.at(next, What::Sweep);
        Ok(())
    }

    pub(super) fn look_at_leases(&mut self) -> Verdict {
        for number in std::mem::take(&mut self.live) {
            let given = &mut self.leases[number];
            if given.revoked || given.expires_at <= self.now {
                continue;
            }
            self.live.insert(number);
            let source = &self.sources[given.key];
            let store = &self.stores[source.store].watched;
            let current = source.shown.is_none_or(|shown| shown <= given.version);
            let shown = |applied: &u64| *applied <= given.version;
            let everyone = source.applied.len() == source.subscribers.len();
            let needed = !source.subscribers.is_empty()
                && (current || !everyone || source.applied.values().any(shown));
            let calm = store.mode == Mode::Healthy
                && store.alive_at.is_some()
                && self.awake_since.after(SWEEP) < self.now;
            checks::lease(self.now, given, needed, calm)
                .map_err(|why| format!("{why} at {}", self.now.since(seconds(0)).as_secs()))?;
        }
        Ok(())
    }

    /// All volumes leave a healthy world: no lease is left after a while, by its own end or ours.
    pub(super) fn finish(&mut self) -> Verdict {
        self.suspends.clear();
        for n in 0..self.stores.len() {
            let now = self.now;
            self.stores[n]
                .watched
                .turn(now, Mode::Healthy, &mut self.figures)?;
        }
        for n in 0..self.volumes.len() {
            if self.volumes[n].on {
                self.volume(n)?;
            }
        }
        self.end = self.now.after(Duration::from_secs(3 * 3600));
        while let Some(((at, _), what)) = self.queue.pop_first() {
            if at >= self.end {
                break;
            }
            if matches!(
                what,
                What::Volume(_) | What::Turn(_) | What::Stale(_) | What::Person(_)
            ) {
                continue;
            }
            self.reach(at);
            self.happen(what)?;
        }
        self.look_at_leases()?;
        match self.live.first() {
            Some(lease) => Err(format!("lease: {lease} is left when all have gone")),
            None => Ok(()),
        }
    }
}
