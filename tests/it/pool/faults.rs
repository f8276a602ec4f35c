//! The rig itself: with each of these faults between the pool and the world, the check that it offends must fail.

use secretfs::source::pool::Rules;

use super::{
    small,
    world::{Size, World},
};

/// Something done wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Every fetch is sent twice.
    AsksTwice,
    /// Wake-ups come late.
    WakesLate,
    /// Values are shown to a volume of another principal as well.
    ShowsToOthers,
    /// Revocations are confirmed and not made.
    ForgetsToRevoke,
    /// The pool is not told that a store is down.
    HidesOutages,
    /// The pool is told that a store is down which is not.
    SeesGhosts,
    /// The pool has another idea of the limits.
    KnowsNoLimits,
}

impl Fault {
    pub fn rules(self) -> Rules {
        let mut rules = Rules::default();
        if self == Fault::KnowsNoLimits {
            (rules.gate.per_second, rules.gate.burst) = (Some(1000), 1000);
        }
        rules
    }
}

/// The first complaint of some seeds.
fn complaint(fault: Fault, size: fn() -> Size) -> String {
    for seed in 0..20 {
        if let Err(why) = World::new(seed, size()).with_fault(fault).run() {
            return why;
        }
    }
    panic!("{fault:?} went unnoticed");
}

/// Enough sources for a burst beyond the limit.
fn crowded() -> Size {
    Size {
        sources: 200,
        volumes: 300,
        stores: 1,
        ..small()
    }
}

#[test]
fn every_check_can_fail() {
    for (fault, size, check) in [
        (Fault::AsksTwice, small as fn() -> Size, "single flight"),
        (Fault::WakesLate, small, "overdue"),
        (Fault::ShowsToOthers, small, "principal"),
        (Fault::ForgetsToRevoke, small, "lease"),
        (Fault::HidesOutages, crowded, "outage"),
        (Fault::SeesGhosts, small, "recovery"),
        (Fault::KnowsNoLimits, crowded, "rate"),
    ] {
        let why = complaint(fault, size);
        assert!(why.starts_with(check), "{fault:?}: {why}");
    }
}
