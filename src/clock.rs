//! Time, in two kinds that cannot be mixed up, behind a trait so that tests own it.
//!
//! [`Mono`] is CLOCK_BOOTTIME: it runs on during suspend, survives our restart and ends with the boot, as leases in
//! memory do. Every deadline, interval and lease is a `Mono`. [`Wall`] is the wall clock: it may jump, so it is only read to
//! compare with an absolute time that somebody else wrote (a JWT's `exp`) and to show a time to a person.
//!
//! This module and `sys` are the only ones that read a clock.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use rustix::time::{ClockId, clock_gettime};

use crate::sys::timer;

/// Nanoseconds of CLOCK_BOOTTIME.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Mono(u64);

impl Mono {
    /// A point in time, `nanos` nanoseconds after the boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// `duration` later; the end of time instead of an overflow.
    pub fn after(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Milliseconds since 1970-01-01 UTC, by the wall clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Wall(i64);

impl Wall {
    /// A point in time, `millis` milliseconds after 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// RFC 3339 in UTC, to the millisecond.
    pub fn to_rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0)
            .map(|time| format!("{time:.3}"))
            .unwrap_or_else(|_| format!("@{}ms", self.0))
    }
}

/// Where time comes from.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Now, for deadlines and intervals.
    fn now(&self) -> Mono;
    /// Now, by the wall clock.
    fn wall(&self) -> Wall;
    /// Returns at `at` or soon after; at once if it has passed. Suspend counts.
    async fn sleep_until(&self, at: Mono);
}

/// The machine's clocks.
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Mono {
        let now = clock_gettime(ClockId::Boottime);
        Mono(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    fn wall(&self) -> Wall {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Wall(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// tokio's timers are CLOCK_MONOTONIC, which stands still during suspend: so a timerfd. Without one (EMFILE) a tokio
    /// timer, and the caller looks at the clock again sooner than it would need to.
    async fn sleep_until(&self, at: Mono) {
        match timer::boottime(at.0) {
            Ok(timer) => drop(timer.readable().await),
            Err(_) => tokio::time::sleep(at.since(self.now()).min(Duration::from_secs(1))).await,
        }
    }
}

/// One resettable alarm: for a loop that waits for events and, at the latest, until some moment.
pub struct Alarm {
    clock: Arc<dyn Clock>,
    at: Option<Mono>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Alarm {
    /// An alarm that is not set.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            at: None,
            waiting: None,
        }
    }

    /// Rings at `at` instead of any former time; `None`: never. Setting it to the same time costs nothing.
    pub fn set(&mut self, at: Option<Mono>) {
        if self.at == at {
            return;
        }
        self.at = at;
        self.waiting = at.map(|at| {
            let clock = self.clock.clone();
            Box::pin(async move { clock.sleep_until(at).await }) as _
        });
    }

    /// Waits until it rings; then it is unset. May be dropped while waiting: it stays set.
    pub async fn ring(&mut self) {
        match &mut self.waiting {
            Some(waiting) => waiting.await,
            None => pending().await,
        }
        self.at = None;
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_once_at_the_time_that_was_set_last() {
        let clock = Arc::new(SystemClock);
        let mut alarm = Alarm::new(clock.clone());
        alarm.set(Some(Mono::from_nanos(u64::MAX)));
        alarm.set(Some(clock.now()));
        alarm.ring().await;
        tokio::select! {
            biased;
            () = alarm.ring() => panic!("it was not set again"),
            () = std::future::ready(()) => {}
        }
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let late = Mono::from_nanos(u64::MAX - 1);
        assert_eq!(
            late.after(Duration::from_secs(9)),
            Mono::from_nanos(u64::MAX)
        );
        assert_eq!(Mono::from_nanos(5).since(late), Duration::ZERO);
        assert_eq!(
            Wall::from_millis(1_500).to_rfc3339(),
            "1970-01-01T00:00:01.500Z"
        );
    }

    #[tokio::test]
    async fn sleeping_until_the_past_returns_at_once_and_the_future_is_reached() {
        let clock = SystemClock;
        clock.sleep_until(Mono::from_nanos(0)).await;
        let at = clock.now().after(Duration::from_millis(20));
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
    }
}
