//! The configuration of a running program, taken over when its file changes.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use secretfs::{
    backend::registry,
    cli::reload::{LastReload, Reload, Reloader},
    clock::{Clock, Mono, SystemClock, Wall},
    config::{Change, Config, Env, LogLevel},
    error::{Error, codes},
    limits,
};
use tracing_subscriber::fmt::MakeWriter;

const POLICY: Change = Change {
    backends: false,
    policy: true,
    limits: false,
    log_level: false,
};

/// A configuration whose policy names this namespace.
fn text(namespace: &str) -> String {
    format!(
        "runtimeDir: /r\nbackends:\n  store: {{kind: store, path: /s, identity: /i}}\npolicy:\n- {{namespaces: [{namespace}], serviceAccounts: [a], allow: [\"store:**\"]}}\n"
    )
}

struct Bed {
    dir: tempfile::TempDir,
    file: PathBuf,
    reloader: Reloader,
}

impl Bed {
    /// In a directory that `prepare` fills; it says which file to follow. Needs a runtime.
    fn new(prepare: impl FnOnce(&Path) -> PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = prepare(dir.path());
        let first = fs::read_to_string(&file).unwrap();
        let first = Config::parse(&first, &Env::default(), &registry::problems).unwrap();
        let clock = Arc::new(SystemClock);
        let reloader = Reloader::new(file.clone(), first, Env::default(), clock).unwrap();
        Self {
            dir,
            file,
            reloader,
        }
    }

    fn plain() -> Self {
        Self::new(|dir| {
            let file = dir.join("config.yaml");
            fs::write(&file, text("first")).unwrap();
            file
        })
    }

    /// The next change, within a time in which it must come.
    async fn next(&mut self) -> Reload {
        let next = tokio::time::timeout(Duration::from_secs(20), self.reloader.next());
        next.await.expect("no change was seen")
    }

    async fn next_is(&mut self, namespace: &str, change: Change) {
        let reload = self.next().await;
        assert_eq!(reload.config.policy[0].namespaces, [namespace]);
        assert_eq!(reload.change, change);
    }

    /// Runs until a look has ended so. No change may come before.
    async fn until(&mut self, ended: impl Fn(&LastReload) -> bool) -> LastReload {
        let mut last = self.reloader.last();
        let seen = tokio::time::timeout(Duration::from_secs(20), last.wait_for(ended));
        tokio::select! {
            seen = seen => seen.expect("it never ended so").expect("the sender is there").clone(),
            reload = self.reloader.next() => panic!("a change: {reload:?}"),
        }
    }
}

/// Replaces by rename, as editors and tools do.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

#[tokio::test]
async fn a_change_is_taken_over_whether_written_in_place_or_renamed() {
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await; // it is as it was
    fs::write(&bed.file, text("second")).unwrap();
    bed.next_is("second", POLICY).await;
    replace(&bed.file, &text("third"));
    bed.next_is("third", POLICY).await;
    replace(
        &bed.file,
        &format!(
            "{}logLevel: debug\nlimits: {{bytesPerFile: 5}}\n",
            text("third")
        ),
    );
    let reload = bed.next().await;
    assert!(reload.change.limits && reload.change.log_level && !reload.change.policy);
    assert_eq!(reload.config.log_level, Some(LogLevel::Debug));
    assert_eq!(reload.config.volume_limits.bytes_per_file, 5);
}

/// What applies it may fail: then all is as it was, said to be so, and tried again when somebody asks.
#[tokio::test]
async fn a_change_that_cannot_be_applied_is_not_said_to_be_in_force() {
    let mut bed = Bed::plain();
    let first = bed.until(|last| last.judged == 1).await;
    replace(&bed.file, &text("second"));
    bed.next_is("second", POLICY).await;
    let last = bed.reloader.last();
    assert!(last.borrow().successful && last.borrow().successful_at >= first.successful_at);
    bed.reloader
        .withdraw(Error::new(&codes::CONFIG_INVALID).detail("no such backend"));
    let seen = last.borrow().clone();
    assert!(!seen.successful && seen.error.unwrap().to_string().contains("no such backend"));
    assert_eq!(
        seen.successful_at, first.successful_at,
        "the first one is in force since then"
    );
    // the next change is one from what is in force
    replace(&bed.file, &text("first"));
    let back = bed.until(|last| last.judged == 3).await;
    assert!(back.successful && back.error.is_none());
    replace(&bed.file, &text("second"));
    bed.next_is("second", POLICY).await;
    bed.reloader.withdraw(Error::new(&codes::CONFIG_INVALID));
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
    bed.next_is("second", POLICY).await;
    assert!(last.borrow().successful);
}

