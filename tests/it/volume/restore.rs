//! What a restart finds: mounts, records, both, or one without the other.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

use secretfs::{
    backend::{Backend, registry::Registry},
    caller::Credentials,
    error::codes,
    mount::{Grant, MountOptions, Mounter as _},
    render::Generation,
    spec::BackendName,
    volume::{PublishRequest, Restored, Settings, VolumeState},
};

use crate::support::{
    bed::{Bed, asked, code, refused, target, volume},
    scripted::{Answer, pod},
};

const X: &str = "files: [{path: x, from: a:db}]";
const X_AND_Y: &str = "files: [{path: x, from: a:db}, {path: y, from: b:key}]";

const NONE: Restored = Restored {
    restored: 0,
    held: 0,
    lost: 0,
    skipped: 0,
};
const RESTORED: Restored = Restored {
    restored: 1,
    ..NONE
};
const HELD: Restored = Restored { held: 1, ..NONE };

/// The volume `v` of two stores, published by a process that is gone.
async fn left(text: &str) -> Bed {
    let mut bed = Bed::with_records();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.volumes.publish(asked("v", text)).await.unwrap();
    bed.restart().await;
    assert!(bed.status("v").is_none());
    bed
}

fn record(bed: &Bed, name: &str) -> PathBuf {
    bed.records().join(name)
}

