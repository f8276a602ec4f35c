//! What must hold at every moment, whatever the stores do.

use std::time::Duration;

use secretfs::{clock::Mono, limits};

use super::store::{Given, Mode};

/// Longest interval between two looks at everything.
pub const SWEEP: Duration = Duration::from_secs(300);
/// How long a lease that nobody needs may live at a store that works: the longest wait between two tries, one probe, and
/// a while.
const LEASE_IDLE: Duration = Duration::from_secs(1200);
/// The longest latency of a store that answers.
pub const LATENCY: Duration = Duration::from_millis(150);
/// The longest time for which a store wants to be left alone.
pub const THROTTLE: Duration = Duration::from_secs(120);
/// What a request needs to come back, and a queue to drain.
const SLACK: Duration = Duration::from_secs(20);

/// What a run did, so that a test can see that it did something.
#[derive(Default, Debug, Clone)]
pub struct Figures {
    pub fetches: u64,
    pub renewals: u64,
    pub revocations: u64,
    pub watches: u64,
    pub leases: u64,
    pub shown: u64,
    pub suspends: u64,
    pub stale: u64,
    pub long_outages: u64,
    pub outage_asked: u64,
    pub outage_healthy: f64,
    pub recoveries: u64,
}

impl Figures {
    pub fn add(&mut self, other: &Figures) {
        self.fetches += other.fetches;
        self.renewals += other.renewals;
        self.revocations += other.revocations;
        self.watches += other.watches;
        self.leases += other.leases;
        self.shown += other.shown;
        self.suspends += other.suspends;
        self.stale += other.stale;
        self.long_outages += other.long_outages;
        self.outage_asked += other.outage_asked;
        self.outage_healthy += other.outage_healthy;
        self.recoveries += other.recoveries;
    }

    /// A simulation in which nothing happens holds every promise.
    pub fn has_seen_everything(&self) {
        for (what, count) in [
            ("fetches", self.fetches),
            ("renewals", self.renewals),
            ("revocations", self.revocations),
            ("watches", self.watches),
            ("leases", self.leases),
            ("shown", self.shown),
            ("suspends", self.suspends),
            ("stale", self.stale),
            ("long outages", self.long_outages),
            ("recoveries", self.recoveries),
        ] {
            assert!(count > 0, "no {what}: {self:?}");
        }
    }
}

/// A source, as seen from outside.
#[derive(Default, Debug)]
pub struct Seen {
    pub fetching: u32,
    pub renewing: u32,
    pub revoking: u32,
    /// The shortest interval that volumes ask for; `None`: nobody asks for one.
    pub interval: Option<Duration>,
    pub asked_at: Option<Mono>,
    pub ok_at: Option<Mono>,
    /// Since when the interval is no longer than it is now; since when there are subscribers.
    pub wanted_since: Option<Mono>,
    /// Until when its principal's proof may be stale.
    pub excused_until: Option<Mono>,
}

#[derive(Debug)]
/// A store, as seen from outside.
pub struct Watched {
    pub mode: Mode,
    pub mode_since: Mono,
    /// It may have wanted to be left alone until then.
    quiet_until: Mono,
    /// The first answer since it has been answering.
    pub alive_at: Option<Mono>,
    pub in_flight: u32,
    bucket: f64,
    bucket_at: Mono,
    /// Of the outage at hand.
    asked: u64,
    healthy: f64,
    floor: f64,
}

pub type Verdict = Result<(), String>;

impl Watched {
    pub fn new(now: Mono) -> Self {
        Self {
            mode: Mode::Healthy,
            mode_since: now,
            quiet_until: now,
            alive_at: Some(now),
            in_flight: 0,
            bucket: f64::from(limits::BACKEND_BURST),
            bucket_at: now,
            asked: 0,
            healthy: 0.0,
            floor: 0.0,
        }
    }

    /// 1. Rate: a bucket of our own never runs dry. 2. No more in flight than allowed. 3. Counted while it is down.
    pub fn request(&mut self, now: Mono, counts_in_flight: bool) -> Verdict {
        if counts_in_flight {
            let full = f64::from(limits::BACKEND_BURST);
            let gained =
                now.since(self.bucket_at).as_secs_f64() * f64::from(limits::BACKEND_PER_SECOND);
            self.bucket = (self.bucket + gained).min(full) - 1.0;
            self.bucket_at = now;
            if self.bucket < -1e-3 {
                return Err("rate: the backend is asked more than its limit".into());
            }
            self.in_flight += 1;
            // all of this world are one tenant
            if self.in_flight > limits::TENANT_IN_FLIGHT {
                return Err("rate: too many requests in flight".into());
            }
        }
        if self.outage_counts(now) {
            self.asked += 1;
        }
        Ok(())
    }

    /// Detection is not counted: a minute, the shortest interval here.
    fn outage_counts(&self, now: Mono) -> bool {
        self.mode.is_outage() && now.since(self.mode_since) > Duration::from_secs(60)
    }

    /// An answer came, asked for when the mode was as it is.
    pub fn answered(&mut self, now: Mono) {
        if self.mode.answers() && now > self.mode_since.after(LATENCY) {
            self.alive_at.get_or_insert(now);
        }
    }

