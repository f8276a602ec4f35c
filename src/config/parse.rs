//! The text of a configuration becomes a [`Config`], or all its problems at once.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    config::{BackendConfig, CheckBackend, Config, Env, Listen, LogLevel, StoreSettings},
    error::codes,
    limits,
    path::TargetPath,
    spec::{
        BackendName, Problem, Problems,
        parse::API_VERSION,
        read::{self, Fields, shown},
    },
    sys::socket::PATH_BYTES,
    yaml::{self, Node},
};

/// Keys of the configuration.
pub const KEYS: &[&str] = &[
    "apiVersion",
    "driver",
    "node",
    "endpoint",
    "kubeletDir",
    "requirePropagation",
    "registration",
    "kubernetes",
    "runtimeDir",
    "http",
    "audit",
    "backends",
    "policy",
    "limits",
    "logLevel",
];

/// Keys of its `audit`.
pub const AUDIT_KEYS: &[&str] = &["deliveries", "file", "onFailure"];

/// Keys of its `limits`.
pub const LIMIT_KEYS: &[&str] = &[
    "bytesPerFile",
    "bytesPerVolume",
    "filesPerVolume",
    "volumesPerPod",
    "bytesPerNamespace",
    "bytesPerNode",
];

impl StoreSettings {
    /// Reads them.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn read(backend: &BackendConfig) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::new(Some(&codes::CONFIG_INVALID));
        let known = ["kind", "path", "identity"];
        let fields = Fields::new(
            &backend.settings,
            &backend.field,
            &known,
            &[],
            &mut problems,
        );
        let settings = fields.and_then(|fields| {
            let path = fields.require("path", &mut problems);
            let identity = fields.require("identity", &mut problems);
            let path = path.and_then(|node| absolute(node, &fields.field("path"), &mut problems));
            let identity =
                identity.and_then(|node| absolute(node, &fields.field("identity"), &mut problems));
            Some(Self {
                path: path?,
                identity: identity?,
            })
        });
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(problems.sorted()),
        }
    }
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// All problems (`config.invalid`), in the order of the text.
    pub fn parse(text: &str, env: &Env, check: CheckBackend<'_>) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader {
            problems: Problems::new(Some(&codes::CONFIG_INVALID)),
            config: Self::default(),
            declared: BTreeSet::new(),
        };
        reader.config.node.clone_from(&env.node_name);
        if let Some(tree) = yaml::parse(text, &mut reader.problems)
            && let Some(top) = Fields::new(&tree, "", KEYS, &[], &mut reader.problems)
        {
            reader.places(&top, KEYS);
            reader.top(&top);
            reader.log_level(&top);
            reader.audit(&top);
            reader.limits(&top);
            reader.backends(&top, check);
            reader.policy(&top);
        }
        if reader.problems.is_empty() {
            Ok(reader.config)
        } else {
            Err(reader.problems.sorted())
        }
    }
}

/// What is read so far, and what is wrong.
pub(super) struct Reader {
    pub(super) problems: Problems,
    pub(super) config: Config,
    /// Names of backends, those included of which more is wrong: a second complaint about their use would not help.
    pub(super) declared: BTreeSet<String>,
}

impl Reader {
    pub(super) fn wrong(&mut self, node: &Node, field: &str, message: impl Into<String>) {
        self.problems
            .add(&codes::CONFIG_INVALID, node.at, field, message, None);
    }

    fn places(&mut self, fields: &Fields<'_>, keys: &[&str]) {
        for key in keys {
            if let Some((at, _)) = fields.entry(key) {
                self.config.places.add(fields.field(key), at);
            }
        }
    }

    fn log_level(&mut self, top: &Fields<'_>) {
        let words = [
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ];
        if let Some(node) = top.value("logLevel") {
            self.config.log_level = read::word(node, "logLevel", &words, &mut self.problems);
        }
    }

    fn text(&mut self, top: &Fields<'_>, key: &str) -> Option<String> {
        let node = top.value(key)?;
        read::text(node, &top.field(key), &mut self.problems).map(|scalar| scalar.text.clone())
    }

    fn flag(&mut self, top: &Fields<'_>, key: &str, into: fn(&mut Config) -> &mut bool) {
        if let Some(node) = top.value(key)
            && let Some(flag) = read::flag(node, &top.field(key), &mut self.problems)
        {
            *into(&mut self.config) = flag;
        }
    }

