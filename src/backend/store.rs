//! `kind: store`: the embedded store as a backend.
//!
//! A secret is one value ([`Content::Bytes`]); its version is the store's number. Everything is read anew at each fetch, the
//! identity file too, so that a restored store or identity needs no restart. Cache: which file each object was last
//! read from, because a store that is deleted and made again counts from 1 again.
//!
//! What removes something is believed only when it was said (`secretfs store rm`) or still stands after half a second (`SETTLE`): while
//! a store is being deleted, restored or checked out, its files go and come one by one, and no fetch may take the
//! middle of that for a removal or for an old version.

mod watch;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    backend::{Backend, Cx, Fetched, Pace, Want},
    caller::AsksAs,
    config::{BackendConfig, StoreSettings},
    error::{Error, Result, codes},
    secret::{Content, Object, SecretBytes, Version},
    spec::{ObjectRef, Problem, Span},
    store::{Identities, Lookup, Name, Stamp, Store, parse_version},
    sys::stack,
};

use watch::Tidings;

/// How long something must have been gone from a store before that is believed.
const SETTLE: Duration = Duration::from_millis(500);

/// A backend for the store at `dir`, read with the identity file `identity`. Neither need be there yet.
pub fn open(dir: impl Into<PathBuf>, identity: impl Into<PathBuf>) -> Arc<dyn Backend> {
    let dir = dir.into();
    Arc::new(StoreBackend {
        tidings: Tidings::new(dir.clone()),
        place: Arc::new(Place {
            dir,
            identity: identity.into(),
        }),
        delivered: Mutex::new(HashMap::new()),
    })
}

/// [`open`], at the place that the configuration names.
///
/// # Errors
/// All that is wrong with the settings.
pub fn build(config: &BackendConfig) -> Result<Arc<dyn Backend>, Vec<Problem>> {
    let settings = StoreSettings::read(config)?;
    Ok(open(settings.path, settings.identity))
}

struct StoreBackend {
    place: Arc<Place>,
    tidings: Tidings,
    /// For each object the version that was delivered last, and the file that it was in.
    delivered: Mutex<HashMap<Asked, (u64, Stamp)>>,
}

struct Place {
    dir: PathBuf,
    identity: PathBuf,
}

/// A reference, read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Asked {
    name: Name,
    version: Option<u64>,
}

impl Asked {
    /// Reads a reference. An `@` that digits do not follow is part of the name: `users/bob@example.com`.
    fn parse(object: &ObjectRef) -> Result<Self, Problem> {
        let problem = |message: String, help: &str| Problem {
            code: &codes::SPEC_BAD_REFERENCE,
            at: Span::default(),
            field: String::new(),
            message,
            help: Some(help.into()),
        };
        if !object.params.is_empty() {
            return Err(problem(
                "a store has no `method`, `data`, `role` or `wrapTTL`".into(),
                "write the reference as BACKEND:NAME",
            ));
        }
        let (name, version) = match object.version.as_deref() {
            None => (object.path.to_string(), None),
            Some(text) => match parse_version(text) {
                Some(number) => (object.path.to_string(), Some(number)),
                None if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                    return Err(problem(
                        format!("`@{text}` is not a version of a store"),
                        "write a number from 1, without leading zeros, as `secretfs store history` shows it",
                    ));
                }
                None => (format!("{}@{text}", object.path), None),
            },
        };
        match Name::parse(&name) {
            Ok(name) => Ok(Self { name, version }),
            Err(why) => Err(problem(
                format!("the name `{}` {why}", name.escape_debug()),
                "use a name as `secretfs store list` shows it",
            )),
        }
    }

    /// As the error of a fetch: `check` has said the same before.
    fn of(object: &ObjectRef) -> Result<Self> {
        Self::parse(object).map_err(|problem| Error::new(problem.code).detail(problem.message))
    }
}

/// What a look at the store brought.
enum Answer {
    NotModified,
    Value(u64, Stamp, SecretBytes),
    /// Something is gone that nobody said to be removed.
    Unsettled,
}

