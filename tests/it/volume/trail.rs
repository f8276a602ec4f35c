//! What a volume puts on record: each delivery, denial and removal, once, when it happens and not before.

use std::{fs, path::PathBuf, sync::Arc};

use secretfs::{
    caller::Identity,
    config,
    error::codes,
    limits,
    observe::audit::Audit,
    policy::Policy,
    volume::{Settings, VolumeState},
};
use serde_json::{Value, json};

use crate::support::{
    bed::{Bed, Fault, asked, code, kept, request, request_as, spec, target, volume},
    scripted::{Answer, AskedWho},
};

struct Trail {
    bed: Bed,
    audit: Audit,
    file: PathBuf,
    seen: std::cell::Cell<usize>,
    _dir: tempfile::TempDir,
}

impl Trail {
    fn new(deny_on_failure: bool) -> Self {
        Self::on(deny_on_failure, |_| {})
    }

    /// Where `prepare` may put something first.
    fn on(deny_on_failure: bool, prepare: impl FnOnce(&std::path::Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit.log");
        prepare(&file);
        let config = config::Audit {
            deliveries: true,
            file: Some(file.clone()),
            deny_on_failure,
        };
        let mut audit = Audit::off();
        let bed = Bed::audited(|clock| {
            audit = Audit::start(&config, clock.clone()).unwrap();
            audit.clone()
        });
        Self {
            bed,
            audit,
            file,
            seen: std::cell::Cell::new(0),
            _dir: dir,
        }
    }

    /// What came since the last call, without the time.
    fn lines(&self) -> Vec<Value> {
        assert!(self.audit.flush());
        let text = fs::read_to_string(&self.file).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("time").unwrap();
            line
        });
        let new: Vec<_> = lines.skip(self.seen.get()).collect();
        self.seen.set(self.seen.get() + new.len());
        new
    }

    /// The same in words: event, secret, version, result or code.
    fn told(&self) -> Vec<String> {
        let word = |line: &Value, key: &str| line[key].as_str().unwrap_or("-").to_owned();
        let told = self.lines();
        let told = told.iter().map(|line| {
            let why = match line["code"].as_str() {
                Some(code) => code.to_owned(),
                None => word(line, "result"),
            };
            let what = [
                word(line, "event"),
                word(line, "secret"),
                word(line, "version"),
                why,
            ];
            what.join(" ")
        });
        told.collect()
    }
}

