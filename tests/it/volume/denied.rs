//! Access that is taken away, and outages: what stays, what goes and when, and who may still start.

use std::time::Duration;

use secretfs::{
    clock::Clock as _,
    error::{Code, codes},
    volume::VolumeState,
};

use crate::support::{
    bed::{Bed, asked, code, refused, volume},
    scripted::{Answer, AskedWho},
};

/// Two secrets: one to be taken away, one that stays.
const TWO: &str = "files: [{path: x, from: a:db}, {path: both, template: \"{{ s }}{{ k }}\"}, {path: k, from: k}]\nsources: {s: a:db, k: a:key}\n";

async fn publish(bed: &Bed, id: &str, text: &str) -> &'static str {
    let published = bed.volumes.publish(asked(id, text)).await;
    bed.clock.settle().await;
    code(&published.map_err(|refused| refused.error))
}

/// The volume `v` of this spec, with both secrets.
async fn served(text: &str) -> Bed {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.put("key", "K");
    assert_eq!(publish(&bed, "v", text).await, "ok");
    bed
}

fn fail(bed: &Bed, code: &'static Code) {
    bed.a.answer("db", Answer::Fail(code, None));
}

/// The files `x`, `both` and `k`.
fn files(bed: &Bed, id: &str) -> [Option<String>; 3] {
    ["x", "both", "k"].map(|file| bed.read(id, file))
}

fn all(x: &str) -> [Option<String>; 3] {
    [Some(x.into()), Some(format!("{x}K")), Some("K".into())]
}

fn rest() -> [Option<String>; 3] {
    [None, None, Some("K".into())]
}

