//! The backends of this node by name, made from its configuration.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    backend::{self, Backend, instrumented::Instrumented},
    config::{BackendConfig, Config},
    error::{self, Error, codes},
    spec::{BackendName, Facts, ObjectRef, Problem, Span, read::shown, suggest},
};

/// Makes a backend of its settings, without I/O; or all that is wrong with them.
pub type Build = fn(&BackendConfig) -> Result<Arc<dyn Backend>, Vec<Problem>>;

/// Every kind of backend. A new one is a file, a line here, a page in docs and a call of the conformance suite.
pub static BUILTINS: &[(&str, Build)] = &[("store", backend::store::build)];

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

/// Named backends. Replaced as a whole when the configuration changes.
#[derive(Default, Clone)]
pub struct Registry {
    by_name: BTreeMap<BackendName, Arc<dyn Backend>>,
    /// Grows by one with each configuration: a source asked under another one is another source.
    pub epoch: u64,
}

impl Registry {
    /// A registry of these backends.
    pub fn new(by_name: BTreeMap<BackendName, Arc<dyn Backend>>, epoch: u64) -> Self {
        Self { by_name, epoch }
    }

    /// The backends of a configuration that has been parsed with [`problems`].
    ///
    /// # Errors
    /// `config.invalid` for one that was not.
    pub fn build(config: &Config, epoch: u64) -> error::Result<Self> {
        let mut by_name: BTreeMap<_, Arc<dyn Backend>> = BTreeMap::new();
        for part in &config.backends {
            let made = build(part).map_err(|problems| {
                let first = problems.into_iter().next().map(|problem| problem.message);
                Error::new(&codes::CONFIG_INVALID)
                    .object(&part.field)
                    .detail(first.unwrap_or_default())
            })?;
            let instrumented = Instrumented::new(part.name.clone(), made);
            by_name.insert(part.name.clone(), Arc::new(instrumented) as _);
        }
        Ok(Self::new(by_name, epoch))
    }

    /// The backend of this name.
    pub fn backend(&self, name: &BackendName) -> Option<&Arc<dyn Backend>> {
        self.by_name.get(name)
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

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &BackendName> {
        self.by_name.keys()
    }
}
