//! What of a configuration may change while the node plugin runs. Pure.
//!
//! Every key is either in [`RELOADED`] or in the table of fixed ones, and a test compares both with the list of all keys. A new
//! configuration holds as a whole or not at all.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    config::{BackendConfig, Config, Listen},
    error::codes,
    spec::{Problem, Problems, Span, read::shown},
    yaml::{Node, Value},
};

/// Keys that take effect without a restart.
pub const RELOADED: &[&str] = &["apiVersion", "backends", "policy", "limits", "logLevel"];

/// A value, as a person would write it.
type Written = fn(&Config) -> String;

/// Keys that need one, with their values.
const FIXED: &[(&str, Written)] = &[
    ("driver", |config| config.driver.clone()),
    ("node", |config| config.node.clone().unwrap_or_default()),
    ("endpoint", |config| {
        format!("unix://{}", config.endpoint.display())
    }),
    ("kubeletDir", |config| {
        config.kubelet_dir.display().to_string()
    }),
    ("requirePropagation", |config| {
        config.require_propagation.to_string()
    }),
    ("registration", |config| config.registration.to_string()),
    ("kubernetes", |config| {
        if config.kubernetes { "auto" } else { "off" }.to_owned()
    }),
    ("runtimeDir", |config| {
        config.runtime_dir.display().to_string()
    }),
    ("http", |config| match &config.http {
        None => "\"\"".to_owned(),
        Some(Listen::Tcp(address)) => address.to_string(),
        Some(Listen::Unix(path)) => format!("unix://{}", path.display()),
    }),
    ("audit.deliveries", |config| {
        config.audit.deliveries.to_string()
    }),
    ("audit.file", |config| {
        let file: Option<&PathBuf> = config.audit.file.as_ref();
        file.map_or(Path::new("-"), PathBuf::as_path)
            .display()
            .to_string()
    }),
    ("audit.onFailure", |config| {
        if config.audit.deny_on_failure {
            "deny"
        } else {
            "drop"
        }
        .to_owned()
    }),
];

/// Names of the fixed keys.
pub fn fixed_keys() -> impl Iterator<Item = &'static str> {
    FIXED.iter().map(|(key, _)| *key)
}

/// Where keys stand in a configuration's text. Not part of its meaning, and not shown with it.
#[derive(Clone, Default)]
pub struct Places(BTreeMap<String, Span>);

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Places")
    }
}

impl Places {
    /// Notes a key's.
    pub(super) fn add(&mut self, key: String, at: Span) {
        self.0.insert(key, at);
    }

    fn of(&self, key: &str) -> Option<Span> {
        self.0.get(key).copied()
    }
}

/// What is different.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Change {
    /// A backend came, went, or is another one.
    pub backends: bool,
    /// Who may read what.
    pub policy: bool,
    /// Limits of volumes, pods, namespaces or the node.
    pub limits: bool,
    /// How much is logged.
    pub log_level: bool,
}

impl Change {
    /// Nothing is.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What `new` changes of `old`. Order of keys, comments and spelling that means the same change nothing.
///
/// # Errors
/// All keys that are different and cannot change (`config.fixed_key`), each with both values and both places. Nothing of `new`
/// must be used then.
pub fn change(old: &Config, new: &Config) -> Result<Change, Vec<Problem>> {
    let mut problems = Problems::default();
    for (key, value) in FIXED {
        let (was, is) = (value(old), value(new));
        let (there, here) = (old.places.of(key), new.places.of(key));
        // In neither text: a default that follows another key (`endpoint` the driver's name), which is told.
        if was == is || (there.is_none() && here.is_none()) {
            continue;
        }
        let place = |at: Option<Span>| match at {
            Some(at) => format!("line {}", at.line),
            None => "the default".to_owned(),
        };
        let default = if here.is_none() { ", the default" } else { "" };
        let message = format!(
            "`{key}` cannot change while the plugin runs: it is `{}` here{default}, and `{}` in the running configuration ({})",
            shown(&is),
            shown(&was),
            place(there),
        );
        let help = Some("restart the plugin, or undo the change".to_owned());
        problems.add(
            &codes::CONFIG_FIXED_KEY,
            here.unwrap_or_default(),
            key,
            message,
            help,
        );
    }
    if !problems.is_empty() {
        return Err(problems.sorted());
    }
    Ok(Change {
        backends: !same_backends(&old.backends, &new.backends),
        policy: old.policy != new.policy,
        limits: (old.volume_limits, old.node_limits) != (new.volume_limits, new.node_limits),
        log_level: old.log_level != new.log_level,
    })
}

fn same_backends(old: &[BackendConfig], new: &[BackendConfig]) -> bool {
    old.len() == new.len()
        && old.iter().all(|old| {
            let namesake = new.iter().find(|new| new.name == old.name);
            namesake.is_some_and(|new| same_settings(&old.settings, &new.settings))
        })
}

/// Whether two trees say the same, wherever they stand. As deep as the YAML reader lets a tree be.
fn same_settings(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Scalar(a), Value::Scalar(b)) => a.text == b.text && a.is_null() == b.is_null(),
        (Value::Sequence(a), Value::Sequence(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_settings(a, b))
        }
        (Value::Mapping(a), Value::Mapping(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, a)| {
                    let namesake = b.iter().find(|(other, _)| other.text == key.text);
                    namesake.is_some_and(|(_, b)| same_settings(a, b))
                })
        }
        (Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_), _) => false,
    }
}
