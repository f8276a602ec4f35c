//! What `secretfs node` cannot do (design decision 14): capabilities, the system call filter, no core file, no look inside.
//!
//! Each capability that is kept has a test here that takes it away and names the operation that then fails.

use std::{
    env, fs, io,
    net::ToSocketAddrs as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use rustix::{io::Errno, process::Signal};
use secretfs::sys::seccomp;
use tonic::Status;

use crate::{
    node::bed::{self, NodeBed},
    support::{
        can_chown,
        program::{REFUSED, Running, eventually, program},
    },
};

// linux/capability.h
const CHOWN: u64 = 1 << 0;
const DAC_OVERRIDE: u64 = 1 << 1;
const SETPCAP: u64 = 1 << 8;
const SYS_ADMIN: u64 = 1 << 21;
const KEPT: u64 = CHOWN | DAC_OVERRIDE | SYS_ADMIN;

/// A line of a thread's `status`; `None`: the thread has ended.
fn line(task: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(task.join("status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    Some(
        line.unwrap_or_else(|| panic!("no {key} in {text}"))
            .trim()
            .to_owned(),
    )
}

fn bits(task: &Path, key: &str) -> Option<u64> {
    line(task, key).map(|text| u64::from_str_radix(&text, 16).unwrap())
}

#[test]
fn every_thread_has_what_mounts_need_and_nothing_else() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    bed.publish("v").unwrap(); // the threads that block on mounts and stores are there now
    let own = |key| bits(Path::new("/proc/thread-self"), key).unwrap();
    let bounding = if own("CapEff:") & SETPCAP == 0 {
        eprintln!("without CAP_SETPCAP the bounding set stays as whoever started us made it");
        own("CapBnd:")
    } else {
        KEPT
    };
    let tasks = fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
    let tasks: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    let mut seen = 0;
    for task in &tasks {
        for (key, expect) in [
            ("CapInh:", 0),
            ("CapPrm:", KEPT),
            ("CapEff:", KEPT),
            ("CapBnd:", bounding),
            ("CapAmb:", 0),
        ] {
            if let Some(have) = bits(task, key) {
                assert_eq!(have, expect, "{key} {have:x}");
            }
        }
        for (key, expect) in [("NoNewPrivs:", "1"), ("Seccomp:", "2")] {
            if let Some(have) = line(task, key) {
                assert_eq!(have, expect, "{key}");
                seen += 1;
            }
        }
        if let Some(filters) = line(task, "Seccomp_filters:") {
            assert!(filters.parse::<u32>().unwrap() >= 1, "{filters}");
        }
    }
    assert!(seen >= 2 * 3, "the main thread and two workers at least");
    bed.unpublish("v").unwrap();
    running.stop();
}

#[test]
fn it_leaves_no_core_file_and_nobody_of_its_user_reads_its_memory() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    let pid = running.child.id();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    let core: Vec<_> = core.unwrap().split_whitespace().collect();
    assert_eq!(core[..2], ["0", "0"]);
    // another process of the same user; without CAP_SYS_PTRACE, which may look everywhere
    let look = |without: &str, script: String| {
        let mut command = Command::new("setpriv");
        let set = format!("--bounding-set={without}");
        command.args([set.as_str(), "sh", "-c", &script]);
        command.stderr(Stdio::null()).status().unwrap().success()
    };
    let ours = "sleep 60 & child=$!; : </proc/$child/mem; rc=$?; kill $child; exit $rc";
    for without in ["-sys_ptrace", "-all"] {
        let can = look(without, ours.to_owned());
        assert!(can, "an ordinary process can be looked into");
        assert!(!look(without, format!(": </proc/{pid}/mem")), "{without}");
    }
    for file in ["environ", "maps"] {
        assert!(!look("-all", format!(": </proc/{pid}/{file}")), "{file}");
    }
    running.stop();
}

#[test]
fn a_signal_that_looks_like_a_refused_call_is_none() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    running.signal(Signal::SYS);
    bed.publish("v").unwrap();
    bed.unpublish("v").unwrap();
    running.stop();
    assert!(!running.log().contains(REFUSED));
}

// --- each capability

/// Starts the plugin without this capability: neither has it, nor can it have.
fn without(bed: &NodeBed, capability: &str) -> Running {
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-{capability}"));
    command.arg(program()).args(NodeBed::ARGS);
    command.current_dir(&bed.bed.dir).stdin(Stdio::null());
    bed.bed.environment(&mut command).stdout(Stdio::piped());
    let mut running = bed.bed.spawn(command);
    running.first_line();
    running
}

/// Publishes a volume whose file belongs to this user, with this mode.
fn publish_for(bed: &NodeBed, volume: &str, uid: u32, mode: &str) -> Result<(), Status> {
    let (mut node, mut request) = (bed.channel().node(), bed.request(volume));
    let spec = format!(
        "uid: {uid}\ngid: {uid}\ndefaultMode: \"{mode}\"\n{}",
        bed::SPEC
    );
    request.volume_context.insert("spec".to_owned(), spec);
    let answer = bed.runtime.block_on(node.node_publish_volume(request));
    answer.map(drop)
}

