//! How often a volume's failure is worth a line in the log. Pure.
//!
//! The first failure is, then at most one a minute that counts the rest, then the recovery. Another cause is told at once,
//! a few times a minute. A store that is down for a night is a few hundred lines for a volume, not tens of thousands.

use crate::{clock::Mono, error::Code, limits};

/// One volume's trouble, as far as it was told.
#[derive(Default, Debug)]
pub struct Complaint {
    /// Since when it fails, and whether a line said so.
    trouble: Option<(Mono, bool)>,
    /// When the running minute's first line was.
    told_at: Option<Mono>,
    /// Lines since then, for other causes.
    more: u32,
    /// Name of the cause that was told last.
    cause: &'static str,
    untold: u64,
}

impl Complaint {
    /// It failed once more, because of `cause`. `Some`: say so, and that it failed so many times since the last line.
    pub fn failed(&mut self, now: Mono, cause: &'static Code) -> Option<u64> {
        let (_, told) = self.trouble.get_or_insert((now, false));
        self.untold += 1;
        let next_minute = self
            .told_at
            .is_none_or(|told_at| now.since(told_at) >= limits::WARN_INTERVAL);
        if next_minute {
            (self.told_at, self.more) = (Some(now), 0);
        } else if self.cause != cause.name && self.more < limits::WARN_CAUSES {
            self.more += 1;
        } else {
            return None;
        }
        *told = true;
        self.cause = cause.name;
        Some(std::mem::take(&mut self.untold))
    }

    /// It works. `Some`: a line said that it does not; it did not since then.
    pub fn recovered(&mut self) -> Option<Mono> {
        let (since, told) = self.trouble.take()?;
        told.then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::codes::{BACKEND_TIMEOUT as SLOW, MOUNT_GONE as GONE};

    fn at(seconds: u64) -> Mono {
        Mono::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn the_first_failure_then_one_line_a_minute_then_the_recovery() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.recovered(), None);
        assert_eq!(complaint.failed(at(100), &SLOW), Some(1));
        for second in 101..160 {
            assert_eq!(complaint.failed(at(second), &SLOW), None, "{second}");
        }
        assert_eq!(complaint.failed(at(160), &SLOW), Some(60));
        assert_eq!(complaint.failed(at(161), &SLOW), None);
        assert_eq!(complaint.recovered(), Some(at(100)));
        assert_eq!(complaint.recovered(), None);
        // a store that flaps gets no more lines than one that is down
        assert_eq!(complaint.failed(at(162), &SLOW), None);
        assert_eq!(complaint.recovered(), None);
        assert_eq!(complaint.failed(at(300), &SLOW), Some(3)); // with those at 161 and 162
    }

    #[test]
    fn another_cause_is_told_at_once_and_causes_that_alternate_are_not_endless() {
        let mut complaint = Complaint::default();
        assert_eq!(complaint.failed(at(100), &SLOW), Some(1));
        assert_eq!(complaint.failed(at(101), &SLOW), None);
        assert_eq!(complaint.failed(at(102), &GONE), Some(2));
        assert_eq!(complaint.failed(at(103), &GONE), None);
        let causes = [&SLOW, &GONE];
        let mut told = 1;
        for nth in 0..1000 {
            let said = complaint.failed(at(104), causes[nth % 2]);
            told += u32::from(said.is_some());
        }
        assert_eq!(told, limits::WARN_CAUSES);
        assert!(complaint.failed(at(160), &GONE).is_some());
        assert_eq!(complaint.failed(at(161), &SLOW), Some(1), "a new minute");
    }
}
