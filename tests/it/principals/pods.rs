//! The pods of this world, as the kubelet knows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use secretfs::{
    caller::{Caller, Credentials, Identity, PodIdentity, Token},
    clock::{Mono, Wall},
    error::Result,
    secret::SecretBytes,
    volume::{AskedSpec, Placing, PublishRequest, Published},
};
use tokio::task::JoinHandle;

use super::{
    faults::Fault,
    store::{AUDIENCE, Claims, Value},
    world::STORES,
};
use crate::support::bed::{target, volume};

/// How long a token lives.
const TOKEN_LIFE_MS: i64 = 600_000;

/// As whom a pod asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Who {
    pub namespace: String,
    pub account: String,
    pub account_uid: String,
    pub pod_uid: String,
}

impl Who {
    pub fn claims(&self, serial: u64) -> Claims {
        Claims {
            serial,
            namespace: self.namespace.clone(),
            account: self.account.clone(),
            account_uid: self.account_uid.clone(),
            pod_uid: self.pod_uid.clone(),
        }
    }

    /// Whether it was fetched for him, as wide as its store shares.
    pub fn owns(&self, value: &Value) -> bool {
        let share_by = STORES.iter().find(|store| store.0 == value.key.store);
        let own = share_by.map(|(_, share_by)| self.claims(0).principal(*share_by));
        own.as_ref() == Some(&value.key.principal)
    }

    /// With a token that is made now.
    pub fn caller(&self, serial: u64, now: Wall, fault: Option<Fault>) -> Caller {
        let mut claims = self.claims(serial);
        match fault {
            Some(Fault::ShowsAnOldProof) => claims.serial = 0,
            Some(Fault::ShowsAnothersProof) => claims.account_uid += "-other",
            _ => {}
        }
        let uid = match fault {
            Some(Fault::LeavesTheUidOut) => None,
            _ => Some((*self.account_uid).into()),
        };
        let identity = Identity::Pod(PodIdentity {
            namespace: (*self.namespace).into(),
            pod: (*self.pod_uid).into(),
            pod_uid: (*self.pod_uid).into(),
            service_account: (*self.account).into(),
            service_account_uid: uid,
        });
        let token = Token {
            audience: AUDIENCE.into(),
            expires_at: Wall::from_millis(now.as_millis() + TOKEN_LIFE_MS),
            jwt: SecretBytes::new(claims.to_string().into_bytes()),
        };
        let proof = Credentials::new(vec![token], BTreeMap::new());
        Arc::new((identity, proof))
    }
}

/// What a pod wants: `STORE-PATH-ROLE` names the file and what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wants {
    pub files: BTreeSet<(&'static str, &'static str, &'static str)>,
    pub interval: Duration,
}

impl Wants {
    pub fn text(&self, fault: Option<Fault>) -> Arc<str> {
        let times = match fault {
            Some(Fault::ForgetsTheAge) => 2,
            _ => 1,
        };
        let seconds = self.interval.as_secs() * times;
        // what goes when a right is taken away is looked at in `volume::denied`
        let mut text = format!("refreshInterval: {seconds}s\nonDenied: keep\nfiles:\n");
        for (store, path, role) in &self.files {
            text += &format!(
                "- {{path: {store}-{path}-{role}, from: {{backend: {store}, path: {path}, role: {role}}}}}\n"
            );
        }
        text.into()
    }
}

/// A publish under way.
pub struct Call {
    pub at: Mono,
    /// The stores' number of it.
    pub moment: u64,
    /// Of the proof that it brings.
    pub serial: u64,
    pub who: Who,
    pub wants: Wants,
    /// Of the stores, when it was made.
    pub epochs: [u64; 2],
    pub answer: JoinHandle<Result<Published>>,
}

pub struct Pod {
    /// Its volume's name.
    pub id: String,
    /// As whom it was served last.
    pub who: Who,
    pub wants: Wants,
    pub is_served: bool,
    pub call: Option<Call>,
    pub shown: BTreeMap<String, Value>,
    /// The call under way has shown it what was not for whom it was served before.
    pub has_moved: bool,
}

impl Pod {
    pub fn request(&self, wants: &Wants, caller: Caller, fault: Option<Fault>) -> PublishRequest {
        PublishRequest {
            id: volume(&self.id),
            target: target(&self.id),
            spec: AskedSpec::Raw(wants.text(fault)),
            caller,
            placing: Placing::default(),
        }
    }

    /// As whom it asks and for what; before it is served, as it did first.
    pub fn asks(&self) -> (Who, Wants) {
        (self.who.clone(), self.wants.clone())
    }

    /// The call is answered; whether what it asks for is served from now on.
    pub fn answered(&mut self, call: Call, result: &Result<Published>) -> bool {
        self.has_moved = false;
        let is_taken = matches!(result, Ok(published) if published.refused.is_none());
        if is_taken {
            (self.who, self.wants, self.is_served) = (call.who, call.wants, true);
        }
        is_taken
    }

    /// Between two calls: what is shown is exactly what was asked for, for whom it was asked.
    pub fn is_consistent(&self) -> Result<(), String> {
        let names = self.wants.files.iter();
        let names: BTreeSet<String> = names.map(|(s, p, r)| format!("{s}-{p}-{r}")).collect();
        let shown: BTreeSet<String> = self.shown.keys().cloned().collect();
        if self.is_served && names != shown {
            return Err(format!(
                "files: {} wants {names:?}, sees {shown:?}",
                self.id
            ));
        }
        match self.shown.values().find(|value| !self.who.owns(value)) {
            Some(value) => Err(format!("principal: {:?} is shown {value:?}", self.who)),
            None => Ok(()),
        }
    }
}