    fn top(&mut self, top: &Fields<'_>) {
        if let Some(version) = self.text(top, "apiVersion")
            && version != API_VERSION
            && let Some(node) = top.value("apiVersion")
        {
            self.wrong(
                node,
                "apiVersion",
                format!("apiVersion is `{}`; this is {API_VERSION}", shown(&version)),
            );
        }
        if let Some(driver) = self.text(top, "driver")
            && let Some(node) = top.value("driver")
        {
            let good = driver.len() <= 63
                && driver
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
                && driver.starts_with(|c: char| c.is_ascii_alphanumeric())
                && driver.ends_with(|c: char| c.is_ascii_alphanumeric());
            if !good {
                self.wrong(
                    node,
                    "driver",
                    format!("`{}` is not a driver's name", shown(&driver)),
                );
            }
            let socket = format!("/var/lib/kubelet/plugins/{driver}/csi.sock");
            self.config.endpoint = PathBuf::from(socket);
            self.config.driver = driver;
        }
        self.node(top);
        self.flag(top, "requirePropagation", |config| {
            &mut config.require_propagation
        });
        self.flag(top, "registration", |config| &mut config.registration);
        if let Some(node) = top.value("kubernetes") {
            let words = [("auto", true), ("off", false)];
            let word = read::word(node, "kubernetes", &words, &mut self.problems);
            self.config.kubernetes = word.unwrap_or(true);
        }
        if let Some(node) = top.value("endpoint") {
            match node
                .scalar()
                .and_then(|scalar| scalar.text.strip_prefix("unix://"))
            {
                Some(path) if socket(path).is_some() => {
                    self.config.endpoint = PathBuf::from(path);
                }
                _ => self.wrong(node, "endpoint", "endpoint is not `unix:///PATH`"),
            }
        }
        self.directory(top, "kubeletDir", |config| &mut config.kubelet_dir);
        self.directory(top, "runtimeDir", |config| &mut config.runtime_dir);
        if let Some(node) = top.value("http") {
            self.http(node);
        }
        self.socket_paths(top);
    }

    /// "" is as if it were not there.
    fn node(&mut self, top: &Fields<'_>) {
        let Some(node) = top.value("node") else {
            return;
        };
        let Some(scalar) = node.scalar() else {
            read::wrong_type(node, "node", "a name", &mut self.problems);
            return;
        };
        let name = &scalar.text;
        if name.len() > limits::NODE_ID_BYTES || name.contains(char::is_control) {
            let message = format!(
                "node `{}` is not a node's name of at most {} bytes",
                shown(name),
                limits::NODE_ID_BYTES
            );
            self.wrong(node, "node", message);
        } else if !name.is_empty() {
            self.config.node = Some(name.clone());
        }
    }

    /// Others connect by these paths, and the kernel takes no longer ones.
    fn socket_paths(&mut self, top: &Fields<'_>) {
        let too_long = |path: &Path| {
            let bytes = path.as_os_str().len();
            let message = || {
                format!(
                    "the path of the socket {} has {bytes} bytes, and a socket's path has {PATH_BYTES} at most",
                    shown(&path.display().to_string())
                )
            };
            (bytes > PATH_BYTES).then(message)
        };
        let mut found = vec![("endpoint", too_long(&self.config.endpoint))];
        if let Some(Listen::Unix(path)) = &self.config.http {
            found.push(("http", too_long(path)));
        }
        if self.config.registration {
            found.push(("kubeletDir", too_long(&self.config.registration_socket())));
        }
        for (key, message) in found {
            if let (Some(node), Some(message)) = (top.value(key), message) {
                self.wrong(node, key, message);
            }
        }
    }

    fn directory(&mut self, top: &Fields<'_>, key: &str, into: fn(&mut Config) -> &mut PathBuf) {
        let Some(node) = top.value(key) else {
            return;
        };
        if let Some(scalar) = read::text(node, key, &mut self.problems) {
            match TargetPath::parse(Path::new(&scalar.text)) {
                Ok(path) => *into(&mut self.config) = path.as_path().to_owned(),
                Err(refusal) => {
                    let message = format!("{key} `{}` {refusal}", shown(&scalar.text));
                    self.wrong(node, key, message);
                }
            }
        }
    }

    /// `ADDRESS:PORT`, `:PORT` (all addresses), `unix:///PATH`, or "" (off).
    fn http(&mut self, node: &Node) {
        let Some(scalar) = node.scalar() else {
            read::wrong_type(node, "http", "an address", &mut self.problems);
            return;
        };
        let text = &*scalar.text;
        if text.is_empty() {
            self.config.http = None;
        } else if let Some(path) = text.strip_prefix("unix://").and_then(socket) {
            self.config.http = Some(Listen::Unix(path));
        } else {
            let full = if text.starts_with(':') {
                format!("[::]{text}")
            } else {
                text.to_owned()
            };
            match full.parse() {
                Ok(address) => self.config.http = Some(Listen::Tcp(address)),
                Err(_) => {
                    let message = format!(
                        "http `{}` is not ADDRESS:PORT, :PORT, unix:///PATH or \"\"",
                        shown(text)
                    );
                    self.wrong(node, "http", message);
                }
            }
        }
    }

