//! The cluster, with the plugin installed by `deploy/`, as tests see it.

pub mod bao;
pub mod namespace;
pub mod plugin;
pub mod watch;

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::{Duration, Instant},
};

pub use namespace::Namespace;

/// The longest that anything here may take: a kubelet tries again after 1, 2, 4 ... 64 s.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// The address of the plugin's image.
pub const IMAGE: &str = "localhost/secretfs:e2e";

static CLUSTER: LazyLock<Cluster> = LazyLock::new(Cluster::installed);
static TURN: RwLock<()> = RwLock::new(());

/// What `bed up` wrote.
pub struct Cluster {
    bed: PathBuf,
    env: HashMap<String, String>,
}

/// Among others: nobody has the cluster to himself.
pub fn beside_others() -> (&'static Cluster, RwLockReadGuard<'static, ()>) {
    let turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    (&CLUSTER, turn)
}

/// With nobody else in the cluster.
pub fn alone() -> (&'static Cluster, RwLockWriteGuard<'static, ()>) {
    let turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
    (&CLUSTER, turn)
}

impl Cluster {
    fn installed() -> Self {
        let bed = std::env::var_os("SECRETFS_E2E").expect("no cluster: run tests/e2e/run");
        let bed = PathBuf::from(bed);
        let env = fs::read_to_string(bed.join("env")).unwrap();
        let env = env
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let cluster = Self { bed, env };
        plugin::install(&cluster);
        cluster
    }

    fn get(&self, key: &str) -> &str {
        &self.env[key]
    }

    /// A path of the node, seen from outside.
    pub fn node(&self, path: &str) -> PathBuf {
        assert!(path.starts_with('/'), "{path}");
        PathBuf::from(format!("{}{path}", self.get("BED_ROOT")))
    }

    /// A place for files of the tests, that goes with the bed.
    pub fn scratch(&self) -> PathBuf {
        self.bed.join("tmp")
    }

    /// What the API server wrote about each request that changes something: JSON lines.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.get("BED_AUDIT")).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let lines = whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    /// `kubectl`, and whatever came of it.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Output {
        fed(Command::new(self.get("KUBECTL")).args(arguments), input)
    }

    /// What `kubectl` printed. It must work.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with(arguments, "")
    }

    /// The same with this on its standard input.
    #[track_caller]
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> String {
        let output = self.try_kubectl(arguments, input);
        assert!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `kubectl get -o json`; `None` if it is not there.
    pub fn get_json(&self, arguments: &[&str]) -> Option<serde_json::Value> {
        let output = self.try_kubectl(&[&["get", "-o", "json"], arguments].concat(), "");
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// `bed COMMAND DIR ARGUMENT...`.
    #[track_caller]
    pub fn bed(&self, command: &str, arguments: &[&str]) -> String {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/bed/bed");
        let output = Command::new(program)
            .arg(command)
            .arg(&self.bed)
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "bed {command} {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Puts one field into a secret of the node's store.
    #[track_caller]
    pub fn put(&self, secret: &str, field: &str, value: &str) {
        plugin::store(
            self,
            &["put", secret],
            &format!("{{\"{field}\":\"{value}\"}}"),
        );
    }

    /// Mounts of secretfs on the node below this pod's directory.
    pub fn mounts_of(&self, uid: &str) -> Vec<String> {
        let mounts =
            fs::read_to_string(format!("/proc/{}/mountinfo", self.get("BED_PID"))).unwrap();
        mounts
            .lines()
            .filter(|line| line.contains(uid) && line.contains("secretfs"))
            .map(str::to_owned)
            .collect()
    }
}

/// Runs it with this on its standard input.
fn fed(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // it may not want it
    child.wait_with_output().unwrap()
}

/// Directories in `/proc` of the processes that are in a control group whose name holds this.
fn processes(group: &str) -> impl Iterator<Item = PathBuf> {
    let all = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    all.filter(move |process| {
        let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        groups.contains(group)
    })
}

/// Waits until there is an answer. Says what it waited for, and what `or_else` has to say, when there is none.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    mut answer: impl FnMut() -> Option<T>,
    or_else: impl Fn() -> String,
) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(
            Instant::now() < end,
            "not within {PATIENCE:?}: {what}\n{}",
            or_else()
        );
        thread::sleep(Duration::from_millis(300));
    }
}
