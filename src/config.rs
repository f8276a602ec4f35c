//! The node's configuration and the process's environment, read once; nothing else reads either.
//!
//! [`Env`] is what the environment says. [`Config`] is the YAML of contract section 4, parsed as specs are: all problems at
//! once, unknown keys refused. A backend's own keys stay a tree ([`BackendConfig::settings`]): its kind reads them, so a new
//! kind changes nothing here.
//!
//! Does not: open a store, check that a path exists, know what a policy line means.

mod change;
mod parse;
mod policy;

use std::path::{Path, PathBuf};

pub use change::{Change, Places, RELOADED, change, fixed_keys};
pub use parse::{AUDIT_KEYS, KEYS, LIMIT_KEYS};
pub use policy::POLICY_KEYS;

use crate::{
    limits,
    policy::PolicyLine,
    spec::{BackendName, Problem, Span, VolumeLimits},
    yaml::Node,
};

/// What the environment says. A variable that is empty, or not UTF-8 where text is meant, counts as not set.
#[derive(Clone, Default, Debug)]
pub struct Env {
    /// `SECRETFS_STORE`: the store's directory.
    pub store: Option<PathBuf>,
    /// `SECRETFS_IDENTITY`: the file to decrypt it with.
    pub identity: Option<PathBuf>,
    /// `SECRETFS_LOG_LEVEL`.
    pub log_level: Option<String>,
    /// `SECRETFS_LOG_FORMAT`.
    pub log_format: Option<String>,
    /// `XDG_DATA_HOME`, or `~/.local/share`.
    pub data_home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`, or `~/.config`.
    pub config_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `TMPDIR`, or `/tmp`.
    pub tmp: PathBuf,
    /// `NODE_NAME`, which Kubernetes' downward API fills.
    pub node_name: Option<String>,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`, which every pod has; `None` unless both are there.
    pub kubernetes: Option<(String, u16)>,
    /// `KUBECONFIG`: one file.
    pub kubeconfig: Option<PathBuf>,
    /// `NO_COLOR` is set.
    pub no_color: bool,
    /// `PATH`: where programs are looked for.
    pub path: std::ffi::OsString,
}

impl Env {
    /// Reads the process's environment. To be called once, at the start.
    pub fn read() -> Self {
        Self::from(|name| std::env::var_os(name))
    }

    /// Reads an environment. The XDG rules: a relative path counts as not set.
    pub fn from(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| var(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| var(name).map(PathBuf::from);
        let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
        let home = |below: &str| absolute("HOME").map(|home| home.join(below));
        Self {
            store: path("SECRETFS_STORE"),
            identity: path("SECRETFS_IDENTITY"),
            log_level: text("SECRETFS_LOG_LEVEL"),
            log_format: text("SECRETFS_LOG_FORMAT"),
            data_home: absolute("XDG_DATA_HOME").or_else(|| home(".local/share")),
            config_home: absolute("XDG_CONFIG_HOME").or_else(|| home(".config")),
            runtime_dir: absolute("XDG_RUNTIME_DIR"),
            tmp: absolute("TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp")),
            node_name: text("NODE_NAME"),
            kubernetes: text("KUBERNETES_SERVICE_HOST")
                .zip(text("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok())),
            kubeconfig: path("KUBECONFIG"),
            no_color: var("NO_COLOR").is_some(),
            path: var("PATH").unwrap_or_default(),
        }
    }

    /// Those of the process's variables that have one of these names, as they are: for a program that `exec` starts with no others.
    pub fn some<'n>(
        names: &'n [String],
    ) -> impl Iterator<Item = (&'n String, std::ffi::OsString)> + 'n {
        names
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
    }

    /// Where the store is: `flag`, else SECRETFS_STORE, else below the data directory.
    pub fn store_dir(&self, flag: Option<&Path>) -> Option<PathBuf> {
        let default = || {
            self.data_home
                .as_ref()
                .map(|home| home.join("secretfs/store"))
        };
        flag.map(Path::to_owned)
            .or_else(|| self.store.clone())
            .or_else(default)
    }

    /// Where its identity is: `flag`, else SECRETFS_IDENTITY, else below the configuration directory.
    pub fn identity_file(&self, flag: Option<&Path>) -> Option<PathBuf> {
        let default = || {
            self.config_home
                .as_ref()
                .map(|home| home.join("secretfs/identity.age"))
        };
        flag.map(Path::to_owned)
            .or_else(|| self.identity.clone())
            .or_else(default)
    }
}

/// A node's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The CSI driver's name.
    pub driver: String,
    /// The node's name; `None`: the host's.
    pub node: Option<String>,
    /// The CSI socket.
    pub endpoint: PathBuf,
    /// Targets lie below it.
    pub kubelet_dir: PathBuf,
    /// Its mount must be shared.
    pub require_propagation: bool,
    /// Serve the kubelet's registration socket.
    pub registration: bool,
    /// Talk to the API server (`auto`), or not (`off`).
    pub kubernetes: bool,
    /// Lock, admin socket, records, leases.
    pub runtime_dir: PathBuf,
    /// Where metrics and health are served.
    pub http: Option<Listen>,
    /// What is recorded.
    pub audit: Audit,
    /// By name, each once.
    pub backends: Vec<BackendConfig>,
    /// Who may read what of a backend that has only the node's identity.
    pub policy: Vec<PolicyLine>,
    /// Limits of each volume.
    pub volume_limits: VolumeLimits,
    /// Limits of pods, namespaces and the node.
    pub node_limits: NodeLimits,
    /// How much is logged, unless a flag or the environment says so.
    pub log_level: Option<LogLevel>,
    /// Where its keys stand.
    pub places: Places,
}

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LogLevel {
    /// What failed and needs somebody.
    Error,
    /// What failed and mends itself.
    Warn,
    /// What happened.
    Info,
    /// Why.
    Debug,
    /// Everything but secrets.
    Trace,
}

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// An address.
    Tcp(std::net::SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

/// The audit log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Audit {
    /// Record what is delivered.
    pub deliveries: bool,
    /// A file; `None`: stdout.
    pub file: Option<PathBuf>,
    /// A delivery that cannot be recorded is refused (`deny`), or counted (`drop`).
    pub deny_on_failure: bool,
}

/// A named backend.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// Its name in references.
    pub name: BackendName,
    /// Which kind of store.
    pub kind: String,
    /// Where it stands, and its path in the configuration.
    pub at: Span,
    /// Path in the configuration: `backends.NAME`.
    pub field: String,
    /// Its mapping, `kind` included, for the kind to read.
    pub settings: Node,
}

