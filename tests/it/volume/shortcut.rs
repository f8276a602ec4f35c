//! The first publish of a volume whose sources other volumes have: one look, with the mount, and what that look finds.

use secretfs::{error::codes, render::Generation, volume::VolumeState};

use crate::support::{
    bed::{Bed, Fault, code, spec, target},
    scripted::What,
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
