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
    error::{Error, codes},
    limits,
    observe::audit::{Audit, Record, Secret, What},
    path::VolumeId,
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
        secret: Some(Secret {
            backend: "store".to_owned(),
            path: "payments/db:x".to_owned(),
        }),
        version: Some("17".to_owned()),
        path: Some("/k/pods/1-2-3/volumes/kubernetes.io~csi/db/mount".to_owned()),
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

impl Log {
    /// One delivery, as a volume makes it.
    fn deliver(&self, volume: &str) -> Result<(), Error> {
        self.audit.reserve(1)?.deliver(&[delivery(volume)]);
        Ok(())
    }
}

#[test]
fn a_line_says_who_what_where_when_and_how_it_ended() {
    let log = start(|_| {}, |_| {});
    let time = log.clock.wall().to_rfc3339();
    log.deliver("csi-1").unwrap();
    log.clock.jump(Duration::from_secs(90));
    log.audit.record(&denial());
    let volume = Record {
        what: What::Remove,
        secret: None,
        version: None,
        ..delivery("a \"b\"\n{}")
    };
    log.audit.record(&Record {
        who: Some(Identity::Local { uid: 1000 }),
        ..volume.clone()
    });
    log.audit.record(&Record {
        code: Some(&codes::MOUNT_GONE),
        ..volume
    });
    let id = VolumeId::parse("v").unwrap();
    log.audit.record(&Record {
        code: Some(&codes::IDENTITY_FORGED),
        ..Record::new(What::Deny, &id)
    });
    let pod = json!({"namespace": "payments", "name": "api-7d9", "uid": "1-2-3", "serviceAccount": "api"});
    let path = "/k/pods/1-2-3/volumes/kubernetes.io~csi/db/mount";
    let later = log.clock.wall().to_rfc3339();
    assert!(time.ends_with('Z') && time != later, "{time}");
    let expect = [
        json!({"time": time, "event": "deliver", "volume": "csi-1", "pod": pod, "backend": "store", "secret": "payments/db:x", "version": "17", "path": path, "result": "ok"}),
        json!({"time": later, "event": "deny", "volume": "v", "pod": pod, "backend": "store", "secret": "payments/db:x", "path": path, "result": "denied", "code": "policy.denied"}),
        json!({"time": later, "event": "remove", "volume": "a \"b\"\n{}", "uid": 1000, "path": path, "result": "ok"}),
        json!({"time": later, "event": "remove", "volume": "a \"b\"\n{}", "pod": pod, "path": path, "result": "lost", "code": "mount.gone"}),
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
fn a_delivery_that_did_not_happen_is_not_told() {
    for settings in [(|_| {}) as fn(&mut config::Audit), deny_on_failure] {
        let log = start(|_| {}, settings);
        drop(log.audit.reserve(3).unwrap());
        let many = log.audit.reserve(limits::AUDIT_WAITING).unwrap();
        drop(many); // gives its places back
        log.audit
            .reserve(limits::AUDIT_WAITING)
            .unwrap()
            .deliver(&[]);
        log.deliver("v").unwrap();
        assert_eq!((log.lines().len(), log.audit.dropped()), (1, 0));
    }
}

#[test]
fn without_deliveries_denials_and_removals_are_still_on_record() {
    let log = start(|_| {}, |config| config.deliveries = false);
    log.deliver("v").unwrap();
    log.audit.record(&denial());
    let events: Vec<_> = log.lines().iter().map(|l| l["event"].clone()).collect();
    assert_eq!((events, log.audit.dropped()), (vec![json!("deny")], 0));
}

#[test]
fn a_log_is_appended_to_and_a_renamed_one_is_left() {
    let log = start(|path| fs::write(path, "{\"old\":1}\n").unwrap(), |_| {});
    log.deliver("first").unwrap();
    assert_eq!(log.lines().len(), 2);
    let rotated = log.dir.path().join("audit.log.1");
    fs::rename(log.path(), &rotated).unwrap();
    log.deliver("second").unwrap();
    assert_eq!(log.lines()[0]["volume"], "second");
    fs::remove_file(log.path()).unwrap();
    log.deliver("third").unwrap();
    assert_eq!(log.lines()[0]["volume"], "third");
    // as logrotate's `create` does: the new file is there at once, with a mode of its own
    fs::rename(log.path(), log.dir.path().join("audit.log.2")).unwrap();
    fs::write(log.path(), "").unwrap();
    fs::set_permissions(log.path(), fs::Permissions::from_mode(0o640)).unwrap();
    log.deliver("fourth").unwrap();
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
        log.deliver("lost").unwrap();
    }
    assert!(log.audit.flush());
    assert_eq!(log.audit.dropped(), 3);
    fs::remove_file(log.path()).unwrap();
    log.deliver("kept").unwrap();
    assert_eq!(log.lines()[0]["volume"], "kept");
    assert_eq!(log.audit.dropped(), 3);
}

#[test]
fn with_deny_a_full_disk_lets_no_delivery_through_until_there_is_room() {
    let full = |path: &Path| std::os::unix::fs::symlink("/dev/full", path).unwrap();
    let log = start(full, deny_on_failure);
    log.deliver("accepted").unwrap(); // nobody knows yet; it is kept
    for _ in 0..3 {
        let refused = log.deliver("refused").unwrap_err(); // at once: the first write has failed
        assert_eq!(refused.code(), &codes::AUDIT_UNAVAILABLE);
        assert!(refused.to_string().contains("No space left"), "{refused}");
    }
    log.audit.record(&denial()); // happens all the same, and is kept
    fs::remove_file(log.path()).unwrap();
    until(|| log.deliver("again").ok());
    let volumes: Vec<_> = log
        .lines()
        .iter()
        .map(|line| line["volume"].as_str().unwrap().to_owned())
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
    let (log, mut reader) = stuck(|_| {});
    let total = 4 * limits::AUDIT_WAITING as u64;
    for nth in 0..total {
        log.deliver(&nth.to_string()).unwrap();
    }
    let dropped = log.audit.dropped();
    assert!(dropped > 0 && dropped < total, "{dropped}");
    let kept = usize::try_from(total - dropped).unwrap();
    let reading = std::thread::spawn(move || read_lines(&mut reader, kept));
    let arrived = reading.join().unwrap();
    assert!(log.audit.flush());
    assert_eq!(log.audit.dropped(), dropped);
    assert_eq!(arrived[0]["volume"], "0");
}

/// The promise of `deny`: a log that stands still is found out by the first delivery after the one that it took in last.
#[test]
fn with_deny_a_stuck_reader_lets_no_delivery_through() {
    let (log, mut reader) = stuck(deny_on_failure);
    let mut delivered = 0_u64;
    let late = loop {
        match log.deliver("v") {
            Ok(()) => delivered += 1,
            Err(error) => break error,
        }
        assert!(delivered < 1_000_000);
    };
    assert_eq!(late.code(), &codes::AUDIT_UNAVAILABLE);
    assert!(late.to_string().contains("too long"), "{late}");
    for _ in 0..1000 {
        log.deliver("v").unwrap_err(); // nobody waits any more
    }
    let mut denied = 0;
    while log.audit.dropped() == 0 {
        log.audit.record(&denial());
        denied += 1;
    }
    // one delivery waited, and nothing else: the rest of the room is for what happens in any case
    assert_eq!(denied, limits::AUDIT_WAITING);
    let total = usize::try_from(delivered).unwrap() + denied - 1;
    let reading = std::thread::spawn(move || read_lines(&mut reader, total));
    let arrived = reading.join().unwrap();
    assert_eq!(
        arrived.iter().filter(|l| l["event"] == "deliver").count() as u64,
        delivered
    );
    until(|| log.deliver("again").ok());
    assert_eq!(log.audit.dropped(), 1);
}

/// Reads so many whole lines.
fn read_lines(reader: &mut fs::File, count: usize) -> Vec<Value> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while text.iter().filter(|byte| **byte == b'\n').count() != count {
        let read = reader.read(&mut buffer).unwrap();
        text.extend_from_slice(&buffer[..read]);
    }
    lines(&String::from_utf8(text).unwrap())
}

