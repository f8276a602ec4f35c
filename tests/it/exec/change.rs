//! What happens to the program when the content changes.

use std::{
    fs,
    process::{Command, Stdio},
};

use rustix::process::Signal;

use super::{SPEC, bed, db, volume};
use crate::support::{
    canary::{CANARY, found_in},
    memory::search,
    needles::Needles,
    program::{Bed, Running, eventually, program},
};

const SHOW: &str = "echo $DB_PASSWORD; exec sleep 1000";

/// Its next line.
fn line(running: &mut Running) -> String {
    running.ready.clear();
    running.first_line();
    running.ready.trim_end().to_owned()
}

fn start(bed: &Bed, options: &[&str], script: &str) -> Running {
    let args = [
        &["exec", "--log-level", "trace"],
        options,
        &["--", "sh", "-c", script],
    ]
    .concat();
    bed.start(&args)
}

#[track_caller]
fn ends(mut running: Running) {
    running.signal(Signal::TERM);
    assert_eq!(running.ended().code(), Some(143), "{}", running.log());
}

#[test]
fn the_program_is_started_again_with_the_new_values() {
    let bed = bed();
    let mut running = start(
        &bed,
        &[
            "--spec",
            "app.yaml",
            "--restart-on-change",
            "--jitter",
            "1s",
        ],
        SHOW,
    );
    assert_eq!(running.ready, "first\n");
    bed.put("payments/db", &db("second"));
    assert_eq!(line(&mut running), "second");
    ends(running);

    // and of a volume that is mounted
    let mount = bed.mount(SPEC, &[]);
    let mut running = start(&bed, &["--from", "target", "--restart-on-change"], SHOW);
    assert_eq!(running.ready, "second\n");
    bed.put("payments/db", &db("third"));
    assert_eq!(line(&mut running), "third");
    ends(running);
    drop(mount);
}

#[test]
fn one_that_does_not_end_is_killed_after_the_grace() {
    let bed = bed();
    let script = "trap '' TERM; echo $DB_PASSWORD; while :; do sleep 0.1; done";
    let options = ["--spec", "app.yaml", "--restart-on-change", "--grace", "0s"];
    let mut running = start(&bed, &options, script);
    bed.put("payments/db", &db("second"));
    assert_eq!(line(&mut running), "second");
    running.signal(Signal::KILL);
    running.ended();
}

#[test]
fn what_the_program_does_not_get_does_not_restart_it() {
    let bed = Bed::new();
    let dir = bed.target();
    volume(&dir, "..1", &[("a", b"1"), ("b", b"1")]);
    let options = ["--from", "target", "--restart-on-change", "--env", "A=a"];
    let mut running = start(&bed, &options, "echo $A; exec sleep 1000");
    volume(&dir, "..2", &[("a", b"1"), ("b", b"2")]);
    eventually("it was looked at", || {
        running.log().contains("nothing has changed")
    });
    volume(&dir, "..3", &[("a", b"2"), ("b", b"2")]);
    assert_eq!(line(&mut running), "2");
    assert_eq!(running.log().matches("started again").count(), 1);
    ends(running);
}

#[test]
fn a_change_that_cannot_be_used_leaves_the_program_as_it_is() {
    let bed = Bed::new();
    let dir = bed.target();
    volume(&dir, "..1", &[("a", b"1")]);
    let mut running = start(
        &bed,
        &["--from", "target", "--restart-on-change"],
        "echo $A; exec sleep 1000",
    );
    volume(&dir, "..2", &[("a", b"a\0b")]);
    eventually("it is told", || running.log().contains("exec.bad_value"));
    volume(&dir, "..3", &[("a", b"3")]);
    assert_eq!(
        line(&mut running),
        "3",
        "nothing else was started meanwhile"
    );
    ends(running);
    // a store that is down
    let bed = super::bed();
    let mut running = start(&bed, &["--spec", "app.yaml", "--restart-on-change"], SHOW);
    fs::rename(bed.path("store"), bed.path("hidden")).unwrap();
    eventually("the store is missed", || {
        running.log().contains("cannot be kept current")
    });
    fs::rename(bed.path("hidden"), bed.path("store")).unwrap();
    bed.put("payments/db", &db("second"));
    assert_eq!(line(&mut running), "second");
    ends(running);
}

