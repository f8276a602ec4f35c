//! What the program does to its own process before it serves (design decision 14), seen from outside.

use std::fs;

use crate::support::program::{Bed, Running};

fn status(running: &Running, key: &str) -> String {
    of(&format!("/proc/{}/status", running.child.id()), key)
}

fn status_of_this(key: &str) -> String {
    of("/proc/thread-self/status", key)
}

fn of(file: &str, key: &str) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .trim()
        .to_owned()
}

fn mount(more: &[&str]) -> (Bed, Running) {
    let bed = Bed::new();
    bed.put("a", "value");
    let running = bed.mount("files:\n  - path: a\n    from: store:a\n", more);
    (bed, running)
}

// linux/capability.h
const CHOWN: u64 = 1 << 0;
const DAC_OVERRIDE: u64 = 1 << 1;
const SYS_ADMIN: u64 = 1 << 21;

#[test]
fn it_keeps_three_capabilities_and_can_regain_none() {
    let (_bed, mut running) = mount(&[]);
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let have = u64::from_str_radix(&status(&running, set), 16).unwrap();
        assert_eq!(have, CHOWN | DAC_OVERRIDE | SYS_ADMIN, "{set} {have:x}");
    }
    assert_eq!(status(&running, "NoNewPrivs:"), "1");
    assert_eq!(status(&running, "Seccomp:"), "2");
    running.stop();
}

#[test]
fn a_users_own_command_keeps_the_users_powers() {
    let (_bed, mut running) = mount(&["--on-change", "true"]);
    assert_eq!(status(&running, "NoNewPrivs:"), "0");
    assert_eq!(status(&running, "Seccomp:"), status_of_this("Seccomp:"));
    assert_eq!(status(&running, "CapBnd:"), status_of_this("CapBnd:"));
    running.stop();
}

#[test]
fn no_core_file_and_no_look_into_its_memory() {
    let (_bed, mut running) = mount(&[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.child.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(
        core.split_whitespace().filter(|word| *word == "0").count(),
        2,
        "{core}"
    );
    // an undumpable process's files in /proc belong to root, whoever runs it; as root that is no difference, so look at
    // what does differ: the kernel's own flag is not shown, but /proc/PID/mem of a dumpable one is readable to its user
    if !rustix::process::geteuid().is_root() {
        assert!(fs::File::open(format!("/proc/{}/mem", running.child.id())).is_err());
    }
    running.stop();
}
