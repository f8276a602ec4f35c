//! What one backend may be asked now, and by whom: requests in flight, a rate, breakers; all of them fair between tenants.
//!
//! A *tenant* is a namespace ([`Tenant`]). Each has a *lane* through the gate: its own requests in flight and its own breaker, so
//! that what hangs or fails for one is asked less for that one alone. The rate is the backend's, and so is a last quarter of the
//! requests in flight that only a tenant may use who has none in flight and whose breaker is closed: tenants that hang cannot
//! take it all.
//!
//! A store that is down is down for all, and must not be probed once for each tenant. So there is one more breaker, the
//! backend's (`whole`): it hears every request of every tenant and opens when some fail in a row and none is answered between.
//! It binds only tenants whose own breaker is open: they then share its probes, in turn. A tenant who was answered last is never
//! kept back by it; during an outage he soon fails on his own. The first answer to anybody closes it, and all others may try at once.
//!
//! The loser: one breaker for each tenant and no other. With many small tenants, each of which probes as rarely as it can, that
//! is several times the hundredth of the healthy rate that a store which is down may be asked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub use super::breaker::Sign;
use super::breaker::{Breaker, Stand};
use crate::{clock::Mono, limits};

/// On whose account a request goes: a namespace, or `None` for what belongs to none or is shared by several.
pub type Tenant = Option<Arc<str>>;

/// The limits of every backend.
#[derive(Clone, Debug)]
pub struct GateRules {
    /// Requests in flight.
    pub in_flight: u32,
    /// The same, of one tenant.
    pub per_tenant: u32,
    /// Requests a second, in the long run; `None`: as many as it answers.
    pub per_second: Option<u32>,
    /// Requests at once, after a rest.
    pub burst: u32,
    /// Consecutive failures that open a breaker.
    pub failures: u32,
}

impl Default for GateRules {
    fn default() -> Self {
        Self {
            in_flight: limits::BACKEND_IN_FLIGHT,
            per_tenant: limits::TENANT_IN_FLIGHT,
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
            per_tenant: limits::LOCAL_TENANT_IN_FLIGHT,
            per_second: None,
            ..Self::default()
        }
    }
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

/// A request that has gone. [`Gate::ended`] takes it back.
#[derive(Clone, Default, Debug)]
pub struct Pass {
    tenant: Tenant,
    /// It is its tenant's probe, and the whole backend's.
    probes: bool,
    probes_whole: bool,
}

impl Pass {
    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Whether it went while its tenant was only probing.
    pub fn is_probe(&self) -> bool {
        self.probes
    }
}

#[derive(Default, Debug)]
struct Lane {
    in_flight: u32,
    breaker: Breaker,
}

/// One backend's gate.
#[derive(Debug)]
pub struct Gate {
    rules: GateRules,
    in_flight: u32,
    /// The bucket: the moment at which it will be full again, in nanoseconds. Each request moves it by one period.
    full_at: u64,
    whole: Breaker,
    lanes: BTreeMap<Tenant, Lane>,
}

impl Gate {
    /// A gate of a backend that is believed to work.
    pub fn new(rules: GateRules) -> Self {
        Self {
            rules,
            in_flight: 0,
            full_at: 0,
            whole: Breaker::default(),
            lanes: BTreeMap::new(),
        }
    }

    /// Other rules, from now on.
    pub fn rule(&mut self, rules: GateRules) {
        self.rules = rules;
    }

    /// Whether a request of this tenant may go now. `forced`: a person asked, so an open breaker lets it pass as a probe.
    pub fn verdict(&self, tenant: &Tenant, now: Mono, forced: bool) -> Verdict {
        let none = Lane::default();
        let lane = self.lanes.get(tenant).unwrap_or(&none);
        if !self.has_place(lane) {
            return Verdict::Full;
        }
        let breaker = match (self.stand(lane), forced) {
            (Stand::Closed, _) | (Stand::Open(_), true) => now,
            (Stand::Open(probe_at), false) => probe_at,
            (Stand::Probing, _) => return Verdict::Full,
        };
        let period = self.period();
        let slack = period.saturating_mul(u64::from(self.rules.burst.saturating_sub(1)));
        let bucket = Mono::from_nanos(self.full_at.saturating_sub(slack));
        match breaker.max(bucket).max(self.quiet_until(lane)) {
            at if at <= now => Verdict::Go,
            at => Verdict::NotBefore(at),
        }
    }

