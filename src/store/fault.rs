//! Every step of every command fails once, and is once the last before a kill.
//!
//! Goal: readers see old or new, nothing between; the next command leaves nothing of it behind, and works.
//! Method: strike the 1st, 2nd, 3rd ... step, until a run that no fault strikes. The steps that were struck are compared
//! with those that the command is known to take.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use super::{
    tests::{Bed, bytes, name_of},
    *,
};
use crate::limits;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    /// The step fails, once.
    Error,
    /// The step and all later ones do nothing: the process is dead. A write gets half of its bytes out.
    Death,
}

/// A disk on which step number `strike` meets its fault. It syncs nothing: a test's machine does not lose power.
struct FaultyDisk {
    fault: Fault,
    strike: usize,
    steps: AtomicUsize,
    struck: std::sync::Mutex<Option<&'static str>>,
}

impl FaultyDisk {
    fn new(fault: Fault, strike: usize) -> Arc<Self> {
        Arc::new(Self {
            fault,
            strike,
            steps: AtomicUsize::new(0),
            struck: std::sync::Mutex::new(None),
        })
    }

    fn step(&self, name: &'static str) -> io::Result<()> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if step == self.strike {
            *self.struck.lock().unwrap() = Some(name);
        }
        if step == self.strike || (step > self.strike && self.fault == Fault::Death) {
            return Err(io::Error::from_raw_os_error(28)); // ENOSPC
        }
        Ok(())
    }

    fn struck(&self) -> Option<&'static str> {
        *self.struck.lock().unwrap()
    }
}

impl Disk for FaultyDisk {
    fn lock(&self, path: &Path) -> io::Result<File> {
        self.step("lock")?;
        RealDisk.lock(path)
    }
    fn mkdir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.step("mkdir")?;
        RealDisk.mkdir(path, mode)
    }
    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        self.step("create")?;
        RealDisk.create(path, mode)
    }
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        self.step("write")
            .inspect_err(|_| file.write_all(&bytes[..bytes.len() / 2]).unwrap())?;
        RealDisk.write(file, bytes)
    }
    fn set_modified(&self, file: &File, at: SystemTime) -> io::Result<()> {
        self.step("set_modified")?;
        RealDisk.set_modified(file, at)
    }
    fn sync(&self, _: &File) -> io::Result<()> {
        self.step("sync")
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.step("sync_dir")
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("link")?;
        RealDisk.link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename")?;
        RealDisk.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.step("unlink")?;
        RealDisk.unlink(path)
    }
    fn rmdir(&self, path: &Path) -> io::Result<()> {
        self.step("rmdir")?;
        RealDisk.rmdir(path)
    }
}

/// What `a` shows: its current value, or that there is none.
fn seen(bed: &Bed) -> Option<String> {
    match bed.get("a", None) {
        Ok((_, value)) => Some(value),
        Err(error) if error.code() == &codes::BACKEND_NOT_FOUND => None,
        Err(error) => panic!("neither old nor new: {error}"),
    }
}

/// Nothing is left of a killed writer.
fn assert_clean(bed: &Bed, context: &str) {
    assert!(!bed.store.dir().join(".new").exists(), "{context}: .new");
    for name in bed.store.names().unwrap() {
        let versions = bed.store.versions(&name).unwrap().unwrap();
        assert!(
            versions.outdated.is_empty(),
            "{context}: {name} {versions:?}"
        );
        assert!(
            versions.removed.len() <= 1,
            "{context}: {name} {versions:?}"
        );
        assert!(
            versions.last() > 0,
            "{context}: {name} is an empty directory"
        );
        assert!(
            versions.kept.len() <= limits::STORE_VERSIONS as usize,
            "{context}: {name} {versions:?}"
        );
    }
}

type Command<'a> = &'a dyn Fn(&Store, &Bed) -> Result<()>;

/// Runs `command` under each fault at each step. `old` and `new`: what `a` shows before and after.
fn every_step(
    prepare: &dyn Fn(&Bed),
    command: Command<'_>,
    old: Option<&str>,
    new: Option<&str>,
    expect: &[&str],
) {
    let mut struck = BTreeSet::new();
    for fault in [Fault::Error, Fault::Death] {
        for strike in 1.. {
            let bed = Bed::new();
            bed.put("other", "untouched");
            prepare(&bed);
            let disk = FaultyDisk::new(fault, strike);
            let result = Store::open_on(bed.store.dir().into(), disk.clone())
                .and_then(|store| command(&store, &bed));
            let context = format!("{fault:?} at {strike} ({:?})", disk.struck());
            let now = seen(&bed);
            let now = now.as_deref();
            assert!(now == old || now == new, "{context}: {now:?}");
            assert!(
                result.is_err() || now == new,
                "{context}: not done, and said it was"
            );
            bed.put("next", "command");
            assert_eq!(
                seen(&bed).as_deref(),
                now,
                "{context}: the next command changed it"
            );
            assert_clean(&bed, &context);
            if now != new || result.is_err() {
                let again = command(&bed.store, &bed);
                let gone = new.is_none() && now.is_none();
                assert!(again.is_ok() || gone, "{context}: {again:?}");
            }
            assert_eq!(seen(&bed).as_deref(), new, "{context}");
            assert_eq!(bed.get("other", None).unwrap().1, "untouched", "{context}");
            assert_clean(&bed, &context);
            match disk.struck() {
                Some(step) => struck.insert(step),
                None => break,
            };
        }
    }
    assert_eq!(
        struck,
        expect.iter().copied().collect(),
        "the steps that were made to fail"
    );
}

