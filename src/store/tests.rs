//! The store as its users see it, on a real file system.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use super::*;
use crate::{error::ErrorKind, limits, secret::SecretBytes};

/// A store of its own, with an identity that reads it.
pub(super) struct Bed {
    pub root: tempfile::TempDir,
    pub store: Store,
    pub keys: Identities,
}

impl Bed {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let (public, keys) = Self::key(&root.path().join("identity.age"));
        let store =
            Store::init(root.path().join("store"), &Recipients::of(&public).unwrap()).unwrap();
        Self { root, store, keys }
    }

    pub fn key(path: &Path) -> (Vec<String>, Identities) {
        let (public, _) = Identities::load_or_make(path).unwrap();
        (public, Identities::load(path).unwrap())
    }

    pub fn put(&self, name: &str, value: &str) -> u64 {
        self.store.put(&name_of(name), &bytes(value)).unwrap()
    }

    pub fn get(&self, name: &str, version: Option<u64>) -> Result<(u64, String)> {
        let (version, value) = self.store.get(&name_of(name), version, &self.keys)?;
        Ok((version, String::from_utf8_lossy(value.expose()).into()))
    }

    pub fn numbers(&self, name: &str) -> Vec<u64> {
        let history = self.store.history(&name_of(name)).unwrap();
        history.iter().map(|info| info.version).collect()
    }

    pub fn file(&self, name: &str, version: u64) -> PathBuf {
        let dir = self.store.secret_dir(&name_of(name));
        dir.join(version_file(version))
    }
}

pub(super) fn name_of(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(super) fn bytes(text: &str) -> SecretBytes {
    SecretBytes::new(text.as_bytes().to_vec())
}

fn code(result: Result<impl Sized>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.code().name,
    }
}

#[test]
fn what_is_put_is_got_and_a_name_may_lie_below_another() {
    let bed = Bed::new();
    assert_eq!(bed.put("a", "1"), 1);
    assert_eq!(bed.put("a/b", "2"), 1);
    assert_eq!(bed.put("a", "3"), 2);
    assert_eq!(bed.put(".git/config", ""), 1);
    assert_eq!(bed.put("1.age", "x"), 1);
    assert_eq!(bed.get("a", None).unwrap(), (2, "3".into()));
    assert_eq!(bed.get("a", Some(1)).unwrap(), (1, "1".into()));
    assert_eq!(bed.get("a/b", None).unwrap(), (1, "2".into()));
    assert_eq!(bed.get(".git/config", None).unwrap(), (1, String::new()));
    assert_eq!(code(bed.get("a", Some(3))), "store.no_version");
    assert_eq!(code(bed.get("b", None)), "backend.not_found");
    let listing = bed.store.list().unwrap();
    let names: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| (entry.name.as_str(), entry.version, entry.kept))
        .collect();
    assert_eq!(
        names,
        [
            (".git/config", 1, 1),
            ("1.age", 1, 1),
            ("a", 2, 2),
            ("a/b", 1, 1)
        ]
    );
    assert!(listing.problems.is_empty());
}

#[test]
fn a_removed_secret_is_gone_and_its_numbers_are_not_given_again() {
    let bed = Bed::new();
    bed.put("a", "1");
    bed.put("a", "2");
    assert_eq!(bed.store.remove(&name_of("a")).unwrap(), 3);
    let error = bed.get("a", None).unwrap_err();
    assert_eq!(error.code(), &codes::BACKEND_NOT_FOUND);
    assert!(error.to_string().contains("version 3"), "{error}");
    assert_eq!(code(bed.get("a", Some(1))), "backend.not_found");
    assert_eq!(code(bed.store.history(&name_of("a"))), "backend.not_found");
    assert_eq!(code(bed.store.remove(&name_of("a"))), "backend.not_found");
    assert!(bed.store.list().unwrap().entries.is_empty());
    assert_eq!(
        fs::read_dir(bed.store.secret_dir(&name_of("a")))
            .unwrap()
            .count(),
        1
    );
    assert_eq!(bed.put("a", "4"), 4);
    assert_eq!(bed.numbers("a"), [4]);
    assert_eq!(code(bed.get("a", Some(1))), "store.no_version");
    bed.store.remove(&name_of("a")).unwrap();
    assert_eq!(bed.put("a", "6"), 6);
}

