//! `secretfs demo`: what a person sees first.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{program::program, sandbox::Sandbox};

fn demo(dir: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .arg("demo")
        .env_clear()
        .env("TMPDIR", dir)
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null());
    command
}

#[test]
fn it_shows_all_of_it_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let output = demo(sandbox.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in [
        "begins with `age-encryption.org/v1`",
        "tmpfs ro,nosuid,nodev,noexec",
        "0 torn reads, 0 missing files",
        "ok  process: gone",
        "ok  mount: none",
        "ok  secret: 6 passwords looked for",
        "ok  directory: removed",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let rows = text
        .lines()
        .filter(|line| line.contains(" -> ") && line.matches(" ms").count() == 3);
    assert_eq!(rows.count(), 5, "{text}");
    assert!(!text.contains('\x1b'), "colour belongs to terminals");
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[test]
fn kept_it_runs_until_ctrl_c_and_then_leaves_nothing_too() {
    let sandbox = Sandbox::new();
    let mut child = demo(sandbox.path())
        .arg("--keep")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(
        lines.any(|line| line.contains("Ctrl-C")),
        "it says how to end it"
    );
    let left: Vec<_> = fs::read_dir(sandbox.path()).unwrap().flatten().collect();
    assert!(
        left[0].path().join("store/store.json").exists(),
        "it is there to look at"
    );
    kill_process(
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        Signal::INT,
    )
    .unwrap();
    assert!(lines.any(|line| line.contains("directory: removed")));
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}