#[test]
fn one_that_is_told_keeps_running() {
    let bed = Bed::new();
    let dir = bed.target();
    volume(&dir, "..1", &[("a", b"1")]);
    let script =
        "trap 'cat target/..data/a; echo; kill $!; exit 4' USR1; sleep 1000 & echo ready; wait $!";
    let mut running = start(&bed, &["--from", "target", "--signal", "USR1"], script);
    volume(&dir, "..2", &[("a", b"2")]);
    assert_eq!(line(&mut running), "2");
    assert_eq!(running.ended().code(), Some(4));
}

#[test]
fn somebody_who_ends_it_between_two_ends_it_for_good() {
    let bed = bed();
    let script = "trap 'echo asked' TERM; trap 'kill $!; exit 5' INT; echo $DB_PASSWORD; sleep 1000 & while :; do wait $!; done";
    let options = ["--spec", "app.yaml", "--restart-on-change", "--grace", "1h"];
    let mut running = start(&bed, &options, script);
    bed.put("payments/db", &db("second"));
    assert_eq!(line(&mut running), "asked");
    running.signal(Signal::INT);
    assert_eq!(running.ended().code(), Some(5));
}

#[test]
fn changes_cannot_be_watched_where_there_are_no_generations() {
    let bed = Bed::new();
    bed.write("target/a", "1");
    let stderr = bed.fails(
        2,
        &[
            "exec",
            "--from",
            "target",
            "--restart-on-change",
            "--",
            "true",
        ],
    );
    assert!(stderr.contains("..data"), "{stderr}");
}

/// Others see arguments and logs; the environment only the same user does.
#[test]
fn no_value_is_in_an_argument_or_a_log() {
    let bed = Bed::new();
    bed.put("payments/db", &db(CANARY));
    bed.write("app.yaml", SPEC);
    for format in ["text", "json"] {
        let options = [
            "--spec",
            "app.yaml",
            "--restart-on-change",
            "--log-format",
            format,
        ];
        let script = "echo $$; exec sleep 1000";
        let mut running = start(&bed, &options, script);
        let program = running.ready.trim().to_owned();
        for pid in [program.clone(), running.child.id().to_string()] {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            assert_eq!(found_in(&cmdline), [""; 0], "{pid}");
        }
        let environ = || fs::read(format!("/proc/{program}/environ")).unwrap();
        eventually("the search finds it where it is", || {
            !found_in(&environ()).is_empty()
        });
        let own = fs::read(format!("/proc/{}/environ", running.child.id()));
        assert_eq!(found_in(&own.unwrap_or_default()), [""; 0]);
        bed.put("payments/db", &db(&format!("{CANARY}2")));
        assert_ne!(line(&mut running), program, "another process");
        bed.put("payments/db", "no document");
        eventually("a failure is logged", || running.log().contains("render."));
        let log = running.log();
        assert!(log.contains("TRACE"), "{log}");
        assert_eq!(found_in(log.as_bytes()), [""; 0], "{log}");
        bed.put("payments/db", &db(CANARY));
        eventually("it was looked at", || {
            running.log().matches("started again").count() == 2
        });
        line(&mut running);
        ends(running);
    }
}

#[test]
fn the_parent_keeps_no_value_of_a_directory() {
    let bed = Bed::new();
    let dir = bed.target();
    let value: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(64)
        .collect();
    volume(&dir, "..1", &[("a", value.as_bytes())]);
    let limits = "ulimit -H -c 2048; ulimit -S -c 1024; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limits, "sh"]).arg(program());
    command.args(["exec", "--from", "target", "--restart-on-change"]);
    command.args(["--", "sh", "-c", "echo $$; exec sleep 1000"]);
    bed.environment(command.current_dir(&bed.dir))
        .stdout(Stdio::piped());
    let mut running = bed.spawn(command);
    running.first_line();
    let mut needles = Needles::default();
    needles.add("the value", value.as_bytes());
    let environ = || fs::read(format!("/proc/{}/environ", running.ready.trim())).unwrap();
    eventually("the search finds it", || {
        !needles.find(&environ()).is_empty()
    });
    eventually("no copy is left", || {
        search(running.child.id(), &needles).copies.is_empty()
    });
    // nor can others of its user look
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.child.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    ends(running);
}
