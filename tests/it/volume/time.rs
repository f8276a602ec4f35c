//! Suspends, and a wall clock that somebody sets. Deadlines are of the clock that runs on during a suspend.

use std::time::Duration;

use secretfs::volume::VolumeState;

use crate::support::{
    bed::{Bed, spec, spec_every},
    scripted::{Leases, What},
};

#[tokio::test(start_paused = true)]
async fn after_a_suspend_of_eight_hours_all_is_current_at_once() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.a.put("db", "two");
    let before = bed.a.count(What::Fetch, "db");
    bed.clock.jump(Duration::from_secs(8 * 3600));
    bed.clock.settle().await;
    let status = bed.status("v").unwrap();
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    let asked = bed.a.count(What::Fetch, "db") - before;
    assert_eq!(asked, 1, "missed times are not made up for");
    assert_eq!(status.error.map(|error| error.code), None);
    assert!(bed.status("v").unwrap().checked_seconds_ago.unwrap() <= 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_died_during_a_suspend_is_replaced_at_once() {
    let bed = Bed::new();
    bed.a.put("creds", "");
    let (ttl, max_ttl) = (Duration::from_secs(600), Duration::from_secs(3600));
    bed.a.script("creds", |script| {
        script.leases = Some(Leases {
            renewable: true,
            ttl,
            max_ttl,
        });
    });
    let never = secretfs::spec::Refresh::Never;
    bed.publish("v", &spec_every(never, &["user < ~a:creds"]))
        .await
        .unwrap();
    bed.clock.jump(Duration::from_secs(8 * 3600));
    bed.pass(2).await;
    assert_eq!(bed.read("v", "user").unwrap(), "user-1");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn setting_the_wall_clock_changes_nothing() {
    // Goal: requests come at the same moments whether somebody sets the wall clock or not.
    let run = |step_s: i64| async move {
        let bed = Bed::new();
        bed.a.put("db", "one");
        bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
        for minute in 0..30 {
            if minute == 10 {
                bed.clock.step_wall(step_s);
            }
            bed.a.put("db", &minute.to_string());
            bed.pass(60).await;
        }
        let status = bed.status("v").unwrap();
        let at: Vec<_> = bed.a.asked().into_iter().map(|asked| asked.at).collect();
        (
            at,
            status.generation,
            status.checked_seconds_ago,
            status.next_in_seconds,
        )
    };
    let straight = run(0).await;
    assert!(straight.0.len() > 20);
    assert_eq!(run(3600).await, straight);
    assert_eq!(run(-3600).await, straight);
}

/// A node at rest sleeps, however many volumes it has: that a store has nothing new wakes none of them.
#[tokio::test(start_paused = true)]
async fn an_answer_without_news_wakes_no_pods_volume() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    for n in 0..5 {
        bed.publish(&format!("v{n}"), &spec).await.unwrap();
    }
    bed.pass(1).await;
    let (looks, asked) = (bed.faults.probes(), bed.a.asked().len());
    bed.pass(600).await;
    assert!(bed.a.asked().len() > asked, "the store is not asked");
    assert_eq!(bed.faults.probes(), looks, "volumes woke for nothing");
    let status = bed.status("v4").unwrap();
    assert!(status.checked_seconds_ago.unwrap() <= 70.0);

    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(bed.read("v4", "x").unwrap(), "two");
}
