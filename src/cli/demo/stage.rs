//! What the demo is played on: a directory with a store, a spec and a target, and the mount process.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Isolation, Say, failed};
use crate::{
    config::Env,
    error::{Error, Result, codes},
    secret::SecretBytes,
    store::{Identities, Name, Recipients, Store},
    sys::process,
};

/// The volume that the demo mounts.
const SPEC: &str = r#"sources:
  db: store:demo/db
files:
  - path: db/password
    from: db#password
  - path: db/url
    template: |
      postgres://{{ db.username }}:{{ db.password | urlencode }}@db.internal/app
  - path: app.json
    from: store:demo/app
  - path: tls/tls.crt
    from: store:demo/tls#tls.crt
  - path: tls/tls.key
    from: store:demo/tls#tls.key
    mode: "0400"
"#;

/// Dropping it ends the mount process (which unmounts) and removes the directory.
pub struct Stage {
    /// All files of the demo.
    pub dir: PathBuf,
    /// Where the volume is mounted.
    pub target: PathBuf,
    /// Where the values are put.
    pub store: Store,
    /// See [`Isolation`].
    pub isolation: Isolation,
    /// `secretfs mount`.
    pub child: Option<Child>,
}

impl Stage {
    /// Makes the directory, the store with its first values, and the spec.
    pub fn build(env: &Env, say: &mut Say<'_>, isolation: Isolation) -> Result<Self> {
        let dir = env
            .tmp
            .join(format!("secretfs-demo-{}", short(&random(16)?)));
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(failed("make the demo's directory"))?;
        let target = dir.join("secrets");
        let (store_dir, identity) = (dir.join("store"), dir.join("identity.age"));
        let (keys, _) = Identities::load_or_make(&identity)?;
        let store = Store::init(&store_dir, &Recipients::of(&keys)?)?;
        let stage = Self {
            target,
            store,
            isolation,
            child: None,
            dir,
        };
        for sub in ["secrets", "run"] {
            let made = fs::DirBuilder::new()
                .mode(0o700)
                .create(stage.dir.join(sub));
            made.map_err(failed("make the demo's directory"))?;
        }
        fs::write(stage.dir.join("app.yaml"), SPEC).map_err(failed("write the spec"))?;
        say.heading(
            "1  An encrypted store, with a database password, a JSON document and a TLS key pair",
        )?;
        stage.put("demo/db", &database(&password()?))?;
        stage.put(
            "demo/app",
            json!({ "featureFlags": ["a", "b"], "apiToken": password()? })
                .to_string()
                .as_bytes(),
        )?;
        stage.put("demo/tls", &tls()?)?;
        for file in files_below(&store_dir.join("secrets")) {
            let shown = file.strip_prefix(&stage.dir).unwrap_or(&file).display();
            say.line(&format!("      {shown}  {}", first_line(&file)))?;
        }
        Ok(stage)
    }

    /// Starts `secretfs mount` and waits for its ready line.
    pub fn mount(&mut self, say: &mut Say<'_>) -> Result<()> {
        say.heading("2  A volume, mounted by `secretfs mount app.yaml secrets`")?;
        for line in SPEC.lines() {
            say.line(&format!("      {line}"))?;
        }
        let mut command = Command::new("/proc/self/exe");
        command
            .args([
                "mount",
                "app.yaml",
                "secrets",
                "--store",
                "store",
                "--identity",
                "identity.age",
            ])
            .current_dir(&self.dir)
            .env("XDG_RUNTIME_DIR", self.dir.join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed("start secretfs mount"))?;
        let stdout = child.stdout.take();
        self.child = Some(child);
        let mut ready = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout)
                .read_line(&mut ready)
                .map_err(failed("wait for secretfs mount"))?;
        }
        if !ready.starts_with("ready") {
            return Err(Error::new(&codes::NODE_IO)
                .detail("secretfs mount did not get ready; its message is above"));
        }
        say.line(&format!(
            "\n      {}",
            ready.trim().replace(&*self.dir.to_string_lossy(), ".")
        ))?;
        say.line(&format!(
            "      the kernel says: {}",
            self.kernel_view().unwrap_or_default()
        ))?;
        for path in files_below(&self.target) {
            let shown = path.strip_prefix(&self.target).unwrap_or(&path).display();
            let found = fs::metadata(&path).map_err(failed("look at a mounted file"))?;
            say.line(&format!(
                "      {:04o}  {:>5} bytes  {shown}",
                found.mode() & 0o777,
                found.len()
            ))?;
        }
        Ok(())
    }

    /// A new version of a secret.
    pub fn put(&self, name: &str, value: &[u8]) -> Result<()> {
        let name = Name::parse(name).map_err(|reason| {
            Error::new(&codes::STORE_BAD_NAME)
                .object(name)
                .detail(reason)
        })?;
        self.store
            .put(&name, &SecretBytes::new(value.to_vec()))
            .map(drop)
    }

    /// Type, source and flags of the mount, from the kernel's own table.
    pub fn kernel_view(&self) -> Option<String> {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
        let at_target = |line: &&str| line.split(' ').nth(4) == self.target.to_str();
        let line = table.lines().find(at_target)?;
        let (mount, file_system) = line.split_once(" - ")?;
        let flags = mount.split(' ').nth(5)?;
        let mut parts = file_system.split(' ');
        let (kind, source, options) = (parts.next()?, parts.next()?, parts.next()?);
        Some(format!("{kind} {flags} ({source}; {options})"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::terminate(&child);
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// All regular files below `dir`, the layout's own names left out, sorted.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b"..") {
                continue;
            }
            if path.is_dir() {
                open.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found.sort();
    found
}

/// The document of the database secret.
pub fn database(password: &str) -> Vec<u8> {
    json!({ "username": "app", "password": password })
        .to_string()
        .into_bytes()
}

/// 24 random bytes in hex.
pub fn password() -> Result<String> {
    Ok(hex(&random(24)?))
}

fn tls() -> Result<Vec<u8>> {
    let made = rcgen::generate_simple_self_signed(vec!["app.demo".to_owned()]);
    let pair = made.map_err(|error| {
        Error::new(&codes::BUG)
            .step("make a TLS key pair")
            .source(error)
    })?;
    let fields = json!({ "tls.crt": pair.cert.pem(), "tls.key": pair.signing_key.serialize_pem() });
    Ok(fields.to_string().into_bytes())
}

fn random(length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(failed("read /dev/urandom"))?;
    Ok(bytes)
}

/// What is shown in place of a value: the first eight digits of its SHA-256.
pub fn short(value: &[u8]) -> String {
    hex(&Sha256::digest(value).as_slice()[..4])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn first_line(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let text: String = String::from_utf8_lossy(line).chars().take(40).collect();
    format!("({} bytes, begins with `{text}`)", bytes.len())
}
