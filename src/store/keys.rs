//! Keys: the identity file of a reader, and the `recipients` file that a writer needs. Both are `age`'s own formats.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use age::secrecy::ExposeSecret;
use age_core::format::{FileKey, Stanza};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
    store::{
        disk::{Disk, RealDisk, read_at_most},
        io_error,
    },
};

/// The mark that `seal` puts into each file's header: see [`Recipients::mark`].
pub const MARK: &str = "secretfs.dev/recipients";

/// The private keys of a reader. `Debug` prints no key.
pub struct Identities(Vec<age::x25519::Identity>);

impl Identities {
    /// Reads an identity file as `age-keygen` makes it: one `AGE-SECRET-KEY-1...` a line, `#` comments, blank lines.
    ///
    /// # Errors
    /// `store.identity_missing`, `store.identity_mode` (wider than 0600), `store.identity_bad`, `store.io`.
    pub fn load(path: &Path) -> Result<Self> {
        tracing::trace!(path = %path.display(), "an identity is read");
        let at = |error: Error| error.object(path.display());
        let unreadable = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => at(Error::new(&codes::STORE_IDENTITY_MISSING)),
            _ => at(Error::new(&codes::STORE_IO)
                .detail("the identity file cannot be read")
                .step("read it")
                .source(error)),
        };
        let file = fs::File::open(path).map_err(unreadable)?;
        let meta = file.metadata().map_err(unreadable)?;
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_dir() {
            return Err(at(
                Error::new(&codes::STORE_IDENTITY_BAD).detail("is a directory")
            ));
        }
        if mode & !0o600 != 0 {
            return Err(at(Error::new(&codes::STORE_IDENTITY_MODE).detail(format!(
                "the identity file has mode {mode:04o}, and only its owner may read it; chmod 600 it"
            ))));
        }
        let bytes = read_at_most(
            &mut BufReader::new(file),
            meta.len(),
            limits::KEY_FILE_BYTES,
        )
        .map_err(unreadable)?
        .map(SecretBytes::new)
        .ok_or_else(|| {
            at(Error::new(&codes::STORE_IDENTITY_BAD).detail("is larger than 64 KiB"))
        })?;
        Self::parse(&bytes).map_err(at)
    }

    fn parse(bytes: &SecretBytes) -> Result<Self> {
        let bad = |detail: String| Error::new(&codes::STORE_IDENTITY_BAD).detail(detail);
        if bytes.expose().starts_with(b"age-encryption.org/") {
            return Err(bad(
                "is protected by a passphrase; nobody is there to type it, so give a plain identity file"
                    .into(),
            ));
        }
        let text = std::str::from_utf8(bytes.expose())
            .map_err(|_| bad("holds no age identity: it is not text".into()))?;
        let mut keys = Vec::new();
        for (number, line) in key_lines(text) {
            let key = line.parse::<age::x25519::Identity>().map_err(|why| {
                let hint = if line.starts_with("AGE-PLUGIN-") {
                    "plugins are not supported"
                } else if line.starts_with("AGE-SECRET-KEY-PQ-") {
                    "post-quantum identities are not supported"
                } else {
                    why
                };
                bad(format!("line {number} is not an age identity: {hint}"))
            })?;
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(bad(
                "holds no age identity (a line AGE-SECRET-KEY-1...)".into()
            ));
        }
        Ok(Self(keys))
    }

    /// Makes a new identity file with mode 0600, or uses the one that is there. The public keys, and whether it was made.
    ///
    /// # Errors
    /// As [`Identities::load`] for one that is there; `store.io`.
    pub fn load_or_make(path: &Path) -> Result<(Vec<String>, bool)> {
        Self::load_or_make_on(&RealDisk, path)
    }

    /// 1. Make the directories above, 0700.
    /// 2. Write a temporary file beside it, 0600 from the start, and sync it.
    /// 3. Link it to its name: a file that is already there is never replaced.
    /// 4. Remove the temporary names, those of killed ones too, and sync the directory. (One that loses its temporary file
    ///    to another process fails in step 3, and finds that one's identity.)
    pub(super) fn load_or_make_on(disk: &dyn Disk, path: &Path) -> Result<(Vec<String>, bool)> {
        let dir = parent(path);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let failed = |error: io::Error| {
            let step = "write the identity file";
            io_error(path, step)(error)
        };
        match Self::load(path) {
            Err(error) if error.code() == &codes::STORE_IDENTITY_MISSING => {}
            found => {
                let _ = remove_temporaries(disk, dir, &name);
                return Ok((found?.public_keys(), false));
            }
        }
        make_dirs(disk, dir).map_err(failed)?; // 1
        let key = age::x25519::Identity::generate();
        let public = key.to_public().to_string();
        let secret = key.to_string();
        let text = format!("# public key: {public}\n{}\n", secret.expose_secret());
        let text = SecretBytes::new(text.into_bytes());
        let temp = dir.join(format!(".{name}.{:016x}.new", fastrand::u64(..)));
        let written = (|| {
            let mut file = disk.create(&temp, 0o600)?; // 2
            disk.write(&mut file, text.expose())?;
            disk.sync(&file)?;
            disk.link(&temp, path) // 3
        })();
        let cleaned = remove_temporaries(disk, dir, &name); // 4
        if written.is_err() && path.exists() {
            return Ok((Self::load(path)?.public_keys(), false));
        }
        written
            .and(cleaned)
            .and_then(|()| disk.sync_dir(dir))
            .map_err(failed)?;
        Ok((vec![public], true))
    }

    /// The public keys, which `--recipient` and the recipients file take.
    pub fn public_keys(&self) -> Vec<String> {
        self.0
            .iter()
            .map(|key| key.to_public().to_string())
            .collect()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|key| key as &dyn age::Identity)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identities")
    }
}

