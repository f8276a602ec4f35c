//! A store whose every answer is the test's, with a record of who asked what, and of all leases.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use secretfs::{
    backend::{Backend, Cx, Fetched, Want},
    caller::{AsksAs, Identity},
    clock::Mono,
    error::{Code, Error, Result, codes},
    path::Mode,
    secret::{Content, Field, Lease, Object, SecretBytes, Version},
    spec::{ObjectRef, Problem},
};
use tokio::sync::watch;

/// What a path answers.
#[derive(Clone, Debug, Default)]
pub enum Answer {
    /// Its value.
    #[default]
    Value,
    /// This error, with this `retry_after`.
    Fail(&'static Code, Option<Duration>),
    /// Nothing, until the request is cancelled or too late.
    Hang,
    /// Its value, this much later.
    Slow(Duration),
    /// Its value, this much later, whatever happens meanwhile: no cancel, no deadline is heard.
    Deaf(Duration),
    /// A panic.
    Panic,
}

/// Makes leases.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    pub renewable: bool,
    /// From a fetch or a renewal.
    pub ttl: Duration,
    /// From the fetch, whatever is renewed.
    pub max_ttl: Duration,
}

/// One secret.
#[derive(Default)]
pub struct Script {
    pub answer: Answer,
    value: Option<Value>,
    version: u64,
    /// With leases every fetch makes new credentials.
    pub leases: Option<Leases>,
    pub pushes: bool,
    /// Its watch breaks at once.
    pub unwatchable: bool,
    told: watch::Sender<u64>,
    watchers: usize,
}

enum Value {
    Bytes(String),
    Fields(Vec<(String, String, Option<Mode>)>),
}

/// One lease that was made.
#[derive(Clone, Debug)]
pub struct Made {
    pub path: String,
    pub at: Mono,
    pub expires_at: Mono,
    pub renewals: usize,
    pub revoked_at: Option<Mono>,
    max: Mono,
}

/// As whom a store asks. Volumes' tasks ask it that: this is also how one of them panics.
#[derive(Clone, Copy, Default)]
pub enum AskedWho {
    #[default]
    Account,
    Node,
    Panic,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    pub what: What,
    pub path: String,
    pub at: Mono,
    pub who: String,
    /// The version that the asker had.
    pub have: Option<String>,
}

/// Kinds of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Fetch,
    Renew,
    Revoke,
    Watch,
}

#[derive(Default)]
struct State {
    scripts: BTreeMap<String, Script>,
    asked: Vec<Asked>,
    leases: Vec<Made>,
    /// Fetches that have begun and not returned.
    running: usize,
    asks_as: AskedWho,
    /// How often a reference was looked at.
    checks: usize,
}

/// The store.
#[derive(Clone, Default)]
pub struct Scripted {
    state: Arc<Mutex<State>>,
}

impl Scripted {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes how `path` behaves.
    pub fn script(&self, path: &str, change: impl FnOnce(&mut Script)) {
        change(self.lock().scripts.entry(path.to_owned()).or_default());
    }

    /// What `path` answers from now on.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.script(path, |script| script.answer = answer);
    }

    /// A new version of `path`; watchers are told.
    pub fn put(&self, path: &str, value: &str) {
        self.put_value(path, Value::Bytes(value.to_owned()));
    }

    /// The same with fields: (name, value, mode).
    pub fn put_fields(&self, path: &str, fields: &[(&str, &str, Option<Mode>)]) {
        let own = |(name, value, mode): &(&str, &str, Option<Mode>)| {
            ((*name).to_owned(), (*value).to_owned(), *mode)
        };
        self.put_value(path, Value::Fields(fields.iter().map(own).collect()));
    }

    fn put_value(&self, path: &str, value: Value) {
        self.script(path, |script| {
            script.value = Some(value);
            script.version += 1;
            script.told.send_modify(|told| *told += 1);
        });
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How many requests of this kind.
    pub fn count(&self, what: What, path: &str) -> usize {
        let asked = self.asked();
        asked
            .iter()
            .filter(|asked| asked.what == what && asked.path == path)
            .count()
    }

    /// All leases, in the order they were made.
    pub fn leases(&self) -> Vec<Made> {
        self.lock().leases.clone()
    }

    /// What it says when it is asked as whom it asks.
    pub fn when_asked_who(&self, answer: AskedWho) {
        self.lock().asks_as = answer;
    }

    /// How often a spec with a reference to it was read.
    pub fn checks(&self) -> usize {
        self.lock().checks
    }

    /// Fetches under way.
    pub fn running(&self) -> usize {
        self.lock().running
    }

    /// Watches under way.
    pub fn watchers(&self, path: &str) -> usize {
        self.lock()
            .scripts
            .get(path)
            .map_or(0, |script| script.watchers)
    }

    fn note(&self, what: What, cx: &Cx, path: &str, want: Option<&Want<'_>>) {
        let who = want.map_or_else(String::new, |want| want.who.to_string());
        let have = want
            .and_then(|want| want.have)
            .map(|have| have.version.as_str().to_owned());
        let (path, at) = (path.to_owned(), cx.clock.now());
        self.lock().asked.push(Asked {
            what,
            path,
            at,
            who,
            have,
        });
    }

    fn value(&self, cx: &Cx, path: &str, have: Option<&Object>) -> Result<Fetched> {
        let mut state = self.lock();
        let made = state.leases.len();
        let Some((script, value)) = state
            .scripts
            .get(path)
            .and_then(|script| Some((script, script.value.as_ref()?)))
        else {
            return Err(Error::new(&codes::BACKEND_NOT_FOUND));
        };
        let secret = |text: &str| Arc::new(SecretBytes::new(text.as_bytes().to_vec()));
        let Some(leases) = script.leases else {
            let version = Version::new(script.version.to_string());
            if have.is_some_and(|have| have.version == version) {
                return Ok(Fetched::NotModified);
            }
            let content = match value {
                Value::Bytes(text) => Content::Bytes(secret(text)),
                Value::Fields(fields) => {
                    let field = |(name, text, mode): &(String, String, Option<Mode>)| {
                        (
                            name.as_str().into(),
                            Field {
                                value: secret(text),
                                mode: *mode,
                            },
                        )
                    };
                    Content::Fields(fields.iter().map(field).collect())
                }
            };
            return Ok(Fetched::Object(Object {
                version,
                content,
                lease: None,
            }));
        };
        let now = cx.clock.now();
        let lease = Lease {
            expires_at: now.after(leases.ttl),
            renewable: leases.renewable,
            handle: secret(&made.to_string()),
        };
        let path = path.to_owned();
        let (expires_at, max) = (lease.expires_at, now.after(leases.max_ttl));
        state.leases.push(Made {
            path,
            at: now,
            expires_at,
            renewals: 0,
            revoked_at: None,
            max,
        });
        Ok(Fetched::Object(Object {
            version: Version::new(format!("lease-{made}")),
            content: Content::Bytes(secret(&format!("user-{made}"))),
            lease: Some(lease),
        }))
    }
}

