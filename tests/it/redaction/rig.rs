//! Two sinks that a process fills only when it dies: what a panic prints, and a core file. For each a child that leaks, which must be found,
//! and one that must not.

use std::{
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use secretfs::observe::log;

use crate::support::{
    canary::{CANARY, found_in},
    program::Bed,
};

/// Names the part that a child of this test binary plays.
const PART: &str = "REDACTION_PART";

/// What a child does. Whoever names no part does nothing.
#[test]
fn a_part_for_a_child() {
    let part = env::var(PART).unwrap_or_default();
    match part.as_str() {
        "a panic" => panic!("{CANARY}"),
        "a hidden panic, text" => hidden_panic(log::Format::Text),
        "a hidden panic, json" => hidden_panic(log::Format::Json),
        "a core" => {
            let most = getrlimit(Resource::Core).maximum;
            let whole = Rlimit {
                current: most,
                maximum: most,
            };
            setrlimit(Resource::Core, whole).unwrap();
            let secret = black_box(CANARY.to_owned());
            black_box(&secret);
            std::process::abort();
        }
        _ => {}
    }
}

fn hidden_panic(format: log::Format) {
    log::start(Some(log::Level::Trace), format);
    log::hide_panics();
    let secret = CANARY.to_owned();
    let shown = std::panic::catch_unwind(|| panic!("{secret}"));
    assert!(shown.is_err());
    std::panic::panic_any(secret);
}

/// Runs a child that plays a part, in this directory.
fn child(part: &str, dir: &Path) -> Output {
    let name = format!(
        "{}::a_part_for_a_child",
        module_path!().split_once("::").unwrap().1
    );
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(PART, part)
        .env("RUST_BACKTRACE", "full")
        .current_dir(dir);
    let output = command.output().unwrap();
    assert!(
        !output.status.success(),
        "{part}: it was to die: {output:?}"
    );
    output
}

fn said(output: &Output) -> Vec<u8> {
    [&output.stdout[..], &output.stderr].concat()
}

#[test]
fn a_panic_says_where_and_not_what() {
    let dir = tempfile::tempdir().unwrap();
    let leaked = child("a panic", dir.path());
    assert!(
        !found_in(&said(&leaked)).is_empty(),
        "the search does not see what a panic prints"
    );
    for format in ["text", "json"] {
        let hidden = said(&child(&format!("a hidden panic, {format}"), dir.path()));
        let text = String::from_utf8_lossy(&hidden);
        assert_eq!(found_in(&hidden), [""; 0], "{text}");
        let lines = text.matches("a bug of secretfs: a panic").count();
        assert_eq!(lines, 2, "{text}");
        assert!(text.contains("tests/it/redaction/rig.rs:"), "{text}");
    }
}

/// Where the kernel writes a core file of a process in this directory; `None`: somewhere else, or to a program.
fn core_in(dir: &Path) -> Option<PathBuf> {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let pattern = pattern.trim();
    (!pattern.is_empty() && !pattern.starts_with('|') && !pattern.contains('/'))
        .then(|| dir.to_owned())
}

/// Files in a directory that begin as a core file does, and are one.
fn cores(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let bytes = files.map(|entry| fs::read(entry.path()).unwrap());
    const ET_CORE: u8 = 4; // e_type of an ELF header (elf(5))
    bytes
        .filter(|bytes| bytes.starts_with(b"\x7fELF") && bytes.get(16) == Some(&ET_CORE))
        .collect()
}

/// The soft limit on core files is raised first: the program must not live on what its parent allows.
fn dies(bed: &Bed, args: &[&str], signal: Signal) {
    let mut command = Command::new("sh");
    let program = crate::support::program::program();
    command.args([
        "-c",
        "ulimit -c unlimited 2>/dev/null || ulimit -c $(ulimit -Hc); exec \"$0\" \"$@\"",
    ]);
    command.arg(program).args(args).current_dir(&bed.dir);
    bed.environment(&mut command);
    command.stdout(std::process::Stdio::piped());
    let mut running = bed.spawn(command);
    running.first_line();
    assert!(running.ready.starts_with("ready: "), "{}", running.log());
    running.signal(signal);
    let status = running.ended();
    assert!(!status.success(), "{status}");
    let limits = format!("{} {status}", running.log());
    assert_eq!(cores(&bed.dir).len(), 0, "a core file: {limits}");
}

#[test]
fn no_core_file_of_the_program_and_one_of_whoever_is_not_sealed() {
    let bed = Bed::new();
    bed.put("a", CANARY);
    bed.write("app.yaml", "files:\n  - path: a\n    from: store:a\n");
    for signal in [Signal::ABORT, Signal::QUIT] {
        dies(&bed, &["mount", "app.yaml", "target"], signal);
    }
    let dir = bed.path("unsealed");
    fs::create_dir(&dir).unwrap();
    let Some(place) = core_in(&dir) else {
        // elsewhere the limit alone can be seen, which `process` looks at
        eprintln!(
            "CORE FILES GO ELSEWHERE HERE (core_pattern): that one would be found is not shown"
        );
        return;
    };
    child("a core", &place);
    let found = cores(&place);
    assert_eq!(
        found.len(),
        1,
        "the kernel writes no core file here, so the test above saw nothing"
    );
    assert!(
        found_in(&found[0]).contains(&"raw"),
        "the search does not see a canary in a core file"
    );
}
