//! A store that answers as the caller it is given: each value says for whom, by which proof and when it was made. With a record of
//! all requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use secretfs::{
    backend::{Backend, Cx, Fetched, Want},
    caller::{AsksAs, Principal},
    clock::Mono,
    error::{Error, Result, codes},
    secret::{Content, Object, SecretBytes, Version},
    spec::{ObjectRef, Problem},
};
use tokio::sync::{oneshot, watch};

use super::faults::Fault;

pub const AUDIENCE: &str = "store";
pub const PATHS: [&str; 3] = ["o0", "o1", "o2"];
pub const ROLES: [&str; 2] = ["r0", "r1"];
/// The object whose changes are told.
const PUSHED: &str = "o2";

/// What a token says. The store believes nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// Numbers all tokens as they are made.
    pub serial: u64,
    pub namespace: String,
    pub account: String,
    pub account_uid: String,
    pub pod_uid: String,
}

impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (serial, namespace, account) = (self.serial, &self.namespace, &self.account);
        let (uid, pod) = (&self.account_uid, &self.pod_uid);
        write!(f, "{serial} {namespace} {account} {uid} {pod}")
    }
}

impl Claims {
    fn read(token: &SecretBytes) -> Self {
        let text = std::str::from_utf8(token.expose()).unwrap();
        let parts: Vec<&str> = text.split(' ').collect();
        let &[serial, namespace, account, uid, pod] = &*parts else {
            panic!("no token of ours: {text}");
        };
        Self {
            serial: serial.parse().unwrap(),
            namespace: namespace.into(),
            account: account.into(),
            account_uid: uid.into(),
            pod_uid: pod.into(),
        }
    }

    /// As whom a store that shares so far sees who shows this.
    pub fn principal(&self, share_by: AsksAs) -> Principal {
        match share_by {
            AsksAs::Pod => Principal::Pod((*self.pod_uid).into()),
            AsksAs::Node => Principal::Node,
            AsksAs::ServiceAccount => Principal::ServiceAccount {
                namespace: (*self.namespace).into(),
                name: (*self.account).into(),
                uid: Some((*self.account_uid).into()),
            },
        }
    }
}

/// What is asked of which store, for whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    pub store: String,
    /// Of the configuration by which it is asked.
    pub epoch: u64,
    pub principal: Principal,
    pub role: String,
    pub path: String,
}

/// A request. Moments are numbered as they come: on a manual clock many are of one time.
#[derive(Clone, Debug)]
pub struct Asked {
    pub key: Key,
    /// Of the proof.
    pub serial: u64,
    /// Of the process that asked.
    pub life: u32,
    pub moment: u64,
    /// `None`: refused, failed, or still under way.
    pub good: Option<Good>,
}

/// An answer that brought a version, or said that it is still that.
#[derive(Clone, Copy, Debug)]
pub struct Good {
    pub at: Mono,
    pub moment: u64,
    pub version: u64,
}

/// A value, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    pub key: Key,
    pub version: u64,
    pub serial: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Mood {
    #[default]
    Up,
    Down,
    /// Answers when the test lets it.
    Slow,
}

#[derive(Default)]
pub struct State {
    pub mood: Mood,
    pub versions: BTreeMap<String, u64>,
    /// (account's or pod's uid, path)
    pub denied: BTreeSet<(String, String)>,
    /// Pods whose tokens are void.
    pub void: BTreeSet<String>,
    pub asked: Vec<Asked>,
    pub life: u32,
    moments: u64,
    /// What must not have been asked so.
    pub complaints: Vec<String>,
    pub fault: Option<Fault>,
    held: BTreeMap<u64, oneshot::Sender<()>>,
    /// What was ever written, by the number of the value.
    written: Vec<Value>,
}

/// The stores' world, of all epochs.
#[derive(Clone)]
pub struct Stores {
    state: Arc<Mutex<State>>,
    seed: u64,
    told: watch::Sender<u64>,
}

/// One backend, of one configuration.
pub struct Asking {
    pub stores: Stores,
    pub name: &'static str,
    pub epoch: u64,
    pub share_by: AsksAs,
}

impl State {
    /// A new one.
    pub fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }
}