fn index(lease: &Lease) -> usize {
    std::str::from_utf8(lease.handle.expose())
        .unwrap()
        .parse()
        .unwrap()
}

#[async_trait]
impl Backend for Scripted {
    fn check(&self, _object: &ObjectRef) -> Result<(), Problem> {
        self.lock().checks += 1;
        Ok(())
    }

    fn asks_as(&self, _object: &ObjectRef) -> AsksAs {
        let asks_as = self.lock().asks_as;
        match asks_as {
            AskedWho::Account => AsksAs::ServiceAccount,
            AskedWho::Node => AsksAs::Node,
            AskedWho::Panic => panic!("as the script says"),
        }
    }

    async fn fetch(&self, cx: &Cx, want: Want<'_>) -> Result<Fetched> {
        let path = &*want.object.path;
        self.note(What::Fetch, cx, path, Some(&want));
        self.lock().running += 1;
        let _running = Running(self);
        let answer = self
            .lock()
            .scripts
            .get(path)
            .map(|script| script.answer.clone());
        let wait = |until: Mono| async move {
            tokio::select! {
                biased;
                () = cx.cancel.cancelled() => Err(Error::new(&codes::BACKEND_CANCELLED)),
                () = cx.clock.sleep_until(until.min(cx.deadline)) => {
                    if cx.clock.now() >= cx.deadline {
                        return Err(Error::new(&codes::BACKEND_TIMEOUT));
                    }
                    Ok(())
                }
            }
        };
        match answer.unwrap_or_default() {
            Answer::Value => {}
            Answer::Fail(code, after) => {
                let error = Error::new(code);
                return Err(match after {
                    Some(after) => error.retry_after(after),
                    None => error,
                });
            }
            Answer::Hang => wait(cx.deadline).await?,
            Answer::Slow(by) => wait(cx.clock.now().after(by)).await?,
            Answer::Deaf(by) => cx.clock.sleep_until(cx.clock.now().after(by)).await,
            Answer::Panic => panic!("as the script says"),
        }
        self.value(cx, path, want.have)
    }

    async fn renew(&self, cx: &Cx, lease: &Lease) -> Result<Lease> {
        let index = index(lease);
        let path = self.leases()[index].path.clone();
        self.note(What::Renew, cx, &path, None);
        let mut state = self.lock();
        let leases = state.scripts[&path].leases.unwrap();
        let made = &mut state.leases[index];
        made.renewals += 1;
        made.expires_at = cx.clock.now().after(leases.ttl).min(made.max);
        Ok(Lease {
            expires_at: made.expires_at,
            ..lease.clone()
        })
    }

    async fn revoke(&self, cx: &Cx, lease: &Lease) -> Result<()> {
        let index = index(lease);
        let path = self.leases()[index].path.clone();
        self.note(What::Revoke, cx, &path, None);
        self.lock().leases[index].revoked_at = Some(cx.clock.now());
        Ok(())
    }

    fn pushes(&self, object: &ObjectRef) -> bool {
        self.lock()
            .scripts
            .get(&*object.path)
            .is_some_and(|script| script.pushes)
    }

    async fn watch(&self, cx: &Cx, want: Want<'_>, hint: &(dyn Fn() + Send + Sync)) -> Result<()> {
        let path = &*want.object.path;
        self.note(What::Watch, cx, path, Some(&want));
        let mut told = self
            .lock()
            .scripts
            .get(path)
            .filter(|script| !script.unwatchable)
            .map(|script| script.told.subscribe());
        let Some(told) = &mut told else {
            return Err(Error::new(&codes::BACKEND_NOT_FOUND));
        };
        self.script(path, |script| script.watchers += 1);
        loop {
            tokio::select! {
                biased;
                () = cx.cancel.cancelled() => break,
                _ = told.changed() => hint(),
            }
        }
        self.script(path, |script| script.watchers -= 1);
        Ok(())
    }
}

/// Counts a fetch out, whichever way it ends.
struct Running<'a>(&'a Scripted);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

/// A pod's identity: its account decides what it shares.
pub fn pod(name: &str, account: &str) -> Identity {
    Identity::Pod(secretfs::caller::PodIdentity {
        namespace: "shop".into(),
        pod: name.into(),
        pod_uid: format!("uid-of-{name}").into(),
        service_account: account.into(),
        service_account_uid: None,
    })
}
