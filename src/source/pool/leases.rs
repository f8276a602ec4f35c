//! The leases of one source: the current object's, those of replaced objects, those found after a restart.
//!
//! A lease is *held* until it is revoked or has expired. It is renewed while it belongs to the current object. Objects are
//! numbered as they come; a subscriber that shows object n needs no lease of an object below n.

use std::time::Duration;

use crate::{
    clock::Mono,
    error::{Error, ErrorKind, Result},
    limits,
    secret::Lease,
    source::schedule,
};

/// What is to be done about a current lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plan {
    Rest,
    Renew(Mono),
    /// Fetch a new object in its place.
    Replace(Mono),
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    /// Number of the object it belongs to.
    object: u64,
    /// From when we first saw it to its first expiry.
    life: Duration,
    plan: Plan,
    /// From when it is to be revoked.
    revoke_at: Option<Mono>,
    /// Found after a restart: a subscriber may still claim it.
    found: bool,
    failures: u32,
    renewing: bool,
    revoking: bool,
}

/// The leases of one source.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Vec<Held>,
    /// Number of the current object; 0 until the first.
    current: u64,
    seed: u64,
    attempt: u32,
}

impl Leases {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Number of the current object.
    pub(super) fn current(&self) -> u64 {
        self.current
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Another object has come, with this lease. Its number.
    pub(super) fn object(&mut self, now: Mono, lease: Option<Lease>) -> u64 {
        self.current += 1;
        for held in &mut self.held {
            held.plan = Plan::Rest;
        }
        if let Some(lease) = lease {
            self.hold(now, lease);
        }
        self.current
    }

    /// The current object came again, with this lease. True: the lease is another one, so the object counts as new.
    pub(super) fn is_other(&self, lease: &Lease) -> bool {
        !self
            .held
            .iter()
            .any(|held| held.lease.handle.same(&lease.handle))
    }

    /// Takes a lease of the current object, or a newer state of one that is held.
    pub(super) fn hold(&mut self, now: Mono, lease: Lease) {
        let (current, plan) = (self.current, self.plan(now, &lease));
        let known = self
            .held
            .iter_mut()
            .find(|held| held.lease.handle.same(&lease.handle));
        if let Some(held) = known {
            held.lease = lease;
            (held.object, held.plan) = (current, plan);
            if !held.revoking {
                held.revoke_at = None;
            }
            return;
        }
        self.held.push(Held {
            life: lease.expires_at.since(now),
            lease,
            object: current,
            plan,
            revoke_at: None,
            found: false,
            failures: 0,
            renewing: false,
            revoking: false,
        });
    }

    /// A lease of a former process. Without a subscriber it waits for one a while.
    pub(super) fn found(&mut self, now: Mono, lease: Lease, subscribed: bool) {
        if !self.is_other(&lease) {
            return;
        }
        let current = self.current;
        self.hold(now, lease);
        if let Some(held) = self.held.last_mut() {
            held.found = true;
            held.object = 0;
            if current > 0 || !subscribed {
                held.plan = Plan::Rest;
            }
            if !subscribed {
                held.revoke_at = Some(now.after(limits::LEASE_FOUND_GRACE));
            }
        }
    }

    /// A first subscriber: what was found is claimed.
    pub(super) fn claim(&mut self, now: Mono) {
        let (seed, attempt) = (self.seed, self.attempt);
        for held in self.held.iter_mut().filter(|held| held.found) {
            if !held.revoking {
                held.revoke_at = None;
                held.plan = plan(now, &held.lease, seed, attempt);
            }
        }
    }

    /// A lease that nobody wants.
    pub(super) fn stray(&mut self, now: Mono, lease: Lease) {
        self.hold(now, lease);
        if let Some(held) = self.held.last_mut() {
            (held.plan, held.revoke_at) = (Plan::Rest, Some(now));
        }
    }

    /// Subscribers all show object `applied` or a later one: leases before it may go at `at`.
    pub(super) fn release_before(&mut self, applied: u64, at: Mono) {
        for held in &mut self.held {
            if held.object < applied.min(self.current) && held.revoke_at.is_none() {
                (held.plan, held.revoke_at) = (Plan::Rest, Some(at));
            }
        }
    }

    /// Nobody subscribes any more: all go now.
    pub(super) fn release_all(&mut self, now: Mono) {
        for held in &mut self.held {
            held.found = false;
            held.plan = Plan::Rest;
            held.revoke_at = Some(held.revoke_at.map_or(now, |at| at.min(now)));
        }
    }

    /// Forgets what has died by itself. True: the current object's lease was among it.
    pub(super) fn expire(&mut self, now: Mono) -> bool {
        let (before, current) = (self.held.len(), self.current);
        let mut lost = false;
        self.held.retain(|held| {
            let dead = held.lease.expires_at <= now && !held.renewing && !held.revoking;
            lost |= dead && held.object == current && held.revoke_at.is_none();
            !dead
        });
        lost && before > self.held.len()
    }

    /// Whether the current lease calls for another object; asked once.
    pub(super) fn wants_replacement(&mut self, now: Mono) -> bool {
        let mut wanted = false;
        for held in &mut self.held {
            if matches!(held.plan, Plan::Replace(at) if at <= now) {
                held.plan = Plan::Rest;
                wanted = true;
            }
        }
        wanted
    }

    /// Whether there is something to renew now.
    pub(super) fn wants_renewal(&self, now: Mono) -> bool {
        self.renewal(now).is_some()
    }

    fn renewal(&self, now: Mono) -> Option<usize> {
        self.held
            .iter()
            .position(|held| matches!(held.plan, Plan::Renew(at) if at <= now))
    }

    /// Begins a renewal.
    pub(super) fn renew(&mut self, now: Mono) -> Option<Lease> {
        let at = self.renewal(now)?;
        let held = self.held.get_mut(at)?;
        (held.plan, held.renewing) = (Plan::Rest, true);
        Some(held.lease.clone())
    }

    /// A renewal ended. True: fetch another object in time.
    ///
    /// 1. It moved the expiry: renew again after two thirds of what is left.
    /// 2. It did not: replace the object after half of what is left.
    /// 3. It failed, maybe for a moment: try again while more than a sixth of the life is left.
    /// 4. It failed for good: replace the object now.
    pub(super) fn renewed(&mut self, now: Mono, result: Result<Lease, &Error>) -> bool {
        let (seed, attempt, current) = (self.seed, self.attempt, self.current);
        self.attempt = self.attempt.wrapping_add(1);
        let Some(held) = self.held.iter_mut().find(|held| held.renewing) else {
            return false;
        };
        held.renewing = false;
        let before = held.lease.expires_at;
        let rest = before.since(now);
        let wanted = held.revoke_at.is_none() && (held.object == current || held.found);
        match result {
            Ok(lease) => {
                held.lease = lease;
                let moved = held.lease.expires_at > before; // 1, 2
                if wanted {
                    held.plan = if moved {
                        plan(now, &held.lease, seed, attempt)
                    } else {
                        Plan::Replace(now.after(rest / 2))
                    };
                }
                false
            }
            Err(error) => {
                let moment = matches!(
                    error.kind(),
                    ErrorKind::Unavailable
                        | ErrorKind::Timeout
                        | ErrorKind::Exhausted
                        | ErrorKind::Node
                );
                if wanted && moment && rest > held.life / 6 {
                    held.plan = Plan::Renew(now.after((rest / 4).max(limits::RETRY_FIRST))); // 3
                    return false;
                }
                wanted // 4
            }
        }
    }

    /// Whether there is something to revoke now. One at a time: its end does not say which it was.
    pub(super) fn wants_revocation(&self, now: Mono) -> bool {
        self.revocation(now).is_some()
    }

    fn revocation(&self, now: Mono) -> Option<usize> {
        if self.held.iter().any(|held| held.revoking) {
            return None;
        }
        self.held
            .iter()
            .position(|held| !held.renewing && held.revoke_at.is_some_and(|at| at <= now))
    }

    /// Begins a revocation.
    pub(super) fn revoke(&mut self, now: Mono) -> Option<Lease> {
        let at = self.revocation(now)?;
        let held = self.held.get_mut(at)?;
        held.revoking = true;
        Some(held.lease.clone())
    }

    /// A revocation ended.
    pub(super) fn revoked(&mut self, now: Mono, done: bool) {
        let Some(at) = self.held.iter().position(|held| held.revoking) else {
            return;
        };
        if done {
            self.held.remove(at);
        } else if let Some(held) = self.held.get_mut(at) {
            let wait = schedule::backoff(held.failures, limits::RETRY_MAX, self.seed);
            held.failures = held.failures.saturating_add(1);
            (held.revoking, held.revoke_at) = (false, Some(now.after(wait)));
        }
    }

    /// Whether a revocation is in flight.
    pub(super) fn revoking(&self) -> bool {
        self.held.iter().any(|held| held.revoking)
    }

    /// When a current lease has to be seen to.
    pub(super) fn plan_at(&self) -> Option<Mono> {
        let plans = self.held.iter().filter_map(|held| match held.plan {
            Plan::Rest => None,
            Plan::Renew(at) | Plan::Replace(at) => Some(at),
        });
        plans.min()
    }

    /// When the next one has to be revoked.
    pub(super) fn revoke_at(&self) -> Option<Mono> {
        let idle = self.held.iter().filter(|held| !held.renewing);
        idle.filter_map(|held| held.revoke_at).min()
    }

    /// When the next one dies.
    pub(super) fn expires_at(&self) -> Option<Mono> {
        let idle = self
            .held
            .iter()
            .filter(|held| !held.renewing && !held.revoking);
        idle.map(|held| held.lease.expires_at).min()
    }

    fn plan(&self, now: Mono, lease: &Lease) -> Plan {
        plan(now, lease, self.seed, self.attempt)
    }
}

fn plan(now: Mono, lease: &Lease, seed: u64, attempt: u32) -> Plan {
    let at = schedule::lease_due(now, lease.expires_at, seed, attempt);
    let at = at.max(now.after(limits::RETRY_FIRST));
    if lease.renewable {
        Plan::Renew(at)
    } else {
        Plan::Replace(at)
    }
}
