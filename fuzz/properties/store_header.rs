//! The embedded store's files: what is read before a secret is decrypted, and what is cut from one after.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::LazyLock,
};

use secretfs::{
    error::codes,
    limits,
    secret::SecretBytes,
    store::{self, Identities, Name, Recipients, document},
};
use serde_json::Value;

use super::{PLANTED, Verdict, token::part, words};

/// A key pair that exists for this alone.
const IDENTITY: &str = "AGE-SECRET-KEY-1048WA5WRA9WWZ57RPA5H4YSWDSU7V475TFYFUUJF53TMRMRHXGGSX3EF4N";
/// All that was ever sealed to it.
const SEALED: [&[u8]; 2] = [b"hunter2\n", br#"{"password":"hunter2","user":"app"}"#];

/// `KIND BYTES`. Kind 0: the store's description; 1: a version's file; 2: its recipients; 3: a name, a directory or a number; else: a
/// field and a document, with a NUL between.
pub fn store_header(data: &[u8]) -> Verdict {
    let Some((kind, bytes)) = data.split_first() else {
        return Verdict::Refused;
    };
    let text = std::str::from_utf8(bytes);
    Verdict::of(match (kind & 7, text) {
        (0, _) => description(bytes),
        (1, _) => version(bytes),
        (2, Ok(text)) => recipients(text),
        (3, Ok(text)) => name(text),
        (2 | 3, Err(_)) => false,
        _ => field(bytes),
    })
}

/// Only our format is taken, of a version that there is.
fn description(bytes: &[u8]) -> bool {
    let path = Path::new("/store/store.json");
    match store::check_manifest(Some(bytes), path) {
        Ok(()) => {
            if let Ok(json) = serde_json::from_slice::<Value>(bytes) {
                let fields = (part(&json, "format", 0), part(&json, "version", 1));
                assert_eq!(fields, (&"secretfs-store".into(), &1.into()));
            }
            true
        }
        Err(error) => {
            let known = [&codes::STORE_CORRUPT, &codes::STORE_FORMAT];
            assert!(known.contains(&error.code()), "{error}");
            words(&error);
            false
        }
    }
}

/// What comes out of a file was put into one: a file is authentic or damaged.
fn version(bytes: &[u8]) -> bool {
    if let Some(mark) = store::mark_of(bytes) {
        let line = format!("-> secretfs.dev/recipients {mark}");
        let lines = bytes.split(|byte| *byte == b'\n');
        let mut header = lines.take_while(|line| !line.starts_with(b"---"));
        assert!(header.any(|one| one == line.as_bytes()), "{mark:?}");
    }
    match store::unseal(bytes, &IDENTITIES) {
        Ok(value) => {
            assert!(SEALED.contains(&value.expose()), "nobody sealed that");
            true
        }
        Err(error) => {
            let known = [&codes::STORE_CORRUPT, &codes::STORE_TOO_LARGE];
            assert!(known.contains(&error.code()), "{error}");
            words(&error);
            false
        }
    }
}

static IDENTITIES: LazyLock<Identities> = LazyLock::new(|| {
    let name = format!("secretfs-fuzz-{}.age", std::process::id());
    let path = std::env::temp_dir().join(name);
    let _ = fs::remove_file(&path); // of another process that had our number and died
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let written = file.and_then(|mut file| file.write_all(IDENTITY.as_bytes()));
    let read = Identities::load(&path);
    let removed = fs::remove_file(&path);
    written.and(removed).expect("an identity file");
    read.expect("an identity")
});

/// Written and read again they are the same.
fn recipients(text: &str) -> bool {
    match Recipients::parse(text) {
        Ok(keys) => {
            assert!(keys.public_keys().next().is_some());
            let again = Recipients::parse(&keys.to_text()).expect("as written");
            assert!(keys.public_keys().eq(again.public_keys()));
            assert_eq!(keys.mark(), again.mark());
            true
        }
        Err(error) => {
            assert_eq!(error.code(), &codes::STORE_BAD_RECIPIENT);
            let said = words(&error);
            // A private key that somebody put there is not shown: neither whole nor its first characters.
            assert!(
                !said.to_ascii_uppercase().contains("AGE-SECRET-KEY-1"),
                "{said}"
            );
            false
        }
    }
}

/// A name is one directory below `secrets/`, which no other name has; a version is one number, written in one way.
fn name(text: &str) -> bool {
    let parsed = Name::parse(text);
    if let Ok(name) = &parsed {
        let dir = name.to_dir();
        assert!(
            !dir.contains(['/', '\0', '\n']) && !dir.starts_with('.'),
            "{dir:?}"
        );
        assert!((1..=255).contains(&dir.len()), "{dir:?}");
        assert_eq!(Name::from_dir(&dir).as_ref(), Some(name));
        let place = store::secret_dir(Path::new("/store"), name);
        assert_eq!(place.parent(), Some(Path::new("/store/secrets")));
    }
    if let Some(name) = Name::from_dir(text) {
        assert_eq!(name.to_dir(), text);
    }
    if let Some(number) = store::parse_version(text) {
        assert!(number > 0 && number.to_string() == text);
    }
    parsed.is_ok()
}

/// A field is what JSON says it is, and an error names fields and shows no value. Fields that make a document come out of it.
fn field(bytes: &[u8]) -> bool {
    let at = bytes.iter().position(|byte| *byte == 0);
    let (key, bytes) = bytes.split_at(at.unwrap_or(0));
    let Ok(key) = std::str::from_utf8(key) else {
        return false;
    };
    let bytes = bytes.strip_prefix(b"\0").unwrap_or(bytes);
    assert!(bytes.len() as u64 <= limits::STORE_VALUE_BYTES);
    let json = serde_json::from_slice::<Value>(bytes).ok();
    let json = json.filter(Value::is_object);
    let cut = document::field(&SecretBytes::new(bytes.to_vec()), key);
    let accepted = match (&cut, json) {
        (Ok(value), Some(json)) => {
            let found = match key.starts_with('/') {
                true => json.pointer(key),
                false => json.get(key),
            };
            match found.expect("what was cut is there") {
                Value::String(text) => assert_eq!(value.expose(), text.as_bytes()),
                // a number may come back as its neighbour
                _ => assert!(serde_json::from_slice::<Value>(value.expose()).is_ok()),
            }
            true
        }
        (Err(error), json) => {
            let known = match json {
                Some(_) => &codes::RENDER_NO_FIELD,
                None => &codes::RENDER_NOT_FIELDS,
            };
            assert_eq!(error.code(), known);
            words(error);
            false
        }
        (Ok(_), None) => panic!("a field of what is no object"),
    };
    if document::check_key(key).is_ok() && key != OTHER {
        of_fields(key, bytes);
    }
    accepted
}

const OTHER: &str = "other";

fn of_fields(key: &str, value: &[u8]) {
    let fields = [(key, value), (OTHER, PLANTED.as_bytes())];
    let fields = fields.map(|(key, value)| (key.to_owned(), SecretBytes::new(value.to_vec())));
    match document::from_fields(&BTreeMap::from(fields)) {
        Ok(document) => {
            let back = document::field(&document, key).expect("it was put there");
            assert_eq!(back.expose(), value);
            let other = document::field(&document, OTHER).expect("it was put there");
            assert_eq!(other.expose(), PLANTED.as_bytes());
            let none = document::field(&document, &format!("{key}-"));
            words(&none.expect_err("nobody put it there"));
        }
        Err(error) => {
            assert_eq!(error.code(), &codes::STORE_BAD_VALUE);
            assert!(std::str::from_utf8(value).is_err(), "{error}");
            words(&error);
        }
    }
}
