//! Signals between a terminal, `secretfs exec` and the program.

use std::{
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::bed;
use crate::support::program::{eventually, program};

const WATCH: [&str; 4] = ["exec", "--spec", "app.yaml", "--restart-on-change"];

/// A program that says its number, and its sleep; and then only waits.
const SLEEP: &str = "echo $$; exec sleep 1000";

#[test]
fn a_signal_reaches_the_program_and_its_end_is_ours() {
    let bed = bed();
    for (signal, number) in [
        (Signal::HUP, 1),
        (Signal::INT, 2),
        (Signal::QUIT, 3),
        (Signal::USR1, 10),
        (Signal::USR2, 12),
        (Signal::TERM, 15),
    ] {
        let args = [&WATCH[..], &["--", "sh", "-c", SLEEP]].concat();
        let mut running = bed.start(&args);
        let comm = format!("/proc/{}/comm", running.ready.trim());
        eventually("the shell has become its sleep", || {
            // before that dash may take an INT and lose it
            std::fs::read_to_string(&comm).unwrap_or_default() == "sleep\n"
        });
        running.signal(signal);
        let ended = running.ended();
        assert_eq!(ended.code(), Some(128 + number), "{signal:?}");
    }
    // one that ends no program by itself
    let script = "trap 'echo winch; kill $!; exit 3' WINCH; sleep 1000 & echo ready; wait $!";
    let args = [&WATCH[..], &["--", "sh", "-c", script]].concat();
    let mut running = bed.start(&args);
    running.signal(Signal::WINCH);
    assert_eq!(running.ended().code(), Some(3));
}

#[test]
fn what_was_ignored_before_us_ends_neither_of_us() {
    let bed = bed();
    let mut command = Command::new("env");
    command
        .args(["--ignore-signal=HUP"])
        .arg(program())
        .args(WATCH);
    command
        .args(["--", "sh", "-c", SLEEP])
        .current_dir(&bed.dir);
    bed.environment(&mut command).stdout(Stdio::piped());
    let mut running = bed.spawn(command);
    running.first_line();
    running.signal(Signal::HUP); // as nohup(1) wants it: nothing
    running.signal(Signal::TERM);
    assert_eq!(running.ended().code(), Some(143));
}

#[test]
fn a_signal_ends_it_while_it_waits_for_its_spec() {
    let bed = bed();
    let pipe = bed.path("pipe.yaml");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let args = [
        "exec",
        "--spec",
        "pipe.yaml",
        "--restart-on-change",
        "--",
        "sh",
        "-c",
        SLEEP,
    ];
    let mut running = bed.spawn(bed.command(&args));
    let writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap(); // returns when it reads
    running.signal(Signal::TERM);
    assert_eq!(running.ended().signal(), Some(15));
    drop(writer);
}

/// As the first process of a container it inherits what others leave behind.
#[test]
fn orphans_are_reaped() {
    let bed = bed();
    let script = "orphan=$(sh -c 'sleep 0.1 >/dev/null & echo $!'); while kill -0 $orphan; do :; done 2>/dev/null; exit 3";
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(program());
    command
        .args(WATCH)
        .args(["--", "sh", "-c", script])
        .current_dir(&bed.dir);
    bed.environment(&mut command).stdout(Stdio::piped());
    let mut running = bed.spawn(command);
    assert_eq!(running.ended().code(), Some(3));
}

/// `^C` comes from the terminal, to both of us: the program must not get it twice. `^Z` stops both, and `fg` lets both go on.
#[test]
fn on_a_terminal_one_interrupt_is_one_and_a_stop_stops_both() {
    let bed = bed();
    let script = "n=0; trap 'n=$((n+1)); echo int $n' INT; trap 'echo told $n; kill $!; exit 9' USR1; \
                  echo parent $PPID; sleep 1000 & while :; do wait $!; done";
    bed.write("script", script);
    let ours = format!(
        "{} {} --log-level debug -- sh script",
        program().display(),
        WATCH.join(" ")
    );
    // a shell with job control, as people have one
    let shell = format!("set -m\n{ours}\necho stopped $?\nfg >/dev/null\necho ended $?\n");
    bed.write("shell", &shell);
    let mut command = Command::new("env");
    command.args([
        "--default-signal=INT,QUIT",
        "script",
        "-qec",
        "sh shell",
        "/dev/null",
    ]);
    bed.environment(command.current_dir(&bed.dir))
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut running = bed.spawn(command);
    let mut keys = running.child.stdin.take().unwrap();
    let mut until = |what: &str| {
        while !running.ready.contains(what) {
            let before = running.ready.len();
            running.first_line();
            assert_ne!(before, running.ready.len(), "no {what}: {}", running.ready);
        }
        running.ready.clone()
    };
    let said = until("parent ");
    let parent = said.trim().rsplit("parent ").next().unwrap();
    let parent = Pid::from_raw(parent.parse().unwrap()).unwrap();
    keys.write_all(b"\x03").unwrap();
    until("int 1");
    keys.write_all(b"\x1a").unwrap();
    until("stopped 148"); // 128 and SIGTSTP; then the shell's `fg`
    kill_process(parent, Signal::USR1).unwrap(); // to us alone: passed on
    let said = until("ended 9");
    assert!(said.contains("told 1"), "{said}");
    // a second interrupt may be lost in the first: so what we did counts, too
    assert_eq!(said.matches("is passed on").count(), 1, "{said}");
}