/// Whom new files are encrypted to: at least one public key, each once, in the order of their text.
pub struct Recipients(BTreeMap<String, Box<dyn age::Recipient + Send + Sync>>);

impl Recipients {
    /// Reads the text of a recipients file: one `age1...` a line, `#` comments, blank lines.
    ///
    /// # Errors
    /// `store.bad_recipient`, with the line.
    pub fn parse(text: &str) -> Result<Self> {
        let mut keys = Self(BTreeMap::new());
        for (number, line) in key_lines(text) {
            keys.add(line).map_err(|why| {
                Error::new(&codes::STORE_BAD_RECIPIENT).detail(format!("line {number} {why}"))
            })?;
        }
        keys.checked()
    }

    /// The keys of `--recipient`.
    ///
    /// # Errors
    /// `store.bad_recipient`, with the key.
    pub fn of<S: AsRef<str>>(list: &[S]) -> Result<Self> {
        let mut keys = Self(BTreeMap::new());
        for key in list {
            keys.add(key.as_ref()).map_err(|why| {
                Error::new(&codes::STORE_BAD_RECIPIENT).detail(format!("--recipient {why}"))
            })?;
        }
        keys.checked()
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(
                "is a private key; give the public one, which begins with age1 \
                 (and as this one has been on a command line or in a file of public keys, make a new pair)"
                    .into(),
            );
        }
        let key: Box<dyn age::Recipient + Send + Sync> = if let Ok(key) =
            text.parse::<age::x25519::Recipient>()
        {
            Box::new(key)
        } else if let Ok(key) = text.parse::<age::tag::Recipient>() {
            Box::new(key)
        } else if text.starts_with("ssh-") {
            return Err("is an SSH key, which is not supported; make a key with age-keygen".into());
        } else {
            return Err(
                "is not an age public key: it begins with age1 and is 62 characters long".into(),
            );
        };
        self.0.insert(text.to_owned(), key);
        Ok(())
    }

    fn checked(self) -> Result<Self> {
        if self.0.is_empty() {
            return Err(Error::new(&codes::STORE_BAD_RECIPIENT)
                .detail("there is no recipient, so nobody could read what is put"));
        }
        Ok(self)
    }

    /// The public keys.
    pub fn public_keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The text of a recipients file; `age -R` reads it.
    pub fn to_text(&self) -> String {
        let mut text = String::from(
            "# Who can read the store: one age public key a line.\n\
             # After a change run `secretfs store rekey`; until then only new versions follow it.\n",
        );
        for key in self.public_keys() {
            text.push_str(key);
            text.push('\n');
        }
        text
    }

    /// Tells sets of recipients apart: 16 bytes of a hash over the public keys, as hex.
    ///
    /// Nothing in an age file says to which X25519 keys it is encrypted. So `seal` adds a stanza with this mark to the
    /// header (every age program passes over a stanza that it does not know), and `rekey` sees what it has done already.
    pub fn mark(&self) -> String {
        let mut hash = Sha256::new();
        for key in self.public_keys() {
            hash.update(key);
            hash.update(b"\n");
        }
        hash.finalize()
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.public_keys()).finish()
    }
}