#[test]
fn without_sys_admin_it_does_not_start() {
    let bed = NodeBed::shared();
    let mut running = without(&bed, "sys_admin");
    assert_eq!(running.ended().code(), Some(1));
    let log = running.log();
    assert!(log.contains("mount.not_permitted"), "{log}");
}

#[test]
fn without_chown_a_file_cannot_be_given_to_its_user() {
    if !can_chown() {
        eprintln!("this user namespace has one user: nobody to give a file to");
        return;
    }
    let bed = NodeBed::shared();
    let mut running = without(&bed, "chown");
    let refused = publish_for(&bed, "v", 1000, "0400").unwrap_err();
    assert!(
        refused.message().contains("cannot be given to 1000:1000"),
        "{refused}"
    );
    running.stop();
}

#[test]
fn without_dac_override_files_cannot_be_overwritten_when_they_go() {
    let bed = NodeBed::shared();
    let mut running = without(&bed, "dac_override");
    bed.publish("v").unwrap();
    let refused = bed.unpublish("v").unwrap_err();
    assert!(refused.message().contains("Permission denied"), "{refused}");
    drop(running.child.kill());
}

#[test]
fn without_dac_override_an_identity_of_another_user_cannot_be_read() {
    if !can_chown() {
        eprintln!("this user namespace has one user: nobody else to own the identity");
        return;
    }
    let bed = NodeBed::shared();
    std::os::unix::fs::chown(bed.bed.path("identity.age"), Some(1000), Some(1000)).unwrap();
    let mut running = without(&bed, "dac_override");
    let refused = bed.publish("v").unwrap_err();
    let says = "the identity file cannot be read (read it: Permission denied";
    assert!(refused.message().contains(says), "{refused}");
    running.stop();
    let mut running = bed.start();
    bed.publish("v").unwrap();
    bed.unpublish("v").unwrap();
    running.stop();
}

/// CAP_FOWNER is not kept: modes are set before a file is given away, and no directory of ours is sticky.
#[test]
fn with_what_is_kept_a_users_own_files_come_change_and_go() {
    if !can_chown() {
        eprintln!("this user namespace has one user: nobody to give a file to");
        return;
    }
    let bed = NodeBed::shared();
    let mut running = bed.start();
    publish_for(&bed, "v", 1000, "0400").unwrap();
    let file = bed.target("v").join("a");
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (1000, 0o400));
    bed.bed.put("a", "another");
    eventually("the new value", || bed.file("v") == "another");
    drop(running); // killed: the next one takes over files of another user's
    running = bed.start();
    bed.bed.put("a", "a third");
    eventually("the third value", || bed.file("v") == "a third");
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (1000, 0o400));
    bed.unpublish("v").unwrap();
    running.stop();
}

// --- the filter

/// Set for a copy of this test binary that runs [`in_a_copy_of_this_program`] alone.
const COPY: &str = "SECRETFS_TEST_REFUSED";

/// Runs [`in_a_copy_of_this_program`] in a process of its own, because a filter stays.
fn copy(form: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "node_seal::in_a_copy_of_this_program",
        "--nocapture",
    ]);
    command.env(COPY, form).stdin(Stdio::null());
    command.output().unwrap()
}

/// What it does is done only in the copy.
#[test]
fn in_a_copy_of_this_program() {
    let Ok(form) = env::var(COPY) else {
        return;
    };
    rustix::thread::set_no_new_privs(true).unwrap();
    seccomp::tell_as_json(form == "json");
    seccomp::install().unwrap();
    // by the kernel's own convention, and through the C library, which sets errno
    for _ in 0..3 {
        let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty());
        assert_eq!(memory.unwrap_err(), Errno::PERM);
    }
    let moved = std::os::unix::fs::chroot("/").unwrap_err();
    assert_eq!(moved.raw_os_error(), Some(Errno::PERM.raw_os_error()));
    assert_eq!(seccomp::refused(), 4);
    // told by nobody, and not a death: the C library has all signals blocked here
    let started = Command::new("true").spawn().map(drop).unwrap_err();
    assert_eq!(started.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(seccomp::refused(), 4);
    // what must go on working
    assert_eq!(thread::spawn(|| 7).join().unwrap(), 7);
    assert!(("localhost", 80).to_socket_addrs().unwrap().count() > 0);
    println!("all as expected");
}

#[test]
fn a_refused_call_fails_and_is_told_by_name_and_not_each_time() {
    for form in ["text", "json"] {
        let output = copy(form);
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && stdout.contains("all as expected"),
            "{stdout}\n{stderr}"
        );
        let lines: Vec<_> = stderr
            .lines()
            .filter(|line| line.contains(REFUSED))
            .collect();
        let calls = [("memfd_create", 1), ("memfd_create", 2), ("chroot", 1)];
        assert_eq!(lines.len(), calls.len(), "{stderr}");
        for (line, (call, times)) in lines.into_iter().zip(calls) {
            if form == "json" {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["call"], call);
                assert_eq!(
                    (&line["error"], &line["times"]),
                    (&"EPERM".into(), &times.into())
                );
                assert_eq!(line["level"], "ERROR");
            } else {
                assert!(line.contains(&format!(": {call} (number ")), "{line}");
                assert!(
                    line.contains(&format!(" failed with EPERM, {times} in all")),
                    "{line}"
                );
            }
        }
    }
}