#[tokio::test(start_paused = true)]
async fn each_version_is_on_record_once_for_each_volume_and_so_is_its_end() {
    for deny in [false, true] {
        let trail = Trail::new(deny);
        let bed = &trail.bed;
        bed.a.put("db", "one");
        bed.b.put("key", "two");
        let spec = spec(&["x < a:db", "y < a:db", "z < b:key"]);
        bed.publish("v", &spec).await.unwrap();
        let pod = json!({"namespace": "shop", "name": "web", "uid": "uid-of-web", "serviceAccount": "shop"});
        let first = json!({"event": "deliver", "volume": "v", "pod": pod, "backend": "a", "secret": "db", "version": "1", "path": "/pods/v", "result": "ok"});
        let second = json!({"event": "deliver", "volume": "v", "pod": pod, "backend": "b", "secret": "key", "version": "1", "path": "/pods/v", "result": "ok"});
        assert_eq!(
            trail.lines(),
            [first, second],
            "a secret in two files is one"
        );

        for _ in 0..3 {
            bed.publish("v", &spec).await.unwrap(); // as a kubelet does
            bed.pass(90).await;
        }
        assert_eq!(trail.told(), [""; 0]);
        bed.publish("w", &spec).await.unwrap();
        assert_eq!(trail.told().len(), 2, "another volume, the same secrets");

        bed.b.put("key", "three");
        bed.pass(60).await;
        let changed = trail.lines();
        assert_eq!(changed.len(), 2, "{changed:?}");
        for line in &changed {
            assert_eq!(
                (&line["secret"], &line["version"]),
                (&json!("key"), &json!("2"))
            );
        }
        assert_ne!(changed[0]["volume"], changed[1]["volume"]);

        bed.unpublish("v").await.unwrap();
        bed.unpublish("v").await.unwrap();
        let gone = json!({"event": "remove", "volume": "v", "pod": pod, "path": "/pods/v", "result": "ok"});
        assert_eq!(trail.lines(), [gone]);
        assert_eq!(trail.audit.dropped(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_shown_is_not_on_record() {
    for deny in [false, true] {
        let trail = Trail::new(deny);
        let bed = &trail.bed;
        bed.a.put("db", "one");
        bed.faults.arm(Fault::Error(&codes::MOUNT_KERNEL));
        let spec = spec(&["x < a:db"]);
        assert_eq!(code(&bed.publish("v", &spec).await), "mount.kernel");
        assert_eq!(trail.told(), [""; 0]);
        bed.publish("v", &spec).await.unwrap();
        assert_eq!(trail.told(), ["deliver db 1 ok"]);
        // a rotation that the mount refuses, and then takes
        bed.faults.arm(Fault::Error(&codes::MOUNT_NO_SPACE));
        bed.a.put("db", "two");
        assert_eq!(
            code(&bed.volumes.refresh(&volume("v")).await),
            "mount.no_space"
        );
        assert_eq!(trail.told(), [""; 0]);
        bed.pass(5).await;
        assert_eq!(trail.told(), ["deliver db 2 ok"]);
        // an unpublish that fails has removed nothing yet
        bed.faults.arm(Fault::Error(&codes::MOUNT_KERNEL));
        bed.unpublish("v").await.unwrap_err();
        assert_eq!(trail.told(), [""; 0]);
        bed.unpublish("v").await.unwrap();
        assert_eq!(trail.told(), ["remove - - ok"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_denied_call_names_each_secret_and_who_denies_it() {
    let trail = Trail::new(false);
    let bed = &trail.bed;
    for path in ["db", "key", "open"] {
        bed.a.put(path, "one");
    }
    let spec = spec(&["x < a:db", "y < a:key", "z < a:open"]);
    for path in ["db", "key"] {
        bed.a
            .answer(path, Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, None));
    }
    let denied = [
        "deny db - backend.permission_denied",
        "deny key - backend.permission_denied",
    ];
    for _ in 0..2 {
        bed.publish("v", &spec).await.unwrap_err();
        let mut told = trail.told();
        told.sort(); // the publish ends with the first answer
        assert!(
            !told.is_empty() && told.iter().all(|line| denied.contains(&line.as_str())),
            "{told:?}"
        );
        bed.pass(10).await;
    }
    bed.a.when_asked_who(AskedWho::Node); // whose policy allows nothing
    bed.publish("v", &spec).await.unwrap_err();
    let lines = trail.lines();
    assert_eq!(lines.len(), 3);
    assert_eq!(
        lines[0],
        json!({"event": "deny", "volume": "v", "pod": {"namespace": "shop", "name": "web", "uid": "uid-of-web", "serviceAccount": "shop"},
               "backend": "a", "secret": "db", "path": "/pods/v", "result": "denied", "code": "policy.denied"})
    );
}

#[tokio::test(start_paused = true)]
async fn a_denial_at_a_refresh_is_on_record_when_it_begins() {
    let trail = Trail::new(false);
    let bed = &trail.bed;
    bed.a.put("db", "one");
    let spec = kept(spec(&["x < a:db"]));
    bed.publish("v", &spec).await.unwrap();
    trail.told();
    let fail = |code| bed.a.answer("db", Answer::Fail(code, None));
    fail(&codes::IDENTITY_TOKEN_STALE);
    bed.pass(300).await;
    assert_eq!(
        trail.told(),
        [""; 0],
        "no denial: the kubelet brings a token"
    );
    fail(&codes::BACKEND_PERMISSION_DENIED);
    bed.publish("v", &spec).await.unwrap(); // here it is
    bed.pass(3600).await;
    assert_eq!(trail.told(), ["deny db - backend.permission_denied"]);
    fail(&codes::BACKEND_UNAVAILABLE);
    bed.pass(3600).await;
    fail(&codes::BACKEND_PERMISSION_DENIED);
    bed.pass(3600).await;
    assert_eq!(trail.told(), [""; 0], "it has not changed its mind");
    bed.a.answer("db", Answer::Value);
    bed.pass(3600).await;
    fail(&codes::BACKEND_UNAUTHENTICATED);
    bed.pass(3600).await;
    assert_eq!(trail.told(), ["deny db - backend.unauthenticated"]);
    // the node's policy: what was allowed is not any more, without a store being asked
    bed.a.answer("db", Answer::Value);
    bed.pass(3600).await;
    bed.a.when_asked_who(AskedWho::Node);
    let settings = bed.settings.borrow().clone();
    bed.settings.send_replace(Arc::new(Settings {
        policy: Policy::default(),
        ..(*settings).clone()
    }));
    bed.pass(3600).await;
    assert_eq!(trail.told(), ["deny db - policy.denied"]);
}

#[tokio::test(start_paused = true)]
async fn another_spec_that_is_denied_is_on_record_once_and_not_with_each_republish() {
    let trail = Trail::new(false);
    let bed = &trail.bed;
    bed.a.put("db", "one");
    bed.a.answer(
        "other",
        Answer::Fail(&codes::BACKEND_PERMISSION_DENIED, None),
    );
    let text = |name| asked("v", &format!("files: [{{path: x, from: \"a:{name}\"}}]"));
    bed.volumes.publish(text("db")).await.unwrap();
    trail.told();
    for _ in 0..3 {
        let published = bed.volumes.publish(text("other")).await.unwrap();
        assert!(published.refused.is_some());
        bed.pass(90).await;
    }
    assert_eq!(trail.told(), ["deny other - backend.permission_denied"]);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_goes_is_on_record_and_so_is_its_return() {
    let trail = Trail::new(false);
    let bed = &trail.bed;
    bed.a.put("must", "one");
    bed.b.put("may", "two");
    bed.publish("v", &spec(&["x < a:must", "y? < b:may"]))
        .await
        .unwrap();
    trail.told();
    bed.b
        .answer("may", Answer::Fail(&codes::BACKEND_NOT_FOUND, None));
    bed.pass(600).await;
    assert_eq!(trail.told(), ["remove may 1 backend.not_found"]);
    bed.b.answer("may", Answer::Value);
    bed.pass(600).await;
    assert_eq!(trail.told(), ["deliver may 1 ok"]);
    // a spec that does not name it any more
    bed.publish("v", &spec(&["x < a:must"])).await.unwrap();
    assert_eq!(trail.told(), ["remove may 1 ok"]);
    bed.unpublish("v").await.unwrap();
    assert_eq!(trail.told(), ["remove - - ok"]);
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_goes_is_on_record_and_what_comes_back_is_delivered_again() {
    let trail = Trail::new(false);
    let bed = &trail.bed;
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("v", &spec).await.unwrap();
    let local = request_as(Identity::Local { uid: 7 }, "l", &spec);
    bed.volumes.publish(local).await.unwrap();
    trail.told();
    bed.mounts.lose(&target("v"));
    bed.mounts.occupy(&target("l"));
    bed.volumes.refresh(&volume("v")).await.unwrap_err();
    bed.pass(600).await;
    let mut lost = trail.lines();
    lost.sort_by_key(|line| line["volume"].to_string());
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert_eq!(
        lost[0],
        json!({"event": "remove", "volume": "l", "uid": 7, "path": "/pods/l", "result": "lost", "code": "mount.gone"})
    );
    assert_eq!(lost[1]["volume"], "v");
    bed.publish("v", &spec).await.unwrap(); // mounts anew
    assert_eq!(trail.told(), ["deliver db 1 ok"]);
    bed.mounts.lose(&target("l"));
    bed.volumes.refresh(&volume("l")).await.unwrap(); // comes back by itself
    assert_eq!(trail.told(), ["deliver db 1 ok"]);
    // nobody has noticed before the republish
    bed.mounts.lose(&target("v"));
    bed.publish("v", &spec).await.unwrap();
    assert_eq!(trail.told(), ["remove - - mount.gone", "deliver db 1 ok"]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_puts_what_volumes_hold_on_record_once_more() {
    let mut trail = Trail::new(false);
    trail.bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    trail.bed.publish("v", &spec).await.unwrap();
    trail.bed.restart().await;
    trail.bed.publish("v", &spec).await.unwrap();
    trail.bed.pass(60).await;
    assert_eq!(trail.told(), ["deliver db 1 ok", "deliver db 1 ok"]);
}

#[tokio::test(start_paused = true)]
async fn a_denial_at_a_restart_is_on_record_and_told_once() {
    let mut trail = Trail::new(false);
    trail.bed.a.put("db", "one");
    let ask = || asked("v", "files: [{path: x, from: a:db}]");
    trail.bed.volumes.publish(ask()).await.unwrap();
    assert_eq!(trail.told(), ["deliver db 1 ok"]);
    trail.bed.a.when_asked_who(AskedWho::Node);
    trail.bed.restart().await;
    assert_eq!(trail.bed.volumes.restore().await.restored, 1);
    let state = || trail.bed.status("v").unwrap().state;
    assert_eq!(state(), VolumeState::Denied);
    assert_eq!(trail.told(), ["deny db - policy.denied"]);
    for _ in 0..3 {
        let kept = trail.bed.volumes.publish(ask()).await.unwrap();
        assert!(kept.refused.is_none(), "it is the same spec");
        trail.bed.pass(90).await;
    }
    assert_eq!(trail.told(), [""; 0], "once for all republishes");
    assert_eq!(trail.bed.told(), ["SecretAccessDenied"]);

    trail.bed.a.when_asked_who(AskedWho::Account);
    trail.bed.reconfigure(1);
    trail.bed.volumes.publish(ask()).await.unwrap();
    trail.bed.pass(1).await;
    assert_eq!(state(), VolumeState::Fresh);
    assert_eq!(trail.told(), ["deliver db 1 ok"]);
}

/// A pipe that nobody reads, and that takes no line: its reader's end is held, and it is full.
fn stuck(path: &std::path::Path) {
    let (cwd, fifo) = (rustix::fs::CWD, rustix::fs::FileType::Fifo);
    rustix::fs::mknodat(cwd, path, fifo, rustix::fs::Mode::from_raw_mode(0o600), 0).unwrap();
    let mut pipe = rustix::fs::open(
        path,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    while rustix::io::write(&mut pipe, &[b' '; 4096]).is_ok() {}
    std::mem::forget(pipe); // a pipe that is closed at both ends forgets what is in it
}

/// Nothing of this ends if a publish waits for the log: the log never takes a byte.
#[tokio::test(start_paused = true)]
async fn a_log_that_stands_still_stops_no_publish_and_what_is_lost_is_counted() {
    let trail = Trail::on(false, stuck);
    let bed = &trail.bed;
    let many: Vec<String> = (0..200).map(|n| format!("f{n} < a:s{n}")).collect();
    for n in 0..200 {
        bed.a.put(&format!("s{n}"), "one");
    }
    let spec = spec(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let volumes = limits::AUDIT_WAITING / 200 + 2; // more lines than may wait
    let first = bed.begin(request("v0", &spec));
    bed.pass(60).await; // a store is not asked for 200 at once
    assert_eq!(first.await.unwrap().unwrap().files, Some(200));
    for n in 1..volumes {
        let published = bed.publish(&format!("v{n}"), &spec).await.unwrap();
        assert_eq!(published.files, Some(200));
    }
    let lines = volumes * 200;
    assert_eq!(
        trail.audit.dropped(),
        (lines - limits::AUDIT_WAITING) as u64
    );
    bed.a.put("s0", "two");
    bed.pass(60).await;
    assert_eq!(bed.read("v0", "f0").unwrap(), "two", "rotations go on");
    for n in 0..volumes {
        bed.unpublish(&format!("v{n}")).await.unwrap();
    }
    let lines = lines + 2 * volumes; // the rotation's and the removals'
    assert_eq!(
        trail.audit.dropped(),
        (lines - limits::AUDIT_WAITING) as u64
    );
    assert!(!trail.audit.flush());
    assert_eq!(
        trail.audit.dropped(),
        lines as u64,
        "the end of the program counts the rest"
    );
}

#[tokio::test(start_paused = true)]
async fn with_deny_a_log_that_stands_still_lets_no_delivery_through_and_no_other_call_wait() {
    let trail = Trail::on(true, stuck);
    let bed = &trail.bed;
    bed.a.put("db", "one");
    let spec = spec(&["x < a:db"]);
    bed.publish("first", &spec).await.unwrap(); // nobody knows yet
    assert_eq!(code(&bed.publish("v", &spec).await), "audit.unavailable");
    assert!(bed.shown("v").is_none() && bed.status("v").is_none());
    bed.a.put("db", "two");
    bed.pass(60).await;
    assert_eq!(
        bed.read("first", "x").unwrap(),
        "one",
        "a rotation is a delivery"
    );
    assert_eq!(bed.trouble("first").unwrap(), "audit.unavailable");
    bed.publish("first", &spec).await.unwrap(); // again: nothing is delivered
    bed.unpublish("first").await.unwrap();
    assert_eq!(trail.audit.dropped(), 0);
    let pipe = fs::File::options()
        .read(true)
        .write(true)
        .open(&trail.file)
        .unwrap();
    let reading = std::thread::spawn(move || std::io::copy(&mut &pipe, &mut std::io::sink()));
    let mut tries = 0;
    while bed.publish("v", &spec).await.is_err() {
        tries += 1;
        assert!(tries < 100_000, "the log works again");
        bed.pass(1).await; // so many in one moment would wait at the store's gate
    }
    assert_eq!(bed.read("v", "x").unwrap(), "two");
    drop(reading); // it ends with the process
}
