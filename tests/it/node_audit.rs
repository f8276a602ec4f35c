//! The audit log of the built program: on a disk that is full, on a pipe that nobody reads, and of `secretfs mount`.

use std::{fs, path::Path};

use rustix::mount::MountFlags;
use serde_json::Value;
use tonic::Code;

use crate::support::{
    kubelet::Volume,
    machine::{Machine, assert_complete, kill, mounts_at},
    program::eventually,
};

/// Lines that are whole. The last one of a disk that was full may be cut.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let parsed = text.lines().map(serde_json::from_str);
    let all: Vec<Result<Value, _>> = parsed.collect();
    let torn = all.iter().filter(|line| line.is_err()).count();
    assert!(torn <= 1, "{text}");
    all.into_iter().flatten().collect()
}

/// How many deliveries of these volumes are on record.
fn delivered(lines: &[Value], volumes: &[Volume]) -> usize {
    let is_of = |line: &&Value| {
        line["event"] == "deliver" && volumes.iter().any(|one| line["volume"] == one.id.as_str())
    };
    lines.iter().filter(is_of).count()
}

/// A machine whose plugin logs to `log/audit.log`, on a tmpfs of two pages.
fn with_small_disk(on_failure: &str) -> Machine {
    let machine = Machine::new();
    let dir = machine.node.bed.path("log");
    fs::create_dir(&dir).unwrap();
    let size = c"size=8k,mode=0755";
    rustix::mount::mount("log", &dir, "tmpfs", MountFlags::empty(), size).unwrap();
    let log = dir.join("audit.log");
    let key = format!(
        "audit: {{file: {}, onFailure: {on_failure}}}\n",
        log.display()
    );
    machine.node.configure(&key);
    machine
}

#[test]
fn on_a_full_disk_every_volume_is_served_and_the_next_file_has_what_follows() {
    let machine = with_small_disk("drop");
    let log = machine.node.bed.path("log/audit.log");
    let volumes = machine.volumes(16); // three lines of each, of some 500 bytes
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    volumes.iter().for_each(assert_complete);
    eventually("it is told", || {
        running.log().contains("records are dropped")
    });
    let kept = delivered(&lines(&log), &volumes);
    assert!(kept > 3 && kept < 3 * volumes.len(), "{kept}");
    fs::remove_file(&log).unwrap();
    let next = &machine.volumes(17)[16..];
    machine.publish_all(next);
    eventually("the next file", || {
        log.exists() && delivered(&lines(&log), next) == 3
    });
    machine.unpublish_all(&[&volumes[..], next].concat());
    running.stop();
}

#[test]
fn with_deny_no_volume_is_served_that_is_not_on_record() {
    let machine = with_small_disk("deny");
    let log = machine.node.bed.path("log/audit.log");
    let volumes = machine.volumes(16);
    let mut running = machine.start(0);
    let refused = volumes
        .iter()
        .position(|volume| match machine.publish(volume) {
            Ok(()) => false,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable);
                assert!(
                    status.message().ends_with("[audit.unavailable]"),
                    "{status}"
                );
                true
            }
        });
    let refused = refused.expect("the disk has room for all");
    assert!(refused > 1, "{refused}");
    assert_eq!(mounts_at(&volumes[refused]), [] as [u64; 0]);
    for volume in &volumes[..refused] {
        machine.publish(volume).unwrap(); // again: nothing is delivered, so nothing is refused
    }
    let full = machine.node.bed.path("full.log");
    fs::copy(&log, &full).unwrap();
    fs::remove_file(&log).unwrap();
    eventually("it is served", || {
        machine.publish(&volumes[refused]).is_ok()
    });
    let served = &volumes[..=refused];
    served.iter().for_each(assert_complete);
    // what was cut at the end of the full disk is written whole after it
    eventually("all is on record", || {
        let both = [lines(&full), lines(&log)].concat();
        delivered(&both, served) == 3 * served.len()
    });
    machine.unpublish_all(&volumes);
    running.stop();
}

#[test]
fn a_pipe_that_nobody_reads_stops_nothing() {
    let machine = Machine::new();
    let pipe = machine.node.bed.path("pipe");
    let (cwd, fifo) = (rustix::fs::CWD, rustix::fs::FileType::Fifo);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(cwd, &pipe, fifo, mode, 0).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK;
    let end = rustix::fs::open(&pipe, flags, rustix::fs::Mode::empty()).unwrap();
    while rustix::io::write(&end, &[b' '; 4096]).is_ok() {}
    machine
        .node
        .configure(&format!("audit: {{file: {}}}\n", pipe.display()));
    let volumes = machine.volumes(8);
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    machine.put_all(2);
    machine.settled(&volumes);
    machine.unpublish_all(&volumes);
    kill(&mut running);
}

#[test]
fn a_mount_without_kubernetes_is_on_record_where_its_configuration_says() {
    let machine = Machine::new();
    let bed = &machine.node.bed;
    let log = bed.path("audit.log");
    let spec = "files:\n  - path: a\n    from: store:a\n";
    let mut running = bed.mount(spec, &["--config", "node.yaml"]); // the store has version 2 of it
    machine.put("a", 2);
    eventually("two deliveries", || {
        log.exists()
            && lines(&log)
                .iter()
                .filter(|line| line["event"] == "deliver")
                .count()
                == 2
    });
    running.stop();
    let all = lines(&log);
    let words = |line: &Value| {
        let word = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} {} {}",
            word("event"),
            word("secret"),
            word("version"),
            word("result")
        )
    };
    let told: Vec<_> = all.iter().map(words).collect();
    assert_eq!(told, ["deliver a 2 ok", "deliver a 3 ok", "remove - - ok"]);
    for line in &all {
        assert_eq!(line["path"], bed.target().to_str().unwrap());
        assert!(line["uid"].is_number() && line["pod"].is_null(), "{line}");
        assert!(
            line["volume"].as_str().unwrap().starts_with("local-"),
            "{line}"
        );
    }
    // stdout is for the ready line
    machine.node.configure("audit: {file: \"-\"}\n");
    let mut running = bed.mount(spec, &["--config", "node.yaml"]);
    running.stop();
    running.ready.clear();
    running.first_line();
    assert_eq!(running.ready, "");
    assert_eq!(lines(&log).len(), 3);
}
