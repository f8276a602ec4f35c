//! The backends of this node by name, made from its configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    backend::{self, Backend, instrumented::Instrumented},
    config::{BackendConfig, Config},
    error::{self, Error, codes},
    observe::metrics::Metrics,
    spec::{BackendName, Facts, ObjectRef, Problem, Span, read::shown, suggest},
    yaml::{Key, Node, Value},
};

/// Makes a backend of its settings, without I/O; or all that is wrong with them.
pub type Build = fn(&BackendConfig) -> Result<Arc<dyn Backend>, Vec<Problem>>;

/// Every kind of backend. A new one is a file, a line here, a page in docs and a call of the conformance suite.
pub static BUILTINS: &[(&str, Build)] = &[
    ("store", backend::store::build),
    ("vault", backend::vault::build),
];

/// All that is wrong with a backend's part of the configuration.
pub fn problems(config: &BackendConfig) -> Vec<Problem> {
    build(config).err().unwrap_or_default()
}

fn build(config: &BackendConfig) -> Result<Arc<dyn Backend>, Vec<Problem>> {
    let kinds = || BUILTINS.iter().map(|(kind, _)| *kind);
    let Some((_, build)) = BUILTINS.iter().find(|(kind, _)| *kind == config.kind) else {
        return Err(vec![Problem {
            code: &codes::CONFIG_INVALID,
            at: config.at,
            field: format!("{}.kind", config.field),
            message: format!("there is no kind `{}` of backend", shown(&config.kind)),
            help: suggest::did_you_mean(&config.kind, kinds()).or_else(|| {
                Some(format!(
                    "there are: {}",
                    kinds().collect::<Vec<_>>().join(", ")
                ))
            }),
        }]);
    };
    build(config)
}

/// Whether two settings say the same, wherever and in whatever style it is written; keys may be in any order.
fn says_the_same(one: &Node, other: &Node) -> bool {
    match (&one.value, &other.value) {
        (Value::Scalar(a), Value::Scalar(b)) => a.text == b.text && a.is_null() == b.is_null(),
        (Value::Sequence(a), Value::Sequence(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| says_the_same(a, b))
        }
        (Value::Mapping(a), Value::Mapping(b)) => {
            let has = |(key, node): &(Key, Node)| {
                b.iter()
                    .any(|(other, b)| other.text == key.text && says_the_same(node, b))
            };
            a.len() == b.len() && a.iter().all(has)
        }
        (Value::Scalar(_) | Value::Sequence(_) | Value::Mapping(_), _) => false,
    }
}

/// Named backends. Replaced as a whole when the configuration changes.
#[derive(Default, Clone)]
pub struct Registry {
    by_name: BTreeMap<BackendName, Named>,
    /// The last epoch that was given. Each is given once: a backend that leaves and comes back has another.
    last: u64,
    /// Where the requests to those of a configuration are counted.
    metrics: Metrics,
}

#[derive(Clone)]
struct Named {
    backend: Arc<dyn Backend>,
    epoch: u64,
    /// What it was made of; `None`: not of a configuration.
    settings: Option<(String, Node)>,
}

impl Registry {
    /// A registry of these backends, all of one epoch.
    pub fn new(by_name: BTreeMap<BackendName, Arc<dyn Backend>>, epoch: u64) -> Self {
        let named = |(name, backend)| {
            let settings = None;
            let named = Named {
                backend,
                epoch,
                settings,
            };
            (name, named)
        };
        Self {
            by_name: by_name.into_iter().map(named).collect(),
            last: epoch,
            metrics: Metrics::default(),
        }
    }

    /// No backend; those that [`Registry::rebuild`] makes of it are counted there.
    pub fn counting(metrics: Metrics) -> Self {
        Self {
            metrics,
            ..Self::default()
        }
    }

    /// The backends of a configuration that has been parsed with [`problems`].
    ///
    /// # Errors
    /// `config.invalid` for one that was not.
    pub fn build(config: &Config, epoch: u64) -> error::Result<Self> {
        let before = Self {
            by_name: BTreeMap::new(),
            last: epoch.wrapping_sub(1),
            metrics: Metrics::default(),
        };
        Self::rebuild(&before, config)
    }

