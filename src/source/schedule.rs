//! When to do what: pure functions of times, a seed and an attempt.
//!
//! Jitter is no randomness: it is a hash of the source and of the attempt, so a run can be repeated, while a thousand
//! sources that failed in one moment come back in a thousand moments.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::{clock::Mono, limits, source::SourceKey};

/// The part of an interval by which a periodic request may come early: half for jitter, half for the grid.
const EARLY: f64 = 0.05;
/// Finest grid of due times.
const GRID_MIN: Duration = Duration::from_millis(100);
/// Coarsest grid of due times.
const GRID_MAX: Duration = Duration::from_secs(5);

/// What jitter of a source is made of. `salt` differs between nodes.
pub fn seed(key: &SourceKey, salt: u64) -> u64 {
    let mut hasher = DefaultHasher::new(); // fixed keys: equal in every run of one build
    (key, salt).hash(&mut hasher);
    hasher.finish()
}

/// A number in `0.0..1.0`, evenly spread over seeds and attempts (the mixer of splitmix64).
pub fn fraction(seed: u64, attempt: u32) -> f64 {
    let mut x = seed.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// `time` shortened by up to `part` of it.
pub fn shortened(time: Duration, part: f64, seed: u64, attempt: u32) -> Duration {
    time.mul_f64(1.0 - part * fraction(seed, attempt))
}

/// The wait after failure number `attempt` (from 0): doubled from 1 s up to `cap`, shortened by up to a half, never
/// below 1 s.
pub fn backoff(attempt: u32, cap: Duration, seed: u64) -> Duration {
    let full = limits::RETRY_FIRST.saturating_mul(1 << attempt.min(20));
    shortened(full.min(cap), 0.5, seed, attempt).max(limits::RETRY_FIRST)
}

/// When a source asked at `asked` and answered at `now` is due again: within its interval, up to a tenth early, on a grid
/// so that sources wake together. A store that needs longer than the interval gets a tenth of it as a rest.
pub fn next_due(asked: Mono, now: Mono, interval: Duration, seed: u64, attempt: u32) -> Mono {
    let grid = interval.mul_f64(EARLY).clamp(GRID_MIN, GRID_MAX);
    let exact = asked.after(shortened(interval, EARLY, seed, attempt));
    let step = grid.as_nanos() as u64;
    let on_grid = Mono::from_nanos(exact.as_nanos() / step * step);
    let on_grid = if on_grid > asked { on_grid } else { exact };
    on_grid.max(now.after(interval / 10))
}

/// When a lease seen at `now` should be prolonged or replaced: after two thirds of its remaining life, or up to a
/// tenth of that earlier.
pub fn lease_due(now: Mono, expires_at: Mono, seed: u64, attempt: u32) -> Mono {
    let life = expires_at.since(now);
    now.after(shortened(life * 2 / 3, 0.1, seed, attempt))
}

/// Longest wait between two probes of a backend whose healthy sources make `rate` requests a second, the most frequent
/// of them one every `shortest`.
///
/// Two wishes pull: probes below a hundredth of the healthy rate (with room for jitter: 1.25 hundred of its periods), and
/// recovery noticed within the shortest interval. Both can be had from about 125 sources on. With fewer, the wait is
/// as long as the first wish says, but no longer than five minutes or the shortest interval, whichever is longer.
pub fn probe_cap(rate: f64, shortest: Duration) -> Duration {
    let low = shortest.min(limits::PROBE_MAX);
    let high = shortest.max(limits::PROBE_MAX);
    let wanted = Duration::try_from_secs_f64(125.0 / rate).unwrap_or(high);
    wanted.clamp(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn backoff_doubles_stays_within_its_bounds_and_differs_between_sources() {
        for (attempt, cap, low, high) in [
            (0, 300, 1.0, 1.0),
            (1, 300, 1.0, 2.0),
            (3, 300, 4.0, 8.0),
            (8, 300, 128.0, 256.0),
            (9, 300, 150.0, 300.0),
            (u32::MAX, 300, 150.0, 300.0),
            (9, 60, 30.0, 60.0),
            (9, 1, 1.0, 1.0),
        ] {
            for seed in 0..200 {
                let wait = backoff(attempt, SEC * cap, seed).as_secs_f64();
                assert!((low..=high).contains(&wait), "{attempt} {cap}: {wait}");
            }
        }
        let waits: std::collections::BTreeSet<_> =
            (0..100).map(|seed| backoff(6, SEC * 300, seed)).collect();
        assert!(waits.len() > 90, "{}", waits.len());
        assert_eq!(backoff(6, SEC * 300, 7), backoff(6, SEC * 300, 7));
    }

    #[test]
    fn a_periodic_request_is_never_late_and_at_most_a_tenth_early() {
        for interval in [1, 10, 60, 3600, 30 * 86_400] {
            let interval = SEC * interval;
            let mut on_grid = 0;
            for seed in 0..200u64 {
                let asked = Mono::from_nanos(seed * 7_777_777_777);
                let due = next_due(asked, asked, interval, seed, 3).since(asked);
                assert!(due <= interval, "{due:?}");
                assert!(due >= interval.mul_f64(0.8), "{due:?} of {interval:?}");
                let grid = interval.mul_f64(0.05).clamp(GRID_MIN, GRID_MAX).as_nanos();
                on_grid += u32::from(
                    u128::from(asked.as_nanos() + due.as_nanos() as u64).is_multiple_of(grid),
                );
            }
            assert_eq!(on_grid, 200);
        }
        let slow = Mono::from_nanos(0).after(SEC * 90);
        assert_eq!(
            next_due(Mono::from_nanos(0), slow, SEC * 60, 1, 1),
            slow.after(SEC * 6)
        );
    }

    #[test]
    fn a_lease_is_seen_to_after_about_two_thirds_of_its_life() {
        let now = Mono::from_nanos(5_000_000_000);
        for seed in 0..100 {
            let due = lease_due(now, now.after(SEC * 3000), seed, 2).since(now);
            assert!(due <= SEC * 2000 && due >= SEC * 1800, "{due:?}");
        }
        assert_eq!(lease_due(now, Mono::from_nanos(1), 1, 1), now);
    }

    #[test]
    fn probes_are_rare_where_sources_are_many_and_soon_enough_where_they_are_few() {
        for (sources, interval, cap) in [
            (1, 60, 300),
            (20, 60, 300),
            (50, 60, 150),
            (200, 60, 60),
            (10, 3600, 3600),
            (200, 3600, 2250),
            (10_000, 3600, 300),
        ] {
            let rate = f64::from(sources) / f64::from(interval);
            let got = probe_cap(rate, SEC * interval as u32).as_secs_f64().round();
            assert_eq!(got as i32, cap, "{sources} every {interval} s");
        }
        assert_eq!(probe_cap(0.0, SEC * 300), SEC * 300);
    }
}
