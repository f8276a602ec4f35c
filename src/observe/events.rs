//! Kubernetes Events about pods: the only words of ours that a pod's author sees once its volume is mounted.
//!
//! An [`Event`] is handed over and forgotten: nobody waits for the API server. A [`Sieve`] decides, without I/O, which are worth writing: one of a pod
//! and reason in ten minutes, and all together about one a second, so that a storm of failing volumes costs the API server little. What is
//! not written is counted ([`Counts`]); the volume has logged it anyway. `kube::reports` writes.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;

use crate::{caller::PodIdentity, clock::Mono, limits};

/// Something that a pod's author should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Whose volume.
    pub about: PodIdentity,
    /// In CamelCase, for machines: `SecretSpecRefused`.
    pub reason: &'static str,
    /// For people; no secret.
    pub message: String,
    /// It tells of an end of trouble: `Normal`, not `Warning`.
    pub mended: bool,
}

/// What became of the events so far.
#[derive(Default, Debug)]
pub struct Counts {
    written: AtomicU64,
    repeated: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Written to the API server.
    pub fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Not written, because one for the same reason had been a short time before.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Relaxed)
    }

    /// Not written: too many, or the API server did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// One more is written.
    pub fn add_written(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    /// One more is a repetition.
    pub fn add_repeated(&self) {
        self.repeated.fetch_add(1, Relaxed);
    }

    /// One more is lost.
    pub fn add_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}

/// The way to the writer. Cloned freely.
#[derive(Clone, Default, Debug)]
pub struct Events {
    way: Option<mpsc::Sender<Event>>,
    counts: Arc<Counts>,
}

impl Events {
    /// Nobody writes them.
    pub fn off() -> Self {
        Self::default()
    }

    /// A way, and its end.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(limits::EVENTS_WAITING);
        let events = Self {
            way: Some(sender),
            counts: Arc::default(),
        };
        (events, receiver)
    }

    /// Hands it over; never waits.
    pub fn tell(&self, event: Event) {
        tracing::trace!(reason = event.reason, pod = %event.about.pod, "an Event is handed over");
        if let Some(way) = &self.way
            && way.try_send(event).is_err()
        {
            self.counts.add_dropped();
        }
    }

    /// What became of them.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }
}

/// What to do with an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Write it. The same has been told so many times more since it was last written.
    Write {
        /// How many times.
        untold: u64,
    },
    /// The same was written a short time ago.
    Repeated,
    /// Too many are being written.
    TooMany,
}

/// Which events are worth writing. Pure but for the key of its hashes.
///
/// What it remembers is bounded by what it lets through: a burst and one a second for ten minutes.
#[derive(Default)]
pub struct Sieve {
    hasher: RandomState,
    /// By hash of (pod, reason): when it was written, and how often it was told since.
    written: HashMap<u64, (Mono, u64)>,
    /// When the budget will be whole again; `None`: it is.
    whole_at: Option<Mono>,
}

impl Sieve {
    /// What to do with `event` at `now`.
    pub fn judge(&mut self, now: Mono, event: &Event) -> Verdict {
        let key = self.key(event);
        let before = self.written.get_mut(&key);
        let mut untold = 0;
        if let Some((at, more)) = before {
            if now.since(*at) < limits::EVENT_REPEAT {
                *more += 1;
                return Verdict::Repeated;
            }
            untold = *more;
        }
        let whole_at = self.whole_at.unwrap_or(now).max(now);
        if whole_at.since(now) > limits::EVENT_INTERVAL * (limits::EVENT_BURST - 1) {
            return Verdict::TooMany;
        }
        self.whole_at = Some(whole_at.after(limits::EVENT_INTERVAL));
        // what was told and not written is kept a second time as long, so that its count is not lost
        self.written.retain(|_, (at, more)| {
            now.since(*at) < limits::EVENT_REPEAT * (1 + u32::from(*more > 0))
        });
        self.written.insert(key, (now, 0));
        Verdict::Write { untold }
    }

    /// It could not be written: the next of its kind may be.
    pub fn forget(&mut self, event: &Event) {
        let key = self.key(event);
        self.written.remove(&key);
    }

    /// Events remembered.
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    fn key(&self, event: &Event) -> u64 {
        self.hasher.hash_one((&event.about.pod_uid, event.reason))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn event(pod: &str, message: &str) -> Event {
        Event {
            about: PodIdentity {
                namespace: "shop".into(),
                pod: pod.into(),
                pod_uid: format!("uid-{pod}").into(),
                service_account: "web".into(),
                service_account_uid: None,
            },
            mended: false,
            reason: "SecretStale",
            message: message.into(),
        }
    }

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(0).after(Duration::from_secs(1_000 + seconds))
    }

    const NEW: Verdict = Verdict::Write { untold: 0 };

    #[test]
    fn the_same_event_is_written_again_after_ten_minutes_with_the_count_of_those_between() {
        let mut sieve = Sieve::default();
        let (a, b) = (event("a", "gone"), event("b", "gone"));
        let mut denied = event("a", "gone");
        denied.reason = "SecretAccessDenied";
        for (second, event, expect) in [
            (0, &a, NEW),
            (1, &a, Verdict::Repeated),
            (1, &b, NEW),                                      // another pod
            (2, &self::event("a", "down"), Verdict::Repeated), // of another volume, or in other words
            (3, &denied, NEW),
            (599, &a, Verdict::Repeated),
            (600, &a, Verdict::Write { untold: 3 }),
            (601, &a, Verdict::Repeated),
            (1_800, &a, NEW), // so late that it is news
        ] {
            if second == 1_800 {
                assert_eq!(sieve.judge(at(1_800), &b), NEW); // sweeps
            }
            assert_eq!(sieve.judge(at(second), event), expect, "{second}");
        }
        sieve.forget(&a);
        assert_eq!(sieve.judge(at(1_801), &a), NEW, "it was not written");
    }

    #[test]
    fn a_storm_gets_a_burst_and_then_one_a_second_and_is_not_remembered_for_ever() {
        let mut sieve = Sieve::default();
        let mut written = 0;
        for second in 0..3_600 {
            for nth in 0..20 {
                let verdict = sieve.judge(at(second), &event(&format!("{second}-{nth}"), "down"));
                assert!(matches!(verdict, NEW | Verdict::TooMany));
                written += u64::from(verdict == NEW);
            }
        }
        assert_eq!(written, u64::from(limits::EVENT_BURST) + 3_599);
        let most = limits::EVENT_REPEAT.as_secs() + u64::from(limits::EVENT_BURST);
        assert!(sieve.len() as u64 <= most, "{}", sieve.len());
        // a refused one is not taken for written
        let late = event("late", "down");
        assert_eq!(sieve.judge(at(3_599), &late), Verdict::TooMany);
        assert_eq!(sieve.judge(at(3_600), &late), NEW);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_off_counts_nothing() {
        let (events, queue) = Events::channel();
        for _ in 0..limits::EVENTS_WAITING + 3 {
            events.tell(event("a", "gone"));
        }
        assert_eq!(queue.len(), limits::EVENTS_WAITING);
        assert_eq!(events.counts().dropped(), 3);
        let off = Events::off();
        off.tell(event("a", "gone"));
        assert_eq!(off.counts().dropped(), 0);
    }
}
