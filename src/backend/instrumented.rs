//! What every backend needs, written once around it: so far the log of each request.
//!
//! A value never comes here: what is logged is the reference, the outcome and how long it took.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    backend::{Backend, Cx, Fetched, Pace, Want},
    caller::AsksAs,
    clock::Mono,
    error::Result,
    secret::Lease,
    spec::{BackendName, ObjectRef, Problem},
};

/// A backend with its log.
pub struct Instrumented {
    name: BackendName,
    inner: Arc<dyn Backend>,
}

impl Instrumented {
    /// `inner`, known as `name`.
    pub fn new(name: BackendName, inner: Arc<dyn Backend>) -> Self {
        Self { name, inner }
    }

    fn log<T>(
        &self,
        cx: &Cx,
        started: Mono,
        operation: &'static str,
        result: &Result<T>,
        outcome: impl FnOnce(&T) -> String,
    ) {
        let (backend, took) = (&self.name, cx.clock.now().since(started));
        match result {
            Ok(value) => {
                let outcome = outcome(value);
                tracing::debug!(%backend, operation, outcome, ?took, "request done");
            }
            Err(error) => {
                let code = error.code().name;
                tracing::debug!(%backend, operation, code, %error, ?took, "request failed");
            }
        }
    }
}

/// Every method, so that a default never hides the inner one.
#[async_trait]
impl Backend for Instrumented {
    fn check(&self, object: &ObjectRef) -> Result<(), Problem> {
        self.inner.check(object)
    }

    fn asks_as(&self, object: &ObjectRef) -> AsksAs {
        self.inner.asks_as(object)
    }

    async fn fetch(&self, cx: &Cx, want: Want<'_>) -> Result<Fetched> {
        let (started, object) = (cx.clock.now(), want.object);
        let result = self.inner.fetch(cx, want).await;
        self.log(cx, started, "fetch", &result, |fetched| match fetched {
            Fetched::NotModified => format!("{object} not modified"),
            Fetched::Object(new) => format!("{object} version {}", new.version.as_str()),
        });
        result
    }

    async fn renew(&self, cx: &Cx, lease: &Lease) -> Result<Lease> {
        let started = cx.clock.now();
        let result = self.inner.renew(cx, lease).await;
        self.log(cx, started, "renew", &result, |lease| {
            format!("{:?} left", lease.expires_at.since(started))
        });
        result
    }

    async fn revoke(&self, cx: &Cx, lease: &Lease) -> Result<()> {
        let started = cx.clock.now();
        let result = self.inner.revoke(cx, lease).await;
        self.log(cx, started, "revoke", &result, |()| "revoked".into());
        result
    }

    fn has_versions(&self) -> bool {
        self.inner.has_versions()
    }

    fn pace(&self) -> Pace {
        self.inner.pace()
    }

    fn pushes(&self, object: &ObjectRef) -> bool {
        self.inner.pushes(object)
    }

    async fn watch(&self, cx: &Cx, want: Want<'_>, hint: &(dyn Fn() + Send + Sync)) -> Result<()> {
        let (started, object) = (cx.clock.now(), want.object);
        let backend = &self.name;
        let told = || {
            tracing::trace!(%backend, %object, "a watch tells of a change");
            hint();
        };
        let result = self.inner.watch(cx, want, &told).await;
        self.log(cx, started, "watch", &result, |()| {
            format!("{object} ended")
        });
        result
    }
}
