//! What volumes and persons do.

use std::time::Duration;

use secretfs::{
    secret::Version,
    source::{Event, Terms},
};

use super::{super::checks::Verdict, What, World, caller};

impl World {
    pub(super) fn volume(&mut self, n: usize) -> Verdict {
        let on = !self.volumes[n].on;
        self.volumes[n].on = on;
        let hours = if on { 12 } else { 2 };
        self.later(300_000..hours * 3_600_000, What::Volume(n));
        if !on {
            for source in 0..self.sources.len() {
                self.leave(n, source);
            }
            return self.tell(Event::Unsubscribe(self.volumes[n].id.clone()));
        }
        for source in self.volumes[n].wants.clone() {
            self.subscribe(n, source)?;
        }
        Ok(())
    }

    pub(super) fn subscribe(&mut self, volume: usize, n: usize) -> Verdict {
        let source = &mut self.sources[n];
        let every = source.every.map(|every| every * self.rng.u32(1..3));
        source.subscribers.insert(volume, every);
        // shown what there is; if it is nothing yet, a later Show counts
        match source.shown {
            Some(version) => self.later(50..20_000, What::Applied(volume, n, version)),
            None => source.shown = None,
        }
        self.intervals(n);
        let source = &self.sources[n];
        self.tell(Event::Subscribe {
            volume: self.volumes[volume].id.clone(),
            key: source.key.clone(),
            every,
            caller: self.callers[source.uid as usize].clone(),
            pushes: source.pushes,
            terms: Terms::default(),
        })
    }

    pub(super) fn leave(&mut self, volume: usize, n: usize) {
        let source = &mut self.sources[n];
        if source.subscribers.remove(&volume).is_some() {
            source.applied.remove(&volume);
            if source.subscribers.is_empty() {
                source.shown = None;
            }
            self.intervals(n);
        }
    }

    /// Keeps the books on what is wanted of a source and of its store.
    pub(super) fn intervals(&mut self, n: usize) {
        let source = &mut self.sources[n];
        let interval = source.subscribers.values().flatten().min().copied();
        let shorter = match (source.seen.interval, interval) {
            (Some(before), Some(now)) => now < before,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        source.seen.interval = interval;
        if source.subscribers.is_empty() {
            source.seen.wanted_since = None;
            source.seen.ok_at = None;
        } else if shorter || source.seen.wanted_since.is_none() {
            source.seen.wanted_since = Some(self.now);
        }
        let store = source.store;
        let mine = self.sources.iter().filter(|source| source.store == store);
        let mine: Vec<Duration> = mine.filter_map(|source| source.seen.interval).collect();
        self.stores[store].rate = mine.iter().map(|every| 1.0 / every.as_secs_f64()).sum();
        self.stores[store].shortest = mine.iter().min().copied().unwrap_or_default();
    }

    pub(super) fn retain(&mut self, n: usize) -> Verdict {
        let again = self.now.after(Duration::from_secs(24 * 3600));
        self.at(again, What::Retain(n));
        if !self.volumes[n].on {
            return Ok(());
        }
        let dropped = self.volumes[n].wants[0];
        let keys = self.volumes[n].wants.iter().skip(1);
        let keys = keys.map(|&one| self.sources[one].key.clone()).collect();
        self.leave(n, dropped);
        self.tell(Event::Retain(self.volumes[n].id.clone(), keys))
    }

    pub(super) fn person(&mut self, n: usize) -> Verdict {
        let again = self.now.after(Duration::from_secs(24 * 3600));
        self.at(again, What::Person(n));
        let mut stores = self.volumes[n]
            .wants
            .iter()
            .map(|&one| self.sources[one].store);
        if stores.any(|store| self.stores[store].watched.mode.is_outage()) {
            return Ok(()); // each would be a probe, and is meant to be
        }
        self.tell(Event::Refresh(self.volumes[n].id.clone(), self.now))
    }

    /// A principal's tokens run out; each of its volumes is handed a fresh one within 90 s.
    pub(super) fn stale(&mut self, uid: u32) -> Verdict {
        self.callers[uid as usize] = caller(uid);
        let until = self.now.after(Duration::from_secs(91));
        self.stale_until[uid as usize] = until;
        for source in self.sources.iter_mut().filter(|source| source.uid == uid) {
            source.seen.excused_until = Some(until);
        }
        for n in 0..self.volumes.len() {
            if self.volumes[n].uid == uid {
                self.later(0..90_000, What::Credentials(n));
            }
        }
        let again = self.rng.u64(6 * 3600..30 * 3600);
        self.at(self.now.after(Duration::from_secs(again)), What::Stale(uid));
        Ok(())
    }

    pub(super) fn credentials(&mut self, n: usize) -> Verdict {
        let caller = self.callers[self.volumes[n].uid as usize].clone();
        self.tell(Event::Credentials(self.volumes[n].id.clone(), caller))
    }

    pub(super) fn applied(&mut self, volume: usize, n: usize, version: u64) -> Verdict {
        let source = &mut self.sources[n];
        if !source.subscribers.contains_key(&volume) || source.shown != Some(version) {
            return Ok(());
        }
        source.applied.insert(volume, version);
        let key = source.key.clone();
        let id = self.volumes[volume].id.clone();
        self.tell(Event::Applied(id, key, Version::new(version.to_string())))
    }
}
