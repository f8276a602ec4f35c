//! What kinds of store do, through the unchanged pool and task: push, leases, NotModified, throttling, many volumes at once.

use std::time::Duration;

use secretfs::{error::codes, limits, render::Generation, spec::Refresh};

use crate::support::{
    bed::{Bed, code, request, request_as, spec, spec_every, volume},
    scripted::{Answer, Leases, What, pod},
};

#[tokio::test(start_paused = true)]
async fn not_modified_makes_no_new_generation() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.pass(600).await;
    let fetches = bed.a.count(What::Fetch, "db");
    assert!(
        (8..=14).contains(&fetches),
        "{fetches} fetches in ten minutes"
    );
    assert_eq!(bed.a.asked().last().unwrap().have.as_deref(), Some("1"));
    let shown = bed.shown("v").unwrap();
    assert_eq!((shown.swaps, shown.generation), (0, Generation(1)));
    let status = bed.status("v").unwrap();
    assert!(status.checked_seconds_ago.unwrap() <= 66.0, "{status:?}");
    assert!(status.next_in_seconds.unwrap() <= 66.0, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_within_the_interval() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.a.put("db", "two");
    bed.pass(67).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    assert_eq!(bed.shown("v").unwrap().generation, Generation(2));
}

#[tokio::test(start_paused = true)]
async fn a_push_is_seen_at_once() {
    let bed = Bed::new();
    bed.a.script("db", |script| script.pushes = true);
    bed.a.put("db", "one");
    bed.publish("v", &spec_every(Refresh::Never, &["x < a:db"]))
        .await
        .unwrap();
    assert_eq!(bed.a.watchers("db"), 1);
    for text in ["two", "three"] {
        bed.pass(10).await;
        bed.a.put("db", text);
        bed.pass_ms(250).await;
        assert_eq!(bed.read("v", "x").unwrap(), text);
    }
    assert_eq!(bed.shown("v").unwrap().generation, Generation(3));
    assert!(bed.status("v").unwrap().sources[0].pushes);
    bed.unpublish("v").await.unwrap();
    bed.clock.settle().await;
    assert_eq!(bed.a.watchers("db"), 0, "the watch goes on");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_store_is_not_asked_before_it_said() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    let pause = Duration::from_secs(300);
    bed.a
        .answer("db", Answer::Fail(&codes::BACKEND_THROTTLED, Some(pause)));
    let told = code(&bed.volumes.refresh(&volume("v")).await);
    assert_eq!(told, "backend.throttled");
    let at = bed.a.asked().last().unwrap().at;
    bed.a.answer("db", Answer::Value);
    bed.a.put("db", "two");
    let asked = bed.a.asked().len();
    bed.pass(299).await;
    assert_eq!(bed.a.asked().len(), asked, "asked too early");
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.trouble("v").unwrap(), "backend.throttled");
    bed.pass(200).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    let next = bed.a.asked()[asked].at;
    assert!(next >= at.after(pause));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_volumes_are_one_fetch_and_are_told_at_once() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.answer("db", Answer::Slow(Duration::from_secs(1)));
    let spec = spec(&["x < a:db"]);
    let ids: Vec<String> = (0..100).map(|n| format!("v{n}")).collect();
    let publishes: Vec<_> = ids
        .iter()
        .map(|id| bed.begin(request_as(pod(&format!("pod-{id}"), "shop"), id, &spec)))
        .collect();
    bed.pass(1).await;
    for publish in publishes {
        publish.await.unwrap().unwrap();
    }
    assert_eq!(bed.a.count(What::Fetch, "db"), 1);
    bed.a.put("db", "two");
    let volumes = bed.volumes.clone();
    let refreshed = tokio::spawn(async move { volumes.refresh_all().await });
    bed.pass(3).await;
    let refreshed = refreshed.await.unwrap();
    assert!(refreshed.len() == 100 && refreshed.iter().all(|(_, result)| result.is_ok()));
    assert!(
        bed.a.count(What::Fetch, "db") <= 3,
        "{}",
        bed.a.count(What::Fetch, "db")
    );
    for id in &ids {
        assert_eq!(bed.read(id, "x").unwrap(), "two", "{id}");
    }
    bed.unpublish("v0").await.unwrap(); // the first who asked: his caller is no longer there
    bed.a.put("db", "three");
    bed.pass(70).await;
    assert_eq!(bed.read("v99", "x").unwrap(), "three");
}

