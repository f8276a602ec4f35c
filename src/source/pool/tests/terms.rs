//! What subscribers' terms change: a backend on this machine, an object that they can do without.

use super::*;
use crate::backend::{Allowance, Pace};

fn local() -> Terms {
    Terms {
        pace: Pace::Local,
        ..Terms::default()
    }
}

#[test]
fn a_backend_on_this_machine_is_asked_for_many_at_once() {
    let mut rig = Rig::new();
    rig.terms = local();
    let mut gone = 0;
    for n in 0..200 {
        let path = format!("x{n}");
        gone += rig.subscribe("a", &path, None).words().len();
        let said = rig.fetched(&path, object("1", None));
        assert!(said.words().is_empty(), "{:?}", said.words());
    }
    assert_eq!(gone, 200, "without waiting");
}

#[test]
fn on_this_machine_a_hint_right_after_a_fetch_waits_for_a_moment_only() {
    for (terms, gap) in [
        (local(), limits::HINT_GAP_LOCAL),
        (Terms::default(), limits::HINT_GAP),
    ] {
        let mut rig = Rig::new();
        rig.terms = terms;
        rig.subscribe("a", "x", None);
        let asked = rig.now;
        rig.fetched("x", object("1", None));
        assert!(rig.on(Event::Hint(key("x"))).words().is_empty());
        assert_eq!(rig.next().words(), ["fetch x Refresh again"]);
        let waited = rig.now - asked - gap.as_secs_f64();
        assert!((0.0..0.001).contains(&waited), "{waited}");
    }
}

#[test]
fn on_this_machine_the_watch_begins_first_and_one_fetch_is_enough() {
    let mut rig = Rig::new();
    rig.terms = local();
    let said = rig.subscribe_to("a", "x", None, true);
    assert_eq!(said.words(), ["watch x"]);
    assert!(rig.subscribe_to("b", "x", None, true).words().is_empty());
    rig.now += 0.001;
    let said = rig.on(Event::Hint(key("x")));
    assert_eq!(said.words(), ["fetch x Publish anew"]);
    rig.now += 0.001;
    rig.fetched("x", object("1", None));
    assert!(rig.next().words().is_empty(), "no second one");
    rig.now += 1.0;
    let said = rig.on(Event::Hint(key("x")));
    assert_eq!(said.words(), ["fetch x Refresh again"], "a change");
    // one that comes while the first is out is not lost
    rig.subscribe_to("a", "y", None, true);
    rig.on(Event::Hint(key("y")));
    rig.on(Event::Hint(key("y")));
    rig.now += 1.0;
    let said = rig.fetched("y", object("1", None));
    assert_eq!(said.words(), ["fetch y Refresh again"]);
}

#[test]
fn a_watch_that_does_not_begin_delays_the_first_fetch_for_a_moment_only() {
    let mut rig = Rig::new();
    rig.terms = local();
    rig.subscribe_to("a", "x", None, true);
    assert_eq!(rig.next().words(), ["fetch x Publish anew"]);
    assert!((1000.0..=1000.11).contains(&rig.now), "{}", rig.now);
    rig.now += 0.01;
    rig.fetched("x", object("1", None));
    let said = rig.on(Event::Hint(key("x"))); // it has begun after all
    assert_eq!(said.words(), ["fetch x Refresh again"]);
    rig.subscribe_to("a", "y", None, true);
    let error = Error::new(&codes::STORE_IO);
    let said = rig.on(Event::WatchEnded(key("y"), Err(error)));
    assert_eq!(said.words(), ["fetch y Publish anew"]);
    rig.subscribe_to("a", "z", None, true);
    let said = rig.refresh("a");
    assert!(said.words().contains(&"fetch z Publish anew".to_owned()));
}

fn optional() -> Terms {
    Terms {
        optional: true,
        ..Terms::default()
    }
}

#[test]
fn a_removed_secret_goes_when_all_can_do_without_it() {
    let mut rig = Rig::new();
    rig.terms = optional();
    rig.subscribe("a", "x", Some(MINUTE * 5));
    rig.terms = Terms::default();
    rig.subscribe("b", "x", Some(MINUTE * 5));
    rig.fetched("x", object("1", Some(lease("L", 90_000.0, false))));
    rig.applied("a", "x", "1");
    rig.applied("b", "x", "1");
    rig.next();
    let said = rig.fetched("x", fail(&codes::BACKEND_NOT_FOUND));
    assert!(matches!(said.view().known, Known::Object(_)), "b needs it");
    assert!(said.view().error.is_some() && said.view().failing_since.is_some());
    rig.on(Event::Unsubscribe(volume("b")));
    rig.next();
    let said = rig.fetched("x", fail(&codes::BACKEND_NOT_FOUND));
    assert!(matches!(said.view().known, Known::Absent));
    assert!(said.view().error.is_none() && said.view().failing_since.is_none());
    let gone = rig.now;
    assert_eq!(rig.next().words(), ["revoke L"]);
    let overlap = limits::LEASE_OVERLAP.as_secs_f64();
    assert!(
        (overlap..overlap + 1.0).contains(&(rig.now - gone)),
        "{}",
        rig.now
    );
}

