//! `--mount`: a volume that nobody else sees.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::Signal;

use super::{bed, db};
use crate::support::{
    can_chown,
    program::{Bed, Running, eventually, layers, program},
};

/// Shows its file, and again after USR1, until HUP.
const SCRIPT: &str = "trap 'cat target/db/password; echo' USR1; trap 'kill $!; exit 6' HUP; cat target/db/password; echo \" $$ $(id -u)\"; \
                      sleep 1000 & while :; do wait $!; done";

fn line(running: &mut Running) -> String {
    running.ready.clear();
    running.first_line();
    running.ready.trim_end().to_owned()
}

/// Starts it by way of `before`, and looks at it from all sides.
fn a_life(bed: &Bed, before: &[&str], uid: u32) {
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(program());
    command.args([
        "exec",
        "--spec",
        "app.yaml",
        "--mount",
        "target",
        "--signal",
        "USR1",
        "--log-level",
        "trace",
    ]);
    command
        .args(["--", "sh", "-c", SCRIPT])
        .current_dir(&bed.dir);
    bed.environment(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = bed.spawn(command);
    running.first_line();
    let words: Vec<_> = running
        .ready
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let [value, pid, seen_uid] = &words[..] else {
        panic!("{words:?} {}", running.log());
    };
    assert_eq!((&**value, &**seen_uid), ("first", &*uid.to_string()));
    // nobody else sees it: not at its place, and in no list of mounts but that of the program and its parent
    assert_eq!(
        (
            layers(&bed.target()),
            fs::read_dir(bed.target()).unwrap().count()
        ),
        (0, 0)
    );
    let mountinfo = |pid: &str| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(
        mountinfo(pid).contains(" secretfs:exec-"),
        "{}",
        mountinfo(pid)
    );
    assert!(!mountinfo("thread-self").contains(" secretfs:"));
    let variables = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(
        !String::from_utf8_lossy(&variables).contains("first"),
        "files, and no variables"
    );
    // it rotates in place
    bed.put("payments/db", &db("second"));
    assert_eq!(line(&mut running), "second");
    running.signal(Signal::HUP);
    assert_eq!(running.ended().code(), Some(6), "{}", running.log());
    assert_eq!(fs::read_dir(bed.target()).unwrap().count(), 0);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn only_the_program_sees_the_mount_and_it_goes_with_it() {
    a_life(&bed(), &["env"], 0);
}

#[test]
fn without_the_right_to_mount_a_user_namespace_is_made() {
    let before = [
        "setpriv",
        "--bounding-set=-sys_admin",
        "--inh-caps=-sys_admin",
    ];
    a_life(&bed(), &before, 0);
}

#[test]
fn an_ordinary_user_needs_no_root_and_stays_who_he_is() {
    if !can_chown() {
        return; // then this test runs as an ordinary user who is root of a namespace already: the two above are about him
    }
    let bed = bed();
    let mut dirs = vec![bed.dir.clone()];
    while let Some(dir) = dirs.pop() {
        chown(&dir, Some(12345), Some(12345)).unwrap();
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            match entry.path().is_dir() {
                true => dirs.push(entry.path()),
                false => chown(entry.path(), Some(12345), Some(12345)).unwrap(),
            }
        }
    }
    let above = bed.dir.parent().unwrap();
    fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let before = [
        "setpriv",
        "--reuid=12345",
        "--regid=12345",
        "--clear-groups",
    ];
    assert_eq!(fs::metadata(&bed.dir).unwrap().uid(), 12345);
    a_life(&bed, &before, 12345);
}

#[test]
fn it_is_not_taken_over_from_or_by_another_at_the_same_place() {
    let bed = bed();
    let mut outer = bed.mount(super::SPEC, &[]);
    let stderr = bed.fails(
        125,
        &[
            "exec", "--spec", "app.yaml", "--mount", "target", "--", "true",
        ],
    );
    assert!(stderr.contains("[mount.held]"), "{stderr}");
    assert_eq!(
        (layers(&bed.target()), &*bed.file("db/password")),
        (1, "first")
    );
    outer.stop();
    // two at once, each with its own
    let args = [
        "exec",
        "--spec",
        "app.yaml",
        "--mount",
        "target",
        "--",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ];
    let (mut one, mut two) = (bed.start(&args), bed.start(&args));
    for running in [&mut one, &mut two] {
        assert_eq!(running.ready, "ready\n", "{}", running.log());
        running.signal(Signal::TERM);
        assert_eq!(running.ended().code(), Some(143));
    }
    eventually("nothing is left", || {
        fs::read_dir(bed.target()).unwrap().count() == 0
    });
    let stderr = bed.fails(
        125,
        &[
            "exec", "--spec", "app.yaml", "--mount", "nowhere", "--", "true",
        ],
    );
    assert!(stderr.contains("[mount.no_target]"), "{stderr}");
}

#[test]
fn a_program_that_reads_its_files_once_is_started_again() {
    let bed = bed();
    let script = "cat target/db/password; echo; exec sleep 1000";
    let args = ["exec", "--spec", "app.yaml", "--mount", "target"];
    let more = ["--restart-on-change", "--", "sh", "-c", script];
    let mut running = bed.start(&[&args[..], &more].concat());
    assert_eq!(running.ready, "first\n");
    bed.put("payments/db", &db("second"));
    assert_eq!(line(&mut running), "second");
    running.signal(Signal::TERM);
    assert_eq!(running.ended().code(), Some(143));
}