/// Totals that no tenant may exceed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeLimits {
    /// Volumes of one pod.
    pub volumes_per_pod: u32,
    /// Bytes of all volumes of a namespace.
    pub bytes_per_namespace: u64,
    /// Bytes of all volumes.
    pub bytes_per_node: u64,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self {
            volumes_per_pod: limits::VOLUMES_PER_POD,
            bytes_per_namespace: limits::BYTES_PER_NAMESPACE,
            bytes_per_node: limits::BYTES_PER_NODE,
        }
    }
}

/// The settings of a backend of kind `store`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreSettings {
    /// The store's directory.
    pub path: PathBuf,
    /// The file to decrypt it with.
    pub identity: PathBuf,
}

/// All problems of a backend's settings, as its kind says; the kinds that this program has are asked in
/// `backend::registry`.
pub type CheckBackend<'c> = &'c dyn Fn(&BackendConfig) -> Vec<Problem>;

impl Config {
    /// What holds without a configuration: the defaults, and one backend `store` at the user's own place.
    pub fn local(store: &Path, identity: &Path) -> Self {
        let mut config = Self::default();
        let text = |path: &Path| Node::text(&path.display().to_string());
        config
            .backends
            .extend(BackendName::parse("store").map(|name| BackendConfig {
                name,
                kind: "store".to_owned(),
                at: Span::default(),
                field: "backends.store".to_owned(),
                settings: Node::mapping(vec![
                    ("kind", Node::text("store")),
                    ("path", text(store)),
                    ("identity", text(identity)),
                ]),
            }));
        config
    }
}

impl Config {
    /// Where the kubelet looks for plugins that want to be registered.
    pub fn registration_socket(&self) -> PathBuf {
        let name = format!("{}-reg.sock", self.driver);
        self.kubelet_dir.join("plugins_registry").join(name)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: "csi.secretfs.dev".to_owned(),
            node: None,
            endpoint: PathBuf::from("/var/lib/kubelet/plugins/csi.secretfs.dev/csi.sock"),
            kubelet_dir: PathBuf::from("/var/lib/kubelet"),
            require_propagation: true,
            registration: true,
            kubernetes: true,
            runtime_dir: PathBuf::from("/run/secretfs"),
            http: Some(Listen::Tcp(std::net::SocketAddr::from((
                [127, 0, 0, 1],
                9809,
            )))),
            audit: Audit {
                deliveries: true,
                file: None,
                deny_on_failure: false,
            },
            backends: Vec::new(),
            policy: Vec::new(),
            volume_limits: VolumeLimits::default(),
            node_limits: NodeLimits::default(),
            log_level: None,
            places: Places::default(),
        }
    }
}