    /// The same after a change of the configuration. A backend whose kind and settings are as they were is the same one, of the same
    /// epoch; every other is new, of an epoch that there never was: a source asked under another epoch is another source.
    ///
    /// # Errors
    /// `config.invalid`.
    pub fn rebuild(old: &Self, config: &Config) -> error::Result<Self> {
        let epoch = old.last.wrapping_add(1);
        let mut by_name = BTreeMap::new();
        for part in &config.backends {
            let made_of = |named: &&Named| {
                named.settings.as_ref().is_some_and(|(kind, settings)| {
                    *kind == part.kind && says_the_same(settings, &part.settings)
                })
            };
            if let Some(same) = old.by_name.get(&part.name).filter(made_of) {
                by_name.insert(part.name.clone(), same.clone());
                continue;
            }
            let made = build(part).map_err(|problems| {
                let first = problems.into_iter().next().map(|problem| problem.message);
                Error::new(&codes::CONFIG_INVALID)
                    .object(&part.field)
                    .detail(first.unwrap_or_default())
            })?;
            tracing::debug!(backend = %part.name, kind = %part.kind, epoch, "a backend is made");
            let named = Named {
                backend: Arc::new(Instrumented::new(
                    part.name.clone(),
                    made,
                    old.metrics.backend(&part.name),
                )),
                epoch,
                settings: Some((part.kind.clone(), part.settings.clone())),
            };
            by_name.insert(part.name.clone(), named);
        }
        Ok(Self {
            by_name,
            last: epoch,
            metrics: old.metrics.clone(),
        })
    }

    /// With this backend under that name, of a new epoch; all others stay as they are.
    pub fn with(mut self, name: BackendName, backend: Arc<dyn Backend>) -> Self {
        self.last = self.last.wrapping_add(1);
        let named = Named {
            backend,
            epoch: self.last,
            settings: None,
        };
        self.by_name.insert(name, named);
        self
    }

    /// Without the backend of that name.
    pub fn without(mut self, name: &BackendName) -> Self {
        self.by_name.remove(name);
        self
    }

    /// The backend of this name.
    pub fn backend(&self, name: &BackendName) -> Option<&Arc<dyn Backend>> {
        self.by_name.get(name).map(|named| &named.backend)
    }

    /// The backend of this name, and its epoch.
    pub fn named(&self, name: &BackendName) -> Option<(&Arc<dyn Backend>, u64)> {
        let named = self.by_name.get(name)?;
        Some((&named.backend, named.epoch))
    }

    /// What the object's backend says of it, without I/O: the `check` of `spec::parse`.
    ///
    /// # Errors
    /// The backend's own problem, or that there is no such backend.
    pub fn check(&self, object: &ObjectRef) -> Result<Facts, Problem> {
        let Some(backend) = self.backend(&object.backend) else {
            let names = || self.names().map(BackendName::as_str);
            let known: Vec<_> = names().collect();
            return Err(Problem {
                code: &codes::SPEC_UNKNOWN_BACKEND,
                at: Span::default(),
                field: String::new(),
                message: format!("there is no backend `{}`", object.backend),
                help: suggest::did_you_mean(object.backend.as_str(), names())
                    .or_else(|| Some(format!("there are: {}", known.join(", "))))
                    .filter(|_| !known.is_empty()),
            });
        };
        backend.check(object)?;
        Ok(Facts {
            pushes: backend.pushes(object),
            versions: backend.has_versions(),
        })
    }

    /// The audiences of tokens that backends show to their stores.
    pub fn audiences(&self) -> BTreeSet<String> {
        let backends = self.by_name.values().map(|named| &named.backend);
        let all = backends.filter_map(|backend| backend.audience());
        all.map(str::to_owned).collect()
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &BackendName> {
        self.by_name.keys()
    }
}