    fn audit(&mut self, top: &Fields<'_>) {
        let Some(node) = top.value("audit") else {
            return;
        };
        let Some(audit) = Fields::new(node, "audit", AUDIT_KEYS, &[], &mut self.problems) else {
            return;
        };
        self.places(&audit, AUDIT_KEYS);
        self.flag(&audit, "deliveries", |config| &mut config.audit.deliveries);
        if let Some(node) = audit.value("file") {
            match node.scalar() {
                Some(scalar) if scalar.text == "-" => self.config.audit.file = None,
                _ => self.config.audit.file = absolute(node, "audit.file", &mut self.problems),
            }
        }
        if let Some(node) = audit.value("onFailure") {
            let words = [("drop", false), ("deny", true)];
            let word = read::word(node, "audit.onFailure", &words, &mut self.problems);
            self.config.audit.deny_on_failure = word.unwrap_or(false);
        }
    }

    fn limits(&mut self, top: &Fields<'_>) {
        let Some(node) = top.value("limits") else {
            return;
        };
        let Some(fields) = Fields::new(node, "limits", LIMIT_KEYS, &[], &mut self.problems) else {
            return;
        };
        let problems = &mut self.problems;
        let mut bytes = |key: &str, into: &mut u64| {
            if let Some(node) = fields.value(key) {
                *into = read::bytes(node, &fields.field(key), problems).unwrap_or(*into);
            }
        };
        bytes(
            "bytesPerFile",
            &mut self.config.volume_limits.bytes_per_file,
        );
        bytes(
            "bytesPerVolume",
            &mut self.config.volume_limits.bytes_per_volume,
        );
        bytes(
            "bytesPerNamespace",
            &mut self.config.node_limits.bytes_per_namespace,
        );
        bytes("bytesPerNode", &mut self.config.node_limits.bytes_per_node);
        for (key, into) in [
            (
                "filesPerVolume",
                &mut self.config.volume_limits.files_per_volume,
            ),
            (
                "volumesPerPod",
                &mut self.config.node_limits.volumes_per_pod,
            ),
        ] {
            if let Some(node) = fields.value(key) {
                let number = read::number(node, &fields.field(key), 1 << 16, &mut self.problems);
                *into = number
                    .and_then(|number| u32::try_from(number).ok())
                    .unwrap_or(*into);
            }
        }
    }

    fn backends(&mut self, top: &Fields<'_>, check: CheckBackend<'_>) {
        let Some(node) = top.value("backends") else {
            return;
        };
        let Some(backends) = read::names(node, "backends", &mut self.problems) else {
            return;
        };
        for (key, node) in backends.all() {
            let field = backends.field(&shown(&key.text));
            let name = BackendName::parse(&key.text);
            self.declared.insert(key.text.clone());
            if let Err(refusal) = name {
                let message = format!("`{}` {refusal}", shown(&key.text));
                self.problems
                    .add(&codes::CONFIG_INVALID, key.at, &field, message, None);
            }
            let Some(fields) = read::names(node, &field, &mut self.problems) else {
                continue;
            };
            let kind = fields.require("kind", &mut self.problems);
            let kind =
                kind.and_then(|node| read::text(node, &fields.field("kind"), &mut self.problems));
            if let (Ok(name), Some(kind)) = (name, kind) {
                let backend = BackendConfig {
                    name,
                    kind: kind.text.clone(),
                    at: key.at,
                    field,
                    settings: node.clone(),
                };
                for problem in check(&backend) {
                    self.problems.push(problem);
                }
                self.config.backends.push(backend);
            }
        }
    }
}

/// The path of a socket: one that a target could have too, so without `..` and control characters.
fn socket(path: &str) -> Option<PathBuf> {
    TargetPath::parse(Path::new(path)).ok()?;
    Some(PathBuf::from(path))
}

/// An absolute path.
fn absolute(node: &Node, field: &str, problems: &mut Problems) -> Option<PathBuf> {
    let scalar = read::text(node, field, problems)?;
    if scalar.text.starts_with('/') && !scalar.text.contains(char::is_control) {
        return Some(PathBuf::from(&scalar.text));
    }
    let message = format!("{field} `{}` is not an absolute path", shown(&scalar.text));
    problems.add(&codes::CONFIG_INVALID, node.at, field, message, None);
    None
}