#[tokio::test(start_paused = true)]
async fn what_changes_together_is_shown_together() {
    let bed = Bed::new();
    for store in [&bed.a, &bed.b] {
        store.script("s", |script| script.pushes = true);
        store.put("s", "one");
    }
    bed.publish("v", &spec(&["x < a:s", "y < b:s"]))
        .await
        .unwrap();
    bed.b.answer("s", Answer::Slow(Duration::from_millis(150)));
    bed.a.put("s", "two");
    bed.b.put("s", "two");
    bed.pass_ms(149).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one", "half of it is shown");
    bed.pass_ms(101).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    assert_eq!(bed.read("v", "y").unwrap(), "two");
    assert_eq!(bed.shown("v").unwrap().swaps, 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_holds_the_others_back_for_a_moment_only() {
    let bed = Bed::new();
    for store in [&bed.a, &bed.b] {
        store.script("s", |script| script.pushes = true);
        store.put("s", "one");
    }
    bed.publish("v", &spec(&["x < a:s", "y < b:s"]))
        .await
        .unwrap();
    bed.b.answer("s", Answer::Hang);
    bed.a.put("s", "two");
    bed.b.put("s", "two");
    bed.pass_ms(199).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    bed.pass_ms(61).await; // up to a tick of the grid of due times
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    assert_eq!(bed.read("v", "y").unwrap(), "one");
}

fn dynamic(bed: &Bed, renewable: bool) {
    bed.a.put("creds", "made anew each time");
    bed.a.script("creds", |script| {
        script.leases = Some(Leases {
            renewable,
            ttl: Duration::from_secs(600),
            max_ttl: Duration::from_secs(3600),
        });
    });
}

#[tokio::test(start_paused = true)]
async fn each_volume_has_dynamic_credentials_of_its_own_and_unpublish_revokes_them() {
    let bed = Bed::new();
    dynamic(&bed, true);
    let spec = spec_every(Refresh::Never, &["user < ~a:creds"]);
    bed.publish("v", &spec).await.unwrap();
    bed.publish("w", &spec).await.unwrap();
    assert_eq!(bed.a.leases().len(), 2);
    let read = |id| bed.read(id, "user").unwrap();
    assert_ne!(read("v"), read("w"));
    bed.unpublish("v").await.unwrap();
    bed.pass(5).await;
    let leases = bed.a.leases();
    assert!(
        leases[0].revoked_at.is_some(),
        "not revoked after unpublish"
    );
    assert!(
        leases[1].revoked_at.is_none(),
        "another volume's lease was revoked"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_it_can_be_then_replaced_and_then_revoked() {
    let bed = Bed::new();
    dynamic(&bed, true);
    bed.publish("v", &spec_every(Refresh::Never, &["user < ~a:creds"]))
        .await
        .unwrap();
    // Goal: at every second of three hours, what readers see is a lease that lives.
    for second in 0..3 * 3600 {
        bed.pass(1).await;
        let seen: usize = bed.read("v", "user").unwrap()["user-".len()..]
            .parse()
            .unwrap();
        let lease = &bed.a.leases()[seen];
        let now = secretfs::clock::Clock::now(&*bed.clock);
        assert!(
            lease.revoked_at.is_none(),
            "revoked while it is read, second {second}"
        );
        assert!(
            lease.expires_at > now,
            "expired while it is read, second {second}"
        );
    }
    let leases = bed.a.leases();
    assert!(
        (3..=8).contains(&leases.len()),
        "{} leases in three hours",
        leases.len()
    );
    assert!(leases[0].renewals >= 3, "{leases:?}");
    let over = &leases[..leases.len() - 1];
    for (old, new) in over.iter().zip(&leases[1..]) {
        let overlap_end = old
            .revoked_at
            .map_or(old.expires_at, |at| at.min(old.expires_at));
        assert!(overlap_end > new.at, "no overlap: {old:?} {new:?}");
    }
    let shown = bed.shown("v").unwrap();
    assert_eq!(
        shown.generation.0 as usize,
        leases.len(),
        "a renewal is no change"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_replaced_in_time() {
    let bed = Bed::new();
    dynamic(&bed, false);
    bed.publish("v", &spec_every(Refresh::Never, &["user < ~a:creds"]))
        .await
        .unwrap();
    bed.pass(599).await;
    assert_eq!(bed.a.count(What::Renew, "creds"), 0);
    assert!(bed.a.leases().len() >= 2, "not replaced before its end");
    let (old, new) = (&bed.a.leases()[0], &bed.a.leases()[1]);
    let revoked_at = old
        .revoked_at
        .expect("readers have left it, and it was not given back");
    assert!(
        revoked_at.since(new.at) >= limits::LEASE_OVERLAP,
        "no overlap"
    );
    let room = old.expires_at.since(new.at);
    assert!(room >= Duration::from_secs(150), "{room:?} before its end");
    let newest = bed.a.leases().len() - 1;
    assert_eq!(bed.read("v", "user").unwrap(), format!("user-{newest}"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_comes_after_everybody_left_is_revoked() {
    let bed = Bed::new();
    dynamic(&bed, true);
    // a store that has made the credentials before it hears that nobody wants them
    bed.a.answer("creds", Answer::Deaf(Duration::from_secs(2)));
    let publish = bed.begin(request(
        "v",
        &spec_every(Refresh::Never, &["user < ~a:creds"]),
    ));
    bed.pass(1).await;
    bed.unpublish("v").await.unwrap();
    assert_eq!(code(&publish.await.unwrap()), "volume.closed");
    bed.pass(10).await;
    let leases = bed.a.leases();
    assert!(
        leases.len() == 1 && leases[0].revoked_at.is_some(),
        "{leases:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_comes_during_a_shutdown_is_waited_for_and_revoked() {
    let bed = Bed::new();
    dynamic(&bed, true);
    bed.a.answer("creds", Answer::Deaf(Duration::from_secs(2)));
    let publish = bed.begin(request(
        "v",
        &spec_every(Refresh::Never, &["user < ~a:creds"]),
    ));
    bed.pass(1).await;
    let volumes = bed.volumes.clone();
    let stopped = tokio::spawn(async move { volumes.shutdown().await });
    bed.clock.settle().await;
    assert!(!stopped.is_finished(), "a request was dropped halfway");
    assert_eq!(code(&publish.await.unwrap()), "volume.stopped");
    bed.pass(2).await;
    stopped.await.unwrap();
    let leases = bed.a.leases();
    assert!(
        leases.len() == 1 && leases[0].revoked_at.is_some(),
        "{leases:?}"
    );
}
