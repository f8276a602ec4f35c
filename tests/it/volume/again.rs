//! The same call again, by its raw text; and another one for a volume that is served.

use secretfs::{
    caller::Identity,
    error::codes,
    render::Generation,
    volume::{PublishRequest, VolumeState},
};

use crate::support::{
    bed::{Bed, asked, caller, refused, target, volume},
    scripted::{Answer, What},
};

const X: &str = "files: [{path: x, from: a:db}]";
const X_AND_Y: &str = "files: [{path: x, from: a:db}, {path: y, from: a:key}]";
const NO_SPEC: &str = "files: [{path: x, form: a:db}]";

async fn publish(bed: &Bed, text: &str) -> secretfs::error::Result<secretfs::volume::Published> {
    let published = bed.volumes.publish(asked("v", text)).await;
    bed.clock.settle().await;
    Ok(published?)
}

#[tokio::test(start_paused = true)]
async fn the_same_text_is_not_read_fetched_or_touched() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    publish(&bed, X).await.unwrap();
    let before = (bed.a.checks(), bed.a.asked().len(), bed.faults.probes());
    assert_eq!((before.0, before.1), (1, 1));
    for nth in 1..=5 {
        let again = publish(&bed, X).await.unwrap();
        assert_eq!((again.generation, again.files), (Generation(1), Some(1)));
        let now = (bed.a.checks(), bed.a.asked().len(), bed.faults.probes());
        assert_eq!(now, (before.0, before.1, before.2 + nth), "one look each");
    }
    assert_eq!(bed.shown("v").unwrap().swaps, 0);
}

#[tokio::test(start_paused = true)]
async fn another_text_that_means_the_same_is_read_once_and_swaps_nothing() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    publish(&bed, X).await.unwrap();
    let other = format!("# why\n{X}\n");
    for _ in 0..3 {
        assert!(publish(&bed, &other).await.unwrap().refused.is_none());
        assert_eq!((bed.a.checks(), bed.a.asked().len()), (2, 1));
    }
    assert_eq!(bed.shown("v").unwrap().swaps, 0);
}

