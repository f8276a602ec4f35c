//! How many failures are worth a line in the log. Pure.
//!
//! A *minute* begins with the first failure after the last one. In it so many lines are told, so many of each who fails, and a part of them
//! only for those who had none yet: who fails all the time does not hide that another fails too. The rest is counted, and told in one
//! line when the minute is over, whether more come or not: whoever counts arms one timer, and none while nothing is untold.

use std::{collections::HashMap, hash::Hash};

use crate::{clock::Mono, limits};

/// Lines of a minute.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// All of them.
    pub lines: u32,
    /// For those who had one in this minute.
    pub repeated: u32,
    /// For one who fails.
    pub of_one: u32,
}

/// What to do with one more failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Tell it.
    Tell,
    /// It is counted. `Some`: nobody waits yet to tell the rest; do so then, by [`Patience::rest`].
    Count(Option<Mono>),
}

/// What has been told lately, of whom.
#[derive(Debug)]
pub struct Patience<K> {
    allowed: Allowed,
    /// When the running minute began.
    minute: Option<Mono>,
    repeated: u32,
    /// Lines of each in this minute: no more entries than lines.
    told: HashMap<K, u32>,
    rest: u64,
    /// Somebody waits to tell the rest.
    awaited: bool,
}

impl<K: Eq + Hash> Patience<K> {
    /// Nothing has failed.
    pub fn new(allowed: Allowed) -> Self {
        Self {
            allowed,
            minute: None,
            repeated: 0,
            told: HashMap::new(),
            rest: 0,
            awaited: false,
        }
    }

    /// One more failure, of `who`.
    pub fn failed(&mut self, now: Mono, who: K) -> Verdict {
        let running = |minute: &Mono| now.since(*minute) < limits::WARN_INTERVAL;
        let minute = self.minute.filter(running).unwrap_or_else(|| {
            self.repeated = 0;
            self.told.clear();
            now
        });
        self.minute = Some(minute);
        let lines = self.told.len() as u32 + self.repeated;
        let told = self.told.get(&who).copied().unwrap_or(0);
        let again = told < self.allowed.of_one && self.repeated < self.allowed.repeated;
        if lines < self.allowed.lines && (told == 0 || again) {
            self.repeated += u32::from(told > 0);
            self.told.insert(who, told + 1);
            return Verdict::Tell;
        }
        self.rest += 1;
        let wake = !std::mem::replace(&mut self.awaited, true);
        Verdict::Count(wake.then(|| minute.after(limits::WARN_INTERVAL)))
    }

    /// How many were counted and not told; `None`: none. Whoever asks tells it.
    pub fn rest(&mut self) -> Option<u64> {
        self.awaited = false;
        let rest = std::mem::take(&mut self.rest);
        (rest > 0).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Allowed = Allowed {
        lines: 10,
        repeated: 5,
        of_one: 3,
    };

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_minute_has_so_many_lines_and_the_rest_is_one_number() {
        let mut patience = Patience::new(FEW);
        let tell = |patience: &mut Patience<_>, second, who| {
            matches!(patience.failed(at(second), who), Verdict::Tell)
        };
        assert_eq!(patience.rest(), None);
        let told = (0..1000).filter(|_| tell(&mut patience, 7, "noisy"));
        assert_eq!(told.count(), 3);
        assert_eq!(patience.failed(at(66), "noisy"), Verdict::Count(None));
        assert_eq!(patience.rest(), Some(998));
        assert_eq!(patience.rest(), None);
        let wake = Verdict::Count(Some(at(67)));
        assert_eq!(patience.failed(at(66), "noisy"), wake, "a new timer");
        assert!(tell(&mut patience, 67, "noisy"), "a new minute");
        assert_eq!(
            patience.rest(),
            Some(1),
            "what is not told is not forgotten"
        );
    }

    #[test]
    fn who_fails_all_the_time_hides_nobody() {
        let mut patience = Patience::new(FEW);
        for noisy in 0..1000 {
            let who = ["one", "two", "three"][noisy % 3].to_owned();
            patience.failed(at(7), who);
        }
        // three first lines and five more
        assert_eq!(patience.rest(), Some(1000 - 3 - 5));
        let quiet = |n: usize| format!("quiet {n}");
        let told = (0..1000).filter(|n| patience.failed(at(8), quiet(*n)) == Verdict::Tell);
        assert_eq!(told.count(), 2, "all lines of the minute are used");
        assert_eq!(patience.told.len(), 5, "and no more is remembered");
    }

    #[test]
    fn one_timer_is_armed_for_all_that_is_untold() {
        let mut patience = Patience::new(FEW);
        for _ in 0..3 {
            assert_eq!(patience.failed(at(7), ()), Verdict::Tell);
        }
        let wake = Verdict::Count(Some(at(67)));
        assert_eq!(patience.failed(at(8), ()), wake);
        for second in 9..60 {
            assert_eq!(patience.failed(at(second), ()), Verdict::Count(None));
        }
        assert_eq!(patience.rest(), Some(52));
    }
}