#[test]
fn a_hundred_versions_are_kept() {
    let bed = Bed::new();
    bed.put("a", "old");
    let limit = u64::from(limits::STORE_VERSIONS);
    for version in 2..=limit {
        fs::copy(bed.file("a", 1), bed.file("a", version)).unwrap();
    }
    assert_eq!(bed.put("a", "new"), limit + 1);
    let kept = bed.numbers("a");
    assert_eq!(
        (kept.len() as u64, kept[0], *kept.last().unwrap()),
        (limit, limit + 1, 2)
    );
}

#[test]
fn a_rollback_is_a_new_version_with_or_without_an_identity() {
    let bed = Bed::new();
    bed.put("a", "one");
    bed.put("a", "two");
    let name = name_of("a");
    assert_eq!(bed.store.rollback(&name, 1, Some(&bed.keys)).unwrap(), 3);
    assert_eq!(bed.get("a", None).unwrap(), (3, "one".into()));
    assert_eq!(bed.store.rollback(&name, 2, None).unwrap(), 4);
    assert_eq!(bed.get("a", None).unwrap(), (4, "two".into()));
    assert_eq!(code(bed.store.rollback(&name, 9, None)), "store.no_version");
    fs::write(bed.file("a", 1), b"junk").unwrap();
    assert_eq!(code(bed.store.rollback(&name, 1, None)), "store.corrupt");
    assert_eq!(
        code(bed.store.rollback(&name, 1, Some(&bed.keys))),
        "store.corrupt"
    );
    assert_eq!(bed.numbers("a"), [4, 3, 2, 1]);
}

#[test]
fn a_damaged_file_is_named_and_spoils_no_other_secret() {
    let bed = Bed::new();
    bed.put("good", "g");
    bed.put("bad", "b");
    bed.put("bad", "b2");
    fs::write(bed.file("bad", 2), b"age-encryption.org/v1\nnonsense").unwrap();
    let error = bed.get("bad", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("secrets/bad/2.age"), "{error}");
    assert_eq!(bed.get("bad", Some(1)).unwrap().1, "b");
    assert_eq!(bed.get("good", None).unwrap().1, "g");
    fs::write(bed.store.dir().join("secrets/weird"), b"").unwrap();
    let listing = bed.store.list().unwrap();
    assert_eq!(listing.entries.len(), 2);
    assert_eq!(listing.problems.len(), 1);
    assert!(listing.problems[0].to_string().contains("secrets/weird"));
    assert_eq!(bed.put("bad", "b3"), 3);
    assert_eq!(bed.get("bad", None).unwrap().1, "b3");
}

#[test]
fn files_that_are_not_ours_are_passed_over() {
    let bed = Bed::new();
    bed.put("a", "1");
    let dir = bed.store.secret_dir(&name_of("a"));
    for file in ["02.age", "3.age~", "x.age", "0.age", "notes", "4.AGE"] {
        fs::write(dir.join(file), b"").unwrap();
    }
    fs::create_dir(bed.store.dir().join("secrets/.git")).unwrap();
    fs::create_dir(bed.store.dir().join("secrets/empty")).unwrap();
    assert_eq!(bed.numbers("a"), [1]);
    assert_eq!(bed.put("a", "2"), 2);
    assert_eq!(bed.store.list().unwrap().entries.len(), 1);
    assert_eq!(code(bed.get("empty", None)), "backend.not_found");
    assert_eq!(bed.put("empty", "e"), 1);
}

