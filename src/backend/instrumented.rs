//! What every backend needs, written once around it: the log of each request, and its metrics.
//!
//! A value never comes here: what is logged is the reference, the outcome and how long it took; what is counted has no reference
//! either.

use std::{sync::Arc, thread};

use async_trait::async_trait;

use crate::{
    backend::{Backend, Cx, Fetched, Pace, Want},
    caller::AsksAs,
    clock::{Clock, Mono},
    error::{Result, codes},
    observe::metrics::{BackendMeter, End, Operation},
    secret::Lease,
    spec::{BackendName, ObjectRef, Problem},
};

/// A backend with its log and its meter.
pub struct Instrumented {
    name: BackendName,
    inner: Arc<dyn Backend>,
    meter: Arc<BackendMeter>,
}

/// One request, from its beginning to its drop.
struct Request<'i> {
    of: &'i Instrumented,
    clock: &'i dyn Clock,
    operation: Operation,
    started: Mono,
    /// `None`: not yet, or it was dropped halfway, as in a panic.
    end: Option<End>,
}

impl Instrumented {
    /// `inner`, known as `name` and counted by `meter`.
    pub fn new(name: BackendName, inner: Arc<dyn Backend>, meter: Arc<BackendMeter>) -> Self {
        Self { name, inner, meter }
    }

    fn begin<'i>(&'i self, cx: &'i Cx, operation: Operation) -> Request<'i> {
        Request {
            of: self,
            clock: &*cx.clock,
            operation,
            started: cx.clock.now(),
            end: None,
        }
    }
}

impl Request<'_> {
    /// `outcome`: how it is counted, and how it is logged.
    fn ended<T>(mut self, result: &Result<T>, outcome: impl FnOnce(&T) -> (End, String)) {
        let took = self.clock.now().since(self.started);
        let (backend, operation) = (&self.of.name, self.operation.name());
        match result {
            Ok(value) => {
                let (end, outcome) = outcome(value);
                self.end = Some(end);
                tracing::debug!(%backend, operation, outcome, ?took, "request done");
            }
            Err(error) => {
                let code = error.code();
                self.end = Some(End::Failed(code));
                tracing::debug!(%backend, operation, code = code.name, %error, ?took, "request failed");
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let dropped = match thread::panicking() {
            true => &codes::BUG,
            false => &codes::BACKEND_CANCELLED,
        };
        let end = self.end.unwrap_or(End::Failed(dropped));
        let took = self.clock.now().since(self.started);
        self.of.meter.request(self.operation, end, took);
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
        let (request, object) = (self.begin(cx, Operation::Fetch), want.object);
        let result = self.inner.fetch(cx, want).await;
        request.ended(&result, |fetched| match fetched {
            Fetched::NotModified => (End::NotModified, format!("{object} not modified")),
            Fetched::Object(new) => {
                let version = new.version.as_str();
                (End::Ok, format!("{object} version {version}"))
            }
        });
        result
    }

    async fn renew(&self, cx: &Cx, lease: &Lease) -> Result<Lease> {
        let (request, now) = (self.begin(cx, Operation::Renew), cx.clock.now());
        let result = self.inner.renew(cx, lease).await;
        request.ended(&result, |lease| {
            let left = lease.expires_at.since(now);
            (End::Ok, format!("{left:?} left"))
        });
        result
    }

    async fn revoke(&self, cx: &Cx, lease: &Lease) -> Result<()> {
        let request = self.begin(cx, Operation::Revoke);
        let result = self.inner.revoke(cx, lease).await;
        request.ended(&result, |()| (End::Ok, "revoked".into()));
        result
    }

    fn audience(&self) -> Option<&str> {
        self.inner.audience()
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
        let (request, object) = (self.begin(cx, Operation::Watch), want.object);
        let backend = &self.name;
        let told = || {
            tracing::trace!(%backend, %object, "a watch tells of a change");
            hint();
        };
        let result = self.inner.watch(cx, want, &told).await;
        request.ended(&result, |()| (End::Ok, format!("{object} ended")));
        result
    }
}
