//! What fails: stores, mounts, our own tasks. Files keep the last good value, the status says why, and it mends itself.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use secretfs::{
    cli::status::show, error::codes, render::Generation, spec::Refresh, volume::VolumeState,
};

use crate::support::{
    bed::{Bed, Fault, code, request, request_as, spec, spec_every, target, volume},
    hearing::hear,
    scripted::{Answer, AskedWho},
};

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_fails_its_own_publish_and_no_other() {
    let bed = Bed::new();
    bed.a.answer("db", Answer::Hang);
    bed.b.put("key", "two");
    let hung = bed.begin(request("v", &spec(&["x < a:db"])));
    bed.pass(1).await;
    bed.publish("w", &spec(&["y < b:key"])).await.unwrap(); // the clock stands still
    assert_eq!(bed.read("w", "y").unwrap(), "two");
    bed.pass(28).await;
    assert!(!hung.is_finished());
    bed.pass(2).await;
    let failed = hung.await.unwrap();
    assert_eq!(code(&failed), "backend.timeout");
    assert!(failed.unwrap_err().to_string().contains("a:db"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_store_does_not_stop_the_others_files() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.b.put("key", "two");
    bed.publish("v", &spec(&["x < a:db", "y < b:key"]))
        .await
        .unwrap();
    bed.a
        .answer("db", Answer::Fail(&codes::BACKEND_UNAVAILABLE, None));
    bed.b.put("key", "three");
    bed.pass(120).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.read("v", "y").unwrap(), "three");
    let status = bed.status("v").unwrap();
    assert_eq!(status.state, VolumeState::Stale);
    let (error, age) = (status.error.unwrap(), status.checked_seconds_ago.unwrap());
    assert_eq!(error.code, "backend.unavailable");
    assert!(error.since.is_some() && age > 60.0, "{age}");
    assert_eq!(
        status.sources[0].error.as_ref().unwrap().code,
        "backend.unavailable"
    );
    assert!(status.sources[1].error.is_none());

    bed.a.answer("db", Answer::Value);
    bed.pass(3600).await;
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn the_state_says_who_must_act() {
    for (error, state) in [
        (&codes::BACKEND_PERMISSION_DENIED, VolumeState::Denied),
        (&codes::IDENTITY_TOKEN_STALE, VolumeState::WaitingForToken),
        (&codes::BACKEND_TIMEOUT, VolumeState::Stale),
    ] {
        let bed = Bed::new();
        bed.a.put("db", "one");
        bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
        bed.a.answer("db", Answer::Fail(error, None));
        bed.pass(70).await;
        let status = bed.status("v").unwrap();
        assert_eq!(status.state, state, "{}", error.name);
        assert_eq!(bed.read("v", "x").unwrap(), "one");
        // and so does the table that whoever is on call sees
        let (name, text) = (state.name(), show::table(&[&status]));
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with(&format!("{name} ")), "{text}");
        let notes = format!(
            " [{}]\n  fix: {}\n1 volume: 1 {name}\n",
            error.name, error.fix
        );
        assert!(text.ends_with(&notes), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_republish_brings_the_token_that_a_source_waits_for() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    bed.a
        .answer("db", Answer::Fail(&codes::IDENTITY_TOKEN_STALE, None));
    bed.pass(300).await;
    assert_eq!(bed.status("v").unwrap().state, VolumeState::WaitingForToken);
    bed.a.answer("db", Answer::Value);
    bed.a.put("db", "two");
    bed.publish("v", &spec).await.unwrap();
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_render_that_fails_keeps_the_files_until_the_next_change() {
    let bed = Bed::new();
    bed.a.put_fields("db", &[("user", "one", None)]);
    bed.publish("v", &spec(&["x < a:db#user"])).await.unwrap();
    bed.a.put_fields("db", &[("login", "two", None)]);
    let failed = bed.volumes.refresh(&volume("v")).await;
    assert_eq!(code(&failed), "render.no_field");
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    let status = bed.status("v").unwrap();
    assert_eq!(status.state, VolumeState::Stale);
    assert_eq!(
        status.sources[0].version.as_deref(),
        Some("1"),
        "the version that is mounted"
    );
    bed.a.put_fields("db", &[("user", "three", None)]);
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(bed.read("v", "x").unwrap(), "three");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_refuses_a_generation_gets_it_again_later() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.faults.arm(Fault::Error(&codes::MOUNT_NO_SPACE));
    bed.faults.arm(Fault::Error(&codes::MOUNT_NO_SPACE));
    bed.a.put("db", "two");
    assert_eq!(
        code(&bed.volumes.refresh(&volume("v")).await),
        "mount.no_space"
    );
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.trouble("v").unwrap(), "mount.no_space");
    bed.pass(1).await; // the second fault
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    bed.pass_ms(1_999).await;
    assert_eq!(bed.read("v", "x").unwrap(), "one", "the wait does not grow");
    bed.pass_ms(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    assert_eq!(bed.shown("v").unwrap().generation, Generation(2));
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_first_mount_that_fails_is_undone() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.faults.arm(Fault::Error(&codes::MOUNT_NOT_PERMITTED));
    let failed = bed.publish("v", &spec(&["x < a:db"])).await;
    assert_eq!(code(&failed), "mount.not_permitted");
    assert!(bed.volumes.status().is_empty());
    let asked = bed.a.asked().len();
    bed.pass(600).await;
    assert_eq!(bed.a.asked().len(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_lost_mount_is_shown_to_be_lost_and_mounted_anew_by_a_republish() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    let local = |id| request_as(secretfs::caller::Identity::Local { uid: 7 }, id, &spec);
    bed.publish("pod", &spec).await.unwrap();
    bed.volumes.publish(local("local")).await.unwrap();
    bed.mounts.lose(&target("pod"));
    bed.mounts.occupy(&target("local"));
    bed.a.put("db", "two");
    bed.pass(70).await;
    for id in ["pod", "local"] {
        assert!(bed.shown(id).is_none(), "mounted anew without being asked");
        assert_eq!(bed.status(id).unwrap().state, VolumeState::Lost);
        assert_eq!(bed.trouble(id).unwrap(), "mount.gone");
    }
    bed.pass(600).await;
    assert!(bed.shown("pod").is_none() && bed.shown("local").is_none());
    bed.mounts.lose(&target("local"));

    let again = bed.publish("pod", &spec).await.unwrap();
    assert_eq!(again.generation, Generation(2));
    bed.volumes.publish(local("local")).await.unwrap();
    bed.a.put("db", "three");
    bed.pass(70).await;
    for id in ["pod", "local"] {
        assert_eq!(bed.read(id, "x").unwrap(), "three", "{id} does not rotate");
    }
    // a container that ran before does not see the new mount: its pod has to be started again
    assert_eq!(bed.status("pod").unwrap().state, VolumeState::Lost);
    assert_eq!(bed.status("local").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_lost_mount_is_seen_though_no_value_changes() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    for (id, take) in [("v", "lose"), ("w", "occupy")] {
        bed.publish(id, &spec).await.unwrap();
        match take {
            "lose" => bed.mounts.lose(&target(id)),
            _ => bed.mounts.occupy(&target(id)),
        }
        let refreshed = bed.volumes.refresh(&volume(id)).await;
        assert_eq!(code(&refreshed), "mount.gone", "{take}");
        assert_eq!(bed.status(id).unwrap().state, VolumeState::Lost);
    }
    // a pod's mount is looked at by each republish, a local user's with each answer of a store
    let local = secretfs::caller::Identity::Local { uid: 7 };
    let request = request_as(local, "u", &spec);
    bed.volumes.publish(request).await.unwrap();
    bed.mounts.occupy(&target("u"));
    bed.pass(70).await; // nobody asks
    assert_eq!(bed.status("u").unwrap().state, VolumeState::Lost);
    assert_eq!(bed.trouble("u").unwrap(), "mount.gone");
}

#[tokio::test(start_paused = true)]
async fn a_local_volumes_mount_comes_back_by_itself() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let local = secretfs::caller::Identity::Local { uid: 7 };
    let request = request_as(local, "v", &spec(&["x < a:db"]));
    bed.volumes.publish(request).await.unwrap();
    bed.mounts.lose(&target("v"));
    bed.volumes.refresh(&volume("v")).await.unwrap();
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn an_unpublish_that_fails_is_finished_by_the_next_one() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    bed.faults.arm(Fault::Error(&codes::MOUNT_KERNEL));
    assert_eq!(code(&bed.unpublish("v").await), "mount.kernel");
    assert_eq!(code(&bed.publish("v", &spec).await), "volume.closed");
    assert_eq!(
        code(&bed.volumes.refresh(&volume("v")).await),
        "volume.unknown"
    );
    assert_eq!(bed.trouble("v").unwrap(), "mount.kernel");
    let asked = bed.a.asked().len();
    bed.pass(600).await;
    assert_eq!(bed.a.asked().len(), asked, "the sources were kept");
    bed.unpublish("v").await.unwrap();
    assert!(bed.shown("v").is_none() && bed.status("v").is_none());
    bed.publish("v", &spec).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_on_a_mount_that_panics_is_counted_and_the_mount_is_regained() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.faults.arm(Fault::Panic);
    bed.a.put("db", "two");
    assert_eq!(code(&bed.volumes.refresh(&volume("v")).await), "bug");
    assert_eq!(bed.volumes.panics(), 1);
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    bed.pass(1).await;
    assert_eq!(
        bed.read("v", "x").unwrap(),
        "two",
        "the handle was not regained"
    );
    assert_eq!(bed.shown("v").unwrap().generation, Generation(2));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_counted_and_the_next_call_adopts_the_mount() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    bed.a.when_asked_who(AskedWho::Panic);
    bed.reconfigure(1); // its sources are named again: that panics, and so does the task that each call starts
    let (first, second) = (
        bed.begin(request("v", &spec)),
        bed.begin(request("v", &spec)),
    );
    bed.clock.settle().await;
    assert_eq!(code(&first.await.unwrap()), "bug");
    assert_eq!(code(&second.await.unwrap()), "bug");
    assert_eq!(bed.volumes.panics(), 3);
    assert!(bed.status("v").is_none());
    let asked = bed.a.asked().len();
    bed.pass(600).await;
    assert_eq!(
        bed.a.asked().len(),
        asked,
        "the sources of a dead task are kept"
    );

    bed.a.when_asked_who(AskedWho::Account);
    assert_eq!(bed.read("v", "x").unwrap(), "one");
    assert!(bed.publish("v", &spec).await.unwrap().adopted);
    bed.a.put("db", "two");
    bed.pass(70).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_panics_is_an_error_of_its_request() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.publish("v", &spec(&["x < a:db"])).await.unwrap();
    bed.a.answer("db", Answer::Panic);
    assert_eq!(code(&bed.volumes.refresh(&volume("v")).await), "bug");
    assert_eq!(
        code(&bed.publish("w", &spec(&["y < a:other"])).await),
        "backend.not_found"
    );
    assert!(bed.volumes.panics() >= 1);
    bed.a.answer("db", Answer::Value);
    bed.pass(3600).await;
    assert_eq!(bed.status("v").unwrap().state, VolumeState::Fresh);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_heeds_no_deadline_fails_the_publish_all_the_same() {
    let bed = Bed::new();
    bed.a
        .answer("db", Answer::Deaf(Duration::from_secs(100_000)));
    let publish = bed.begin(request("v", &spec(&["x < a:db"])));
    bed.pass(99).await;
    assert!(!publish.is_finished());
    bed.pass(1).await;
    assert_eq!(code(&publish.await.unwrap()), "backend.timeout");
    let volumes = bed.volumes.clone();
    let stopped = tokio::spawn(async move { volumes.shutdown().await });
    bed.pass(10).await;
    assert!(stopped.is_finished(), "a deaf backend stops the stop");
}

#[tokio::test(start_paused = true)]
async fn what_the_node_may_read_is_not_for_any_pod() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    bed.a.when_asked_who(AskedWho::Node);
    let spec = spec(&["x < a:db"]);
    assert_eq!(code(&bed.publish("v", &spec).await), "policy.denied");
    assert!(bed.a.asked().is_empty());
    let local = secretfs::caller::Identity::Local { uid: 7 };
    bed.volumes
        .publish(request_as(local, "w", &spec))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_a_line_a_minute_and_its_end_is_one() {
    let log = Log::default();
    let _log = log.here();
    let bed = Bed::new();
    bed.a.put("db", "hunter2-canary");
    bed.publish(
        "v",
        &spec_every(Refresh::Every(Duration::from_secs(1)), &["x < a:db"]),
    )
    .await
    .unwrap();
    assert_eq!(log.lines("a new generation").len(), 1);
    bed.a.answer(
        "db",
        Answer::Fail(&codes::BACKEND_UNAVAILABLE, Some(Duration::from_secs(1))),
    );
    bed.pass(600).await;
    let warnings = log.lines("WARN");
    assert!(
        (5..=11).contains(&warnings.len()),
        "{}: {warnings:#?}",
        warnings.len()
    );
    assert!(
        warnings[0].ends_with("times=1") && warnings[0].contains("volume_id=v"),
        "{warnings:?}"
    );
    bed.a.answer("db", Answer::Value);
    bed.a.put("db", "hunter3-canary");
    bed.pass(600).await;
    assert_eq!(log.lines("recovered").len(), 1);
    assert_eq!(log.lines("a new generation").len(), 2);
    assert_eq!(log.lines("WARN").len(), warnings.len());
    assert!(log.lines("canary").is_empty(), "a secret in the log");
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_told_of_a_denial_at_once_of_an_outage_that_lasts_and_of_the_end() {
    let bed = Bed::new();
    bed.a.put("db", "one");
    let every_second = Refresh::Every(Duration::from_secs(1));
    let spec = spec_every(every_second, &["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    let second = Some(Duration::from_secs(1));
    let down = || {
        let fails = Answer::Fail(&codes::BACKEND_UNAVAILABLE, second);
        bed.a.answer("db", fails);
    };
    down();
    bed.pass(40).await;
    bed.a.answer("db", Answer::Value);
    bed.pass(60).await;
    assert_eq!(bed.told(), [""; 0], "short, and the files were there");
    down();
    bed.pass(300).await;
    let told: BTreeSet<_> = bed.told().into_iter().collect();
    assert_eq!(told, BTreeSet::from(["SecretStale"]));
    bed.a.answer("db", Answer::Value);
    bed.pass(300).await;
    assert_eq!(bed.told(), ["SecretCurrent"]);
    let denied = Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, second);
    bed.a.answer("db", denied);
    bed.pass(5).await;
    assert_eq!(bed.told(), ["SecretAccessDenied"]);
    bed.a.answer("db", Answer::Value);
    bed.pass(600).await;
    assert_eq!(bed.told().last(), Some(&"SecretCurrent"));
}

#[tokio::test(start_paused = true)]
async fn watches_that_break_are_shown_and_are_a_line_a_minute() {
    let log = Log::default();
    let _log = log.here();
    let bed = Bed::new();
    let unwatchable = |broken| {
        for path in ["x", "y"] {
            bed.a.script(path, |script| {
                (script.pushes, script.unwatchable) = (true, broken);
            });
        }
    };
    unwatchable(true);
    bed.a.put("x", "one");
    bed.a.put("y", "one");
    let spec = spec_every(Refresh::Never, &["x < a:x", "y < a:y"]);
    bed.publish("v", &spec).await.unwrap();
    bed.pass(20).await;
    let status = bed.status("v").unwrap();
    assert_eq!(status.state, VolumeState::Fresh);
    for source in &status.sources {
        assert!(!source.pushes && source.error.is_some(), "{source:?}");
    }
    assert!(status.next_in_seconds.is_some(), "{status:?}");
    assert_eq!(log.lines("WARN").len(), 1, "{:?}", log.lines("WARN"));
    assert_eq!(log.lines("changes are not told").len(), 1);
    bed.pass(600).await;
    let lines = log.lines("changes are not told").len();
    assert!((2..=11).contains(&lines), "{lines}");
    unwatchable(false);
    bed.pass(301).await;
    bed.a.put("x", "two");
    bed.a.put("y", "two");
    bed.pass(1).await;
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    let status = bed.status("v").unwrap();
    for source in &status.sources {
        assert!(source.pushes && source.error.is_none(), "{source:?}");
    }
    assert_eq!(status.next_in_seconds, None, "{status:?}");
}

/// What this thread logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn here(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || log.clone())
            .finish();
        hear(subscriber)
    }

    fn lines(&self, part: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(part));
        lines.map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
