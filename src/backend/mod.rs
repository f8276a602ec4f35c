//! Talks to one kind of store. Asks once and says what came; knows no path, mode, schedule, cache, metric or retry.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{
    caller::{AsksAs, Credentials, Identity},
    clock::{Clock, Mono},
    error::{Error, Result, codes},
    limits,
    secret::{Lease, Object},
    spec::{ObjectRef, Problem},
};

/// What every request carries.
pub struct Cx {
    /// When the answer is of no use any more.
    pub deadline: Mono,
    /// When nobody wants it any more.
    pub cancel: CancellationToken,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What is asked.
pub struct Want<'a> {
    /// For this.
    pub object: &'a ObjectRef,
    /// By him.
    pub who: &'a Identity,
    /// Who proves it so.
    pub proof: &'a Credentials,
    /// The last good object: for NotModified, to keep a key, to see that a lagging replica went back.
    pub have: Option<&'a Object>,
}

/// An answer.
#[derive(Debug)]
pub enum Fetched {
    /// As `have`.
    NotModified,
    /// This.
    Object(Object),
}

/// How a backend may be asked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Pace {
    /// Over a network, beside many other nodes: few at once, and a limited rate.
    #[default]
    Remote,
    /// The same, with limits that the configuration names.
    Within(Allowance),
    /// On this machine: as fast as it answers. Its watch begins at once, and tells so by a first hint.
    Local,
}

/// How much one node may ask of one backend. Renewals and revocations of leases count; logins do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    /// Requests a second, in the long run.
    pub per_second: u32,
    /// Requests at once, after a rest.
    pub burst: u32,
    /// Requests in flight.
    pub in_flight: u32,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            per_second: limits::BACKEND_PER_SECOND,
            burst: limits::BACKEND_BURST,
            in_flight: limits::BACKEND_IN_FLIGHT,
        }
    }
}

/// One kind of store.
#[async_trait]
pub trait Backend: Send + Sync {
    /// No I/O; the same code with which `fetch` reads `object`.
    fn check(&self, object: &ObjectRef) -> Result<(), Problem>;
    /// No I/O. `Node` means: the node's policy must allow the caller first.
    fn asks_as(&self, object: &ObjectRef) -> AsksAs;
    /// Is never dropped halfway (a dropped `database/creds` is a lease that nobody knows): returns by itself soon after
    /// `cx.cancel` or `cx.deadline`. Throttled: Unavailable with retry_after. Gone: SecretNotFound.
    async fn fetch(&self, cx: &Cx, want: Want<'_>) -> Result<Fetched>;
    /// Renews its own login on the way. An `expires_at` that moves no more means: fetch anew in time.
    async fn renew(&self, _cx: &Cx, _lease: &Lease) -> Result<Lease> {
        Err(Error::new(&codes::BUG).detail("this backend's leases are not renewable"))
    }
    /// Idempotent: unknown to the store is success.
    async fn revoke(&self, _cx: &Cx, _lease: &Lease) -> Result<()> {
        Ok(())
    }
    /// The audience of the kubelet's tokens that it shows to its store: that token is the only one it takes.
    fn audience(&self) -> Option<&str> {
        None
    }
    /// Whether its objects have versions, so that an `@` in a reference means one.
    fn has_versions(&self) -> bool {
        true
    }
    /// How it may be asked.
    fn pace(&self) -> Pace {
        Pace::Remote
    }
    /// Whether `watch` tells of changes.
    fn pushes(&self, _object: &ObjectRef) -> bool {
        false
    }
    /// Runs until cancelled or broken. A hint means "fetch soon" and carries no value.
    async fn watch(
        &self,
        _cx: &Cx,
        _want: Want<'_>,
        _hint: &(dyn Fn() + Send + Sync),
    ) -> Result<()> {
        Ok(())
    }
}

pub mod http;
pub mod instrumented;
pub mod login;
pub mod registry;
pub mod store;
pub mod vault;