impl age::Recipient for Recipients {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> Result<(Vec<Stanza>, std::collections::HashSet<String>), age::EncryptError> {
        let mut stanzas = Vec::new();
        let mut labels = std::collections::HashSet::new();
        for key in self.0.values() {
            let (wrapped, its_labels) = key.wrap_file_key(file_key)?;
            stanzas.extend(wrapped);
            labels.extend(its_labels);
        }
        stanzas.push(Stanza {
            tag: MARK.into(),
            args: vec![self.mark()],
            body: Vec::new(),
        });
        Ok((stanzas, labels))
    }
}

/// Makes `dir` and what is missing above it, 0700.
pub(super) fn make_dirs(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_dirs(disk, above)?;
    }
    match disk.mkdir(dir, 0o700) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        result => result,
    }
}

/// Removes the temporary files of an identity file `name` in `dir`.
fn remove_temporaries(disk: &dyn Disk, dir: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let random = file
            .strip_prefix(&format!(".{name}."))
            .and_then(|rest| rest.strip_suffix(".new"));
        if random.is_some_and(|random| random.len() == 16) {
            disk.unlink(&path)?;
        }
    }
    Ok(())
}

/// The directory that holds `path`.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The lines that hold a key, with their numbers.
fn key_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn recipients_are_read_with_line_numbers_and_each_once() {
        let text = format!("# a comment\n\n  {PUBLIC}\n{PUBLIC}\r\n");
        let keys = Recipients::parse(&text).unwrap();
        assert_eq!(keys.public_keys().collect::<Vec<_>>(), [PUBLIC]);
        assert_eq!(
            Recipients::parse(&keys.to_text()).unwrap().mark(),
            keys.mark()
        );
        for (text, part) in [
            ("", "no recipient"),
            ("# only\n", "no recipient"),
            ("\nage1nonsense", "line 2"),
            ("ssh-ed25519 AAAA", "SSH"),
            ("AGE-SECRET-KEY-1QQQ", "private key"),
        ] {
            let error = Recipients::parse(text).unwrap_err();
            assert_eq!(error.code(), &codes::STORE_BAD_RECIPIENT);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains("1QQQ"), "{error}");
        }
    }

    #[test]
    fn an_identity_file_is_refused_when_others_could_read_it_or_it_holds_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/identity.age");
        let load = || Identities::load(&path);
        assert_eq!(load().unwrap_err().code(), &codes::STORE_IDENTITY_MISSING);
        let (public, made) = Identities::load_or_make(&path).unwrap();
        assert!(made && public.len() == 1);
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o600
        );
        let again = Identities::load_or_make(&path).unwrap();
        assert_eq!(again, (public, false));
        for bad in [0o640, 0o604, 0o620, 0o601, 0o700, 0o4600] {
            mode(bad);
            let error = load().unwrap_err();
            assert_eq!(error.code(), &codes::STORE_IDENTITY_MODE, "{bad:o}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        mode(0o400);
        load().unwrap();
        for (text, part) in [
            ("", "no age identity"),
            ("# nothing\n", "no age identity"),
            ("\nAGE-SECRET-KEY-1CANARY\n", "line 2"),
            ("AGE-PLUGIN-YUBIKEY-1CANARY\n", "plugins"),
            ("age-encryption.org/v1\n", "passphrase"),
        ] {
            mode(0o600);
            fs::write(&path, text).unwrap();
            let error = load().unwrap_err();
            assert_eq!(error.code(), &codes::STORE_IDENTITY_BAD);
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains("CANARY"), "{error}");
        }
        assert_eq!(
            fs::read_dir(parent(&path)).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }
}
