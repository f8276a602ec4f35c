//! What a command needs before it can do anything: the configuration, its backends, and a spec.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    backend::registry,
    cli::check,
    clock::SystemClock,
    config::{self, Config, Env},
    error::{Error, Result, codes},
    mount::tmpfs::TmpfsMounter,
    observe::{audit::Audit, events::Events, log, metrics::Metrics},
    source::pool::Rules,
    spec::{self, Place, Setting, VolumeSpec},
    volume::{Mounters, Parts, Settings, record::Records},
};

/// Where the embedded store is, for a command that uses it without a configuration.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct StoreFlags {
    /// The store [default: $SECRETFS_STORE, else $XDG_DATA_HOME/secretfs/store, else ~/.local/share/secretfs/store]
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub store: Option<PathBuf>,
    /// Its age identity [default: $SECRETFS_IDENTITY, else $XDG_CONFIG_HOME/secretfs/identity.age, else ~/.config/...]
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub identity: Option<PathBuf>,
}

/// The store's directory: the flag, else the environment, else below the user's data directory.
///
/// # Errors
/// `usage`: there is not even a home directory.
pub fn store_dir(flag: Option<&Path>, env: &Env) -> Result<PathBuf> {
    let none = "no place for the store: give --store DIR, or set SECRETFS_STORE or HOME";
    env.store_dir(flag)
        .ok_or_else(|| Error::new(&codes::USAGE).detail(none))
}

/// The identity file: the flag, else the environment, else below the user's configuration directory.
///
/// # Errors
/// `usage`: there is not even a home directory.
pub fn identity_file(flag: Option<&Path>, env: &Env) -> Result<PathBuf> {
    let none = "no place for the identity: give --identity FILE, or set SECRETFS_IDENTITY or HOME";
    env.identity_file(flag)
        .ok_or_else(|| Error::new(&codes::USAGE).detail(none))
}

/// The configuration and its backends.
pub struct Node {
    /// By name.
    pub registry: registry::Registry,
    /// What a spec is read for.
    pub setting: Setting,
    /// Where deliveries are recorded; `None`: nowhere.
    audit: Option<config::Audit>,
}

impl Node {
    /// Opens the audit log, if the configuration names a file. Stdout is not for it: a command's results are there.
    ///
    /// # Errors
    /// `node.io`.
    pub fn audit(&self) -> Result<Audit> {
        match &self.audit {
            Some(audit) => Audit::start(audit, Arc::new(SystemClock)),
            None => Ok(Audit::off()),
        }
    }
}

/// Those of a configuration file, or without one a single backend `store` at the usual place. `None`: the configuration
/// has problems, which were printed on stderr.
///
/// # Errors
/// `config.unreadable`, `usage`.
pub fn node(config: Option<&Path>, flags: &StoreFlags, env: &Env) -> Result<Option<Node>> {
    tracing::trace!(named = config.is_some(), "the configuration is read");
    let config = match config {
        None => Config::local(
            &absolute(store_dir(flags.store.as_deref(), env)?)?,
            &absolute(identity_file(flags.identity.as_deref(), env)?)?,
        ),
        Some(path) => {
            let (file, text) = check::read(path)?;
            match Config::parse(&text, env, &registry::problems) {
                Ok(config) => {
                    log::follow(config.log_level);
                    config
                }
                Err(problems) => {
                    report(&file, &text, &problems);
                    return Ok(None);
                }
            }
        }
    };
    let setting = Setting {
        place: Place::Local,
        limits: config.volume_limits,
    };
    Ok(Some(Node {
        registry: registry::Registry::build(&config, 0)?,
        setting,
        audit: config.audit.file.is_some().then_some(config.audit),
    }))
}

/// Paths of the configuration are absolute; those of a person's flags need not be.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|error| {
        Error::new(&codes::CONFIG_UNREADABLE)
            .object(path.display())
            .source(error)
    })
}

/// Reads and parses a spec. `None`: it has problems, which were printed on stderr.
///
/// # Errors
/// `config.unreadable`.
pub fn spec(path: &Path, node: &Node) -> Result<Option<Arc<VolumeSpec>>> {
    let (file, text) = check::read(path)?;
    match spec::parse(&text, &node.setting, &|object| node.registry.check(object)) {
        Ok(spec) => Ok(Some(Arc::new(spec))),
        Err(problems) => {
            report(&file, &text, &problems);
            Ok(None)
        }
    }
}

/// Prints problems and that nothing was mounted, on stderr.
pub fn report(file: &str, text: &str, problems: &[spec::Problem]) {
    eprint!("{}", check::show(file, text, problems));
    eprintln!(
        "{}, nothing was mounted",
        check::count(problems.len(), "problem")
    );
}

/// What volumes stand on, on this machine.
pub fn parts(registry: registry::Registry, audit: Audit) -> Parts {
    Parts {
        clock: Arc::new(SystemClock),
        settings: watch::channel(Arc::new(Settings {
            registry,
            ..Settings::default()
        }))
        .1,
        mounters: Mounters {
            tmpfs: Arc::new(TmpfsMounter::default()),
        },
        rules: Rules::default(),
        records: Records::off(),
        events: Events::off(),
        audit,
        metrics: Metrics::default(),
    }
}
