//! The first publish of a volume whose sources other volumes have: one look, with the mount, and what that look finds.

use std::sync::Arc;

use secretfs::{
    error::codes,
    policy::{Pattern, Policy, PolicyLine},
    render::Generation,
    spec::BackendName,
    volume::{Settings, VolumeState},
};

use crate::support::{
    bed::{Bed, Fault, code, spec, target},
    scripted::{Answer, AskedWho, What},
};

#[tokio::test(start_paused = true)]
async fn known_sources_are_mounted_with_one_look_and_no_question() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("first", &spec).await.unwrap();
    let (looks, asked) = (bed.faults.probes(), bed.a.count(What::Fetch, "db"));
    bed.publish("v", &spec).await.unwrap();
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.faults.probes(), looks + 1);
    assert_eq!(bed.a.count(What::Fetch, "db"), asked);
    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two", "it does not rotate");
}

#[tokio::test(start_paused = true)]
async fn what_is_there_already_is_refused_or_taken_over_as_ever() {
    let mut bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("left", &spec).await.unwrap();
    bed.restart().await;
    bed.publish("first", &spec).await.unwrap();
    bed.mounts.occupy(&target("v"));
    assert_eq!(code(&bed.publish("v", &spec).await), "mount.foreign");
    assert!(bed.status("v").is_none(), "something is left of it");

    let asked = bed.a.count(What::Fetch, "db");
    let left = bed.publish("left", &spec).await.unwrap();
    assert!(left.adopted && left.files.is_none());
    bed.pass(1).await;
    assert_eq!(bed.status("left").unwrap().state, VolumeState::Fresh);
    assert_eq!(bed.a.count(What::Fetch, "db"), asked);
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_comes_and_goes_under_way_is_looked_at_again() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("first", &spec).await.unwrap();
    for (id, found) in [("v", &codes::MOUNT_HELD), ("w", &codes::MOUNT_FOREIGN)] {
        bed.faults.arm(Fault::Error(found));
        let published = bed.publish(id, &spec).await.unwrap();
        assert_eq!(published.generation, Generation(1));
        assert_eq!(bed.read(id, "x").unwrap(), "one");
    }
}

// What runs keeps what it has. A pod that comes is another matter: for all we know it may no longer read that, and the store cannot be asked.
#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_is_not_given_what_was_confirmed_longer_ago_than_its_interval() {
    for (answer, expect) in [
        (&codes::BACKEND_UNAVAILABLE, "backend.unavailable"),
        (
            &codes::BACKEND_PERMISSION_DENIED,
            "backend.permission_denied",
        ),
    ] {
        let bed = Bed::new();
        bed.a.put("db", "one");
        let spec = spec(&["x < a:db"]); // each minute
        bed.publish("first", &spec).await.unwrap();
        bed.a.answer("db", Answer::Fail(answer, None));
        bed.pass(30).await;
        bed.publish("soon", &spec).await.unwrap();
        bed.pass(300).await;
        assert_eq!(code(&bed.publish("late", &spec).await), expect);
        assert_eq!(bed.read("first", "x").unwrap(), "one");
        assert!(bed.read("late", "x").is_none(), "nothing of it is mounted");
        bed.a.answer("db", Answer::Value);
        bed.pass(60).await;
        bed.publish("late", &spec).await.unwrap();
        assert_eq!(bed.read("late", "x").unwrap(), "one");
    }
}

// The policy of the node is asked for each pod, whenever it comes; the store would say the same of all. What is too old is too old all the same.
#[tokio::test(start_paused = true)]
async fn where_the_node_asks_what_is_known_is_anybodys_whom_the_policy_lets() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.when_asked_who(AskedWho::Node);
    let line = PolicyLine {
        namespaces: vec!["shop".into()],
        service_accounts: vec!["*".into()],
        allow: vec![(
            BackendName::parse("a").unwrap(),
            Pattern::parse("**").unwrap(),
        )],
    };
    let settings = bed.settings.borrow().clone();
    bed.settings.send_replace(Arc::new(Settings {
        policy: Policy::new(vec![line]),
        ..(*settings).clone()
    }));
    let spec = spec(&["x < a:db"]);
    bed.publish("first", &spec).await.unwrap();
    bed.a
        .answer("db", Answer::Fail(&codes::BACKEND_UNAVAILABLE, None));
    bed.pass(30).await;
    bed.publish("soon", &spec).await.unwrap();
    bed.pass(300).await;
    assert_eq!(
        code(&bed.publish("late", &spec).await),
        "backend.unavailable"
    );
}
