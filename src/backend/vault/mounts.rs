//! Which engine is mounted where: what the configuration says, else what the server says, for a while.
//!
//! It is asked as the `vault` command does (`sys/internal/ui/mounts/PATH`), with the token that is going to read below: who may read there may
//! also ask this. Nothing of it is secret or depends on who asks. Requests of one login that begin together ask once.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use serde::Deserialize;
use tokio::sync::watch;

use super::{
    Trouble,
    auth::Login,
    settings::Settings,
    wire::{self, Call, Said, Wire},
};
use crate::{
    backend::Cx,
    clock::Mono,
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
};

/// Whether somebody looks, as one login.
#[derive(Default)]
pub(super) struct Look(Mutex<Option<watch::Receiver<()>>>);

impl Look {
    /// Begins one, which lasts as long as what is given; or gives that of somebody else, which ends with a change.
    fn begin(&self) -> Result<watch::Sender<()>, watch::Receiver<()>> {
        let mut look = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = look.as_ref().filter(|look| look.has_changed().is_ok()) {
            return Err(running.clone());
        }
        let (mine, theirs) = watch::channel(());
        *look = Some(theirs);
        Ok(mine)
    }
}

/// What is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Engine {
    Kv1,
    Kv2,
    Other {
        /// Its answers may be leased, as far as its type tells.
        leases: bool,
    },
}

/// Where it is mounted: without a `/` at an end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    pub(super) path: Box<str>,
    pub(super) engine: Engine,
}

impl Mount {
    /// What of `path` is below it; `None`: it is not.
    pub(super) fn rest<'p>(&self, path: &'p str) -> Option<&'p str> {
        path.strip_prefix(&*self.path)?.strip_prefix('/')
    }
}

/// The mounts that are known.
#[derive(Default)]
pub(super) struct Mounts {
    known: Mutex<HashMap<Box<str>, (Engine, Mono)>>,
}

/// Types of engines that give no leases. Others may: a login of its own is then made for each of their answers.
const WITHOUT_LEASES: &[&str] = &["identity", "ssh", "totp", "transit", "transform"];

#[derive(Deserialize)]
struct Told {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    accessor: String,
    #[serde(default)]
    options: Option<Options>,
}

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    version: Option<String>,
}

impl Mounts {
    /// The mount that `path` is below.
    ///
    /// 1. It is known.
    /// 2. Another request of this login asks: wait for what it learns, once. It may be about another mount, or be refused.
    /// 3. Ask.
    pub(super) async fn find(
        &self,
        cx: &Cx,
        wire: &Wire,
        settings: &Settings,
        login: &Login,
        path: &str,
    ) -> Result<Mount, Trouble> {
        let known = || configured(settings, path).or_else(|| self.recall(cx.clock.now(), path));
        if let Some(mount) = known() {
            return Ok(mount); // 1
        }
        let mut look = login.look.begin();
        if let Err(other) = &mut look {
            tokio::select! {
                _ = other.changed() => {} // 2
                () = cx.cancel.cancelled() => return Err(Error::new(&codes::BACKEND_CANCELLED).into()),
                () = cx.clock.sleep_until(cx.deadline) => return Err(Error::new(&codes::BACKEND_TIMEOUT).into()),
            }
            if let Some(mount) = known() {
                return Ok(mount);
            }
        }
        let asked = format!("sys/internal/ui/mounts/{path}");
        let call = Call {
            path: &asked,
            token: Some(login.token()),
            ..Call::default()
        };
        let body = match wire.call(cx, call).await? {
            // 3
            Said::Good(body) => body,
            Said::Denied => {
                let path = path.escape_debug();
                return Err(Trouble::Denied(format!(
                    "nothing is mounted at the beginning of `{path}`, or no policy of the store names anything there for this identity"
                )));
            }
            Said::Missing(_) | Said::Refused(_) => {
                return Err(Error::new(&codes::BACKEND_NOT_FOUND)
                    .detail("no secrets engine is mounted there")
                    .into());
            }
        };
        let mount = read(&body)?;
        let Some(mount) = mount.filter(|mount| mount.rest(path).is_some()) else {
            return Err(Error::new(&codes::VAULT_PATH_NOT_ALLOWED)
                .detail("the path is about logins and the store itself, and no secret")
                .into());
        };
        tracing::trace!(mount = %mount.path, engine = ?mount.engine, "a mount is known");
        self.remember(cx.clock.now(), &mount);
        drop(look);
        Ok(mount)
    }

    fn recall(&self, now: Mono, path: &str) -> Option<Mount> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ends = path.match_indices('/').map(|(at, _)| at);
        ends.find_map(|at| {
            let mount = path.get(..at)?;
            let (engine, learnt) = known.get(mount)?;
            (now.since(*learnt) < limits::MOUNTS_KNOWN_FOR).then(|| Mount {
                path: mount.into(),
                engine: *engine,
            })
        })
    }

    fn remember(&self, now: Mono, mount: &Mount) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= limits::MOUNTS_KNOWN {
            known.clear();
        }
        known.insert(mount.path.clone(), (mount.engine, now));
    }
}

/// The longest of the configuration's that `path` is below.
fn configured(settings: &Settings, path: &str) -> Option<Mount> {
    let mounts = settings.kv.iter().map(|(mount, version)| Mount {
        path: mount.as_str().into(),
        engine: if *version == 2 {
            Engine::Kv2
        } else {
            Engine::Kv1
        },
    });
    mounts
        .filter(|mount| mount.rest(path).is_some())
        .max_by_key(|mount| mount.path.len())
}

/// Engines that are about the store itself. In a child namespace (`team/sys/...`), where a path does not show it, their types begin with `ns_`.
const OURS: &[&str] = &["system", "token", "cubbyhole"];

/// What the server says is mounted; `None`: a login method, or the store itself. [`asked`](super::asked) refuses those by their names already, and
/// cannot see them behind a child namespace's name.
pub(super) fn read(body: &SecretBytes) -> Result<Option<Mount>> {
    let told: Told = wire::of_data(body)?;
    let kind = told.kind.strip_prefix("ns_").unwrap_or(&told.kind);
    if OURS.contains(&kind) || told.accessor.starts_with("auth_") {
        return Ok(None);
    }
    let version = told.options.and_then(|options| options.version);
    let engine = match (kind, version.as_deref()) {
        ("kv", Some("2")) => Engine::Kv2,
        ("kv" | "generic", _) => Engine::Kv1,
        (other, _) => Engine::Other {
            leases: !WITHOUT_LEASES.contains(&other),
        },
    };
    Ok(Some(Mount {
        path: told.path.trim_end_matches('/').into(),
        engine,
    }))
}
