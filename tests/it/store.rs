//! The store as a whole: many processes at once, the standard `age` tool, git.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use secretfs::{
    secret::SecretBytes,
    store::{Identities, Name, Recipients, Store},
};

/// A store with an identity, in a directory of its own.
struct Bed {
    root: tempfile::TempDir,
    store: Store,
    keys: Identities,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let identity = root.path().join("identity.age");
        let (public, _) = Identities::load_or_make(&identity).unwrap();
        let store =
            Store::init(root.path().join("store"), &Recipients::of(&public).unwrap()).unwrap();
        let keys = Identities::load(&identity).unwrap();
        Self { root, store, keys }
    }

    fn identity(&self) -> PathBuf {
        self.root.path().join("identity.age")
    }

    fn get(&self, text: &str, version: Option<u64>) -> (u64, Vec<u8>) {
        let (version, value) = self.store.get(&name(text), version, &self.keys).unwrap();
        (version, value.expose().to_vec())
    }

    fn file(&self, text: &str, version: u64) -> PathBuf {
        let dir = self.store.secret_dir(&name(text));
        dir.join(format!("{version}.age"))
    }

    /// `secretfs store ...` as a process of its own.
    fn start(&self, args: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_secretfs"))
            .arg("store")
            .args(args)
            .arg("--store")
            .arg(self.store.dir())
            .arg("--identity")
            .arg(self.identity())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn value(bytes: impl Into<Vec<u8>>) -> SecretBytes {
    SecretBytes::new(bytes.into())
}

fn stdout(output: Output) -> Vec<u8> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {stderr}", output.status);
    output.stdout
}

/// Whether a program is there. In CI it must be.
fn have(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        let message = format!(
            "`{program}` is not installed, so a test of the store CANNOT RUN (apt-get install -y {program})"
        );
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("SKIPPED: {message}");
    }
    found
}

#[test]
fn fifty_processes_put_to_one_name_at_once_and_none_is_lost() {
    let bed = Bed::new();
    let mut writers: Vec<_> = (0..50).map(|_| bed.start(&["put", "a/b"])).collect();
    // all are running and wait for their values, which they now get
    for (number, writer) in writers.iter_mut().enumerate() {
        let mut stdin = writer.stdin.take().unwrap();
        write!(stdin, "value {number}").unwrap();
    }
    let said: BTreeSet<_> = writers
        .into_iter()
        .map(|writer| String::from_utf8(stdout(writer.wait_with_output().unwrap())).unwrap())
        .collect();
    assert_eq!(said.len(), 50, "two were told the same number");
    let history = bed.store.history(&name("a/b")).unwrap();
    let numbers: Vec<_> = history.iter().map(|info| info.version).collect();
    assert_eq!(numbers, (1..=50).rev().collect::<Vec<_>>());
    let values: BTreeSet<_> = numbers.iter().map(|n| bed.get("a/b", Some(*n)).1).collect();
    let expect: BTreeSet<_> = (0..50).map(|n| format!("value {n}").into_bytes()).collect();
    assert_eq!(values, expect);
    assert!(!bed.store.dir().join(".new").exists());
}

#[test]
fn readers_see_whole_values_in_order_while_writers_write_and_rekey() {
    const WRITERS: usize = 3;
    const PUTS: usize = 8;
    let bed = Bed::new();
    // self-verifying: one byte, many times, in a length that belongs to it
    let sample = |byte: u8| vec![byte; 1000 + 100 * usize::from(byte)];
    bed.store.put(&name("a"), &value(sample(0))).unwrap();
    let done = AtomicBool::new(false);
    let start = Barrier::new(WRITERS + 3);
    let reads = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    for byte in 0..PUTS {
                        let bytes = value(sample(byte as u8));
                        bed.store.put(&name("a"), &bytes).unwrap();
                    }
                })
            })
            .collect();
        let rekeyer = scope.spawn(|| {
            start.wait();
            let mut rounds = 0;
            while !done.load(Ordering::SeqCst) || rounds == 0 {
                let other = bed.root.path().join(format!("other-{rounds}"));
                let (mut public, _) = Identities::load_or_make(&other).unwrap();
                public.extend(bed.keys.public_keys());
                let to = Recipients::of(&public).unwrap();
                let rekeyed = bed.store.rekey(Some(&to), &bed.keys).unwrap();
                assert!(rekeyed.problems.is_empty(), "{:?}", rekeyed.problems);
                rounds += 1;
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let (mut last, mut reads) = (0, 0);
                    while !done.load(Ordering::SeqCst) || reads == 0 {
                        let (version, bytes) = bed.get("a", None);
                        assert!(version >= last, "{version} after {last}");
                        assert_eq!(bytes, sample(bytes[0]), "torn");
                        (last, reads) = (version, reads + 1);
                    }
                    reads
                })
            })
            .collect();
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::SeqCst); // also after a panic, or the others would go on for ever
        assert!(written.iter().all(Result::is_ok), "a writer failed");
        rekeyer.join().unwrap();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum::<usize>()
    });
    assert!(reads >= 2);
    let (newest, _) = bed.get("a", None);
    assert_eq!(newest, (WRITERS * PUTS + 1) as u64, "a put was lost");
}

