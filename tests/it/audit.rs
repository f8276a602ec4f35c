//! The audit log: what stands in it, and what becomes of it when it cannot be written.

use std::{
    fs,
    io::Read,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secretfs::{
    caller::{Identity, PodIdentity},
    clock::Clock,
    config,
    error::codes,
    limits,
    observe::audit::{Audit, Record, What},
};
use serde_json::{Value, json};

use crate::support::{canary, clock::ManualClock};

struct Log {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    audit: Audit,
}

impl Log {
    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn lines(&self) -> Vec<Value> {
        assert!(self.audit.flush());
        lines(&fs::read_to_string(self.path()).unwrap())
    }
}

fn lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(parse).collect()
}

/// A log in a directory of its own, where `prepare` may put something first.
fn start(prepare: impl FnOnce(&Path), settings: fn(&mut config::Audit)) -> Log {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    prepare(&path);
    let mut config = config::Audit {
        deliveries: true,
        file: Some(path),
        deny_on_failure: false,
    };
    settings(&mut config);
    let clock = ManualClock::new();
    let audit = Audit::start(&config, clock.clone()).unwrap();
    Log { dir, clock, audit }
}

fn deny_on_failure(config: &mut config::Audit) {
    config.deny_on_failure = true;
}

fn delivery(volume: &str) -> Record {
    Record {
        what: What::Deliver,
        volume: volume.to_owned(),
        who: Some(Identity::Pod(PodIdentity {
            namespace: "payments".into(),
            pod: "api-7d9".into(),
            pod_uid: "1-2-3".into(),
            service_account: "api".into(),
            service_account_uid: Some("9".into()),
        })),
        secret: "store:payments/db:x".to_owned(),
        version: Some("17".to_owned()),
        code: None,
    }
}

fn denial() -> Record {
    Record {
        what: What::Deny,
        code: Some(&codes::POLICY_DENIED),
        version: None,
        ..delivery("v")
    }
}

#[test]
fn a_line_says_who_what_when_and_how_it_ended() {
    let log = start(|_| {}, |_| {});
    let time = log.clock.wall().to_rfc3339();
    log.audit.record(delivery("csi-1")).unwrap();
    log.clock.jump(Duration::from_secs(90));
    log.audit.record(denial()).unwrap();
    let local = Record {
        what: What::Remove,
        who: Some(Identity::Local { uid: 1000 }),
        secret: String::new(),
        version: None,
        ..delivery("a \"b\"\n{}")
    };
    log.audit.record(local).unwrap();
    let forged = Record {
        who: None,
        secret: String::new(),
        code: Some(&codes::IDENTITY_FORGED),
        ..denial()
    };
    log.audit.record(forged).unwrap();
    let pod = json!({"namespace": "payments", "name": "api-7d9", "uid": "1-2-3", "serviceAccount": "api"});
    let later = log.clock.wall().to_rfc3339();
    assert!(time.ends_with('Z') && time != later, "{time}");
    let expect = [
        json!({"time": time, "event": "deliver", "volume": "csi-1", "pod": pod, "backend": "store", "secret": "payments/db:x", "version": "17", "result": "ok"}),
        json!({"time": later, "event": "deny", "volume": "v", "pod": pod, "backend": "store", "secret": "payments/db:x", "result": "denied", "code": "policy.denied"}),
        json!({"time": later, "event": "remove", "volume": "a \"b\"\n{}", "uid": 1000, "result": "ok"}),
        json!({"time": later, "event": "deny", "volume": "v", "result": "denied", "code": "identity.forged"}),
    ];
    assert_eq!(log.lines(), expect);
    let first = fs::read_to_string(log.path()).unwrap();
    assert!(
        first.starts_with("{\"time\":\"2026-"),
        "time comes first: {first}"
    );
    let mode = fs::metadata(log.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn without_deliveries_denials_and_removals_are_still_on_record() {
    let log = start(|_| {}, |config| config.deliveries = false);
    log.audit.record(delivery("v")).unwrap();
    log.audit.record(denial()).unwrap();
    let events: Vec<_> = log.lines().iter().map(|l| l["event"].clone()).collect();
    assert_eq!((events, log.audit.dropped()), (vec![json!("deny")], 0));
}

#[test]
fn a_log_is_appended_to_and_a_renamed_one_is_left() {
    let log = start(|path| fs::write(path, "{\"old\":1}\n").unwrap(), |_| {});
    log.audit.record(delivery("first")).unwrap();
    assert_eq!(log.lines().len(), 2);
    let rotated = log.dir.path().join("audit.log.1");
    fs::rename(log.path(), &rotated).unwrap();
    log.audit.record(delivery("second")).unwrap();
    assert_eq!(log.lines()[0]["volume"], "second");
    fs::remove_file(log.path()).unwrap();
    log.audit.record(delivery("third")).unwrap();
    assert_eq!(log.lines()[0]["volume"], "third");
    // as logrotate's `create` does: the new file is there at once, with a mode of its own
    fs::rename(log.path(), log.dir.path().join("audit.log.2")).unwrap();
    fs::write(log.path(), "").unwrap();
    fs::set_permissions(log.path(), fs::Permissions::from_mode(0o640)).unwrap();
    log.audit.record(delivery("fourth")).unwrap();
    assert_eq!(log.lines()[0]["volume"], "fourth");
    let mode = fs::metadata(log.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    let old = lines(&fs::read_to_string(rotated).unwrap());
    assert_eq!((old.len(), &old[1]["volume"]), (2, &json!("first")));
    assert_eq!(log.audit.dropped(), 0);
}

#[test]
fn on_a_full_disk_records_are_dropped_and_counted_and_the_next_file_has_what_follows() {
    let full = |path: &Path| std::os::unix::fs::symlink("/dev/full", path).unwrap();
    let log = start(full, |_| {});
    assert!(
        fs::metadata(log.path())
            .unwrap()
            .file_type()
            .is_char_device()
    );
    for _ in 0..3 {
        log.audit.record(delivery("lost")).unwrap();
    }
    assert!(log.audit.flush());
    assert_eq!(log.audit.dropped(), 3);
    fs::remove_file(log.path()).unwrap();
    log.audit.record(delivery("kept")).unwrap();
    assert_eq!(log.lines()[0]["volume"], "kept");
    assert_eq!(log.audit.dropped(), 3);
}

#[test]
fn with_deny_a_full_disk_lets_no_delivery_through_until_there_is_room() {
    let full = |path: &Path| std::os::unix::fs::symlink("/dev/full", path).unwrap();
    let log = start(full, deny_on_failure);
    log.audit.record(delivery("accepted")).unwrap(); // nobody knows yet; it is kept
    let refused = until(|| {
        std::thread::sleep(Duration::from_millis(1)); // not so many that they fill the queue
        log.audit.record(delivery("refused")).err()
    });
    assert_eq!(refused.code(), &codes::AUDIT_UNAVAILABLE);
    assert!(refused.to_string().contains("No space left"), "{refused}");
    log.audit.record(denial()).unwrap(); // happens all the same, and is kept
    fs::remove_file(log.path()).unwrap();
    until(|| log.audit.record(delivery("again")).ok());
    let volumes: Vec<_> = log
        .lines()
        .iter()
        .map(|line| line["volume"].as_str().unwrap().to_owned())
        .filter(|volume| volume != "refused") // some came before the first write failed
        .collect();
    assert_eq!(volumes, ["accepted", "v", "again"]);
    assert_eq!(log.audit.dropped(), 0);
}

/// Asks until there is an answer. The thread of the log does its work in the meantime.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..10_000_000 {
        if let Some(answer) = ask() {
            return answer;
        }
        std::thread::yield_now();
    }
    panic!("it never came");
}

/// A pipe that nobody reads, with the log at its other end.
fn stuck(settings: fn(&mut config::Audit)) -> (Log, fs::File) {
    let fifo = |path: &Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
    };
    let log = start(fifo, settings);
    let reader = fs::File::options()
        .read(true)
        .write(true)
        .open(log.path())
        .unwrap();
    (log, reader)
}