#[test]
fn init_makes_no_store_over_a_store_or_over_other_things() {
    let bed = Bed::new();
    let to = bed.store.recipients().unwrap();
    assert_eq!(code(Store::init(bed.store.dir(), &to)), "store.exists");
    let other = bed.root.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), b"").unwrap();
    let error = Store::init(&other, &to).map(drop).unwrap_err();
    assert_eq!(error.code(), &codes::USAGE);
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    fs::remove_file(other.join("thesis.tex")).unwrap();
    fs::create_dir(other.join(".git")).unwrap();
    fs::write(other.join("README.md"), b"").unwrap();
    Store::init(&other, &to).unwrap();
    let mode = fs::metadata(bed.store.dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_store_that_is_missing_newer_or_nonsense_is_refused() {
    let bed = Bed::new();
    let manifest = bed.store.manifest();
    let open = || Store::open(bed.store.dir());
    for (text, expect) in [
        (r#"{"format":"secretfs-store","version":1}"#, "ok"),
        (r#"{"format":"secretfs-store","version":1,"more":[]}"#, "ok"),
        (r#"{"format":"secretfs-store","version":2}"#, "store.format"),
        (r#"{"format":"secretfs-store","version":0}"#, "store.format"),
        (r#"{"format":"other","version":1}"#, "store.corrupt"),
        ("", "store.corrupt"),
    ] {
        fs::write(&manifest, text).unwrap();
        assert_eq!(code(open()), expect, "{text}");
    }
    fs::remove_file(&manifest).unwrap();
    let error = open().map(drop).unwrap_err();
    assert_eq!(error.code(), &codes::STORE_MISSING);
    assert!(error.code().fix.contains("secretfs store init"));
}

#[test]
fn a_reader_changes_nothing_and_a_clone_without_an_empty_directory_works() {
    let bed = Bed::new();
    fs::remove_dir(bed.store.secrets()).unwrap();
    assert!(bed.store.list().unwrap().entries.is_empty());
    assert_eq!(code(bed.get("a", None)), "backend.not_found");
    assert!(!bed.store.secrets().exists());
    bed.put("a", "1");
    fs::remove_file(bed.store.dir().join(".lock")).unwrap();
    let read_only = |mode| {
        for dir in [
            bed.store.secret_dir(&name_of("a")),
            bed.store.secrets(),
            bed.store.dir().into(),
        ] {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    read_only(0o555);
    assert_eq!(bed.get("a", None).unwrap(), (1, "1".into()));
    assert_eq!(bed.store.history(&name_of("a")).unwrap().len(), 1);
    assert_eq!(bed.store.list().unwrap().entries.len(), 1);
    assert!(
        !bed.store.dir().join(".lock").exists(),
        "a reader took the lock"
    );
    read_only(0o755);
}

#[test]
fn a_rekey_moves_the_whole_store_and_passes_over_what_is_done() {
    let bed = Bed::new();
    bed.put("a", "1");
    bed.put("a", "2");
    bed.put("b", "3");
    bed.put("c", "damaged");
    bed.put("gone", "x");
    bed.store.remove(&name_of("gone")).unwrap();
    fs::write(bed.file("c", 1), b"junk").unwrap();
    let before = bed.store.history(&name_of("a")).unwrap();
    let (public, new_keys) = Bed::key(&bed.root.path().join("new.age"));
    let to = Recipients::of(&public).unwrap();
    let rekeyed = bed.store.rekey(Some(&to), &bed.keys).unwrap();
    assert_eq!(
        (rekeyed.done, rekeyed.already, rekeyed.problems.len()),
        (3, 0, 1)
    );
    assert!(rekeyed.problems[0].to_string().contains("secrets/c/1.age"));
    assert_eq!(bed.store.history(&name_of("a")).unwrap(), before);
    let read = |name, keys| {
        let (_, value) = bed.store.get(&name_of(name), None, keys)?;
        Ok(String::from_utf8_lossy(value.expose()).into_owned())
    };
    assert_eq!(read("a", &new_keys).unwrap(), "2");
    assert_eq!(code(read("a", &bed.keys)), "store.corrupt");
    // again, by who can read nothing of it any more: all but the damaged one bears the mark
    let again = bed.store.rekey(None, &bed.keys).unwrap();
    assert_eq!((again.done, again.already, again.problems.len()), (0, 3, 1));
    // a file made with `age` itself bears none, and is done
    let sealed = seal::seal(&bytes("4"), &bed.store.recipients().unwrap()).unwrap();
    let text = String::from_utf8_lossy(&sealed);
    assert!(text.contains(&to.mark()));
    bed.put("b", "5");
    assert_eq!(read("b", &new_keys).unwrap(), "5");
}

#[test]
fn a_value_over_the_limit_and_recipients_that_are_none_are_refused() {
    let bed = Bed::new();
    let big = SecretBytes::new(vec![0; limits::STORE_VALUE_BYTES as usize + 1]);
    assert_eq!(code(bed.store.put(&name_of("a"), &big)), "store.too_large");
    let recipients = bed.store.dir().join("recipients");
    fs::write(&recipients, "# nobody\n").unwrap();
    let error = bed.store.put(&name_of("a"), &bytes("x")).unwrap_err();
    assert_eq!(error.code(), &codes::STORE_BAD_RECIPIENT);
    assert!(error.to_string().contains("store/recipients"), "{error}");
    fs::remove_file(&recipients).unwrap();
    assert_eq!(
        code(bed.store.put(&name_of("a"), &bytes("x"))),
        "store.corrupt"
    );
    assert!(!bed.store.dir().join(".new").exists());
    assert!(bed.store.list().unwrap().entries.is_empty());
}