#[tokio::test]
async fn what_changed_between_the_first_read_and_the_first_wait_is_seen() {
    let mut bed = Bed::plain();
    fs::write(&bed.file, text("second")).unwrap();
    bed.next_is("second", POLICY).await;
}

/// As the kubelet swaps a ConfigMap: the file is a link into `..data`, and that is replaced by a rename.
#[tokio::test]
async fn a_config_map_that_is_swapped_is_taken_over() {
    let publish = |dir: &Path, version: &str| {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("config.yaml"), text(version)).unwrap();
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let mut bed = Bed::new(|dir| {
        publish(dir, "v1");
        symlink("..data/config.yaml", dir.join("config.yaml")).unwrap();
        dir.join("config.yaml")
    });
    bed.until(|last| last.judged == 1).await;
    for (old, new) in [("v1", "v2"), ("v2", "v3"), ("v3", "v4")] {
        publish(bed.dir.path(), new);
        fs::remove_dir_all(bed.dir.path().join(old)).unwrap();
        bed.next_is(new, POLICY).await;
    }
}

/// A link to a file elsewhere, which is written there.
#[tokio::test]
async fn a_file_behind_a_link_is_followed_where_it_is() {
    let mut bed = Bed::new(|dir| {
        fs::create_dir_all(dir.join("etc")).unwrap();
        fs::create_dir_all(dir.join("real")).unwrap();
        fs::write(dir.join("real/c.yaml"), text("first")).unwrap();
        symlink("../real/c.yaml", dir.join("etc/config.yaml")).unwrap();
        dir.join("etc/config.yaml")
    });
    bed.until(|last| last.judged == 1).await;
    let real = bed.dir.path().join("real/c.yaml");
    replace(&real, &text("second"));
    bed.next_is("second", POLICY).await;
    fs::write(&real, text("third")).unwrap();
    bed.next_is("third", POLICY).await;
    fs::rename(&real, real.with_extension("old")).unwrap();
    bed.until(|last| last.error.is_some()).await;
    fs::write(&real, text("fourth")).unwrap();
    bed.next_is("fourth", POLICY).await;
}

/// In whose every pause somebody goes on writing, for a while.
struct Restless {
    file: PathBuf,
    left: AtomicU32,
}

#[async_trait]
impl Clock for Restless {
    fn now(&self) -> Mono {
        Mono::from_nanos(0)
    }

    fn wall(&self) -> Wall {
        Wall::from_millis(0)
    }

    async fn sleep_until(&self, at: Mono) {
        assert_eq!(at, self.now().after(limits::RELOAD_SETTLE));
        let left = self.left.load(Ordering::SeqCst);
        if left > 0 {
            self.left.store(left - 1, Ordering::SeqCst);
            fs::write(&self.file, text(&format!("n{left}"))).unwrap();
        }
    }
}

#[tokio::test]
async fn a_text_that_somebody_still_writes_is_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    fs::write(&file, text("first")).unwrap();
    let clock = Arc::new(Restless {
        file: file.clone(),
        left: AtomicU32::new(9),
    });
    let first = Config::parse(&text("first"), &Env::default(), &registry::problems).unwrap();
    let reloader = Reloader::new(file.clone(), first, Env::default(), clock).unwrap();
    let mut bed = Bed {
        dir,
        file,
        reloader,
    };
    bed.next_is("n1", POLICY).await;
    assert_eq!(bed.reloader.last().borrow().judged, 1);
}

#[tokio::test]
async fn of_many_edits_the_last_one_counts() {
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await;
    let last = bed.reloader.last();
    for nth in 0..200 {
        replace(&bed.file, &text(&format!("n{nth}")));
    }
    bed.next_is("n199", POLICY).await;
    assert_eq!(last.borrow().judged, 2);
}

