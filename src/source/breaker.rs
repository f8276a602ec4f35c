//! Whether somebody is asked at all: a tenant of a backend, or the backend as a whole. Pure.
//!
//! *Closed* while answers come. After some consecutive failures, or as soon as we are asked to slow down, *open*: nothing is
//! asked but one *probe* at a time, more and more rarely. An answer of any kind closes it: "no such secret" comes from a store
//! that works.

use std::time::Duration;

use crate::{clock::Mono, limits, source::schedule};

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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Closed { failures: u32 },
    Open { attempt: u32, probe_at: Mono },
    Probing { attempt: u32, probe_at: Mono },
}

/// Where a breaker stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stand {
    /// Ask.
    Closed,
    /// A probe may go then.
    Open(Mono),
    /// One has gone.
    Probing,
}

/// A breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    /// What the store asked for. Not even a person's wish passes before.
    quiet_until: Mono,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed { failures: 0 },
            quiet_until: Mono::from_nanos(0),
        }
    }
}

impl Breaker {
    /// Where it stands.
    pub fn stand(&self) -> Stand {
        match self.state {
            State::Closed { .. } => Stand::Closed,
            State::Open { probe_at, .. } => Stand::Open(probe_at),
            State::Probing { .. } => Stand::Probing,
        }
    }

    /// Until when the store wants quiet.
    pub fn quiet_until(&self) -> Mono {
        self.quiet_until
    }

    /// Whether answers are believed to come.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// Whether nothing but a probe may go, or nothing at all.
    pub fn is_shut(&self, now: Mono) -> bool {
        !self.is_closed() || self.quiet_until > now
    }

    /// A request goes. True: it is a probe, and [`Breaker::ended`] must hear so.
    pub fn started(&mut self) -> bool {
        if let State::Open { attempt, probe_at } = self.state {
            self.state = State::Probing { attempt, probe_at };
            return true;
        }
        false
    }

    /// A request ended. `bound`: failures that open it. `cap`: the longest wait between two probes.
    pub fn ended(
        &mut self,
        now: Mono,
        probe: bool,
        sign: Sign,
        (bound, cap): (u32, Duration),
        seed: u64,
    ) {
        let open = |attempt: u32| {
            let full = limits::RETRY_FIRST.saturating_mul(1 << attempt.min(20));
            State::Open {
                attempt,
                probe_at: now.after(schedule::shortened(full.min(cap), 0.1, seed, attempt)),
            }
        };
        if let Sign::Throttled(wait) = sign {
            let until = now.after(wait.min(limits::RETRY_AFTER_MAX));
            self.quiet_until = self.quiet_until.max(until);
        }
        self.state = match (self.state, sign) {
            (_, Sign::Alive) => State::Closed { failures: 0 },
            (State::Closed { failures }, Sign::Down) if failures + 1 >= bound => open(0),
            (State::Closed { failures }, Sign::Down) => State::Closed {
                failures: failures + 1,
            },
            (State::Closed { .. }, Sign::Throttled(_)) => open(0),
            // A person could not wait: nobody else waits longer for that.
            (State::Probing { attempt, probe_at }, Sign::Down) if probe && probe_at > now => {
                State::Open { attempt, probe_at }
            }
            (State::Probing { attempt, .. }, Sign::Down | Sign::Throttled(_)) if probe => {
                open(attempt.saturating_add(1))
            }
            (State::Probing { attempt, .. }, Sign::None) if probe => State::Open {
                attempt,
                probe_at: now.after(limits::RETRY_FIRST),
            },
            (state, _) => state,
        };
    }

    /// The next probe is at most `cap` away.
    pub fn probe_within(&mut self, now: Mono, cap: Duration) {
        if let State::Open { probe_at, .. } = &mut self.state {
            *probe_at = (*probe_at).min(now.after(cap));
        }
    }

    /// There is news: the next probe goes now, and the waits begin anew.
    pub fn try_anew(&mut self, now: Mono) {
        if let State::Open { .. } = self.state {
            self.state = State::Open {
                attempt: 0,
                probe_at: now,
            };
        }
    }
}
