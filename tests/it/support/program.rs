//! The built program, run as a user runs it, in a place of its own.

use std::{
    any::Any,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::sandbox::Sandbox;

/// Longer than anything here takes, also on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the line about a refused system call says, in each form of the log.
pub const REFUSED: &str = "a system call was refused";

/// The program under test. `tests/run` names a copy of it for a user who may not read the build directory.
pub fn program() -> PathBuf {
    std::env::var_os("SECRETFS_TEST_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_secretfs").into(), PathBuf::from)
}

/// A mount namespace, a store with an identity, and an environment that points at nothing else.
pub struct Bed {
    pub dir: PathBuf,
    /// Its mounts and its directory go with it.
    _sandbox: Box<dyn Any + Send>,
}

impl Bed {
    /// A bed with an empty store.
    pub fn new() -> Self {
        Self::named("bed")
    }

    /// In a directory of this name.
    pub fn named(name: &str) -> Self {
        let sandbox = Sandbox::new();
        Self::at(sandbox.path().join(name), sandbox)
    }

    /// A bed in this directory, which lasts as long as the sandbox does.
    pub fn at(dir: PathBuf, sandbox: impl Any + Send) -> Self {
        for sub in ["run", "target"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let bed = Self {
            dir,
            _sandbox: Box::new(sandbox),
        };
        bed.ok(&["store", "init"], "");
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn target(&self) -> PathBuf {
        self.path("target")
    }

    /// The program with this bed's environment and no other.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(&self.dir);
        self.environment(&mut command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Points `command` at this bed's store.
    pub fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("SECRETFS_STORE", self.path("store"))
            .env("SECRETFS_IDENTITY", self.path("identity.age"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
    }

    /// Runs it to its end, with `input` on stdin.
    pub fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // a command that reads nothing closes its end: EPIPE is not our failure
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        nothing_refused(&String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs it, and it must succeed; its stdout.
    #[track_caller]
    pub fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.run(args, input);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it, and it must fail with this exit code; its stderr.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args, "");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        stderr
    }

    pub fn put(&self, name: &str, value: &str) {
        self.ok(&["store", "put", name], value);
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Starts `secretfs mount` and waits for its ready line.
    #[track_caller]
    pub fn mount(&self, spec: &str, more: &[&str]) -> Running {
        self.write("app.yaml", spec);
        let mut args = vec!["mount", "app.yaml", "target", "--log-level", "trace"];
        args.extend(more);
        let running = self.start(&args);
        assert!(
            running.ready.starts_with("ready: "),
            "{:?} {}",
            running.ready,
            running.log()
        );
        running
    }

    /// Starts a command and waits for its first line (or its end).
    pub fn start(&self, args: &[&str]) -> Running {
        let mut running = self.spawn(self.command(args));
        running.first_line();
        running
    }

    /// Starts a command and does not wait.
    pub fn spawn(&self, mut command: Command) -> Running {
        let log = self.path(&format!("log-{}", fastrand::u64(..)));
        let stderr = fs::File::create(&log).unwrap();
        let mut child = command.stderr(stderr).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running {
            child,
            ready: String::new(),
            log,
            stdout,
        }
    }

    /// A mounted file's content; "" if it is not there.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.target().join(name)).unwrap_or_default()
    }

    /// The one volume of `status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let text = self.ok(&["status", "--json"], "");
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        all["volumes"][0].clone()
    }
}

/// A program that was started. Killed when dropped, so that none outlives its test.
pub struct Running {
    pub child: Child,
    /// Its first line.
    pub ready: String,
    log: PathBuf,
    /// Kept open: whoever writes to it must not hear that nobody reads.
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Waits for its first line, or its end.
    pub fn first_line(&mut self) {
        self.stdout.read_line(&mut self.ready).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// SIGTERM, and it must end well.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !thread::panicking() {
            nothing_refused(&fs::read_to_string(&self.log).unwrap_or_default()); // a bed may go first
        }
    }
}

/// Whatever a test is about: the program made no system call that its filter does not list (src/sys/seccomp/allowed.rs).
fn nothing_refused(log: &str) {
    let lines: Vec<_> = log.lines().filter(|line| line.contains(REFUSED)).collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

/// Returns once `holds` does; looks again often.
///
/// # Panics
/// If it does not within a time that only a broken program needs.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
        thread::park_timeout(Duration::from_millis(1));
    }
}

/// Whether the kernel shows one of our mounts at `target`, in this thread's namespace; how many.
pub fn layers(target: &Path) -> usize {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let at_target =
        |line: &&str| line.split(' ').nth(4) == target.to_str() && line.contains(" secretfs:");
    table.lines().filter(at_target).count()
}

/// A real inotify watch on a directory, for what programs watch a volume for: the names that are moved into it.
pub fn watch_dir(dir: &Path) -> mpsc::Receiver<String> {
    let mut inotify = inotify::Inotify::init().unwrap();
    inotify
        .watches()
        .add(dir, inotify::WatchMask::MOVED_TO)
        .unwrap();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
            for event in events {
                let name = event
                    .name
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                if send.send(name).is_err() {
                    return;
                }
            }
        }
    });
    receive
}