/// Deliveries that are under way at once are not more than there is room for, and each finds its place.
#[test]
fn with_deny_deliveries_at_once_wait_for_each_other() {
    let log = start(|_| {}, deny_on_failure);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let half = limits::AUDIT_WAITING / 2;
                    let places = log.audit.reserve(half).unwrap();
                    places.deliver(&[delivery("v"), delivery("w")]);
                }
            });
        }
    });
    assert_eq!((log.lines().len(), log.audit.dropped()), (400, 0));
    let more_than_there_is = log.audit.reserve(3 * limits::AUDIT_WAITING).unwrap();
    more_than_there_is.deliver(&[delivery("v")]);
    assert_eq!(log.lines().len(), 401);
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
    log.audit.reserve(1).unwrap().deliver(&[leaked]);
    assert!(log.audit.flush());
    let found = canary::found_in(&fs::read(log.path()).unwrap());
    assert!(!found.is_empty(), "the search does not find what is there");
    log.deliver("v").unwrap();
    let keys: Vec<String> = log.lines()[1]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let known = [
        "backend", "event", "path", "pod", "result", "secret", "time", "version", "volume",
    ];
    assert_eq!(keys, known);
    assert_eq!(format!("{:?}", log.audit), "Audit");
}

/// First cells of the rows of a table on a page, below this heading.
fn rows(page: &str, heading: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        Some(name.to_owned())
    });
    cells.collect()
}

#[test]
fn the_page_has_each_event_and_each_field_and_no_other() {
    let log = start(|_| {}, |_| {});
    let all = [What::Deliver, What::Deny, What::Remove].map(|what| Record {
        what,
        code: Some(&codes::POLICY_DENIED),
        ..delivery("v")
    });
    for record in &all {
        log.audit.record(record);
    }
    log.audit.record(&Record {
        who: Some(Identity::Local { uid: 7 }),
        ..delivery("v")
    });
    let lines = log.lines();
    let of = |key: &str| -> Vec<String> {
        let found = lines[..3]
            .iter()
            .map(|line| line[key].as_str().unwrap().to_owned());
        found.collect()
    };
    assert_eq!(rows("docs/reference/audit.md", "Events"), of("event"));
    let mut fields: Vec<String> = Vec::new();
    for line in &lines {
        fields.extend(line.as_object().unwrap().keys().cloned());
    }
    fields.sort();
    fields.dedup();
    let mut page = rows("docs/reference/audit.md", "Fields");
    page.sort();
    assert_eq!(page, fields);
    let text = include_str!("../../docs/reference/audit.md");
    let row = text
        .lines()
        .find(|line| line.starts_with("| `pod` |"))
        .unwrap();
    for key in lines[0]["pod"].as_object().unwrap().keys() {
        assert!(row.contains(&format!("`{key}`")), "{key}");
    }
    let example = text.split("```json\n").nth(1).unwrap();
    for line in self::lines(example.split("```").next().unwrap()) {
        for key in line.as_object().unwrap().keys() {
            assert!(fields.contains(key), "the example has `{key}`");
        }
    }
}
