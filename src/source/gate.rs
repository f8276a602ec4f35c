//! What one backend may be asked now: a limit of requests in flight, a rate, a breaker.
//!
//! The breaker is *closed* while the backend answers. After some consecutive failures, or as soon as it asks us to slow down,
//! it is *open*: nothing is asked but one *probe* at a time, more and more rarely. An answer of any kind closes it: "no such
//! secret" comes from a store that works.

use std::time::Duration;

use crate::{clock::Mono, limits, source::schedule};

/// The limits of every backend.
#[derive(Clone, Debug)]
pub struct GateRules {
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests a second, in the long run; `None`: as many as it answers.
    pub per_second: Option<u32>,
    /// Requests at once, after a rest.
    pub burst: u32,
    /// Consecutive failures that open the breaker.
    pub failures: u32,
}

impl Default for GateRules {
    fn default() -> Self {
        Self {
            in_flight: limits::BACKEND_IN_FLIGHT,
            per_second: Some(limits::BACKEND_PER_SECOND),
            burst: limits::BACKEND_BURST,
            failures: limits::BREAKER_FAILURES,
        }
    }
}

impl GateRules {
    /// Those of a backend on this machine.
    pub fn local() -> Self {
        Self {
            in_flight: limits::LOCAL_IN_FLIGHT,
            per_second: None,
            ..Self::default()
        }
    }
}

/// What a request says about its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sign {
    /// It answered, be it with a refusal.
    Alive,
    /// It did not.
    Down,
    /// It wants to be left alone for so long.
    Throttled(Duration),
    /// Nothing: the request never got there, or was cancelled.
    None,
}

/// Whether a request may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Now.
    Go,
    /// Then, at the earliest.
    NotBefore(Mono),
    /// When one that is in flight has ended.
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Breaker {
    Closed { failures: u32 },
    Open { attempt: u32, probe_at: Mono },
    Probing { attempt: u32, probe_at: Mono },
}

/// One backend's gate.
#[derive(Debug)]
pub struct Gate {
    rules: GateRules,
    in_flight: u32,
    /// The bucket: the moment at which it will be full again, in nanoseconds. Each request moves it by one period.
    full_at: u64,
    /// What the store asked for. Not even a person's wish passes before.
    quiet_until: Mono,
    breaker: Breaker,
}

impl Gate {
    /// A gate of a backend that is believed to work.
    pub fn new(rules: GateRules) -> Self {
        Self {
            rules,
            in_flight: 0,
            full_at: 0,
            quiet_until: Mono::from_nanos(0),
            breaker: Breaker::Closed { failures: 0 },
        }
    }

    /// Other rules, from now on.
    pub fn rule(&mut self, rules: GateRules) {
        self.rules = rules;
    }

    /// Whether a request may go now. `forced`: a person asked, so an open breaker lets it pass as a probe.
    pub fn verdict(&self, now: Mono, forced: bool) -> Verdict {
        if self.in_flight >= self.rules.in_flight {
            return Verdict::Full;
        }
        let breaker = match self.breaker {
            Breaker::Closed { .. } => now,
            Breaker::Probing { .. } => return Verdict::Full,
            Breaker::Open { .. } if forced => now,
            Breaker::Open { probe_at, .. } => probe_at,
        };
        let period = self.period();
        let slack = period.saturating_mul(u64::from(self.rules.burst.saturating_sub(1)));
        let bucket = Mono::from_nanos(self.full_at.saturating_sub(slack));
        match breaker.max(bucket).max(self.quiet_until) {
            at if at <= now => Verdict::Go,
            at => Verdict::NotBefore(at),
        }
    }

    /// A request goes. True: it is a probe, and [`Gate::ended`] must hear so.
    pub fn started(&mut self, now: Mono) -> bool {
        self.in_flight += 1;
        self.full_at = self.full_at.max(now.as_nanos()) + self.period();
        if let Breaker::Open { attempt, probe_at } = self.breaker {
            self.breaker = Breaker::Probing { attempt, probe_at };
            return true;
        }
        false
    }

    /// A request ended. `cap`: the longest wait between two probes.
    pub fn ended(&mut self, now: Mono, probe: bool, sign: Sign, cap: Duration, seed: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let open = |attempt: u32| {
            let full = limits::RETRY_FIRST.saturating_mul(1 << attempt.min(20));
            Breaker::Open {
                attempt,
                probe_at: now.after(schedule::shortened(full.min(cap), 0.1, seed, attempt)),
            }
        };
        if let Sign::Throttled(wait) = sign {
            let until = now.after(wait.min(limits::RETRY_AFTER_MAX));
            self.quiet_until = self.quiet_until.max(until);
        }
        self.breaker = match (self.breaker, sign) {
            (_, Sign::Alive) => Breaker::Closed { failures: 0 },
            (Breaker::Closed { failures }, Sign::Down) => {
                if failures + 1 >= self.rules.failures {
                    open(0)
                } else {
                    Breaker::Closed {
                        failures: failures + 1,
                    }
                }
            }
            (Breaker::Closed { .. }, Sign::Throttled(_)) => open(0),
            // A person could not wait: nobody else waits longer for that.
            (Breaker::Probing { attempt, probe_at }, Sign::Down) if probe && probe_at > now => {
                Breaker::Open { attempt, probe_at }
            }
            (Breaker::Probing { attempt, .. }, Sign::Down | Sign::Throttled(_)) if probe => {
                open(attempt.saturating_add(1))
            }
            (Breaker::Probing { attempt, .. }, Sign::None) if probe => Breaker::Open {
                attempt,
                probe_at: now.after(limits::RETRY_FIRST),
            },
            (breaker, _) => breaker,
        };
    }

