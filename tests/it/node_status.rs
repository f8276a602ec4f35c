//! What `secretfs status` shows of a node plugin: volumes in each state that one reaches, as text, as JSON, and while they change.

use std::{
    fs,
    io::Read as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{mount::UnmountFlags, process::Signal};
use secretfs::{cli::status::show::WORST_FIRST, volume::VolumeState};

use crate::support::{
    kubelet::Pod,
    machine::{Machine, kill, put},
    program::{Running, program},
};

const PAYMENTS: &str =
    "policy: [{namespaces: [payments], serviceAccounts: [\"*\"], allow: [\"store:**\"]}]";

impl Machine {
    /// What `secretfs status` says.
    fn says(&self, more: &[&str]) -> String {
        let args = [&["status", "--config", "node.yaml"], more].concat();
        self.node.bed.ok(&args, "")
    }

    fn watch(&self, more: &[&str]) -> Running {
        let bed = &self.node.bed;
        let args = [&["status", "--watch", "--config", "node.yaml"], more].concat();
        bed.spawn(bed.command(&args))
    }
}

#[track_caller]
fn next_line(running: &mut Running) -> String {
    running.ready.clear();
    running.first_line();
    running.ready.clone()
}

/// Reads lines until one ends so.
#[track_caller]
fn until_line(running: &mut Running, end: &str) -> String {
    loop {
        let line = next_line(running);
        assert!(!line.is_empty(), "no `{end}`: {}", running.log());
        if line.trim_end().ends_with(end) {
            return line;
        }
    }
}

#[test]
fn a_node_in_trouble_is_told_with_the_worst_first() {
    let machine = Machine::new();
    put(&machine.store(), "d", 1);
    let pod = |namespace, name| Pod::of(name, namespace, "api");
    let of = |namespace, name, spec| machine.kubelet.volume(&pod(namespace, name), "v", spec);
    let one = "files: [{path: a, from: store:a}]";
    let adopted = of("payments", "adopted", one);
    let fresh = of("payments", "fresh", one);
    let stale = of("payments", "stale", "files: [{path: d, from: store:d}]");
    let denied = of("shop", "denied", one);
    let lost = of("payments", "lost", one);
    let all = [&adopted, &fresh, &stale, &denied, &lost].map(Clone::clone);
    let mut running = machine.start(0);
    machine.publish_all(&all);
    kill(&mut running);
    fs::remove_file(machine.record(&adopted)).unwrap();
    let mut running = machine.start(5);
    machine.until(&stale, "fresh"); // it was there: else it would be said that there is none

    machine.node.configure(PAYMENTS);
    rustix::mount::unmount(&lost.target, UnmountFlags::DETACH).unwrap();
    let name = secretfs::store::Name::parse("d").unwrap();
    machine.store().remove(&name).unwrap();
    let refresh = ["refresh", "--all", "--config", "node.yaml"];
    machine.node.bed.fails(1, &refresh); // one is denied, one is gone, one is lost
    for (volume, state) in [(&denied, "denied"), (&lost, "lost"), (&stale, "stale")] {
        machine.until(volume, state);
    }
    let text = machine.says(&[]);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| {
            VolumeState::ALL
                .iter()
                .any(|state| line.starts_with(state.name()))
        })
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    let expect = [
        ["lost", "payments/lost", "v"],
        ["denied", "shop/denied", "v"],
        ["stale", "payments/stale", "v"],
        ["adopted", &adopted.id, "v"],
        ["fresh", "payments/fresh", "v"],
    ];
    assert_eq!(rows, expect, "{text}");
    for note in [
        "The mount has gone from the target [mount.gone]\n  fix: ",
        "[policy.denied]\n  fix: Add a line to the policy.\n",
        ": d: was removed from the store (as version 2) [backend.not_found]\n  fix: Create it",
        "\n  as a former process left it, ",
    ] {
        assert!(text.contains(note), "no {note:?} in {text}");
    }
    let totals = "\n5 volumes: 1 lost, 1 denied, 1 stale, 1 adopted, 1 fresh\n";
    assert!(text.ends_with(totals), "{text}");
    let json: serde_json::Value = serde_json::from_str(&machine.says(&["--json"])).unwrap();
    let states = json["volumes"].as_array().unwrap().iter();
    let mut states: Vec<_> = states.map(|one| one["state"].as_str().unwrap()).collect();
    states.sort_unstable();
    assert_eq!(states, ["adopted", "denied", "fresh", "lost", "stale"]);

    // republishes mend what they can
    machine.publish(&adopted).unwrap();
    machine.until(&adopted, "fresh");
    machine.unpublish_all(&all);
    assert!(
        machine
            .says(&[])
            .ends_with("\nno volume is served by this user's secretfs\n")
    );
    running.stop();
}