impl Place {
    /// 1. Look the secret up. What is gone without having been removed is unsettled, unless `settled`.
    /// 2. The same version in the same file, or in one that we know nothing of: not modified, nothing is decrypted.
    /// 3. Read the identity, and decrypt.
    fn look(
        &self,
        asked: &Asked,
        have: Option<u64>,
        delivered: Option<(u64, Stamp)>,
        settled: bool,
    ) -> Result<Answer> {
        let lookup = Store::open(&self.dir)?.look_up(&asked.name, asked.version)?; // 1
        if let Some(have) = have
            && !settled
        {
            let lost = match &lookup {
                Lookup::Found(found) => found.version < have,
                Lookup::Removed(at) => *at < have,
                Lookup::NoVersion | Lookup::Absent => true,
            };
            if lost {
                return Ok(Answer::Unsettled);
            }
        }
        let found = lookup.or_error(&asked.name, asked.version)?;
        let (version, stamp) = (found.version, found.stamp);
        let same_file = delivered.is_none_or(|known| known == (version, stamp));
        if have == Some(version) && same_file {
            return Ok(Answer::NotModified); // 2
        }
        let keys = Identities::load(&self.identity)?; // 3
        Ok(Answer::Value(version, stamp, found.read(&keys)?))
    }
}

impl StoreBackend {
    /// `look`, on a thread that may block. Returns on cancel and deadline; the look itself ends by itself soon after.
    async fn ask(
        &self,
        cx: &Cx,
        asked: &Asked,
        have: Option<u64>,
        settled: bool,
    ) -> Result<Answer> {
        tracing::trace!(name = %asked.name, settled, "a look at the store");
        let place = self.place.clone();
        let delivered = self.delivered().get(asked).copied();
        let its = asked.clone();
        let look = tokio::task::spawn_blocking(move || {
            stack::clean(|| place.look(&its, have, delivered, settled)) // keys and values were on it
        });
        tokio::select! {
            looked = look => looked.map_err(|_| Error::new(&codes::BUG).detail("a look at the store panicked"))?,
            stopped = stopped(cx) => Err(stopped),
        }
    }

    fn delivered(&self) -> std::sync::MutexGuard<'_, HashMap<Asked, (u64, Stamp)>> {
        // an insert cannot leave it half done
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of a request, and says why it ended.
async fn stopped(cx: &Cx) -> Error {
    tokio::select! {
        () = cx.cancel.cancelled() => Error::new(&codes::BACKEND_CANCELLED),
        () = cx.clock.sleep_until(cx.deadline) => Error::new(&codes::BACKEND_TIMEOUT),
    }
}

#[async_trait]
impl Backend for StoreBackend {
    fn check(&self, object: &ObjectRef) -> Result<(), Problem> {
        Asked::parse(object).map(drop)
    }

    fn asks_as(&self, _object: &ObjectRef) -> AsksAs {
        AsksAs::Node
    }

    async fn fetch(&self, cx: &Cx, want: Want<'_>) -> Result<Fetched> {
        let asked = Asked::of(want.object)?;
        if cx.cancel.is_cancelled() {
            return Err(Error::new(&codes::BACKEND_CANCELLED));
        }
        if cx.clock.now() >= cx.deadline {
            return Err(Error::new(&codes::BACKEND_TIMEOUT));
        }
        let have = want
            .have
            .and_then(|object| parse_version(object.version.as_str()));
        let mut answer = self.ask(cx, &asked, have, false).await?;
        if matches!(answer, Answer::Unsettled) {
            let until = cx.clock.now().after(SETTLE);
            tokio::select! {
                () = cx.clock.sleep_until(until) => {}
                stopped = stopped(cx) => return Err(stopped),
            }
            answer = self.ask(cx, &asked, have, true).await?;
        }
        match answer {
            Answer::NotModified => Ok(Fetched::NotModified),
            Answer::Unsettled => Err(Error::new(&codes::BUG).detail("unsettled, though settled")),
            Answer::Value(version, stamp, bytes) => {
                self.delivered().insert(asked, (version, stamp));
                Ok(Fetched::Object(Object {
                    version: Version::new(version.to_string()),
                    content: Content::Bytes(Arc::new(bytes)),
                    lease: None,
                }))
            }
        }
    }

    fn pace(&self) -> Pace {
        Pace::Local
    }

    fn pushes(&self, _object: &ObjectRef) -> bool {
        true
    }

    async fn watch(&self, cx: &Cx, want: Want<'_>, hint: &(dyn Fn() + Send + Sync)) -> Result<()> {
        let asked = Asked::of(want.object)?;
        self.tidings.watch(&asked.name, &cx.cancel, hint).await
    }
}

#[cfg(test)]
mod tests;