    /// Somebody came who is asked more often than the others: the next probe is at most `cap` away.
    pub fn probe_within(&mut self, now: Mono, cap: Duration) {
        if let Breaker::Open { probe_at, .. } = &mut self.breaker {
            *probe_at = (*probe_at).min(now.after(cap));
        }
    }

    /// While the breaker is not closed, or the store wants quiet: when it may be asked again, as far as is known.
    pub fn shut_until(&self, now: Mono) -> Option<Mono> {
        match self.breaker {
            Breaker::Closed { .. } => (self.quiet_until > now).then_some(self.quiet_until),
            Breaker::Open { probe_at, .. } => Some(probe_at.max(self.quiet_until)),
            Breaker::Probing { .. } => Some(now),
        }
    }

    /// Whether the backend is believed to work.
    pub fn is_closed(&self) -> bool {
        matches!(self.breaker, Breaker::Closed { .. })
    }

    fn period(&self) -> u64 {
        let per_second = self.rules.per_second;
        per_second.map_or(0, |many| 1_000_000_000 / u64::from(many.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);
    const CAP: Duration = Duration::from_secs(300);

    fn at(seconds: f64) -> Mono {
        Mono::from_nanos((seconds * 1e9) as u64)
    }

    fn gate() -> Gate {
        Gate::new(GateRules::default())
    }

    /// One request that ends at once.
    fn ask(gate: &mut Gate, now: Mono, sign: Sign) {
        assert_eq!(gate.verdict(now, false), Verdict::Go);
        let probe = gate.started(now);
        gate.ended(now, probe, sign, CAP, 1);
    }

    #[test]
    fn eight_in_flight_and_the_ninth_waits_for_an_end() {
        let mut gate = gate();
        for _ in 0..8 {
            assert_eq!(gate.verdict(at(1.0), false), Verdict::Go);
            gate.started(at(1.0));
        }
        assert_eq!(gate.verdict(at(1.0), true), Verdict::Full);
        gate.ended(at(1.0), false, Sign::Alive, CAP, 1);
        assert_eq!(gate.verdict(at(1.0), false), Verdict::Go);
    }

    #[test]
    fn a_burst_and_then_twenty_a_second() {
        let mut gate = gate();
        let mut now = at(100.0);
        let mut gone = 0;
        while now < at(110.0) {
            match gate.verdict(now, false) {
                Verdict::Go => {
                    ask(&mut gate, now, Sign::Alive);
                    gone += 1;
                    assert!(gone <= 40 || now > at(100.0));
                }
                Verdict::NotBefore(then) => now = then,
                Verdict::Full => unreachable!(),
            }
        }
        assert!((239..=240).contains(&gone), "{gone}");
    }

    #[test]
    fn a_backend_on_this_machine_is_asked_as_fast_as_it_answers() {
        let mut gate = gate();
        gate.rule(GateRules::local());
        for _ in 0..1000 {
            ask(&mut gate, at(1.0), Sign::Alive);
        }
        for _ in 0..limits::LOCAL_IN_FLIGHT {
            assert_eq!(gate.verdict(at(1.0), false), Verdict::Go);
            gate.started(at(1.0));
        }
        assert_eq!(gate.verdict(at(1.0), false), Verdict::Full);
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_an_answer_closes_it() {
        let mut gate = gate();
        for sign in [Sign::Down, Sign::Down, Sign::Down, Sign::Down, Sign::Alive] {
            ask(&mut gate, at(1.0), sign);
        }
        for _ in 0..4 {
            ask(&mut gate, at(1.0), Sign::Down);
            ask(&mut gate, at(1.0), Sign::None);
            assert!(gate.is_closed());
        }
        ask(&mut gate, at(1.0), Sign::Down);
        assert!(!gate.is_closed());
        let Verdict::NotBefore(probe_at) = gate.verdict(at(1.0), false) else {
            panic!("{gate:?}");
        };
        assert!(probe_at <= at(2.0) && probe_at >= at(1.9));
        assert!(gate.started(probe_at), "a probe");
        assert_eq!(gate.verdict(probe_at, true), Verdict::Full, "one at a time");
        gate.ended(probe_at, true, Sign::Alive, CAP, 1);
        assert!(gate.is_closed());
        assert_eq!(gate.verdict(probe_at, false), Verdict::Go);
    }

    #[test]
    fn probes_grow_rare_up_to_the_cap() {
        let mut gate = gate();
        for _ in 0..5 {
            ask(&mut gate, at(1.0), Sign::Down);
        }
        let (mut now, mut waits) = (at(1.0), Vec::new());
        for _ in 0..14 {
            let Verdict::NotBefore(then) = gate.verdict(now, false) else {
                panic!("{gate:?}");
            };
            waits.push(then.since(now).as_secs_f64());
            now = then;
            ask(&mut gate, now, Sign::Down);
        }
        for (n, wait) in waits.iter().enumerate() {
            let full = f64::from(1 << n).min(300.0);
            assert!(*wait <= full && *wait >= full * 0.9, "{n}: {waits:?}");
        }
    }

    #[test]
    fn a_newcomer_who_is_asked_often_brings_the_next_probe_forward() {
        let mut gate = gate();
        for _ in 0..5 {
            ask(&mut gate, at(1.0), Sign::Down);
        }
        for n in 0..10 {
            let now = gate.shut_until(at(1.0)).unwrap();
            let probe = gate.started(now);
            gate.ended(now, probe, Sign::Down, SEC * 3600, n);
        }
        let now = gate.shut_until(at(1.0)).unwrap();
        gate.started(now);
        gate.ended(now, true, Sign::Down, SEC * 3600, 1);
        assert!(gate.shut_until(now) > Some(now.after(SEC * 1000)));
        gate.probe_within(now, SEC * 300);
        assert_eq!(gate.shut_until(now), Some(now.after(SEC * 300)));
        gate.probe_within(now, SEC * 3600);
        assert_eq!(gate.shut_until(now), Some(now.after(SEC * 300)));
    }

    #[test]
    fn a_person_passes_an_open_breaker_but_not_a_stores_own_wish() {
        let mut gate = gate();
        for _ in 0..5 {
            ask(&mut gate, at(1.0), Sign::Down);
        }
        assert_eq!(gate.verdict(at(1.0), true), Verdict::Go);
        let probe = gate.started(at(1.0));
        assert!(probe);
        gate.ended(at(1.0), probe, Sign::Throttled(SEC * 30), CAP, 1);
        assert_eq!(
            gate.verdict(at(1.5), true),
            Verdict::NotBefore(at(31.0)),
            "quiet"
        );
        assert_eq!(gate.verdict(at(31.0), true), Verdict::Go);
    }

    #[test]
    fn a_persons_failed_probe_makes_nobody_wait_longer() {
        let mut gate = gate();
        for _ in 0..5 {
            ask(&mut gate, at(1.0), Sign::Down);
        }
        let before = gate.shut_until(at(1.1));
        assert!(before.is_some());
        assert_eq!(gate.verdict(at(1.1), true), Verdict::Go);
        let probe = gate.started(at(1.1));
        gate.ended(at(1.2), probe, Sign::Down, CAP, 1);
        assert_eq!(gate.shut_until(at(1.2)), before);
    }

    #[test]
    fn throttling_closes_the_gate_at_once_and_lets_one_back_in() {
        let mut gate = gate();
        ask(&mut gate, at(1.0), Sign::Throttled(SEC * 20));
        assert_eq!(gate.shut_until(at(2.0)), Some(at(21.0)));
        assert_eq!(gate.verdict(at(2.0), false), Verdict::NotBefore(at(21.0)));
        assert!(gate.started(at(21.0)));
        assert_eq!(gate.verdict(at(21.0), false), Verdict::Full);
        gate.ended(at(21.0), true, Sign::Alive, CAP, 1);
        assert_eq!(gate.shut_until(at(21.0)), None);
        ask(&mut gate, at(22.0), Sign::Throttled(SEC * 1_000_000));
        assert_eq!(
            gate.shut_until(at(23.0)),
            Some(at(22.0).after(limits::RETRY_AFTER_MAX))
        );
    }

    #[test]
    fn a_late_failure_does_not_count_twice_and_a_probe_that_got_nowhere_is_repeated() {
        let mut gate = gate();
        for _ in 0..6 {
            gate.started(at(1.0));
        }
        for _ in 0..5 {
            gate.ended(at(1.0), false, Sign::Down, CAP, 1);
        }
        let before = gate.shut_until(at(1.0));
        gate.ended(at(1.5), false, Sign::Down, CAP, 1);
        assert_eq!(gate.shut_until(at(1.5)), before);
        assert!(gate.started(at(2.0)));
        gate.ended(at(3.0), true, Sign::None, CAP, 1);
        assert_eq!(gate.shut_until(at(3.0)), Some(at(4.0)));
    }
}