#[test]
fn the_lock_of_a_killed_writer_is_free() {
    let bed = Bed::new();
    let lock = bed.store.dir().join(".lock");
    // a writer that holds the lock for ever, as one would that is stopped in the middle of a put
    let mut holder = Command::new("flock")
        .arg("--no-fork") // the process that we kill is the one that holds it
        .arg(&lock)
        .args(["sh", "-c", "echo locked; read forever"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(holder.stdout.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    assert!(fs::File::open(&lock).unwrap().try_lock().is_err());
    fs::create_dir(bed.store.dir().join(".new")).unwrap();
    fs::write(bed.store.dir().join(".new/1.age"), b"half").unwrap();
    let mut writer = bed.start(&["put", "a"]);
    writer.stdin.take().unwrap().write_all(b"x").unwrap();
    // the reader needs no lock
    assert!(bed.store.list().unwrap().entries.is_empty());
    holder.kill().unwrap();
    holder.wait().unwrap();
    stdout(writer.wait_with_output().unwrap());
    assert_eq!(bed.get("a", None), (1, b"x".to_vec()));
    assert!(!bed.store.dir().join(".new").exists());
}

#[test]
fn the_age_tool_reads_what_was_put_and_what_it_writes_is_read() {
    if !have("age") || !have("age-keygen") {
        return;
    }
    let bed = Bed::new();
    let samples: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"text\n".to_vec(),
        (0..=255).collect(),
        vec![7; 65_536],
        vec![8; 1 << 20],
    ];
    let decrypt = |identity: &Path, file: &Path| {
        let age = Command::new("age")
            .arg("-d")
            .arg("-i")
            .arg(identity)
            .arg(file)
            .output();
        stdout(age.unwrap())
    };
    for sample in &samples {
        let version = bed
            .store
            .put(&name("payments/db"), &value(sample.clone()))
            .unwrap();
        let plain = decrypt(&bed.identity(), &bed.file("payments/db", version));
        assert!(plain == *sample, "{} bytes", sample.len());
    }
    // the other way: a version made by `age -R recipients`
    let plain = bed.root.path().join("plain");
    fs::write(&plain, b"by age").unwrap();
    let age = Command::new("age")
        .arg("-R")
        .arg(bed.store.dir().join("recipients"))
        .arg("-o")
        .arg(bed.file("payments/db", 6))
        .arg(&plain)
        .output();
    stdout(age.unwrap());
    assert_eq!(bed.get("payments/db", None), (6, b"by age".to_vec()));
    // keys: theirs for us, ours for them
    let ours = Command::new("age-keygen")
        .arg("-y")
        .arg(bed.identity())
        .output();
    let ours = String::from_utf8(stdout(ours.unwrap())).unwrap();
    assert_eq!(bed.keys.public_keys(), [ours.trim()]);
    let theirs = bed.root.path().join("theirs");
    stdout(
        Command::new("age-keygen")
            .arg("-o")
            .arg(&theirs)
            .output()
            .unwrap(),
    );
    let their_keys = Identities::load(&theirs).unwrap();
    let both = [bed.keys.public_keys(), their_keys.public_keys()].concat();
    let rekeyed = bed
        .store
        .rekey(Some(&Recipients::of(&both).unwrap()), &bed.keys)
        .unwrap();
    assert_eq!((rekeyed.done, rekeyed.problems.len()), (6, 0));
    for identity in [&theirs, &bed.identity()] {
        assert_eq!(decrypt(identity, &bed.file("payments/db", 2)), samples[1]);
        assert_eq!(decrypt(identity, &bed.file("payments/db", 6)), b"by age");
    }
}

#[test]
fn the_store_lives_in_git() {
    if !have("git") {
        return;
    }
    let bed = Bed::new();
    bed.store
        .put(&name(".gitignore"), &value("dotted"))
        .unwrap();
    bed.store.put(&name("a/b"), &value("one")).unwrap();
    bed.store.put(&name("gone"), &value("x")).unwrap();
    bed.store.remove(&name("gone")).unwrap();
    let git = |dir: &Path, args: &[&str]| {
        let git = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output();
        String::from_utf8(stdout(git.unwrap())).unwrap()
    };
    let dir = bed.store.dir().to_path_buf();
    git(&dir, &["init", "-q"]);
    git(&dir, &["add", "-A"]);
    git(&dir, &["commit", "-q", "-m", "secrets"]);
    let tracked = git(&dir, &["ls-files"]);
    assert_eq!(
        tracked.lines().collect::<Vec<_>>(),
        [
            ".gitignore",
            "recipients",
            "secrets/%.gitignore/1.age",
            "secrets/a%b/1.age",
            "secrets/gone/2.removed",
            "store.json"
        ]
    );
    let clone = bed.root.path().join("clone");
    git(bed.root.path(), &["clone", "-q", "store", "clone"]);
    let store = Store::open(&clone).unwrap();
    assert_eq!(store.put(&name("a/b"), &value("two")).unwrap(), 2);
    assert_eq!(store.put(&name("gone"), &value("again")).unwrap(), 3);
    git(&clone, &["add", "-A"]);
    git(&clone, &["commit", "-q", "-m", "more"]);
    git(&dir, &["pull", "-q", "../clone", "HEAD"]);
    assert_eq!(bed.get("a/b", None), (2, b"two".to_vec()));
    assert_eq!(bed.get(".gitignore", None).1, b"dotted");
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
}