const TO_A_NEW_DIR: &[&str] = &[
    "create", "link", "lock", "mkdir", "rename", "sync", "sync_dir", "write",
];
const TO_AN_OLD_DIR: &[&str] = &[
    "create", "link", "lock", "mkdir", "rmdir", "sync", "sync_dir", "unlink", "write",
];

#[test]
fn a_put_of_a_new_secret() {
    let command: Command = &|store, _| store.put(&name_of("a"), &bytes("new")).map(drop);
    every_step(&|_| {}, command, None, Some("new"), TO_A_NEW_DIR);
}

#[test]
fn a_put_of_a_new_version_above_the_limit() {
    let prepare = |bed: &Bed| {
        bed.put("a", "old");
        for version in 2..=u64::from(limits::STORE_VERSIONS) {
            fs::hard_link(bed.file("a", 1), bed.file("a", version)).unwrap();
        }
    };
    let command: Command = &|store, _| store.put(&name_of("a"), &bytes("new")).map(drop);
    every_step(&prepare, command, Some("old"), Some("new"), TO_AN_OLD_DIR);
}

#[test]
fn a_rollback() {
    let prepare = |bed: &Bed| {
        bed.put("a", "new");
        bed.put("a", "old");
    };
    let command: Command = &|store, bed| {
        let name = name_of("a");
        store.rollback(&name, 1, Some(&bed.keys)).map(drop)
    };
    every_step(&prepare, command, Some("old"), Some("new"), TO_AN_OLD_DIR);
}

#[test]
fn a_removal() {
    let prepare = |bed: &Bed| {
        bed.put("a", "older");
        bed.store.remove(&name_of("a")).unwrap();
        bed.put("a", "old");
        bed.put("a", "old");
    };
    let command: Command = &|store, _| store.remove(&name_of("a")).map(drop);
    every_step(&prepare, command, Some("old"), None, TO_AN_OLD_DIR);
}

#[test]
fn a_rekey_to_another_key_is_resumed() {
    let expect: BTreeSet<_> = [
        "create",
        "lock",
        "mkdir",
        "rename",
        "rmdir",
        "set_modified",
        "sync",
        "sync_dir",
        "write",
    ]
    .into();
    let mut struck = BTreeSet::new();
    for fault in [Fault::Error, Fault::Death] {
        for strike in 1.. {
            let bed = Bed::new();
            for (name, value) in [("a", "1"), ("a", "2"), ("b", "3")] {
                bed.put(name, value);
            }
            let (public, new_keys) = Bed::key(&bed.root.path().join("new.age"));
            let to = Recipients::of(&public).unwrap();
            let disk = FaultyDisk::new(fault, strike);
            let first = Store::open_on(bed.store.dir().into(), disk.clone())
                .and_then(|store| store.rekey(Some(&to), &bed.keys));
            let context = format!("{fault:?} at {strike} ({:?})", disk.struck());
            // each version is whole, for the old key or the new one
            for (name, version, value) in [("a", 1, "1"), ("a", 2, "2"), ("b", 1, "3")] {
                let read = |keys| bed.store.get(&name_of(name), Some(version), keys);
                let (_, got) = read(&bed.keys).or_else(|_| read(&new_keys)).unwrap();
                assert!(got.same(&bytes(value)), "{context}: {name}@{version}");
            }
            let again = bed.store.rekey(Some(&to), &bed.keys).unwrap();
            assert!(again.problems.is_empty(), "{context}: {:?}", again.problems);
            assert_eq!(again.done + again.already, 3, "{context}");
            assert!(
                first.is_err() || again.done == 0,
                "{context}: not done, and said it was"
            );
            for (name, version) in [("a", 1), ("a", 2), ("b", 1)] {
                bed.store
                    .get(&name_of(name), Some(version), &new_keys)
                    .unwrap();
            }
            assert_clean(&bed, &context);
            match disk.struck() {
                Some(step) => struck.insert(step),
                None => break,
            };
        }
    }
    assert_eq!(struck, expect, "the steps that were made to fail");
}

