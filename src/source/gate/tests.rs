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
    ask_as(gate, &None, now, sign);
}

fn ask_as(gate: &mut Gate, tenant: &Tenant, now: Mono, sign: Sign) {
    assert_eq!(gate.verdict(tenant, now, false), Verdict::Go);
    let pass = gate.started(tenant, now);
    gate.ended(now, &pass, sign, [CAP; 2], 1);
}

fn of_none(probe: bool) -> Pass {
    Pass {
        tenant: None,
        probes: probe,
        probes_whole: probe,
    }
}

fn named(name: &str) -> Tenant {
    Some(name.into())
}

#[test]
fn eight_in_flight_and_the_ninth_waits_for_an_end() {
    let mut gate = gate();
    for _ in 0..8 {
        assert_eq!(gate.verdict(&None, at(1.0), false), Verdict::Go);
        gate.started(&None, at(1.0));
    }
    assert_eq!(gate.verdict(&None, at(1.0), true), Verdict::Full);
    gate.ended(at(1.0), &of_none(false), Sign::Alive, [CAP; 2], 1);
    assert_eq!(gate.verdict(&None, at(1.0), false), Verdict::Go);
}

#[test]
fn a_burst_and_then_twenty_a_second() {
    let mut gate = gate();
    let mut now = at(100.0);
    let mut gone = 0;
    while now < at(110.0) {
        match gate.verdict(&None, now, false) {
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
    for _ in 0..limits::LOCAL_TENANT_IN_FLIGHT {
        assert_eq!(gate.verdict(&None, at(1.0), false), Verdict::Go);
        gate.started(&None, at(1.0));
    }
    assert_eq!(gate.verdict(&None, at(1.0), false), Verdict::Full);
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
        assert!(gate.is_closed(&None));
    }
    ask(&mut gate, at(1.0), Sign::Down);
    assert!(!gate.is_closed(&None));
    let Verdict::NotBefore(probe_at) = gate.verdict(&None, at(1.0), false) else {
        panic!("{gate:?}");
    };
    assert!(probe_at <= at(2.0) && probe_at >= at(1.9));
    assert!(gate.started(&None, probe_at).probes, "a probe");
    assert_eq!(
        gate.verdict(&None, probe_at, true),
        Verdict::Full,
        "one at a time"
    );
    gate.ended(probe_at, &of_none(true), Sign::Alive, [CAP; 2], 1);
    assert!(gate.is_closed(&None));
    assert_eq!(gate.verdict(&None, probe_at, false), Verdict::Go);
}

#[test]
fn probes_grow_rare_up_to_the_cap() {
    let mut gate = gate();
    for _ in 0..5 {
        ask(&mut gate, at(1.0), Sign::Down);
    }
    let (mut now, mut waits) = (at(1.0), Vec::new());
    for _ in 0..14 {
        let Verdict::NotBefore(then) = gate.verdict(&None, now, false) else {
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
        let now = gate.shut_until(&None, at(1.0)).unwrap();
        let pass = gate.started(&None, now);
        gate.ended(now, &pass, Sign::Down, [SEC * 3600; 2], n);
    }
    let now = gate.shut_until(&None, at(1.0)).unwrap();
    gate.started(&None, now);
    gate.ended(now, &of_none(true), Sign::Down, [SEC * 3600; 2], 1);
    assert!(gate.shut_until(&None, now) > Some(now.after(SEC * 1000)));
    gate.probe_within(&None, now, [SEC * 300; 2]);
    assert_eq!(gate.shut_until(&None, now), Some(now.after(SEC * 300)));
    gate.probe_within(&None, now, [SEC * 3600; 2]);
    assert_eq!(gate.shut_until(&None, now), Some(now.after(SEC * 300)));
}

#[test]
fn a_person_passes_an_open_breaker_but_not_a_stores_own_wish() {
    let mut gate = gate();
    for _ in 0..5 {
        ask(&mut gate, at(1.0), Sign::Down);
    }
    assert_eq!(gate.verdict(&None, at(1.0), true), Verdict::Go);
    let pass = gate.started(&None, at(1.0));
    assert!(pass.probes);
    gate.ended(at(1.0), &pass, Sign::Throttled(SEC * 30), [CAP; 2], 1);
    assert_eq!(
        gate.verdict(&None, at(1.5), true),
        Verdict::NotBefore(at(31.0)),
        "quiet"
    );
    assert_eq!(gate.verdict(&None, at(31.0), true), Verdict::Go);
}

#[test]
fn a_persons_failed_probe_makes_nobody_wait_longer() {
    let mut gate = gate();
    for _ in 0..5 {
        ask(&mut gate, at(1.0), Sign::Down);
    }
    let before = gate.shut_until(&None, at(1.1));
    assert!(before.is_some());
    assert_eq!(gate.verdict(&None, at(1.1), true), Verdict::Go);
    let pass = gate.started(&None, at(1.1));
    gate.ended(at(1.2), &pass, Sign::Down, [CAP; 2], 1);
    assert_eq!(gate.shut_until(&None, at(1.2)), before);
}

#[test]
fn throttling_closes_the_gate_at_once_and_lets_one_back_in() {
    let mut gate = gate();
    ask(&mut gate, at(1.0), Sign::Throttled(SEC * 20));
    assert_eq!(gate.shut_until(&None, at(2.0)), Some(at(21.0)));
    assert_eq!(
        gate.verdict(&None, at(2.0), false),
        Verdict::NotBefore(at(21.0))
    );
    assert!(gate.started(&None, at(21.0)).probes);
    assert_eq!(gate.verdict(&None, at(21.0), false), Verdict::Full);
    gate.ended(at(21.0), &of_none(true), Sign::Alive, [CAP; 2], 1);
    assert_eq!(gate.shut_until(&None, at(21.0)), None);
    ask(&mut gate, at(22.0), Sign::Throttled(SEC * 1_000_000));
    assert_eq!(
        gate.shut_until(&None, at(23.0)),
        Some(at(22.0).after(limits::RETRY_AFTER_MAX))
    );
}

#[test]
fn a_late_failure_does_not_count_twice_and_a_probe_that_got_nowhere_is_repeated() {
    let mut gate = gate();
    for _ in 0..6 {
        gate.started(&None, at(1.0));
    }
    for _ in 0..5 {
        gate.ended(at(1.0), &of_none(false), Sign::Down, [CAP; 2], 1);
    }
    let before = gate.shut_until(&None, at(1.0));
    gate.ended(at(1.5), &of_none(false), Sign::Down, [CAP; 2], 1);
    assert_eq!(gate.shut_until(&None, at(1.5)), before);
    assert!(gate.started(&None, at(2.0)).probes);
    gate.ended(at(3.0), &of_none(true), Sign::None, [CAP; 2], 1);
    assert_eq!(gate.shut_until(&None, at(3.0)), Some(at(4.0)));
}
#[test]
fn a_tenant_has_eight_and_six_that_hang_leave_a_place_for_others() {
    let mut gate = gate();
    gate.rule(GateRules {
        per_second: None,
        ..GateRules::default()
    });
    for tenant in ["a", "b", "c", "d", "e", "f"] {
        for _ in 0..8 {
            assert_eq!(gate.verdict(&named(tenant), at(1.0), false), Verdict::Go);
            gate.started(&named(tenant), at(1.0));
        }
        assert_eq!(gate.verdict(&named(tenant), at(1.0), false), Verdict::Full);
    }
    // a quarter is left: one for each, and no tenant has two of it
    for nth in 0..16 {
        let tenant = named(&format!("late{nth}"));
        assert_eq!(gate.verdict(&tenant, at(3.0), false), Verdict::Go);
        gate.started(&tenant, at(3.0));
        assert_eq!(gate.verdict(&tenant, at(3.0), false), Verdict::Full);
    }
    assert_eq!(gate.verdict(&named("g"), at(9.0), false), Verdict::Full);
}

#[test]
fn a_tenant_whose_requests_fail_is_probed_and_others_are_asked() {
    let (mut gate, bad, good) = (gate(), named("bad"), named("good"));
    for _ in 0..5 {
        ask_as(&mut gate, &bad, at(1.0), Sign::Down);
        ask_as(&mut gate, &good, at(1.0), Sign::Alive);
    }
    assert!(!gate.is_closed(&bad) && gate.is_closed(&good));
    assert!(gate.shut_until(&bad, at(1.0)).is_some());
    ask_as(&mut gate, &good, at(1.0), Sign::Alive);
    assert!(!gate.is_closed(&bad), "another's answer does not mend it");
    ask_as(&mut gate, &bad, at(2.0), Sign::Alive);
    assert!(gate.is_closed(&bad));
}

#[test]
fn tenants_of_a_store_that_is_down_share_its_probes_and_its_first_answer() {
    let (mut gate, a, b, late) = (gate(), named("a"), named("b"), named("late"));
    ask_as(&mut gate, &late, at(1.0), Sign::Alive);
    for _ in 0..5 {
        ask_as(&mut gate, &a, at(1.0), Sign::Down);
        ask_as(&mut gate, &b, at(1.0), Sign::Down);
    }
    let mut now = at(1.0);
    for nth in 0..9 {
        now = gate.shut_until(&a, at(1.0)).unwrap();
        assert_eq!(gate.shut_until(&b, at(1.0)), Some(now), "one schedule");
        let tenant = if nth % 2 == 0 { &a } else { &b };
        assert!(gate.started(tenant, now).probes_whole);
        assert_eq!(gate.verdict(&a, now, true), Verdict::Full, "one at a time");
        assert_eq!(gate.verdict(&b, now, true), Verdict::Full);
        let pass = Pass {
            tenant: tenant.clone(),
            probes: true,
            probes_whole: true,
        };
        gate.ended(now, &pass, Sign::Down, [CAP; 2], 1);
    }
    // a tenant who was answered last is not kept back, and his answer lets everybody try
    let now = now.after(SEC);
    assert!(gate.shut_until(&a, now) > Some(now));
    ask_as(&mut gate, &late, now, Sign::Alive);
    for tenant in [&a, &b] {
        assert_eq!(gate.verdict(tenant, now, false), Verdict::Go);
        assert!(gate.started(tenant, now).probes);
        assert_eq!(
            gate.verdict(tenant, now, false),
            Verdict::Full,
            "a probe each"
        );
    }
}

#[test]
fn a_store_that_slows_one_tenant_down_slows_the_others_when_all_are() {
    let (mut gate, a, b) = (gate(), named("a"), named("b"));
    ask_as(&mut gate, &b, at(1.0), Sign::Alive);
    ask_as(&mut gate, &a, at(1.0), Sign::Throttled(SEC * 60));
    assert_eq!(
        gate.verdict(&a, at(2.0), true),
        Verdict::NotBefore(at(61.0))
    );
    assert_eq!(gate.verdict(&b, at(2.0), false), Verdict::Go);
    ask_as(&mut gate, &b, at(2.0), Sign::Throttled(SEC * 30));
    let new = named("new");
    assert_eq!(
        gate.verdict(&new, at(3.0), false),
        Verdict::NotBefore(at(32.0))
    );
}

#[test]
fn tenants_who_have_gone_are_forgotten_once_they_need_not_wait() {
    let (mut gate, a, b) = (gate(), named("a"), named("b"));
    ask_as(&mut gate, &a, at(1.0), Sign::Alive);
    ask_as(&mut gate, &b, at(1.0), Sign::Throttled(SEC * 60));
    gate.forget(at(2.0), |_| false);
    assert_eq!(gate.lanes.keys().collect::<Vec<_>>(), [&b]);
    gate.forget(at(90.0), |_| false);
    assert!(gate.lanes.is_empty());
}