fn removed(bed: &Bed) -> [u64; 2] {
    ["denied", "deleted"].map(|reason| {
        let moment = secretfs::observe::metrics::Moment {
            build: ["", ""],
            volumes: Default::default(),
            oldest: None,
            memory: Vec::new(),
            leases: Default::default(),
            audit_dropped: 0,
            reload_successful: true,
            reloaded_at: secretfs::clock::Wall::from_millis(0),
        };
        let text = bed.metrics.text(&moment);
        let name = format!("secretfs_secrets_removed_total{{backend=\"a\",reason=\"{reason}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name));
        value.map_or(0, |value| value.parse().unwrap())
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_stays_for_ten_minutes_goes_and_comes_back() {
    for (answer, state, counted) in [
        (
            &codes::BACKEND_PERMISSION_DENIED,
            VolumeState::Denied,
            [1, 0],
        ),
        (&codes::BACKEND_NOT_FOUND, VolumeState::Stale, [0, 1]),
    ] {
        let bed = served(TWO).await;
        fail(&bed, answer);
        bed.pass(60).await;
        bed.told();
        bed.pass(590).await;
        assert_eq!(files(&bed, "v"), all("one"), "for less than ten minutes");
        bed.pass(70).await;
        assert_eq!(files(&bed, "v"), rest());
        let told = bed.told();
        let gone = told.iter().filter(|reason| **reason == "SecretRemoved");
        assert_eq!(gone.count(), 1, "{told:?}");
        assert_eq!(removed(&bed), counted);
        let status = bed.status("v").unwrap();
        assert_eq!(status.state, state);
        let is_removed: Vec<bool> = status.sources.iter().map(|one| one.removed).collect();
        assert_eq!(is_removed, [true, false]);
        let generation = status.generation;
        bed.pass(7200).await;
        let oldest = bed.volumes.gauges().oldest.unwrap();
        let age_ms = bed.clock.wall().as_millis() - oldest.as_millis();
        assert!(age_ms < 70_000, "{age_ms}: what nobody reads has no age");
        assert_eq!(bed.status("v").unwrap().generation, generation, "once");
        bed.a.put("key", "L"); // the other goes on
        bed.pass(120).await;
        assert_eq!(bed.read("v", "k").as_deref(), Some("L"));
        bed.a.put("key", "K");
        bed.a.answer("db", Answer::Value);
        bed.pass(120).await;
        assert_eq!(files(&bed, "v"), all("one"));
        assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
        assert_eq!(removed(&bed), counted);
    }
}

#[tokio::test(start_paused = true)]
async fn the_spec_says_whether_and_when() {
    for (said, gone_after) in [
        ("onDenied: keep", None),
        ("onDenied: {action: keep}", None),
        ("onDenied: remove", Some(600)),
        ("onDenied: {grace: 1h}", Some(3600)),
        ("onDenied: {action: remove, grace: 30m}", Some(1800)),
        ("onDenied: {grace: 0s}", Some(0)),
    ] {
        let bed = served(&format!("{TWO}refreshInterval: 5s\n{said}\n")).await;
        fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
        match gone_after {
            None => bed.pass(7200).await,
            Some(0) => {}
            Some(after) => bed.pass(after - 10).await,
        }
        if gone_after != Some(0) {
            assert_eq!(files(&bed, "v"), all("one"), "{said}");
        }
        if gone_after.is_some() {
            bed.pass(20).await;
            assert_eq!(files(&bed, "v"), rest(), "{said}");
        }
    }
}

// A login that is refused is refused to all of a cluster when its own credentials have ended; a token that is late comes.
#[tokio::test(start_paused = true)]
async fn nothing_else_removes_a_file() {
    for answer in [
        &codes::BACKEND_UNAVAILABLE,
        &codes::BACKEND_TIMEOUT,
        &codes::BACKEND_UNAUTHENTICATED,
        &codes::VAULT_LOGIN_REFUSED,
        &codes::IDENTITY_TOKEN_STALE,
        &codes::BACKEND_CORRUPT,
        &codes::BUG,
    ] {
        let bed = served(&format!("{TWO}onDenied: {{grace: 0s}}\n")).await;
        fail(&bed, answer);
        bed.pass(7200).await;
        assert_eq!(files(&bed, "v"), all("one"), "{}", answer.name);
        assert_eq!(removed(&bed), [0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_neither_begins_nor_ends_the_time_and_nothing_goes_in_it() {
    let bed = served(TWO).await;
    fail(&bed, &codes::BACKEND_UNAVAILABLE);
    bed.pass(3600).await;
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(400).await;
    assert_eq!(
        files(&bed, "v"),
        all("one"),
        "an hour of outage does not count"
    );
    fail(&bed, &codes::BACKEND_UNAVAILABLE);
    bed.pass(3600).await;
    assert_eq!(
        files(&bed, "v"),
        all("one"),
        "nothing goes while the store is down"
    );
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(120).await;
    assert_eq!(files(&bed, "v"), rest(), "it has not changed its mind");
    fail(&bed, &codes::BACKEND_UNAVAILABLE);
    bed.pass(3600).await;
    assert_eq!(
        files(&bed, "v"),
        rest(),
        "and nothing comes back because it is down"
    );
    bed.a.answer("db", Answer::Value);
    bed.pass(120).await;
    assert_eq!(files(&bed, "v"), all("one"));
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(400).await;
    assert_eq!(files(&bed, "v"), all("one"), "from the beginning");
}

#[tokio::test(start_paused = true)]
async fn a_new_spec_does_not_bring_back_what_is_refused() {
    let bed = served(&format!("{TWO}onDenied: {{grace: 0s}}\n")).await;
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(120).await;
    for down in [false, true] {
        if down {
            fail(&bed, &codes::BACKEND_UNAVAILABLE);
            bed.pass(120).await;
        }
        let keep = format!("{TWO}onDenied: keep\n");
        let published = bed.volumes.publish(asked("v", &keep)).await.unwrap();
        let expect = match down {
            false => "backend.permission_denied",
            true => "backend.unavailable",
        };
        assert_eq!(refused(&Ok(published)), expect);
        assert_eq!(files(&bed, "v"), rest());
    }
    assert_eq!(
        publish(&bed, "v", "files: [{path: k, from: a:key}]").await,
        "ok"
    );
    assert_eq!(files(&bed, "v"), rest());
}

#[tokio::test(start_paused = true)]
async fn a_restart_counts_anew_and_then_removes_what_it_never_knew() {
    let answers = [&codes::BACKEND_PERMISSION_DENIED, &codes::BACKEND_NOT_FOUND];
    for answer in answers {
        let mut bed = Bed::with_records();
        bed.a.put("db", "one");
        bed.a.put("key", "K");
        assert_eq!(publish(&bed, "v", TWO).await, "ok");
        fail(&bed, answer);
        bed.pass(500).await;
        bed.restart().await;
        bed.volumes.restore().await;
        assert_eq!(publish(&bed, "v", TWO).await, "ok");
        bed.pass(500).await;
        assert_eq!(files(&bed, "v"), all("one"), "{}", answer.name);
        bed.pass(300).await;
        assert_eq!(files(&bed, "v"), rest(), "{}", answer.name);
        bed.restart().await;
        bed.volumes.restore().await;
        assert_eq!(publish(&bed, "v", TWO).await, "ok");
        bed.pass(10).await;
        assert_eq!(
            files(&bed, "v"),
            rest(),
            "it does not come back by a restart"
        );
        bed.a.answer("db", Answer::Value);
        bed.pass(120).await;
        assert_eq!(files(&bed, "v"), all("one"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_gets_nothing_of_what_the_store_has_refused_since() {
    let long = format!("{TWO}refreshInterval: 1h\nserveStaleFor: 24h\n");
    let bed = served(&long).await;
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.volumes.refresh(&volume("v")).await.unwrap_err();
    bed.clock.settle().await;
    assert_eq!(publish(&bed, "w", &long).await, "backend.permission_denied");
    fail(&bed, &codes::BACKEND_UNAVAILABLE);
    bed.pass(60).await;
    assert_eq!(publish(&bed, "w", &long).await, "backend.unavailable");
    assert_eq!(bed.read("w", "x"), None);
    assert_eq!(bed.read("v", "x").as_deref(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_start_from_the_cache_for_so_long_while_the_store_is_down() {
    let stale = format!("{TWO}serveStaleFor: 1h\n");
    for answer in [&codes::BACKEND_UNAVAILABLE, &codes::BACKEND_TIMEOUT] {
        let bed = served(TWO).await;
        bed.a.answer("db", Answer::Fail(answer, None));
        bed.a.answer("key", Answer::Fail(answer, None));
        bed.pass(3000).await;
        assert_eq!(
            publish(&bed, "w", TWO).await,
            answer.name,
            "not unless it says so"
        );
        assert_eq!(publish(&bed, "w", &stale).await, "ok");
        assert_eq!(files(&bed, "w"), all("one"));
        let status = bed.status("w").unwrap();
        assert_eq!(status.state, VolumeState::Stale);
        assert!(status.checked_seconds_ago.unwrap() >= 3000.0);
        bed.pass(700).await;
        assert_eq!(publish(&bed, "u", &stale).await, answer.name, "too old");
        assert_eq!(files(&bed, "w"), all("one"), "what runs keeps it");
        bed.a.put("db", "two");
        bed.a.answer("db", Answer::Value);
        bed.a.answer("key", Answer::Value);
        bed.pass(600).await; // it is asked rarely
        assert_eq!(files(&bed, "w"), all("two"));
        assert_eq!(publish(&bed, "u", &stale).await, "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_asked_once_and_then_the_cache_serves_at_once() {
    let stale = format!("{TWO}serveStaleFor: 1h\n");
    let bed = served(TWO).await;
    bed.a.answer("db", Answer::Hang);
    bed.a.answer("key", Answer::Hang);
    bed.pass(300).await;
    let before = bed.clock.now();
    assert_eq!(publish(&bed, "w", &stale).await, "ok");
    assert!(bed.clock.now().since(before) < Duration::from_millis(10));
    assert_eq!(files(&bed, "w"), all("one"));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_refused_does_not_start_from_the_cache() {
    let stale = format!("{TWO}serveStaleFor: 24h\n");
    for answer in [
        &codes::BACKEND_PERMISSION_DENIED,
        &codes::BACKEND_UNAUTHENTICATED,
        &codes::BACKEND_NOT_FOUND,
        &codes::BACKEND_CORRUPT,
    ] {
        let bed = served(TWO).await;
        fail(&bed, answer);
        bed.pass(300).await;
        assert_eq!(publish(&bed, "w", &stale).await, answer.name);
    }
}

// Whoever may write one secret could else keep all others.
#[tokio::test(start_paused = true)]
async fn a_secret_that_does_not_render_keeps_no_other() {
    let text = "files: [{path: x, from: a:db}, {path: k, from: \"a:key#v\"}]\n";
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.put("key", r#"{"v": "1"}"#);
    assert_eq!(publish(&bed, "v", text).await, "ok");
    bed.a.put("key", r#"{"w": "2"}"#);
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(580).await;
    assert_eq!(bed.read("v", "x").as_deref(), Some("one"));
    bed.pass(100).await;
    assert_eq!(bed.read("v", "x"), None);
    assert_eq!(bed.read("v", "k").as_deref(), Some("1"), "as it was");
    assert_eq!(bed.trouble("v").as_deref(), Some("render.no_field"));
    bed.a.put("key", r#"{"v": "3"}"#);
    bed.pass(120).await;
    assert_eq!(bed.read("v", "k").as_deref(), Some("3"));
    assert_eq!(bed.read("v", "x"), None);
    assert_eq!(removed(&bed), [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_deleted_secret_does_not_stop_the_others_and_is_told() {
    for said in ["", "onDenied: keep\n"] {
        let text = format!("{TWO}{said}");
        let mut bed = Bed::with_records();
        bed.a.put("db", "one");
        bed.a.put("key", "K");
        assert_eq!(publish(&bed, "v", &text).await, "ok");
        fail(&bed, &codes::BACKEND_NOT_FOUND);
        bed.restart().await;
        bed.volumes.restore().await;
        assert_eq!(publish(&bed, "v", &text).await, "ok");
        bed.a.put("key", "L");
        bed.pass(120).await;
        let before = [Some("one".into()), Some("oneK".into()), Some("L".into())];
        assert_eq!(files(&bed, "v"), before, "{said}");
        let status = bed.status("v").unwrap();
        assert_eq!(status.state, VolumeState::Stale);
        assert_eq!(status.error.unwrap().code, "backend.not_found");
        bed.pass(600).await;
        let gone = [None, None, Some("L".into())];
        let expect = if said.is_empty() { gone } else { before };
        assert_eq!(files(&bed, "v"), expect, "{said}");
        assert_eq!(bed.status("v").unwrap().state, VolumeState::Stale);
        assert!(!bed.told().contains(&"SecretCurrent"));
    }
}

// Its own request waits for a probe, and the last that it has heard is the refusal.
#[tokio::test(start_paused = true)]
async fn in_an_outage_a_refusal_of_before_is_not_the_last_word() {
    let text = "files: [{path: x, from: a:db}, {path: all/, from: \"a:many#*\"}]\n";
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.put("many", r#"{"m": "1"}"#);
    assert_eq!(publish(&bed, "v", text).await, "ok");
    let others: Vec<String> = (0..12).map(|nth| format!("o{nth}")).collect();
    for other in &others {
        bed.a.put(other, "o");
        let text = format!("refreshInterval: 10s\nfiles: [{{path: o, from: \"a:{other}\"}}]");
        assert_eq!(publish(&bed, other, &text).await, "ok");
    }
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(70).await;
    assert_eq!(
        bed.trouble("v").as_deref(),
        Some("backend.permission_denied")
    );
    let down = |path: &str| {
        bed.a
            .answer(path, Answer::Fail(&codes::BACKEND_UNAVAILABLE, None))
    };
    others.iter().for_each(|other| down(other));
    down("many");
    down("db");
    bed.pass(3600).await;
    assert_eq!(bed.read("v", "x").as_deref(), Some("one"));
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_told_once_whatever_is_configured_anew() {
    let bed = served(&format!("{TWO}onDenied: {{grace: 60s}}\n")).await;
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(180).await;
    assert_eq!(removed(&bed), [1, 0]);
    bed.reconfigure(7);
    bed.clock.settle().await;
    bed.a.put("key", "L");
    bed.pass(1).await;
    assert!(bed.status("v").unwrap().sources[0].removed);
    bed.pass(300).await;
    assert_eq!(files(&bed, "v"), [None, None, Some("L".into())]);
    assert_eq!(removed(&bed), [1, 0]);
    bed.a.answer("db", Answer::Value);
    bed.pass(120).await;
    assert_eq!(bed.read("v", "both").as_deref(), Some("oneL"));
}

#[tokio::test(start_paused = true)]
async fn several_that_go_together_are_one_event() {
    let bed = served(TWO).await;
    let denied = Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, None);
    bed.a.answer("db", denied.clone());
    bed.a.answer("key", denied);
    bed.volumes.refresh(&volume("v")).await.unwrap_err();
    bed.pass(700).await;
    assert_eq!(files(&bed, "v"), [None, None, None]);
    assert_eq!(removed(&bed), [2, 0]);
    let told = bed.told();
    let gone = told.iter().filter(|reason| **reason == "SecretRemoved");
    assert_eq!(gone.count(), 1, "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_hears_of_a_refusal_meanwhile() {
    let bed = served(TWO).await;
    bed.a.put("slow", "s");
    let slow = Answer::Slow(Duration::from_secs(20));
    bed.a.answer("slow", slow);
    bed.pass(55).await;
    let text = "files: [{path: x, from: a:db}, {path: s, from: a:slow}]";
    let waiting = bed.begin(asked("w", text));
    bed.clock.settle().await;
    fail(&bed, &codes::BACKEND_PERMISSION_DENIED);
    bed.pass(30).await;
    assert_eq!(code(&waiting.await.unwrap()), "backend.permission_denied");
    assert_eq!(bed.read("w", "x"), None);
}

#[tokio::test(start_paused = true)]
async fn that_an_optional_secret_is_absent_is_known_in_an_outage_too() {
    let text = "serveStaleFor: 1h\nfiles: [{path: x, from: a:none, optional: true}, {path: k, from: a:key}]";
    let bed = Bed::new();
    bed.a.put("key", "K");
    assert_eq!(publish(&bed, "v", text).await, "ok");
    for path in ["none", "key"] {
        bed.a
            .answer(path, Answer::Fail(&codes::BACKEND_UNAVAILABLE, None));
    }
    bed.volumes.refresh(&volume("v")).await.unwrap_err();
    assert_eq!(publish(&bed, "soon", text).await, "ok");
    bed.pass(1800).await;
    assert_eq!(publish(&bed, "late", text).await, "ok");
    assert_eq!(bed.read("late", "k").as_deref(), Some("K"));
}

#[tokio::test(start_paused = true)]
async fn what_the_policy_takes_away_goes_also_after_a_restart() {
    let mut bed = Bed::with_records();
    bed.a.put("db", "one");
    bed.b.put("key", "K");
    let text = "files: [{path: x, from: a:db}, {path: k, from: b:key}]";
    assert_eq!(publish(&bed, "v", text).await, "ok");
    bed.a.when_asked_who(AskedWho::Node); // whose policy allows nothing
    bed.restart().await;
    bed.volumes.restore().await;
    assert_eq!(publish(&bed, "v", text).await, "ok");
    bed.b.put("key", "L");
    bed.pass(120).await;
    let shown = |bed: &Bed| ["x", "k"].map(|file| bed.read("v", file));
    assert_eq!(shown(&bed), [Some("one".into()), Some("L".into())]);
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Denied);
    bed.pass(600).await;
    assert_eq!(shown(&bed), [None, Some("L".into())]);
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Denied);
}
