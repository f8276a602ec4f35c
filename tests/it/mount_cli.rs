//! `secretfs mount`, `status` and `refresh` as a person uses them: the built program, real mounts, real signals.

use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Duration};

use rustix::{
    mount::{MountFlags, UnmountFlags},
    process::Signal,
};

use crate::support::program::{Bed, eventually, layers, program, watch_dir};

const SPEC: &str = r#"
sources:
  db: store:payments/db
files:
  - path: password
    from: db#password
  - path: url
    template: "postgres://{{ db.username }}:{{ db.password | urlencode }}@db/app\n"
"#;

fn db(password: &str) -> String {
    format!(r#"{{"username": "app", "password": "{password}"}}"#)
}

fn mounted() -> (Bed, crate::support::program::Running) {
    let bed = Bed::new();
    bed.put("payments/db", &db("first"));
    let running = bed.mount(SPEC, &[]);
    (bed, running)
}

#[test]
fn a_change_in_the_store_reaches_the_file_and_the_watcher_at_once() {
    let (bed, mut running) = mounted();
    assert_eq!(
        running.ready,
        format!(
            "ready: 2 files at {}, generation 1\n",
            bed.target().display()
        )
    );
    assert_eq!(bed.file("password"), "first");
    assert_eq!(bed.file("url"), "postgres://app:first@db/app\n");
    let events = watch_dir(&bed.target());
    bed.put("payments/db", &db("se/cond"));
    let heard = events.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(
        (heard.as_str(), bed.file("password").as_str()),
        ("..data", "se/cond"),
        "told, and readable at once"
    );
    assert_eq!(bed.file("url"), "postgres://app:se%2Fcond@db/app\n");
    running.stop();
}

#[test]
fn sigterm_and_sigint_unmount_and_leave_nothing() {
    for signal in [Signal::TERM, Signal::INT] {
        let (bed, mut running) = mounted();
        assert_eq!(layers(&bed.target()), 1);
        running.signal(signal);
        assert!(running.ended().success(), "{}", running.log());
        assert_eq!(layers(&bed.target()), 0);
        assert_eq!(fs::read_dir(bed.target()).unwrap().count(), 0);
        assert_eq!(
            fs::read_dir(bed.path("run/secretfs")).unwrap().count(),
            0,
            "lock and socket are gone"
        );
    }
}

#[test]
fn below_somebody_elses_mount_nothing_readable_is_left_and_it_is_said() {
    let (bed, mut running) = mounted();
    let foreign =
        || rustix::mount::mount("theirs", bed.target(), "tmpfs", MountFlags::empty(), None);
    foreign().unwrap();
    running.signal(Signal::TERM);
    assert_eq!(running.ended().code(), Some(1));
    let log = running.log();
    assert!(
        log.contains("[mount.foreign]") && log.contains("WARN"),
        "{log}"
    );
    rustix::mount::unmount(bed.target(), UnmountFlags::DETACH).unwrap();
    assert_eq!(fs::read_dir(bed.target()).unwrap().count(), 0);
}

#[test]
fn a_second_instance_is_refused_and_harms_nothing() {
    let (bed, mut running) = mounted();
    let stderr = bed.fails(1, &["mount", "app.yaml", "target"]);
    assert!(
        stderr.contains("[mount.held]") && stderr.contains("target"),
        "{stderr}"
    );
    assert_eq!(
        (layers(&bed.target()), bed.file("password").as_str()),
        (1, "first")
    );
    running.stop();
}

#[test]
fn what_a_killed_one_left_is_taken_over_content_first() {
    let (bed, mut running) = mounted();
    running.signal(Signal::KILL);
    running.ended();
    assert_eq!(
        (layers(&bed.target()), bed.file("password").as_str()),
        (1, "first")
    );
    fs::rename(bed.path("store"), bed.path("hidden")).unwrap(); // the store is down
    let mut next = bed.mount(SPEC, &[]);
    assert_eq!(
        (layers(&bed.target()), bed.file("password").as_str()),
        (1, "first")
    );
    let state = bed.status()["state"].as_str().unwrap().to_owned();
    assert!(["adopted", "stale"].contains(&&*state), "{state}");
    fs::rename(bed.path("hidden"), bed.path("store")).unwrap();
    bed.put("payments/db", &db("after"));
    bed.ok(&["refresh"], "");
    eventually("the new value arrives", || bed.file("password") == "after");
    eventually("fresh again", || bed.status()["state"] == "fresh");
    assert_eq!(layers(&bed.target()), 1);
    next.stop();
    assert_eq!(layers(&bed.target()), 0);
}

#[test]
fn a_store_that_is_gone_or_damaged_keeps_the_last_good_value_and_says_so() {
    let (bed, mut running) = mounted();
    fs::rename(bed.path("store"), bed.path("hidden")).unwrap();
    let output = bed.run(&["refresh"], "");
    assert_eq!(
        output.status.code(),
        Some(1),
        "a refresh that failed says so"
    );
    eventually("stale", || bed.status()["state"] == "stale");
    let status = bed.status();
    assert!(
        status["error"]["code"]
            .as_str()
            .unwrap()
            .starts_with("store."),
        "{status}"
    );
    assert!(
        status["error"]["since"].is_string() && status["checkedSecondsAgo"].is_number(),
        "{status}"
    );
    assert_eq!(bed.file("password"), "first");
    fs::rename(bed.path("hidden"), bed.path("store")).unwrap();
    bed.put("payments/db", &db("back"));
    eventually("recovery by itself", || bed.file("password") == "back");
    eventually("fresh", || bed.status()["state"] == "fresh");
    running.stop();
}

#[test]
fn sighup_asks_now_and_status_shows_it() {
    let (bed, mut running) = mounted();
    let text = bed.ok(&["status"], "");
    let header: Vec<_> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        [
            "STATE",
            "VOLUME",
            "TARGET",
            "MOUNT",
            "GENERATION",
            "CHECKED",
            "NEXT"
        ]
    );
    assert!(
        text.contains("\nfresh ") && text.ends_with("\n1 volume: 1 fresh\n"),
        "{text}"
    );
    assert!(text.contains(bed.target().to_str().unwrap()), "{text}");
    let before = running.log().len();
    running.signal(Signal::HUP);
    eventually("the refresh is in the log", || {
        running.log()[before..].contains("fetch")
    });
    assert_eq!(
        bed.status()["generation"],
        1,
        "nothing changed, so nothing was shown"
    );
    running.stop();
}