#[tokio::test]
async fn a_wrong_configuration_changes_nothing_and_every_problem_is_told() {
    let log = Log::default();
    let _guard = log.start();
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await;
    let wrong = format!(
        "{}drver: x\nhttp: nowhere\n",
        text("second").replace("store:**", "stroe:**")
    );
    fs::write(&bed.file, wrong).unwrap();
    let last = bed.until(|last| last.judged == 2).await;
    assert!(!last.successful);
    let fields: Vec<_> = last.problems.iter().map(|p| &*p.field).collect();
    assert_eq!(fields, ["policy[0].allow", "drver", "http"]);
    let said = log.text();
    let place = |line: u32| format!("place=\"{}:{line}:", bed.file.display());
    for part in [
        &*place(5),
        "there is no backend `stroe`",
        "did you mean `store`?",
        &place(6),
        "did you mean `driver`?",
        &place(7),
        "code=\"config.invalid\"",
        "problems=3",
        "the running one stays",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // What of it was good was not applied either; the mended one is compared with what still runs.
    fs::write(&bed.file, text("second")).unwrap();
    bed.next_is("second", POLICY).await;
    assert!(bed.reloader.last().borrow().successful);
}

#[tokio::test]
async fn a_key_that_cannot_change_keeps_all_of_the_old_configuration() {
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await;
    fs::write(&bed.file, text("second").replace("/r\n", "/other\n")).unwrap();
    let last = bed.until(|last| last.judged == 2).await;
    assert_eq!(last.problems[0].code, &codes::CONFIG_FIXED_KEY);
    assert!(
        last.problems[0]
            .message
            .contains("`/r` in the running configuration (line 1)")
    );
    fs::write(&bed.file, text("first")).unwrap();
    let last = bed.until(|last| last.judged == 3).await; // undone: as it was, so no change
    assert!(last.successful && last.problems.is_empty());
}

#[tokio::test]
async fn a_file_that_is_gone_or_half_written_keeps_the_old_configuration_until_it_is_back() {
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await;
    fs::remove_file(&bed.file).unwrap();
    let last = bed.until(|last| last.error.is_some()).await;
    let code = last.error.unwrap().code();
    assert_eq!((code, last.successful), (&codes::CONFIG_UNREADABLE, false));
    fs::write(&bed.file, text("first")).unwrap();
    bed.until(|last| last.successful).await; // back, and the same
    for half in ["", "\n", &text("second")[..60]] {
        let judged = bed.reloader.last().borrow().judged;
        replace(&bed.file, half);
        let last = bed.until(|last| last.judged > judged).await;
        assert!(!last.successful, "{half:?}");
    }
    fs::write(&bed.file, text("second")).unwrap();
    bed.next_is("second", POLICY).await;
}

#[tokio::test]
async fn nothing_comes_of_a_text_that_says_the_same() {
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await;
    fs::write(&bed.file, format!("# a comment\n{}", text("\"first\""))).unwrap();
    let last = bed.until(|last| last.judged == 2).await;
    assert!(last.successful);
    fs::write(bed.dir.path().join("another"), "x").unwrap(); // not our file
    fs::write(&bed.file, text("second")).unwrap();
    bed.next_is("second", POLICY).await;
    assert_eq!(bed.reloader.last().borrow().judged, 3);
}

/// A directory above the watched ones is a link that now leads elsewhere: no watch sees that.
#[tokio::test]
async fn a_hangup_looks_where_no_watch_does() {
    let mut bed = Bed::new(|dir| {
        for version in ["v1", "v2"] {
            fs::create_dir_all(dir.join(version).join("etc")).unwrap();
            fs::write(dir.join(version).join("etc/config.yaml"), text(version)).unwrap();
        }
        symlink("v1", dir.join("now")).unwrap();
        dir.join("now/etc/config.yaml")
    });
    bed.until(|last| last.judged == 1).await;
    symlink("v2", bed.dir.path().join("new")).unwrap();
    fs::rename(bed.dir.path().join("new"), bed.dir.path().join("now")).unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
    bed.next_is("v2", POLICY).await;
}

/// A `select!` drops the future whenever something else is ready.
#[tokio::test]
async fn dropping_the_future_at_any_point_loses_no_change() {
    let mut bed = Bed::plain();
    bed.until(|last| last.judged == 1).await;
    fs::write(&bed.file, text("second")).unwrap();
    for dropped in 0.. {
        assert!(dropped < 10_000, "no change was seen");
        tokio::select! {
            reload = bed.reloader.next() => {
                assert_eq!(reload.config.policy[0].namespaces, ["second"]);
                assert!(dropped > 0);
                break;
            }
            // longer than the text must stay the same, so that it can come to an end
            () = tokio::time::sleep(Duration::from_millis(if dropped < 5 { 20 } else { 400 })) => {}
        }
    }
}

/// What is logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(self.clone())
            .finish();
        crate::support::hearing::hear(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
