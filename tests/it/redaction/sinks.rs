//! What came out where.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::support::{
    canary::{CANARY, found},
    program::{Bed, Running},
};

/// A name that the program may say: of a pod, a directory, a backend.
pub const ECHO: &str = "echo-5d1f7a";

/// See the module.
pub struct Sinks {
    /// By sink.
    pub said: BTreeMap<String, Vec<u8>>,
    /// What must be nowhere: what it is, and its text.
    secrets: Vec<(&'static str, String)>,
    /// Commands that ended, and whether well.
    pub ended: BTreeSet<(String, bool)>,
}

impl Sinks {
    /// Nothing was said; `CANARY` is a secret.
    pub fn new() -> Self {
        Self {
            said: BTreeMap::new(),
            secrets: vec![("a value", CANARY.to_owned())],
            ended: BTreeSet::new(),
        }
    }

    /// This must be nowhere, either.
    pub fn secret(&mut self, what: &'static str, text: impl Into<String>) {
        self.secrets.push((what, text.into()));
    }

    pub fn add(&mut self, name: impl Into<String>, bytes: impl AsRef<[u8]>) {
        let said = self.said.entry(name.into()).or_default();
        said.extend(bytes.as_ref());
        said.push(b'\n');
    }

    /// Runs a command at trace level, once for each format of the log; both its streams are sinks. Whether it worked does not matter
    /// here. The last exit code.
    pub fn run(&mut self, bed: &Bed, args: &[&str], input: &str) -> Option<i32> {
        let mut code = None;
        for format in ["text", "json"] {
            let (own, program) = args.split_at(
                args.iter()
                    .position(|word| *word == "--")
                    .unwrap_or(args.len()),
            );
            let all = [
                own,
                &["--log-level", "trace", "--log-format", format],
                program,
            ]
            .concat();
            let output = bed.run(&all, input);
            code = output.status.code();
            self.ended(args, output.status.success());
            self.add("stdout of commands", output.stdout);
            self.add(format!("{format} log of commands"), output.stderr);
        }
        code
    }

    /// Notes that a command has ended.
    pub fn ended(&mut self, args: &[&str], well: bool) {
        let words = if args[0] == "store" { 2 } else { 1 };
        self.ended.insert((args[..words].join(" "), well));
    }

    /// What other processes see of one, and what it has logged.
    pub fn running(&mut self, running: &Running) {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{file}", running.child.id());
            self.add(file, fs::read(path).unwrap_or_default());
        }
        self.add("log", running.log());
        self.add("stdout", &running.ready);
    }

    /// All files below a directory, as one sink.
    pub fn files_below(&mut self, name: &str, dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.files_below(name, &path);
            } else if path.is_file() {
                self.add(name, path.as_os_str().as_encoded_bytes());
                self.add(name, fs::read(&path).unwrap_or_default());
            }
        }
    }

    /// Every secret in every sink that holds it.
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (name, bytes) in &self.said {
            for (what, secret) in &self.secrets {
                for form in found(secret, bytes) {
                    leaks.push(format!("{name}: {what}, {form}: {}", around(bytes, secret)));
                }
            }
        }
        leaks
    }

    #[track_caller]
    pub fn assert_silent(&self) {
        assert_eq!(self.leaks(), Vec::<String>::new());
    }

    /// Sinks in which the search finds what may be said.
    pub fn echoes(&self) -> BTreeSet<&str> {
        let echoed = self
            .said
            .iter()
            .filter(|(_, bytes)| !found(ECHO, bytes).is_empty());
        echoed.map(|(name, _)| name.as_str()).collect()
    }

    pub fn text(&self, name: &str) -> String {
        let said = self.said.get(name);
        let said = said.unwrap_or_else(|| panic!("no {name} among {:?}", self.said.keys()));
        String::from_utf8_lossy(said).into_owned()
    }

    /// All that was logged.
    pub fn logs(&self) -> String {
        let logs = self
            .said
            .keys()
            .filter(|name| name.ends_with("log") || name.contains("log of"));
        logs.map(|name| self.text(name)).collect()
    }
}

/// The line in which something stands as it is, for whoever reads the failure.
fn around(bytes: &[u8], secret: &str) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().find(|line| line.contains(secret));
    line.unwrap_or_default().chars().take(400).collect()
}