#[test]
fn the_hook_is_told_retried_and_never_fatal() {
    let bed = Bed::new();
    bed.put("payments/db", &db("first"));
    // fails the first time, and writes down what it is given
    let hook = "echo \"$SECRETFS_GENERATION $SECRETFS_TARGET $(env | grep -c first)\" >> told; test -e failed || { touch failed; exit 1; }";
    let mut running = bed.mount(SPEC, &["--on-change", hook]);
    bed.put("payments/db", &db("second"));
    let told = || fs::read_to_string(bed.path("told")).unwrap_or_default();
    eventually("told twice", || told().lines().count() == 2);
    assert_eq!(
        told(),
        format!("2 {0} 0\n2 {0} 0\n", bed.target().display())
    );
    eventually("in the log", || {
        running.log().contains("on-change command failed")
    });
    running.stop();
}

#[test]
fn a_hook_that_hangs_does_not_outlive_the_mount() {
    let bed = Bed::new();
    bed.put("payments/db", &db("first"));
    let mut running = bed.mount(
        SPEC,
        &[
            "--on-change",
            "echo on stdout; echo $$ > pid; sleep 1000; true",
        ],
    );
    bed.put("payments/db", &db("second"));
    let pid = || {
        fs::read_to_string(bed.path("pid"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    eventually("it runs", || !pid().is_empty());
    let group = || {
        let stat = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("stat")).ok();
        let stats = fs::read_dir("/proc").unwrap().flatten().filter_map(stat);
        // pid (comm) state ppid pgrp
        let groups =
            stats.filter_map(|stat| Some(stat.rsplit(") ").next()?.split(' ').nth(2)?.to_owned()));
        groups.filter(|group| *group == pid()).count()
    };
    eventually("the shell and its sleep", || group() == 2);
    running.stop();
    eventually("all of it is gone", || group() == 0);
    assert!(
        running.log().contains("on stdout"),
        "its output goes to stderr"
    );
}

#[test]
fn without_the_capability_it_says_what_to_do() {
    let bed = Bed::new();
    bed.put("payments/db", &db("first"));
    bed.write("app.yaml", SPEC);
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
        .arg(program());
    command
        .args(["mount", "app.yaml", "target"])
        .current_dir(&bed.dir);
    let output = bed.environment(&mut command).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("CAP_SYS_ADMIN") && stderr.contains("unshare -Urm"),
        "{stderr}"
    );
}

#[test]
fn wrong_input_is_exit_code_2_and_touches_nothing() {
    let bed = Bed::new();
    bed.write("app.yaml", "files:\n  - path: a\n    templte: x\n");
    let stderr = bed.fails(2, &["mount", "app.yaml", "target"]);
    assert!(
        stderr.contains("did you mean `template`?") && stderr.contains("app.yaml:3:5"),
        "{stderr}"
    );
    bed.write("app.yaml", "files:\n  - path: a\n    from: store:none\n");
    let stderr = bed.fails(1, &["mount", "app.yaml", "target"]);
    assert!(
        stderr.contains("store:none") && stderr.contains("[backend.not_found]"),
        "{stderr}"
    );
    let stderr = bed.fails(1, &["mount", "app.yaml", "nowhere"]);
    assert!(stderr.contains("[mount.no_target]"), "{stderr}");
    for (fd, why) in [("77", "was left open"), ("1", "is a standard stream")] {
        let stderr = bed.fails(2, &["mount", "app.yaml", "target", "--ready-fd", fd]);
        assert!(stderr.contains(why), "{stderr}");
    }
    let stderr = bed.fails(2, &["mount", "app.yaml", "/"]);
    assert!(stderr.contains("root directory"), "{stderr}");
    let stderr = bed.fails(1, &["mount", "app.yaml", "nowhere", "--log-format", "json"]);
    let error: serde_json::Value = serde_json::from_str(&stderr).unwrap();
    assert_eq!(error["code"], "mount.no_target");
    assert_eq!(layers(&bed.target()), 0);
}

#[test]
fn the_admin_socket_is_for_its_owner_only_and_answers_http() {
    let (bed, mut running) = mounted();
    let sockets: Vec<_> = fs::read_dir(bed.path("run/secretfs"))
        .unwrap()
        .flatten()
        .collect();
    let socket = sockets
        .iter()
        .map(fs::DirEntry::path)
        .find(|path| path.extension().is_some_and(|end| end == "sock"));
    let socket = socket.unwrap();
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let short = secretfs::sys::socket::Short::of(&socket).unwrap();
    let ask = |request: &str| {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(short.path.clone()).unwrap();
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let id = bed.status()["id"].as_str().unwrap().to_owned();
    assert!(ask("GET /v1/volumes").starts_with("HTTP/1.1 200"));
    assert!(ask(&format!("GET /v1/volumes/{id}")).contains(&id));
    assert!(ask(&format!("POST /v1/volumes/{id}/refresh")).starts_with("HTTP/1.1 200"));
    assert!(ask("POST /v1/refresh").starts_with("HTTP/1.1 200"));
    assert!(ask("GET /v1/volumes/none").contains("volume.unknown"));
    assert!(ask("DELETE /v1/volumes").contains("admin.bad_request"));
    assert!(ask("GARBAGE").starts_with("HTTP/1.1 400"));
    running.stop();
}