#[test]
fn watched_from_a_pipe_only_what_changes_is_told() {
    let machine = Machine::new();
    let volume = &machine.volumes(1)[0];
    let mut plugin = machine.start(0);
    let mut lines = machine.watch(&[]);
    let mut documents = machine.watch(&["--json"]);
    until_line(&mut lines, "CSIDriver object"); // of the plugin: kubernetes is off
    documents.first_line();
    machine.publish(volume).unwrap();
    let line = until_line(&mut lines, "fresh payments/pod-0 v0 generation 1");
    assert!(
        line.starts_with("20") && line.contains("Z fresh "),
        "{line}"
    );
    machine.put("a", 2);
    until_line(&mut lines, "fresh payments/pod-0 v0 generation 2");
    let document = until_line(&mut documents, "}");
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(
        document["volumes"][0]["owner"], "payments/pod-0",
        "the first was without"
    );
    kill(&mut plugin);
    until_line(&mut lines, "(os error 111))"); // nobody answers, and it goes on
    let mut plugin = machine.start(1);
    until_line(&mut lines, "answers again");
    machine.unpublish(volume).unwrap();
    until_line(&mut lines, "gone, was fresh payments/pod-0 v0 generation 2");
    for running in [&mut lines, &mut documents] {
        running.signal(Signal::INT);
        running.ended();
    }
    plugin.stop();
}

#[test]
fn a_plugin_that_is_dead_is_told_though_nobody_named_it() {
    let machine = Machine::new();
    let bed = &machine.node.bed;
    let volume = &machine.volumes(1)[0];
    let mut plugin = machine.start(0);
    machine.publish(volume).unwrap();
    let socket = bed.path("run/secretfs/admin.sock"); // where every command looks
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(machine.node.admin(), &socket).unwrap();
    let document = |code| {
        let output = bed.run(&["status", "--json"], "");
        assert_eq!(output.status.code(), Some(code));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    assert_eq!(document(0)["unreachable"], serde_json::json!([]));
    let mut lines = bed.spawn(bed.command(&["status", "--watch"]));
    until_line(&mut lines, "fresh payments/pod-0 v0 generation 1");
    kill(&mut plugin);
    // a look that met its end says another reason, once
    let line = until_line(&mut lines, "(os error 111))");
    assert!(line.contains("no answer: "), "{line}");
    let silent = &document(1)["unreachable"][0];
    assert_eq!(silent["socket"], socket.to_str().unwrap());
    assert_eq!(silent["code"], "admin.unreachable");
    let output = bed.run(&["status"], "");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("no answer: ") && !text.contains("no volume is served"));
    let refused = bed.fails(1, &["refresh", "--all"]);
    assert!(refused.contains("admin.unreachable"), "{refused}");

    let mut plugin = machine.start(1);
    until_line(&mut lines, "answers again");

    // one that has ended well leaves no socket, and volumes that nobody refreshes
    plugin.stop();
    let line = until_line(&mut lines, "was fresh payments/pod-0 v0 generation 1");
    assert!(line.contains("nobody serves it any more"), "{line}");
    let silent = &document(1)["unreachable"][0];
    let message = silent["message"].as_str().unwrap();
    assert!(message.contains("mounted here (1)"), "{message}");
    let output = bed.run(&["status"], "");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("no answer: /run/secretfs/admin.sock: "),
        "{text}"
    );

    let mut plugin = machine.start(1);
    lines.signal(Signal::INT);
    lines.ended();
    machine.unpublish(volume).unwrap();
    plugin.stop();
}

#[test]
fn a_plugin_that_hangs_keeps_nobody_waiting_for_long() {
    let machine = Machine::new();
    let bed = &machine.node.bed;
    let plugin = machine.start(0);
    let place = bed.path("run/secretfs");
    fs::create_dir_all(&place).unwrap();
    for name in ["a.sock", "b.sock", "c.sock"] {
        std::os::unix::fs::symlink(machine.node.admin(), place.join(name)).unwrap();
    }
    plugin.signal(Signal::STOP);
    let began = Instant::now();
    let output = bed.run(&["status"], "");
    assert!(began.elapsed() < Duration::from_secs(15), "in turn");
    plugin.signal(Signal::CONT);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let silent = text.matches("no answer within 5 s: is it stopped?").count();
    assert_eq!(silent, 3, "{text}");
}

#[test]
fn watched_on_a_terminal_the_table_is_drawn_again() {
    let machine = Machine::new();
    let mut plugin = machine.start(0);
    let config = machine.node.bed.path("node.yaml");
    let shell = format!(
        "{} status --watch --config {}",
        program().display(),
        config.display()
    );
    let mut script = Command::new("script");
    let mut script = script
        .args(["-qfec", &shell, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = script.stdout.take().unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let draws = |seen: &[u8]| {
        String::from_utf8_lossy(seen)
            .matches("\u{1b}[Hnode n1")
            .count()
    };
    while draws(&seen) < 2 {
        let read = out.read(&mut buffer).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("secretfs\u{1b}[K\r\n\u{1b}[J"), "{text:?}");
    script.kill().unwrap();
    script.wait().unwrap();
    plugin.stop();
}

#[test]
fn the_page_has_each_state_in_the_order_of_the_table() {
    let page = include_str!("../../docs/reference/status.md");
    let (_, states) = page.split_once("\n## States\n").unwrap();
    let states = states.split("\n## ").next().unwrap();
    let named = states
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    assert!(named.eq(WORST_FIRST.map(VolumeState::name)), "{states}");
    for state in VolumeState::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        assert!(WORST_FIRST.contains(&state));
    }
}