impl Stores {
    pub fn new(seed: u64, fault: Option<Fault>) -> Self {
        let versions = PATHS.map(|path| (path.to_owned(), 1)).into();
        Self {
            state: Arc::new(Mutex::new(State {
                versions,
                fault,
                ..State::default()
            })),
            seed,
            told: watch::Sender::new(0),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Chance that does not hang on who comes first: of threads one cannot tell.
    fn chance(&self, of: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new(); // fixed keys
        (self.seed, of).hash(&mut hasher);
        hasher.finish()
    }

    fn coin(&self, of: impl Hash) -> bool {
        self.chance(of).is_multiple_of(2)
    }

    pub fn rotate(&self, path: &str) {
        *self.lock().versions.get_mut(path).unwrap() += 1;
        self.told.send_modify(|told| *told += 1);
    }

    /// Lets one of those that wait have its answer, any of them.
    pub fn release(&self) -> bool {
        let mut state = self.lock();
        let (_, first) = state.held.pop_first().unzip();
        let is_there = first.is_some();
        first.map(|go| go.send(())); // an error: it was cancelled
        is_there
    }

    /// What a file says.
    pub fn value(&self, text: &str) -> Value {
        let number: usize = text.strip_prefix("value ").unwrap().parse().unwrap();
        self.lock().written[number].clone()
    }
}

impl Asking {
    fn key(&self, claims: &Claims, object: &ObjectRef) -> Key {
        let role = ROLES.iter().find(|role| object.params.contains(**role));
        Key {
            store: self.name.into(),
            epoch: self.epoch,
            principal: claims.principal(self.share_by),
            role: (*role.unwrap()).into(),
            path: object.path.to_string(),
        }
    }

    /// Who proves himself, and that he is who it is said to be.
    fn claims(&self, cx: &Cx, want: &Want<'_>) -> Result<Claims> {
        let token = want.proof.token(AUDIENCE, cx.clock.wall())?;
        let claims = Claims::read(&token.jwt);
        let (said, proved) = (
            want.who.principal(self.share_by),
            claims.principal(self.share_by),
        );
        let is_forged = self.stores.lock().fault == Some(Fault::LeavesTheUidOut);
        if said != proved && !is_forged {
            let complaint = format!("proof: {said:?} is asked for with {claims:?}");
            self.stores.lock().complaints.push(complaint);
        }
        Ok(claims)
    }

    /// What the store says now.
    fn answer(&self, claims: &Claims, key: &Key, have: Option<&Object>) -> Result<(u64, Fetched)> {
        let mut state = self.stores.lock();
        if state.void.contains(&claims.pod_uid) {
            return Err(Error::new(&codes::BACKEND_UNAUTHENTICATED));
        }
        for uid in [&claims.account_uid, &claims.pod_uid] {
            if state.denied.contains(&(uid.clone(), key.path.clone())) {
                return Err(Error::new(&codes::BACKEND_PERMISSION_DENIED));
            }
        }
        let mut version = state.versions[&key.path];
        let is_behind = || {
            self.stores
                .coin((&key.path, claims.serial, state.asked.len()))
        };
        if state.fault == Some(Fault::GoesBack) && version > 1 && is_behind() {
            version -= 1;
        }
        if let Some(had) = have.map(|have| written(&state, have)) {
            if had.key != *key {
                let complaint = format!("object: {key:?} is asked for by who has {had:?}");
                state.complaints.push(complaint);
            }
            if had.version == version || state.fault == Some(Fault::StaysBehind) {
                return Ok((had.version, Fetched::NotModified));
            }
        }
        let mut value = Value {
            key: key.clone(),
            version,
            serial: claims.serial,
        };
        if state.fault == Some(Fault::KnowsOneRole) {
            value.key.role = ROLES[0].into();
        }
        let number = state.written.len();
        state.written.push(value);
        let text = format!("value {number}").into_bytes();
        let fetched = Fetched::Object(Object {
            version: Version::new(version.to_string()),
            content: Content::Bytes(Arc::new(SecretBytes::new(text))),
            lease: None,
        });
        Ok((version, fetched))
    }

    /// Waits until it is let go. Who is told to end may be late with that.
    async fn held(&self, cx: &Cx, chance: u64) -> Result<()> {
        let (go, gone) = oneshot::channel();
        self.stores.lock().held.insert(chance, go);
        let is_late = chance.is_multiple_of(2);
        tokio::select! {
            biased;
            _ = gone => Ok(()),
            () = cx.cancel.cancelled(), if !is_late => Err(Error::new(&codes::BACKEND_CANCELLED)),
            () = cx.clock.sleep_until(cx.deadline) => Err(Error::new(&codes::BACKEND_TIMEOUT)),
        }
    }
}

fn written(state: &State, object: &Object) -> Value {
    let Content::Bytes(bytes) = &object.content else {
        panic!("no object of ours");
    };
    let text = std::str::from_utf8(bytes.expose()).unwrap();
    let number: usize = text["value ".len()..].parse().unwrap();
    state.written[number].clone()
}

#[async_trait]
impl Backend for Asking {
    fn check(&self, _: &ObjectRef) -> Result<(), Problem> {
        Ok(())
    }

    fn asks_as(&self, _: &ObjectRef) -> AsksAs {
        self.share_by
    }

    /// An answer is made when the request arrives, or when it leaves.
    async fn fetch(&self, cx: &Cx, want: Want<'_>) -> Result<Fetched> {
        let claims = self.claims(cx, &want)?;
        let key = self.key(&claims, want.object);
        let (mood, number) = {
            let mut state = self.stores.lock();
            let asked = Asked {
                key: key.clone(),
                serial: claims.serial,
                life: state.life,
                moment: state.moment(),
                good: None,
            };
            state.asked.push(asked);
            (state.mood, state.asked.len() - 1)
        };
        let since = cx.clock.now().as_nanos();
        let of = (
            &key.principal,
            &key.role,
            &key.path,
            key.epoch,
            claims.serial,
        );
        let early = self.stores.coin((of, since));
        let early = early.then(|| self.answer(&claims, &key, want.have));
        match mood {
            Mood::Up => {}
            Mood::Down => return Err(Error::new(&codes::BACKEND_UNAVAILABLE)),
            Mood::Slow => self.held(cx, self.stores.chance((since, of))).await?,
        }
        let answer = early.unwrap_or_else(|| self.answer(&claims, &key, want.have));
        let (version, fetched) = answer?;
        let mut state = self.stores.lock();
        state.asked[number].good = Some(Good {
            at: cx.clock.now(),
            moment: state.moment(),
            version,
        });
        Ok(fetched)
    }

    fn pushes(&self, object: &ObjectRef) -> bool {
        &*object.path == PUSHED
    }

    async fn watch(&self, cx: &Cx, want: Want<'_>, hint: &(dyn Fn() + Send + Sync)) -> Result<()> {
        self.claims(cx, &want)?;
        let mut told = self.stores.told.subscribe();
        loop {
            tokio::select! {
                biased;
                () = cx.cancel.cancelled() => return Ok(()),
                _ = told.changed() => hint(),
            }
        }
    }
}