    /// A request goes.
    pub fn started(&mut self, tenant: &Tenant, now: Mono) -> Pass {
        self.in_flight += 1;
        self.full_at = self.full_at.max(now.as_nanos()) + self.period();
        let lane = self.lanes.entry(tenant.clone()).or_default();
        lane.in_flight += 1;
        let probes = lane.breaker.started();
        Pass {
            tenant: tenant.clone(),
            probes,
            probes_whole: probes && self.whole.started(),
        }
    }

    /// A request ended. `caps`: the longest wait between two probes, of its tenant and of the whole backend.
    ///
    /// 1. Its tenant's breaker hears it.
    /// 2. The whole backend's hears it as well. One tenant who is asked to slow down slows the others only when there is none who is
    ///    not: stores have quotas for each of their users.
    /// 3. An answer after an outage is news for every tenant who has been failing.
    pub fn ended(&mut self, now: Mono, pass: &Pass, sign: Sign, caps: [Duration; 2], seed: u64) {
        let failures = self.rules.failures;
        self.in_flight = self.in_flight.saturating_sub(1);
        let lane = self.lanes.entry(pass.tenant.clone()).or_default();
        lane.in_flight = lane.in_flight.saturating_sub(1);
        let [own, whole] = caps;
        lane.breaker
            .ended(now, pass.probes, sign, (failures, own), seed); // 1
        let is_throttled = |lane: &Lane| lane.breaker.is_shut(now);
        let heard = match sign {
            Sign::Throttled(_) if !self.lanes.values().all(is_throttled) => Sign::None,
            sign => sign,
        };
        let was_closed = self.whole.is_closed();
        self.whole
            .ended(now, pass.probes_whole, heard, (failures, whole), seed); // 2
        if self.whole.is_closed() && !was_closed {
            let lanes = self.lanes.values_mut();
            lanes.for_each(|lane| lane.breaker.try_anew(now)); // 3
        }
    }

    /// Somebody came who is asked more often than the others: the next probes are at most so far away.
    pub fn probe_within(&mut self, tenant: &Tenant, now: Mono, [own, whole]: [Duration; 2]) {
        if let Some(lane) = self.lanes.get_mut(tenant) {
            lane.breaker.probe_within(now, own);
        }
        self.whole.probe_within(now, whole);
    }

    /// While its breaker is not closed, or the store wants quiet: when this tenant may ask again, as far as is known.
    pub fn shut_until(&self, tenant: &Tenant, now: Mono) -> Option<Mono> {
        let none = Lane::default();
        let lane = self.lanes.get(tenant).unwrap_or(&none);
        let quiet = self.quiet_until(lane);
        match self.stand(lane) {
            Stand::Closed => (quiet > now).then_some(quiet),
            Stand::Open(probe_at) => Some(probe_at.max(quiet)),
            Stand::Probing => Some(now),
        }
    }

    /// Whether the backend is believed to work for this tenant.
    pub fn is_closed(&self, tenant: &Tenant) -> bool {
        let lane = self.lanes.get(tenant);
        lane.is_none_or(|lane| lane.breaker.is_closed())
    }

    /// Forgets tenants about whom there is nothing to know.
    pub fn forget(&mut self, now: Mono, is_here: impl Fn(&Tenant) -> bool) {
        self.lanes.retain(|tenant, lane| {
            let waits = match lane.breaker.stand() {
                Stand::Closed => lane.breaker.quiet_until() > now,
                Stand::Open(probe_at) => probe_at.max(lane.breaker.quiet_until()) > now,
                Stand::Probing => true,
            };
            lane.in_flight > 0 || waits || is_here(tenant)
        });
    }

    /// An open breaker of a tenant follows the whole backend's while that one is open too.
    fn stand(&self, lane: &Lane) -> Stand {
        match (lane.breaker.stand(), self.whole.stand()) {
            (Stand::Open(_), whole @ (Stand::Open(_) | Stand::Probing)) => whole,
            (own, _) => own,
        }
    }

    fn quiet_until(&self, lane: &Lane) -> Mono {
        self.whole.quiet_until().max(lane.breaker.quiet_until())
    }

    fn has_place(&self, lane: &Lane) -> bool {
        let common = self.rules.in_flight - self.rules.in_flight / 4;
        let is_first = lane.in_flight == 0 && lane.breaker.is_closed();
        let bound = if is_first {
            self.rules.in_flight
        } else {
            common
        };
        lane.in_flight < self.rules.per_tenant && self.in_flight < bound
    }

    fn period(&self) -> u64 {
        let per_second = self.rules.per_second;
        per_second.map_or(0, |many| 1_000_000_000 / u64::from(many.max(1)))
    }
}

#[cfg(test)]
mod tests;