fn names(bed: &Bed) -> Vec<String> {
    let entries = fs::read_dir(bed.records()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn with_its_record_a_volume_goes_on_before_anybody_calls() {
    let bed = left(X_AND_Y).await;
    assert_eq!(names(&bed), ["v.json"]);
    bed.a.put("db", "one more");
    assert_eq!(bed.volumes.restore().await, RESTORED);
    let status = bed.status("v").unwrap();
    assert_eq!(status.owner, "shop/web");
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one more", "within a second");
    assert_eq!(bed.read("v", "y").unwrap(), "two");
    let status = bed.status("v").unwrap();
    assert_eq!((status.state, status.generation), (VolumeState::Fresh, 2));

    // the kubelet's next call is the same call again
    let (checks, asked_for) = (bed.a.checks(), bed.a.asked().len());
    let kept = bed.volumes.publish(asked("v", X_AND_Y)).await.unwrap();
    assert_eq!((kept.generation, kept.adopted), (Generation(2), false));
    assert_eq!((bed.a.checks(), bed.a.asked().len()), (checks, asked_for));
    assert_eq!(bed.told(), [] as [&str; 0]);

    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none());
    assert_eq!(names(&bed), [] as [&str; 0], "its record stays");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_needs_a_token_waits_for_the_republish() {
    let bed = left(X_AND_Y).await;
    let stale = Answer::Fail(&codes::IDENTITY_TOKEN_STALE, None);
    bed.b.answer("key", stale);
    bed.a.put("db", "one more");
    assert_eq!(bed.volumes.restore().await, RESTORED);
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one more", "the others go on");
    let status = bed.status("v").unwrap();
    assert_eq!(status.state, VolumeState::WaitingForToken);
    let asked_for = bed.b.asked().len();
    bed.pass(80).await;
    assert_eq!(bed.b.asked().len(), asked_for, "it waits");

    bed.b.answer("key", Answer::Value);
    bed.b.put("key", "two more");
    bed.volumes.publish(asked("v", X_AND_Y)).await.unwrap();
    bed.pass(1).await;
    assert_eq!(bed.read("v", "y").unwrap(), "two more");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn without_a_record_a_mount_is_served_as_it_is_until_it_is_asked_for() {
    let mut bed = left(X).await;
    fs::remove_file(record(&bed, "v.json")).unwrap();
    assert_eq!(bed.volumes.restore().await, HELD);
    let status = bed.status("v").unwrap();
    assert_eq!(
        (status.state, status.owner.as_str()),
        (VolumeState::Adopted, "")
    );
    assert!(status.usage.is_some() && status.error.is_none());
    bed.a.put("db", "one more");
    bed.pass(600).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one", "nothing is known of it");
    assert_eq!(
        code(&bed.volumes.refresh(&volume("v")).await),
        "volume.unknown"
    );

    // a call that is wrong leaves it, and does not end it for the kubelet
    let wrong = bed.volumes.publish(asked("v", "files: 1")).await.unwrap();
    assert_eq!(wrong.refused.unwrap().code().name, "spec.wrong_type");
    assert_eq!(bed.trouble("v").unwrap(), "spec.wrong_type");
    let elsewhere = PublishRequest {
        target: target("elsewhere"),
        ..asked("v", X)
    };
    let elsewhere = bed.volumes.publish(elsewhere).await.unwrap_err();
    assert_eq!(elsewhere.error.code().name, "volume.elsewhere");

    let adopted = bed.volumes.publish(asked("v", X)).await.unwrap();
    assert!(adopted.adopted && adopted.refused.is_none());
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one more");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
    assert_eq!(names(&bed), ["v.json"]);

    bed.restart().await;
    fs::remove_file(record(&bed, "v.json")).unwrap();
    assert_eq!(bed.volumes.restore().await, HELD);
    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none() && bed.status("v").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_of_no_use_loses_no_mount_and_fails_no_publish() {
    let good = {
        let bed = left(X).await;
        fs::read_to_string(record(&bed, "v.json")).unwrap()
    };
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let cases: [(&str, Vec<u8>, bool); 8] = [
        ("truncated", good[..good.len() / 2].into(), true),
        ("empty", Vec::new(), true),
        ("garbage", vec![0xff; 100], true),
        (
            "newer",
            good.replace("\"version\":1", "\"version\":2").into(),
            false,
        ),
        ("newer and else", b"{\"version\":9,\"id\":[]}".into(), false),
        (
            "another boot's",
            good.replace(boot.trim(), "b").into(),
            true,
        ),
        (
            "misnamed",
            good.replace("\"id\":\"v\"", "\"id\":\"w\"").into(),
            false,
        ),
        ("huge", vec![b' '; 3 << 20], false),
    ];
    for (what, bytes, goes) in cases {
        assert_ne!(bytes, good.as_bytes(), "{what}");
        let bed = left(X).await;
        fs::write(record(&bed, "v.json"), &bytes).unwrap();
        let expect = Restored { skipped: 1, ..HELD };
        assert_eq!(bed.volumes.restore().await, expect, "{what}");
        assert_eq!(names(&bed).is_empty(), goes, "{what}");
        assert_eq!(bed.read("v", "x").unwrap(), "one", "{what}");
        bed.a.put("db", "two");
        let adopted = bed.volumes.publish(asked("v", X)).await.unwrap();
        assert!(adopted.adopted, "{what}");
        bed.pass(1).await;
        assert_eq!(bed.read("v", "x").unwrap(), "two", "{what}");
        assert_eq!(names(&bed), ["v.json"], "{what}");
        assert_eq!(
            fs::read_to_string(record(&bed, "v.json")).unwrap().len(),
            good.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn where_records_cannot_be_kept_nothing_fails() {
    let mut bed = Bed::with_records();
    bed.a.put("db", "one");
    fs::write(bed.records(), "a file is in the way").unwrap();
    bed.volumes.publish(asked("v", X)).await.unwrap();
    bed.restart().await;
    assert_eq!(bed.volumes.restore().await, HELD);
    bed.volumes.publish(asked("v", X)).await.unwrap();
    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none());
}

#[tokio::test(start_paused = true)]
async fn records_are_ours_alone_and_hold_no_proof() {
    let bed = Bed::with_records();
    bed.a.put("db", "the-value-canary");
    let secrets = [(
        "password".to_owned(),
        secretfs::secret::SecretBytes::new(b"the-proof-canary".to_vec()),
    )];
    let who = pod("web", "shop");
    let proof = Credentials::new(Vec::new(), secrets.into());
    let request = PublishRequest {
        caller: Arc::new((who, proof)),
        ..asked("v", X)
    };
    bed.volumes.publish(request).await.unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(bed.records()), 0o700);
    assert_eq!(mode(record(&bed, "v.json")), 0o600);
    let text = fs::read_to_string(record(&bed, "v.json")).unwrap();
    assert!(text.contains("a:db") && text.contains("shop"), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_update_is_on_record_and_a_refused_one_is_not() {
    let mut bed = Bed::with_records();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.volumes.publish(asked("v", X)).await.unwrap();
    bed.volumes.publish(asked("v", X_AND_Y)).await.unwrap();
    for bad in [
        "files: 1",
        "files: [{path: z, from: b:none}]",
        "files: [{path: z, from: 'a:db#f'}]",
    ] {
        let answer = bed
            .volumes
            .publish(asked("v", bad))
            .await
            .map_err(Into::into);
        assert_ne!(refused(&answer), "ok");
    }
    assert_eq!(names(&bed), ["v.json"]);
    bed.restart().await;
    assert_eq!(bed.volumes.restore().await, RESTORED);
    bed.pass(1).await;
    assert_eq!(bed.shown("v").unwrap().swaps, 1, "swapped back");
    let (checks, asked_for) = (bed.b.checks(), bed.b.asked().len());
    let kept = bed.volumes.publish(asked("v", X_AND_Y)).await.unwrap();
    assert!(kept.refused.is_none());
    assert_eq!((bed.b.checks(), bed.b.asked().len()), (checks, asked_for));
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_fails_leaves_no_record() {
    let bed = Bed::with_records();
    bed.a.put("db", "one");
    bed.faults
        .arm(crate::support::bed::Fault::Error(&codes::MOUNT_KERNEL));
    let failed = bed.volumes.publish(asked("v", X)).await;
    assert_eq!(code(&failed), "mount.kernel");
    assert_eq!(names(&bed), [] as [&str; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_we_died_in_is_taken_over_or_forgotten() {
    for attached in [true, false] {
        let bed = left(X).await;
        fs::rename(record(&bed, "v.json"), record(&bed, "v.new")).unwrap();
        if attached {
            assert_eq!(bed.volumes.restore().await, RESTORED);
            assert_eq!(names(&bed), ["v.json"]);
            assert_eq!(bed.status("v").unwrap().owner, "shop/web");
        } else {
            bed.mounts.lose(&target("v"));
            assert_eq!(bed.volumes.restore().await, NONE);
            assert_eq!(names(&bed), [] as [&str; 0]);
            assert!(bed.volumes.status().is_empty());
            let asked_for = bed.a.asked().len();
            bed.pass(600).await;
            assert_eq!(bed.a.asked().len(), asked_for);
        }
        bed.volumes.publish(asked("v", X)).await.unwrap();
        bed.pass(1).await;
        assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
        assert_eq!(bed.told(), [] as [&str; 0], "nobody runs on it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_went_while_we_were_away_is_lost() {
    for foreign in [false, true] {
        let bed = left(X).await;
        bed.mounts.lose(&target("v"));
        if foreign {
            bed.mounts.occupy(&target("v"));
        }
        let expect = Restored { lost: 1, ..NONE };
        assert_eq!(bed.volumes.restore().await, expect);
        let status = bed.status("v").unwrap();
        assert_eq!(
            (status.state, status.owner.as_str()),
            (VolumeState::Lost, "shop/web")
        );
        assert_eq!(bed.trouble("v").unwrap(), "mount.gone");
        bed.pass(100).await;
        if foreign {
            let refused = bed.volumes.publish(asked("v", X)).await.unwrap_err();
            assert!(refused.served && refused.error.code() == &codes::MOUNT_FOREIGN);
            bed.mounts.lose(&target("v"));
        }
        bed.volumes.publish(asked("v", X)).await.unwrap();
        assert_eq!(bed.read("v", "x").unwrap(), "one");
        assert_eq!(bed.told(), ["SecretVolumeLost"]);
        assert_eq!(bed.status("v").unwrap().state, VolumeState::Lost);
        bed.settings.send_modify(|settings| {
            let mut one = Settings::clone(settings);
            one.node_limits.volumes_per_pod = 1;
            *settings = Arc::new(one);
        });
        let second = bed.volumes.publish(asked("w", X)).await;
        assert_eq!(code(&second), "limit.exceeded", "v counts");
        bed.unpublish("v").await.unwrap();
        assert_eq!(names(&bed), [] as [&str; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_spec_cannot_be_served_any_more_keeps_its_files() {
    let bed = left(X_AND_Y).await;
    let a: Arc<dyn Backend> = Arc::new(bed.a.clone());
    let only_a = Settings {
        registry: Registry::new([(BackendName::parse("a").unwrap(), a)].into(), 1),
        ..Settings::default()
    };
    let both = bed.settings.send_replace(Arc::new(only_a));
    assert_eq!(bed.volumes.restore().await, HELD);
    let status = bed.status("v").unwrap();
    assert_eq!(
        (status.state, status.owner.as_str()),
        (VolumeState::Stale, "shop/web")
    );
    assert_eq!(bed.trouble("v").unwrap(), "spec.unknown_backend");
    let again = bed.volumes.publish(asked("v", X_AND_Y)).await.unwrap();
    assert_eq!(again.refused.unwrap().code().name, "spec.unknown_backend");
    assert_eq!(bed.read("v", "y").unwrap(), "two");

    bed.settings.send_replace(both);
    bed.b.put("key", "two more");
    let good = bed.volumes.publish(asked("v", X_AND_Y)).await.unwrap();
    assert!(good.refused.is_none());
    bed.pass(1).await;
    assert_eq!(bed.read("v", "y").unwrap(), "two more");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

/// A process died in an unpublish: the files were wiped, the mount is there.
#[tokio::test(start_paused = true)]
async fn an_emptied_mount_is_not_answered_for_before_it_has_its_files() {
    for has_record in [true, false] {
        let bed = left(X).await;
        let options = MountOptions {
            volume: volume("v"),
            bytes_limit: 1 << 20,
            files_limit: 16,
            context: None,
            make_target: false,
            grant: Grant::default(),
        };
        let emptied = bed.mounts.adopt(&target("v"), &options);
        emptied.unwrap().wipe().unwrap();
        if !has_record {
            fs::remove_file(record(&bed, "v.json")).unwrap();
        }
        bed.a
            .answer("db", Answer::Fail(&codes::BACKEND_UNAVAILABLE, None));
        bed.volumes.restore().await;
        for spec in [X, X_AND_Y, "files: ["] {
            let refused = bed.volumes.publish(asked("v", spec)).await.unwrap_err();
            assert!(refused.served, "{spec}: the kubelet must not forget it");
        }
        assert_eq!(bed.read("v", "x"), None);

        bed.a.answer("db", Answer::Value);
        bed.a.put("db", "two");
        bed.pass(120).await;
        assert_eq!(code(&bed.volumes.publish(asked("v", X)).await), "ok");
        assert_eq!(bed.read("v", "x").unwrap(), "two");
        bed.unpublish("v").await.unwrap();
        assert!(bed.shown("v").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_volumes_are_taken_over_together() {
    let mut bed = Bed::with_records();
    bed.settings.send_modify(|settings| {
        let mut many = Settings::clone(settings);
        many.node_limits.volumes_per_pod = 1000;
        many.node_limits.bytes_per_namespace = 1 << 40;
        many.node_limits.bytes_per_node = 1 << 40;
        *settings = Arc::new(many);
    });
    bed.a.put("db", "one");
    for nth in 0..1000 {
        let id = format!("v{nth}");
        bed.volumes.publish(asked(&id, X)).await.unwrap();
    }
    bed.restart().await;
    let asked_for = bed.a.asked().len();
    bed.a.put("db", "two");
    let expect = Restored {
        restored: 1000,
        ..NONE
    };
    assert_eq!(bed.volumes.restore().await, expect);
    bed.pass(1).await;
    let current = (0..1000).filter(|nth| bed.read(&format!("v{nth}"), "x").unwrap() == "two");
    assert_eq!(current.count(), 1000);
    assert_eq!(bed.a.asked().len(), asked_for + 1, "one fetch for all");
}