#[test]
fn what_a_stuck_reader_leaves_no_room_for_is_counted_and_all_else_arrives() {
    let (log, reader) = stuck(|_| {});
    let total = 4 * limits::AUDIT_WAITING as u64;
    for nth in 0..total {
        log.audit.record(delivery(&nth.to_string())).unwrap();
    }
    let dropped = log.audit.dropped();
    assert!(dropped > 0 && dropped < total, "{dropped}");
    let reading = std::thread::spawn(move || {
        let (mut reader, mut text, mut buffer) = (reader, Vec::new(), [0; 4096]);
        while text.iter().filter(|byte| **byte == b'\n').count() as u64 != total - dropped {
            let read = reader.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..read]);
        }
        String::from_utf8(text).unwrap()
    });
    let arrived = lines(&reading.join().unwrap());
    assert!(log.audit.flush());
    assert_eq!(log.audit.dropped(), dropped);
    assert_eq!(arrived[0]["volume"], "0");
}

#[test]
fn with_deny_a_stuck_reader_lets_no_delivery_through_after_a_second() {
    let (log, mut reader) = stuck(deny_on_failure);
    let mut written = 0;
    while log.audit.record(delivery("v")).is_ok() {
        written += 1;
        assert!(written < 1_000_000);
    }
    assert!(log.audit.record(denial()).is_err(), "no room for it either");
    assert_eq!(log.audit.dropped(), 1);
    let mut buffer = [0; 4096];
    reader.read_exact(&mut buffer).unwrap();
    until(|| log.audit.record(denial()).ok()); // room again
    // The thread may still be at work, and each line it writes is progress; then it waits for the reader again.
    let late = until(|| {
        log.clock
            .jump(limits::AUDIT_LATE + Duration::from_millis(1));
        let refused = log.audit.record(delivery("v")).err()?;
        refused.to_string().contains("too long").then_some(refused)
    });
    assert_eq!(late.code(), &codes::AUDIT_UNAVAILABLE);
}

#[test]
fn a_log_that_cannot_be_opened_is_told_at_the_start() {
    let config = config::Audit {
        deliveries: true,
        file: Some("/dev/null/audit.log".into()),
        deny_on_failure: false,
    };
    let error = Audit::start(&config, ManualClock::new()).unwrap_err();
    assert_eq!(error.code(), &codes::NODE_IO);
    assert!(error.to_string().contains("/dev/null/audit.log"), "{error}");
}

/// A record cannot hold a value: this is what it is made of, and nothing of its error's words gets in.
#[test]
fn neither_the_log_nor_its_debug_form_holds_more_than_the_record() {
    let log = start(|_| {}, |_| {});
    let leaked = Record {
        version: Some(canary::CANARY.to_owned()),
        ..delivery("v")
    };
    log.audit.record(leaked).unwrap();
    assert!(log.audit.flush());
    let found = canary::found_in(&fs::read(log.path()).unwrap());
    assert!(!found.is_empty(), "the search does not find what is there");
    log.audit.record(delivery("v")).unwrap();
    let keys: Vec<String> = log.lines()[1]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let known = [
        "backend", "event", "pod", "result", "secret", "time", "version", "volume",
    ];
    assert_eq!(keys, known);
    assert_eq!(format!("{:?}", log.audit), "Audit");
}