#[tokio::test(start_paused = true)]
async fn a_text_that_is_no_spec_is_refused_once_and_what_is_served_stays() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let first = bed.volumes.publish(asked("v", NO_SPEC)).await.unwrap_err();
    assert_eq!(first.error.code().name, "spec.unknown_key");
    let says = "files[0].form: unknown key `form` in files[0] (did you mean `from`?)";
    assert!(first.error.to_string().contains(says), "{}", first.error);
    assert!(!first.served && bed.volumes.status().is_empty());
    assert_eq!(bed.told(), [] as [&str; 0], "who asks hears it");

    publish(&bed, X).await.unwrap();
    let checks = bed.a.checks();
    for nth in 0..3 {
        assert_eq!(refused(&publish(&bed, NO_SPEC).await), "spec.unknown_key");
        let status = bed.status("v").unwrap();
        assert_eq!(status.state, VolumeState::Stale);
        let error = status.error.unwrap();
        assert_eq!(error.code, "spec.unknown_key");
        assert!(
            *error.since.unwrap() < *"2026-11-24T18:00:30",
            "since the first"
        );
        let expect: &[&str] = if nth == 0 {
            &["SecretSpecRefused"]
        } else {
            &[]
        };
        assert_eq!(bed.told(), expect, "once");
        bed.pass(60).await;
    }
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two", "it rotates on");
    // (the text has no reference that is right, so reading it again would not be seen in `checks`)
    let with_reference = format!("{X}\nmore: 1");
    publish(&bed, &with_reference).await.unwrap();
    let read = bed.a.checks();
    assert!(read > checks);
    publish(&bed, &with_reference).await.unwrap();
    assert_eq!(bed.a.checks(), read, "read again");
    bed.reconfigure(1); // another configuration may judge otherwise
    publish(&bed, &with_reference).await.unwrap();
    assert!(bed.a.checks() > read);

    assert_eq!(refused(&publish(&bed, X).await), "ok");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_spec_whose_sources_fail_is_tried_again_with_each_republish() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    publish(&bed, X).await.unwrap();
    let denied = Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, None);
    bed.a.answer("key", denied);
    let failed = publish(&bed, X_AND_Y).await;
    assert_eq!(refused(&failed), "backend.permission_denied");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Denied);
    assert_eq!(bed.told(), ["SecretSpecRefused"]);
    let (checks, asked) = (bed.a.checks(), bed.a.count(What::Fetch, "key"));
    bed.pass(600).await;
    assert_eq!(bed.a.count(What::Fetch, "key"), asked, "it is still asked");

    bed.a.answer("key", Answer::Value);
    let missing = publish(&bed, X_AND_Y).await;
    assert_eq!(refused(&missing), "backend.not_found");
    assert_eq!(bed.told(), [] as [&str; 0]);
    bed.a.put("key", "two");
    bed.pass(5).await;
    let good = publish(&bed, X_AND_Y).await;
    assert_eq!(refused(&good), "ok");
    assert_eq!(bed.a.checks(), checks, "read again");
    assert_eq!(bed.read("v", "y").unwrap(), "two");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_refuses_the_next_spec_keeps_the_old_one() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.put("key", "two");
    publish(&bed, X).await.unwrap();
    bed.faults
        .arm(crate::support::bed::Fault::Error(&codes::MOUNT_NO_SPACE));
    assert_eq!(refused(&publish(&bed, X_AND_Y).await), "mount.no_space");
    assert_eq!(bed.read("v", "y"), None);
    bed.a.put("db", "three"); // the old rules are in force
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "three");
    assert_eq!(bed.read("v", "y"), None);
    assert_eq!(refused(&publish(&bed, X_AND_Y).await), "ok");
    assert_eq!(bed.read("v", "y").unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_local_users_refusals_and_losses_are_no_events() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let local = |text| PublishRequest {
        caller: caller(Identity::Local { uid: 7 }),
        ..asked("v", text)
    };
    bed.volumes.publish(local(X)).await.unwrap();
    let other = bed.volumes.publish(local(NO_SPEC)).await.unwrap();
    assert_eq!(other.refused.unwrap().code().name, "spec.unknown_key");
    bed.mounts.lose(&target("v"));
    bed.volumes.publish(local(X)).await.unwrap();
    assert_eq!(bed.told(), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_mount_was_made_anew_is_told_to_start_again() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    publish(&bed, X).await.unwrap();
    bed.mounts.lose(&target("v"));
    bed.a.answer("db", Answer::Hang);
    bed.pass(70).await;
    assert_eq!(bed.told(), [] as [&str; 0], "not before there is one");
    assert_eq!(refused(&publish(&bed, X).await), "ok"); // the clock stands still
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.told(), ["SecretVolumeLost"]);
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Lost);
    publish(&bed, X).await.unwrap();
    assert_eq!(bed.told(), [] as [&str; 0]);

    // and where it cannot be made anew, the answer is not final for the kubelet
    bed.mounts.lose(&target("v"));
    bed.mounts.occupy(&target("v"));
    let failed = bed.volumes.publish(asked("v", X)).await.unwrap_err();
    assert!(failed.served && failed.error.code() == &codes::MOUNT_FOREIGN);
}

#[tokio::test(start_paused = true)]
async fn one_volumes_status_is_had_without_the_others() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    publish(&bed, X).await.unwrap();
    let one = bed.volumes.one(&volume("v")).unwrap();
    let usage = one.usage.unwrap();
    assert_eq!((one.id.as_str(), usage.inodes), ("v", 1));
    assert!(usage.inodes_capacity > 1 && usage.bytes_capacity > usage.bytes);
    assert!(bed.volumes.one(&volume("w")).is_none());
}
