//! `kind: vault`: HashiCorp Vault and OpenBao.
//!
//! ```text
//! reference -> Asked -> a login (shared by principal and role) -> the mount -> kv | endpoint -> Object
//! ```
//!
//! A secret is one JSON object ([`Content::Bytes`]), as the store wrote it: `#field` and pointers look into it. Cache: logins, which engine is
//! mounted where, which paths have no leases. All of it may be lost.
//!
//! Who asks: with the methods `kubernetes` and `jwt` the pod, by the token that the kubelet brought for the backend's audience; the store's own
//! policies decide. With all others the node, and the node's policy decides first.
//!
//! A refusal (403) is of the path or of a token that has died. The token is looked up: only a dead one is forgotten, and the request made
//! once more with a new login.

mod asked;
mod auth;
mod endpoint;
mod kv;
mod mounts;
mod settings;
mod wire;
mod wrap;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use self::{
    asked::{Asked, Verb},
    auth::{Login, Proof, Unwrapped},
    endpoint::Endpoint,
    kv::Kv2,
    mounts::{Engine, Mounts},
    settings::{Method, Settings},
    wire::Wire,
};
pub use settings::{AUTH_KEYS, KEYS, REQUEST_KEYS, TIMEOUT_KEYS, TLS_KEYS};

use crate::{
    backend::{
        Backend, Cx, Fetched, Pace, Want,
        login::{Key, Sessions},
    },
    caller::{AsksAs, Identity},
    clock::Clock,
    config::BackendConfig,
    error::{Error, Result, codes},
    limits,
    secret::{Content, Lease, Object, SecretBytes, Version},
    spec::{ObjectRef, Problem},
};

/// A backend for the server that the configuration names.
///
/// # Errors
/// All that is wrong with the settings.
pub fn build(config: &BackendConfig) -> Result<Arc<dyn Backend>, Vec<Problem>> {
    let settings = Settings::read(config)?;
    let wire = Wire::new(settings.http.clone(), settings.namespace.as_deref());
    let vault = Arc::new_cyclic(|vault: &Weak<Vault>| {
        let vault = vault.clone();
        Vault {
            settings,
            wire,
            sessions: Arc::new(Sessions::new(Box::new(move |clock, login| {
                if let Some(vault) = vault.upgrade().filter(|vault| vault.logs_in()) {
                    vault.end(clock, login);
                }
            }))),
            mounts: Mounts::default(),
            unwrapped: Mutex::new(None),
            unleased: Mutex::new(HashSet::new()),
        }
    });
    Ok(Arc::new(VaultBackend(vault)))
}

struct VaultBackend(Arc<Vault>);

/// One server as one backend sees it.
struct Vault {
    settings: Settings,
    wire: Wire,
    sessions: Arc<Sessions<Login>>,
    mounts: Mounts,
    unwrapped: Mutex<Option<Unwrapped>>,
    /// Paths whose answers have no lease, though their engine might give some.
    unleased: Mutex<HashSet<Box<str>>>,
}