#[test]
fn an_init() {
    let expect: BTreeSet<_> = [
        "create", "lock", "mkdir", "rename", "rmdir", "sync", "sync_dir", "write",
    ]
    .into();
    let mut struck = BTreeSet::new();
    for fault in [Fault::Error, Fault::Death] {
        for strike in 1.. {
            let root = tempfile::tempdir().unwrap();
            let (public, _) = Bed::key(&root.path().join("id"));
            let to = Recipients::of(&public).unwrap();
            let dir = root.path().join("above/store");
            let disk = FaultyDisk::new(fault, strike);
            let result = Store::init_on(dir.clone(), disk.clone(), &to);
            let context = format!("{fault:?} at {strike} ({:?})", disk.struck());
            if let Err(error) = Store::open(&dir) {
                assert_eq!(error.code(), &codes::STORE_MISSING, "{context}");
                assert!(result.is_err(), "{context}: not done, and said it was");
                Store::init(&dir, &to).unwrap();
            }
            let store = Store::open(&dir).unwrap();
            store.put(&name_of("a"), &bytes("x")).unwrap();
            assert!(!dir.join(".new").exists(), "{context}");
            assert!(dir.join(".gitignore").exists(), "{context}");
            match disk.struck() {
                Some(step) => struck.insert(step),
                None => break,
            };
        }
    }
    assert_eq!(struck, expect, "the steps that were made to fail");
}

#[test]
fn an_identity_file_is_whole_or_absent() {
    for fault in [Fault::Error, Fault::Death] {
        for strike in 1.. {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("config/identity.age");
            let disk = FaultyDisk::new(fault, strike);
            let result = Identities::load_or_make_on(&*disk, &path);
            let context = format!("{fault:?} at {strike} ({:?})", disk.struck());
            match Identities::load(&path) {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.code(), &codes::STORE_IDENTITY_MISSING, "{context}");
                    assert!(result.is_err(), "{context}: not done, and said it was");
                }
            }
            Identities::load_or_make(&path).unwrap();
            let left = fs::read_dir(root.path().join("config")).unwrap().count();
            assert_eq!(left, 1, "{context}: a temporary file is left");
            if disk.struck().is_none() {
                break;
            }
        }
    }
}

/// What the store should hold: for each name the contents by number, and the highest number that was given.
type Model = BTreeMap<&'static str, (BTreeMap<u64, String>, u64)>;

/// Does one random thing to the store and to the model. Whether the command said that it was done.
fn step(random: &mut fastrand::Rng, store: &Store, model: &mut Model, keys: &Identities) -> bool {
    let name = ["a", "a/b", ".c"][random.usize(..3)];
    let (versions, last) = model.entry(name).or_default();
    let old = versions
        .keys()
        .nth(random.usize(..=versions.len()))
        .copied();
    let next = *last + 1;
    let done = match (random.u8(..8), old) {
        (0, _) => {
            let done = store.remove(&name_of(name));
            assert!(
                done.is_err() || !versions.is_empty(),
                "{name}: removed nothing"
            );
            if !versions.is_empty() {
                versions.clear();
                *last = next;
            }
            done
        }
        (1 | 2, Some(old)) => {
            let keys = random.bool().then_some(keys);
            let content = versions.get(&old).cloned().unwrap_or_default();
            versions.insert(next, content);
            *last = next;
            store.rollback(&name_of(name), old, keys)
        }
        _ => {
            let content = format!("{name} {next} {}", "x".repeat(random.usize(..100)));
            let value = bytes(&content);
            versions.insert(next, content);
            *last = next;
            store.put(&name_of(name), &value)
        }
    };
    assert!(done.as_ref().is_ok_and(|number| *number == next) || done.is_err());
    done.is_ok()
}

/// The store is as the model says.
fn same(bed: &Bed, model: &Model) -> Result<(), String> {
    for (name, (versions, _)) in model {
        let kept = bed.store.versions(&name_of(name)).unwrap();
        let kept = kept.map(|versions| versions.kept).unwrap_or_default();
        if !kept.iter().eq(versions.keys()) {
            return Err(format!("{name}: {kept:?}, not {:?}", versions.keys()));
        }
        for (version, content) in versions {
            let (_, value) = bed
                .get(name, Some(*version))
                .map_err(|error| error.to_string())?;
            if value != *content {
                return Err(format!("{name}@{version}"));
            }
        }
    }
    Ok(())
}

#[test]
fn random_commands_and_kills_leave_what_a_map_would_hold() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..6 {
        let bed = Bed::new();
        let mut model = Model::new();
        for _ in 0..40 {
            // a kill at a random step in half of the commands
            let strike = if random.bool() {
                random.usize(1..20)
            } else {
                usize::MAX
            };
            let disk = FaultyDisk::new(Fault::Death, strike);
            let store = Store::open_on(bed.store.dir().into(), disk).unwrap();
            let before = model.clone();
            let done = step(&mut random, &store, &mut model, &bed.keys);
            let new = same(&bed, &model);
            if !done && new.is_err() {
                model = before;
                same(&bed, &model).unwrap();
            } else {
                new.unwrap();
            }
        }
        bed.put("next", "command");
        assert_clean(&bed, "at the end");
    }
}
