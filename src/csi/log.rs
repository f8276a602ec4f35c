//! One log event for the outcome of each call: what happens with every republish at `debug`, what changes something at `info`, what fails at
//! `warn`, and not more of those in a minute than somebody can read.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    clock::{Clock, Mono},
    error::Error,
    limits,
    observe::{
        metrics::Metrics,
        patience::{Allowed, Patience, Verdict},
    },
};

/// Warnings of a minute: for each pod that fails, and for all.
const ALLOWED: Allowed = Allowed {
    lines: limits::CSI_WARNINGS,
    repeated: limits::CSI_WARNINGS_REPEATED,
    of_one: limits::CSI_WARNINGS_OF_ONE,
};

/// Bytes of what tells one pod from another: a uid has 36.
const WHO_BYTES: usize = 128;

/// Where calls are logged.
pub struct RpcLog {
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    failures: Arc<Failures>,
}

/// One call, from its beginning.
pub(super) struct Call<'l> {
    log: &'l RpcLog,
    started: Mono,
    method: &'static str,
    /// "" if the call names none.
    pub volume: String,
    /// `namespace/pod`; "" as long as it is not known.
    pub pod: String,
    /// Whose failure it would be: the pod's uid, as the kubelet says it; "" if it does not.
    who: String,
    told: bool,
}

/// Failures, told and untold. What is untold at the end is told then.
struct Failures(Mutex<Patience<String>>);

impl RpcLog {
    /// With the time of this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            metrics: Metrics::default(),
            failures: Arc::new(Failures(Mutex::new(Patience::new(ALLOWED)))),
        }
    }

    /// And counts failures there.
    pub fn counting(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// A call was answered with this error, which is not worth a line.
    pub(super) fn count(&self, error: &Error) {
        self.metrics.failed(error.code());
    }

    pub(super) fn begin(&self, method: &'static str) -> Call<'_> {
        Call {
            log: self,
            started: self.clock.now(),
            method,
            volume: String::new(),
            pod: String::new(),
            who: String::new(),
            told: false,
        }
    }

    /// Waits, without keeping the log: it tells the rest itself when it ends.
    fn tell_rest_at(&self, at: Mono) {
        let (clock, failures) = (self.clock.clone(), Arc::downgrade(&self.failures));
        tokio::spawn(async move {
            clock.sleep_until(at).await;
            if let Some(failures) = failures.upgrade() {
                failures.tell_rest();
            }
        });
    }
}

impl Failures {
    fn patience(&self) -> MutexGuard<'_, Patience<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_rest(&self) {
        let rest = self.patience().rest();
        if let Some(calls) = rest {
            tracing::warn!(calls, "more CSI calls have failed; each is told at `debug`");
        }
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.tell_rest();
    }
}

impl Call<'_> {
    /// Where the volume is to be, which the kubelet says: below the directory of its pod.
    pub fn at(&mut self, target: &str) {
        let uid = target.split("/pods/").nth(1).unwrap_or_default();
        let uid = uid.split('/').next().unwrap_or_default();
        self.who = uid.chars().take(WHO_BYTES).collect();
    }

    fn ms(&self) -> u64 {
        let taken = self.log.clock.now().since(self.started);
        u64::try_from(taken.as_millis()).unwrap_or(u64::MAX)
    }

    /// It changed something.
    pub fn done(&mut self) {
        self.told = true;
        let (method, volume_id, pod, ms) = (self.method, &*self.volume, &*self.pod, self.ms());
        tracing::info!(method, volume_id, pod, ms, "a CSI call was answered");
    }

    /// It changed nothing.
    pub fn repeated(&mut self) {
        self.told = true;
        let (method, volume_id, pod, ms) = (self.method, &*self.volume, &*self.pod, self.ms());
        tracing::debug!(method, volume_id, pod, ms, "a CSI call changed nothing");
    }

    /// It failed.
    pub fn failed(&mut self, error: &Error) {
        self.told = true;
        let (method, volume_id, pod, ms) = (self.method, &*self.volume, &*self.pod, self.ms());
        self.log.count(error);
        let code = error.code().name;
        let (now, who) = (self.log.clock.now(), std::mem::take(&mut self.who));
        let verdict = self.log.failures.patience().failed(now, who);
        match verdict {
            Verdict::Tell => {
                tracing::warn!(method, volume_id, pod, code, ms, %error, "a CSI call failed");
            }
            Verdict::Count(wake) => {
                tracing::debug!(method, volume_id, pod, code, ms, %error, "a CSI call failed");
                if let Some(at) = wake {
                    self.log.tell_rest_at(at);
                }
            }
        }
    }

    /// The answer is an error that is no news: somebody asked for what is not here.
    pub fn unknown(&mut self, error: &Error) {
        self.told = true;
        let (method, code, ms) = (self.method, error.code().name, self.ms());
        tracing::debug!(method, code, ms, %error, "a CSI call asks for what is not here");
    }
}

impl Drop for Call<'_> {
    /// Its caller has not waited for the outcome.
    fn drop(&mut self) {
        if !self.told && !std::thread::panicking() {
            let (method, volume_id, pod, ms) = (self.method, &*self.volume, &*self.pod, self.ms());
            tracing::info!(
                method,
                volume_id,
                pod,
                ms,
                "the caller of a CSI call gave up"
            );
        }
    }
}