#[test]
fn absent_is_an_answer_that_is_looked_at_in_its_interval_and_after_a_hint_at_once() {
    let mut rig = Rig::new();
    rig.terms = optional();
    rig.subscribe("a", "x", Some(MINUTE));
    for _ in 0..5 {
        let asked = rig.now;
        let said = rig.fetched("x", fail(&codes::BACKEND_NOT_FOUND));
        assert!(matches!(said.view().known, Known::Absent));
        assert_eq!(said.view().checked_at, Some(at(asked)));
        assert!(said.view().error.is_none() && said.view().failing_since.is_none());
        assert_eq!(rig.next().words(), ["fetch x Refresh anew"]);
        assert!((50.0..=60.1).contains(&(rig.now - asked)), "{}", rig.now);
    }
    rig.fetched("x", fail(&codes::BACKEND_NOT_FOUND));
    rig.now += 0.1;
    assert!(rig.subscribe("b", "x", Some(MINUTE)).words().is_empty());
    let said = rig.on(Event::Hint(key("x")));
    assert_eq!(said.words(), ["fetch x Publish anew"]);
    // a failure is one, also of what was absent; it is tried again soon
    let said = rig.fetched("x", fail(&codes::BACKEND_UNAVAILABLE));
    assert_eq!(said.view().failing_since, Some(at(rig.now)));
    let failed = rig.now;
    rig.next();
    assert!(rig.now < failed + 1.1, "{}", rig.now);
    // where nothing would tell of it, it is still looked for
    rig.subscribe("c", "never", None);
    rig.fetched("never", fail(&codes::BACKEND_NOT_FOUND));
    rig.on(Event::Unsubscribe(volume("a")));
    rig.on(Event::Unsubscribe(volume("b")));
    rig.fetched("x", fail(&codes::BACKEND_CANCELLED));
    assert_eq!(rig.next().words(), ["fetch never Refresh anew"]);
}

#[test]
fn while_its_watch_is_down_a_source_says_so_and_when_it_is_looked_at() {
    let mut rig = Rig::new();
    rig.terms = local();
    rig.subscribe_to("a", "x", None, true);
    rig.on(Event::Hint(key("x")));
    let said = rig.fetched("x", object("1", None));
    assert_eq!(said.view().next_at, None, "on push");
    for _ in 0..3 {
        rig.now += 0.001;
        let broken = Err(Error::new(&codes::STORE_IO));
        let said = rig.on(Event::WatchEnded(key("x"), broken));
        let (view, now) = (said.view(), rig.now);
        assert_eq!(view.watch_error.as_ref().unwrap().code(), &codes::STORE_IO);
        assert!(view.error.is_none());
        let next = view.next_at.unwrap();
        assert!(next >= at(now + 1.0), "{next:?}");
        if !said.words().is_empty() {
            rig.fetched("x", Ok(Fetched::NotModified));
        }
        assert_eq!(rig.next().words(), ["watch x"]);
        assert!((at(rig.now)).since(next) < Duration::from_millis(1));
    }
    rig.now += 0.001;
    let said = rig.on(Event::Hint(key("x")));
    assert!(said.view().watch_error.is_none());
    assert_eq!(said.words(), ["fetch x Refresh again"]);
    let said = rig.fetched("x", Ok(Fetched::NotModified));
    assert_eq!(said.view().next_at, None);
    // a watch that works and tells nothing
    rig.terms = Terms::default();
    rig.subscribe_to("a", "y", Some(MINUTE), true);
    rig.fetched("y", object("1", None));
    let broken = Err(Error::new(&codes::BACKEND_UNAVAILABLE));
    rig.on(Event::WatchEnded(key("y"), broken));
    rig.next();
    let said = rig.fetched("y", Ok(Fetched::NotModified));
    assert!(said.view().watch_error.is_some(), "it has only just begun");
    rig.next();
    let said = rig.fetched("y", Ok(Fetched::NotModified));
    assert!(said.view().watch_error.is_none());
}

// --- what was confirmed long ago is not for a newcomer

#[test]
fn a_newcomer_asks_by_his_own_proof_where_the_last_answer_is_older_than_his_interval() {
    let recent = |recent| Terms {
        recent,
        ..Terms::default()
    };
    for (terms, age, expect) in [
        (recent(None), 3_000.0, vec![]),
        (recent(Some(MINUTE)), 59.0, vec![]),
        (recent(Some(MINUTE)), 61.0, vec!["fetch x Publish again"]),
    ] {
        let mut rig = Rig::new();
        rig.subscribe("a", "x", None);
        rig.fetched("x", object("1", None));
        (rig.now, rig.terms) = (rig.now + age, terms);
        let said = rig.subscribe("b", "x", Some(MINUTE * 60));
        assert_eq!(said.words(), expect, "{age}");
        let is_known = matches!(said.view().known, Known::Object(_));
        assert!(is_known, "what others have stays theirs");
        // who had it before is no newcomer
        if expect.is_empty() {
            assert!(rig.subscribe("a", "x", None).words().is_empty());
        }
    }
}

#[test]
fn a_backend_is_asked_within_what_its_configuration_allows() {
    let mut rig = Rig::new();
    rig.terms.pace = Pace::Within(Allowance {
        per_second: 1,
        burst: 2,
        in_flight: 1,
    });
    let first = rig.subscribe("a", "x", Some(MINUTE)).words();
    assert_eq!(first, ["fetch x Publish anew"]);
    assert!(rig.subscribe("b", "y", Some(MINUTE)).words().is_empty());
    assert!(rig.subscribe("c", "z", Some(MINUTE)).words().is_empty());
    let said = rig.fetched("x", object("1", None));
    assert_eq!(said.words(), ["fetch y Publish anew"], "one at a time");
    let said = rig.fetched("y", object("1", None));
    assert!(said.words().is_empty(), "two at once: {:?}", said.words());
    rig.now += 0.9;
    assert!(rig.on(Event::Tick).words().is_empty());
    rig.now += 0.2;
    assert_eq!(rig.on(Event::Tick).words(), ["fetch z Publish anew"]);
}
