//! Reference pages that are made from the code: they cannot say something else.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::docs::compare;

#[test]
fn the_page_of_limits_is_made_of_the_constants() {
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/limits.rs")).unwrap();
    let mut text = String::from(
        "# Limits\n\nEvery limit with its reason, from `src/limits.rs`. Those with a key in brackets can be set in the node's \
         configuration.\n\n| limit | value | reason |\n|---|---|---|\n",
    );
    let mut doc = String::new();
    let mut rows = 0;
    for line in source.lines() {
        if let Some(words) = line.strip_prefix("/// ") {
            doc = format!("{doc} {words}");
        } else if let Some(constant) = line.strip_prefix("pub const ") {
            let (name, value) = constant.trim_end_matches(';').split_once(" = ").unwrap();
            let name = name.split(':').next().unwrap();
            text += &format!("| `{name}` | `{value}` |{} |\n", doc.replace('|', "\\|"));
            doc.clear();
            rows += 1;
        }
    }
    assert!(rows > 20, "only {rows} limits were read from the source");
    compare("reference/limits.md", &text);
}

#[test]
fn the_page_of_commands_is_made_of_their_help() {
    let help = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secretfs"));
        let output = command
            .args(args)
            .arg("--help")
            .env_clear()
            .env("COLUMNS", "100")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let names = |help: &str| -> Vec<String> {
        let lines = help
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .take_while(|line| !line.is_empty());
        let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        names
            .map(|line| line.split_whitespace().next().unwrap().to_owned())
            .filter(|name| name != "help")
            .collect()
    };
    let top = help(&[]);
    let mut text = format!(
        "# Commands\n\nWhat `--help` says of each.\n\n```text\n{}\n```\n",
        top.trim_end()
    );
    let commands = names(&top);
    assert!(commands.len() >= 7, "{commands:?}");
    for command in commands {
        let own = help(&[&command]);
        text += &format!(
            "\n## secretfs {command}\n\n```text\n{}\n```\n",
            own.trim_end()
        );
        for sub in names(&own) {
            let own = help(&[&command, &sub]);
            text += &format!(
                "\n### secretfs {command} {sub}\n\n```text\n{}\n```\n",
                own.trim_end()
            );
        }
    }
    compare("reference/cli.md", &text);
}

/// Of the architecture whose list is the longer one.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_page_of_system_calls_is_made_of_the_filter() {
    let [freely, bounded] = secretfs::sys::seccomp::explain();
    let mut text = String::from(
        "# System calls\n\nWhat `secretfs node`, and `secretfs mount` without `--on-change`, may ask of the kernel; every other call fails. \
         [hardening.md](../hardening.md) says what happens then. This page is written by a test from `src/sys/seccomp/allowed.rs`.\n\n\
         ## Freely\n\n| for | calls |\n|---|---|\n",
    );
    let rows = |rows: &[(Vec<&str>, &str)]| -> String {
        let row =
            |(calls, why): &(Vec<&str>, &str)| format!("| {why} | `{}` |\n", calls.join("` `"));
        rows.iter().map(row).collect()
    };
    text += &rows(&freely);
    text += "\n## With some arguments only\n\n| for | call |\n|---|---|\n";
    text += &rows(&bounded);
    compare("reference/syscalls.md", &text);
}
