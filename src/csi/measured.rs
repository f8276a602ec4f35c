//! Measures each call, whatever becomes of it: it is answered, its caller gives up, or its handler panics.

use std::{sync::Arc, thread};

use hyper::{Request, Response};
use tonic::{Code, body::Body};

use crate::{
    clock::{Clock, Mono},
    csi::log::RpcLog,
    error::{Error, codes},
    observe::metrics::{
        Metrics,
        table::{METHODS, OTHER},
    },
};

/// Where calls are measured, if anywhere.
#[derive(Clone, Default)]
pub(super) struct Measured(Option<Arc<Place>>);

struct Place {
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    /// For calls that no handler sees.
    log: RpcLog,
}

/// One call, from its beginning to its drop.
pub(super) struct Measuring {
    way: Measured,
    method: Option<&'static str>,
    started: Mono,
    answered: Option<Code>,
}

impl Measured {
    pub fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let log = RpcLog::new(clock.clone()).counting(metrics.clone());
        Self(Some(Arc::new(Place {
            clock,
            metrics,
            log,
        })))
    }

    pub fn begin<B>(&self, request: &Request<B>) -> Measuring {
        let name = request.uri().path().split('/').nth(2);
        let now = self.0.as_ref().map(|place| place.clock.now());
        Measuring {
            way: self.clone(),
            method: METHODS.iter().copied().find(|one| Some(*one) == name),
            started: now.unwrap_or(Mono::from_nanos(0)),
            answered: None,
        }
    }

    /// A call has this answer, because of this error, before any handler saw it.
    pub fn refused<B>(&self, request: &Request<B>, answer: &Response<Body>, error: &Error) {
        let measuring = self.begin(request);
        if let Some(place) = &self.0 {
            let method = measuring.method.unwrap_or(OTHER);
            place.log.begin(method).failed(error);
        }
        measuring.answered(answer);
    }
}

impl Measuring {
    /// An error's code stands in the answer's head; the answer to a call that went well says so in its trailers, which need no look.
    pub fn answered(mut self, answer: &Response<Body>) {
        let status = answer.headers().get("grpc-status");
        let code = status.map(|status| Code::from_bytes(status.as_bytes()));
        self.answered = Some(code.unwrap_or(Code::Ok));
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        let Some(place) = &self.way.0 else {
            return;
        };
        let code = self.answered.unwrap_or_else(|| {
            if thread::panicking() {
                place.metrics.failed(&codes::BUG);
                Code::Internal
            } else {
                Code::Cancelled
            }
        });
        let took = place.clock.now().since(self.started);
        place.metrics.call(self.method, code as usize, took);
    }
}