/// Why a request brought nothing.
enum Trouble {
    /// The store says no, to the path or to the token: what it would be if it is the path.
    Denied(String),
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Vault {
    /// Whether a login is made here, and not by whoever wrote a token into a file.
    fn logs_in(&self) -> bool {
        !matches!(self.settings.method, Method::Token { .. })
    }

    /// The proof of who asks, for the methods that show one.
    fn proof(&self, cx: &Cx, want: &Want<'_>) -> Proof {
        let method = &self.settings.method;
        if !method.is_of_the_pod() {
            return Ok(SecretBytes::new(Vec::new()));
        }
        if matches!(want.who, Identity::Local { .. }) {
            return Err(Error::new(&codes::BACKEND_UNAUTHENTICATED).detail(format!(
                "the login method `{}` shows a pod's token, and here is no pod; outside Kubernetes use `token`, `approle`, `cert` or `userpass`",
                method.name()
            )));
        }
        let token = want.proof.token(&self.settings.audience, cx.clock.wall())?;
        Ok(SecretBytes::new(token.jwt.expose().to_vec()))
    }

    async fn login(self: &Arc<Self>, cx: &Cx, key: &Key, want: &Want<'_>) -> Result<Arc<Login>> {
        let begin = |before| {
            let (vault, role, proof) = (self.clone(), key.role.clone(), self.proof(cx, want));
            let cx = apart(&cx.clock);
            async move { vault.log_in_again(&cx, before, &role, proof).await }
        };
        self.sessions.get(cx, key, begin).await
    }

    /// 1. The login of this principal in this role.
    /// 2. Ask.
    /// 3. Refused: by a token that has died, once more with a new login; else it is the path.
    async fn fetch(self: &Arc<Self>, cx: &Cx, want: Want<'_>) -> Result<Fetched> {
        let asked = Asked::of(want.object, &self.settings)?;
        let role = asked.role.as_deref().or(self.settings.method.role());
        let key = Key {
            principal: want.who.principal(self.settings.asks_as),
            role: role.unwrap_or_default().into(),
        };
        let mut again = true;
        loop {
            let login = self.login(cx, &key, &want).await?; // 1
            match self.ask(cx, &login, &asked, &want, &key.role).await {
                Ok(fetched) => return Ok(fetched), // 2
                Err(Trouble::Error(error)) => return Err(error),
                Err(Trouble::Denied(what)) => {
                    if !again || !self.is_dead(cx, login.token().clone()).await? {
                        return Err(Error::new(&codes::BACKEND_PERMISSION_DENIED).detail(what)); // 3
                    }
                    tracing::trace!("a login has died");
                    self.sessions.forget(&key, &login);
                    again = false;
                }
            }
        }
    }

    async fn ask(
        self: &Arc<Self>,
        cx: &Cx,
        login: &Arc<Login>,
        asked: &Asked,
        want: &Want<'_>,
        role: &str,
    ) -> Result<Fetched, Trouble> {
        let mount = self
            .mounts
            .find(cx, &self.wire, &self.settings, login, &asked.path)
            .await?;
        let endpoint = Endpoint {
            vault: self,
            login,
            asked,
            leases: mount.engine == Engine::Other { leases: true },
            role,
        };
        match mount.engine {
            Engine::Kv2 => {
                let kv = Kv2 {
                    vault: self,
                    login,
                    asked,
                    mount: &mount.path,
                    rest: mount.rest(&asked.path).unwrap_or_default(),
                };
                match (asked.verb, asked.wrap) {
                    (_, Some(seconds)) if asked.is_plain() => {
                        endpoint.wrapped(cx, want, &mount, seconds).await
                    }
                    (Verb::Metadata, None) => kv.custom_metadata(cx, want.have).await,
                    _ if asked.is_plain() => kv.read(cx, want.have).await,
                    _ => Err(only_read().into()),
                }
            }
            Engine::Kv1 | Engine::Other { .. }
                if asked.verb == Verb::Metadata || asked.version.is_some() =>
            {
                Err(Error::new(&codes::SPEC_BAD_REFERENCE)
                    .detail(format!(
                        "what is mounted at `{}` has no versions and no metadata",
                        mount.path.escape_debug()
                    ))
                    .into())
            }
            Engine::Kv1 if !asked.is_plain() => Err(only_read().into()),
            Engine::Kv1 | Engine::Other { .. } => match asked.wrap {
                Some(seconds) => endpoint.wrapped(cx, want, &mount, seconds).await,
                None => endpoint.ask(cx, want).await,
            },
        }
    }

    fn unleased(&self) -> MutexGuard<'_, HashSet<Box<str>>> {
        self.unleased.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The refusal of a path of the API, for whoever writes the store's policies.
fn denied(path: &str) -> Trouble {
    let path = path.escape_debug();
    Trouble::Denied(format!(
        "no policy of the store lets this identity have `{path}`"
    ))
}

fn only_read() -> Error {
    Error::new(&codes::SPEC_BAD_REFERENCE).detail("a secret of KV is read, without `data`")
}

/// The error of a request that the store does not understand, with this status.
fn refused(status: u16) -> Error {
    Error::new(&codes::VAULT_BAD_REQUEST)
        .detail(format!("the store answers {status} to the request"))
}

/// The name of a version that the store has no name for: when it came.
fn moment(cx: &Cx) -> Version {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed); // two may come in one millisecond
    Version::new(format!("{} #{count}", cx.clock.wall().to_rfc3339()))
}

/// What has no number of its own: it is news if it says something else than before. `label`: the store's own word for when it changed.
fn unnumbered(cx: &Cx, value: &[u8], have: Option<&Object>, label: Option<&str>) -> Fetched {
    if let Some(Content::Bytes(before)) = have.map(|have| &have.content)
        && before.expose() == value
    {
        return Fetched::NotModified;
    }
    let moment = moment(cx);
    Fetched::Object(Object {
        version: match label.filter(|label| !label.is_empty()) {
            Some(label) => Version::new(format!("{label} {}", moment.as_str())),
            None => moment,
        },
        content: Content::Bytes(Arc::new(SecretBytes::new(value.to_vec()))),
        lease: None,
    })
}

/// The terms of what goes on though nobody waits for it: a login that others share, the end of one.
fn apart(clock: &Arc<dyn Clock>) -> Cx {
    Cx {
        deadline: clock.now().after(limits::FETCH_DEADLINE),
        cancel: CancellationToken::new(),
        clock: clock.clone(),
    }
}

#[async_trait]
impl Backend for VaultBackend {
    fn check(&self, object: &ObjectRef) -> Result<(), Problem> {
        Asked::parse(object, &self.0.settings).map(drop)
    }

    fn asks_as(&self, _object: &ObjectRef) -> AsksAs {
        self.0.settings.asks_as
    }

    fn pace(&self) -> Pace {
        Pace::Within(self.0.settings.requests)
    }

    async fn fetch(&self, cx: &Cx, want: Want<'_>) -> Result<Fetched> {
        if cx.cancel.is_cancelled() {
            return Err(Error::new(&codes::BACKEND_CANCELLED));
        }
        if cx.clock.now() >= cx.deadline {
            return Err(Error::new(&codes::BACKEND_TIMEOUT));
        }
        self.0.fetch(cx, want).await
    }

    async fn renew(&self, cx: &Cx, lease: &Lease) -> Result<Lease> {
        self.0.renew_lease(cx, lease).await
    }

    async fn revoke(&self, cx: &Cx, lease: &Lease) -> Result<()> {
        self.0.revoke_lease(cx, lease).await
    }

    fn audience(&self) -> Option<&str> {
        Some(&*self.0.settings.audience).filter(|_| self.0.settings.method.is_of_the_pod())
    }
}

#[cfg(test)]
mod tests;