    /// `rate`: requests a second that its sources make when it works. `slept`: nothing would have been asked.
    pub fn time_passes(&mut self, now: Mono, rate: f64, passed: Duration) {
        if self.outage_counts(now) {
            self.healthy += rate * passed.as_secs_f64();
            self.floor += passed.as_secs_f64() / (limits::PROBE_MAX.as_secs_f64() * 0.9);
        }
    }

    /// Another mode. An outage that ends and was longer than an hour: the requests were below a hundredth of the usual.
    /// Few sources have so small a hundredth that recovery would go unseen for long; there it is one probe in five minutes
    /// (see `schedule::probe_cap`). Detection is not counted where it takes longer than a minute, either: five failures,
    /// what else was in flight by then, and nine probes that come sooner.
    pub fn turn(&mut self, now: Mono, mode: Mode, figures: &mut Figures) -> Verdict {
        let long = self.mode.is_outage() && now.since(self.mode_since) > Duration::from_secs(3600);
        let (asked, healthy, floor) = (self.asked, self.healthy, self.floor);
        let allowed = (healthy * 0.01).max(floor) + 22.0;
        if long {
            figures.long_outages += 1;
            figures.outage_asked += asked;
            figures.outage_healthy += healthy;
        }
        if !self.mode.answers() && mode.answers() {
            self.alive_at = None;
        }
        let was = std::mem::replace(&mut self.mode, mode);
        // what hangs goes on hanging until its deadline; a store that wanted to be left alone until then will be
        let aftermath = match was {
            Mode::Hang if !mode.is_outage() => limits::FETCH_DEADLINE,
            Mode::Throttle => THROTTLE,
            _ => Duration::ZERO,
        };
        if was == Mode::Throttle {
            self.quiet_until = now.after(THROTTLE); // whatever it does in between
        }
        self.mode_since = match mode.answers() {
            true => now.after(aftermath).max(self.quiet_until),
            false => now.after(aftermath),
        };
        (self.asked, self.healthy, self.floor) = (0, 0.0, 0.0);
        if long && asked as f64 > allowed {
            return Err(format!(
                "outage: {asked} requests, healthy {healthy:.0}, allowed {allowed:.0}"
            ));
        }
        Ok(())
    }
}

/// At most one fetch or renewal, and one revocation.
pub fn single_flight(seen: &Seen) -> Verdict {
    if seen.fetching + seen.renewing > 1 || seen.revoking > 1 {
        return Err(format!(
            "single flight: {} fetches, {} renewals, {} revocations",
            seen.fetching, seen.renewing, seen.revoking
        ));
    }
    Ok(())
}

/// While its store answers, and we know it, no source is asked later than a tenth of its interval after it is due.
pub fn overdue(now: Mono, awake_since: Mono, seen: &Seen, store: &Watched) -> Verdict {
    let (Some(interval), Some(wanted)) = (seen.interval, seen.wanted_since) else {
        return Ok(());
    };
    let (true, Some(alive)) = (store.mode.answers(), store.alive_at) else {
        return Ok(());
    };
    let from = [Some(wanted), seen.asked_at, seen.excused_until];
    let from = from.into_iter().flatten().max().unwrap_or(wanted);
    let from = from.max(alive).max(store.mode_since).max(awake_since);
    if seen.fetching == 0 && now > from.after(interval.mul_f64(1.1)) {
        return Err(format!(
            "overdue: {:?} with an interval of {interval:?}",
            now.since(from)
        ));
    }
    Ok(())
}

/// After trouble every source is current within one interval; or, where sources are so few that probes are rare, once a
/// probe has found the store well. True: it was looked at.
pub fn recovered(
    now: Mono,
    awake_since: Mono,
    seen: &Seen,
    store: &Watched,
    shortest: Duration,
) -> Result<bool, String> {
    let (Some(interval), Some(wanted)) = (seen.interval, seen.wanted_since) else {
        return Ok(false);
    };
    if store.mode != Mode::Healthy {
        return Ok(false);
    }
    let from = wanted
        .max(store.mode_since)
        .max(awake_since)
        .max(seen.excused_until.unwrap_or(wanted));
    let bound = interval.max(shortest.max(limits::PROBE_MAX)) + SLACK;
    if now <= from.after(bound) {
        return Ok(false);
    }
    if seen.ok_at.is_none_or(|ok| ok < store.mode_since) {
        return Err(format!(
            "recovery: not current {:?} after the store came back; interval {interval:?}",
            now.since(from)
        ));
    }
    Ok(true)
}

/// A lease that nobody needs is given back soon, unless its store is down or it dies first.
pub fn lease(now: Mono, given: &mut Given, needed: bool, calm: bool) -> Verdict {
    if needed || !calm || given.revoked || given.expires_at <= now {
        given.idle_since = None;
        return Ok(());
    }
    let since = *given.idle_since.get_or_insert(now);
    if now.since(since) > LEASE_IDLE {
        return Err(format!(
            "lease: of source {}, unneeded for {:?}, neither revoked nor expired",
            given.key,
            now.since(since)
        ));
    }
    Ok(())
}
