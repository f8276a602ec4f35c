//! `secretfs demo`: what a person sees first.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    program::{REFUSED, program},
    sandbox::Sandbox,
};

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
        "ready: csi.secretfs.dev on demo, 0 volumes restored",
        "NodePublishVolume: Ok in ",
        "tmpfs ro,nosuid,nodev,noexec",
        "NodePublishVolume: PermissionDenied in ",
        "[policy.denied]",
        "kill -9 ",
        "ready: csi.secretfs.dev on demo, 1 volume restored",
        " reads in the container, 0 failed; no event",
        "ok  the same mounts as before, one layer each",
        "0 torn reads, 0 missing files",
        "NodeUnpublishVolume: Ok in ",
        "ok  mount: none",
        "ok  container: 0 files in its copy of the mount; it holds one open, of 48 bytes: 0 are not zero",
        "ok  records: 0 in runtimeDir",
        "ok  process: gone",
        "ok  secret: 7 passwords looked for",
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

/// A demo that is left running, what it says until then, and all that was taken of it so far. It logs at trace level.
fn kept(
    dir: &Path,
    more: &[&str],
    log: fs::File,
) -> (
    Child,
    impl Iterator<Item = String> + use<>,
    Arc<Mutex<String>>,
) {
    let mut command = demo(dir);
    command.arg("--keep").args(more).stdout(Stdio::piped());
    command.env("SECRETFS_LOG_LEVEL", "trace").stderr(log);
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let taken = Arc::new(Mutex::new(String::new()));
    let said = taken.clone();
    let lines = lines.map(move |line| {
        let line = line.unwrap();
        said.lock().unwrap().push_str(&format!("{line}\n"));
        line
    });
    (child, lines, taken)
}

/// The demo's directory.
fn place(dir: &Path) -> PathBuf {
    let mut all = fs::read_dir(dir).unwrap().flatten();
    let found = all.find(|entry| entry.path().is_dir()).unwrap();
    found.path()
}

/// Runs the program in the demo's directory, as the demo says.
fn inside(place: &Path, args: &[&str]) -> String {
    let mut command = Command::new(program());
    command.args(args).current_dir(place).env_clear();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// One of the passwords that were put.
fn password(place: &Path, version: u32) -> String {
    let version = version.to_string();
    let mut args = vec!["store", "get", "demo/db", "--field", "password"];
    args.extend(["--version", &version, "--store", "store"]);
    args.extend(["--identity", "identity.age"]);
    inside(place, &args).trim().to_owned()
}

/// Each call of a trace, with its code.
fn calls(trace: &str) -> Vec<String> {
    let one = |line: &str| {
        let call: Value = serde_json::from_str(line).unwrap();
        assert!(call["ms"].is_number() && call["request"].is_object());
        let text = |key: &str| call[key].as_str().unwrap().to_owned();
        format!("{} {}", text("call"), text("code"))
    };
    trace.lines().map(one).collect()
}

#[test]
fn kept_it_runs_until_ctrl_c_and_its_trace_holds_every_call_and_no_value() {
    let sandbox = Sandbox::new();
    let trace = sandbox.path().join("trace.jsonl");
    let log = tempfile::NamedTempFile::new().unwrap();
    let more = ["--trace", trace.to_str().unwrap()];
    let (mut child, mut lines, taken) = kept(sandbox.path(), &more, log.reopen().unwrap());
    assert!(
        lines.any(|line| line.contains("Ctrl-C")),
        "it says how to end it"
    );
    let place = place(sandbox.path());
    let status = inside(&place, &["status", "--socket", "run/admin.sock"]);
    assert!(
        status.contains("shop/web-1") && status.contains("fresh"),
        "{status}"
    );
    let passwords: Vec<String> = (1..=7).map(|version| password(&place, version)).collect();
    let plugins = fs::read_to_string(place.join("node.log")).unwrap();
    assert!(plugins.contains("TRACE secretfs::csi::node: "), "{plugins}");
    assert!(!plugins.contains(REFUSED), "{plugins}");
    kill_process(
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        Signal::INT,
    )
    .unwrap();
    assert!(lines.any(|line| line.contains("directory: removed")));
    assert!(child.wait().unwrap().success());
    let text = fs::read_to_string(&trace).unwrap();
    let own = fs::read_to_string(log.path()).unwrap();
    assert!(own.contains("TRACE secretfs::"), "{own}");
    let said = taken.lock().unwrap().clone();
    assert!(said.contains("web-1"), "{said}");
    for password in passwords {
        assert_eq!(password.len(), 48);
        for said in [&text, &plugins, &own, &said] {
            assert!(!said.contains(&password), "{said}");
        }
    }
    assert_eq!(
        calls(&text),
        [
            "NodeGetInfo Ok",
            "NodeGetCapabilities Ok",
            "NodePublishVolume Ok",
            "NodePublishVolume Ok",
            "NodeGetCapabilities Ok",
            "NodePublishVolume PermissionDenied",
            "NodeUnpublishVolume Ok",
        ]
    );
    fs::remove_file(&trace).unwrap();
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[test]
fn a_plugin_that_cannot_be_started_again_fails_it() {
    let sandbox = Sandbox::new();
    let mut command = demo(sandbox.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.any(|line| line.contains("NodeGetInfo: Ok")));
    fs::write(place(sandbox.path()).join("node.yaml"), "nonsense: 1\n").unwrap();
    let rest: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("secretfs node did not get ready"),
        "{stderr}"
    );
    assert!(stderr.contains("nonsense"), "it says why: {stderr}");
    assert!(rest.iter().any(|line| line.contains("nobody serves")));
    assert!(!rest.iter().any(|line| line.contains("directory: removed")));
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}
