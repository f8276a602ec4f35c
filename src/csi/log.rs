//! One log event for the outcome of each call: what happens with every republish at `debug`, what changes something at `info`, what fails at
//! `warn`, and not more of those in a minute than somebody can read.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    clock::{Clock, Mono},
    error::Error,
    limits,
};

/// Where calls are logged.
pub struct RpcLog {
    clock: Arc<dyn Clock>,
    patience: Mutex<Patience>,
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
    told: bool,
}

/// How many failures have been told lately. Pure.
#[derive(Default)]
struct Patience {
    minute: Option<Mono>,
    told: u32,
    untold: u64,
}

impl RpcLog {
    /// With the time of this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            patience: Mutex::default(),
        }
    }

    pub(super) fn begin(&self, method: &'static str) -> Call<'_> {
        Call {
            log: self,
            started: self.clock.now(),
            method,
            volume: String::new(),
            pod: String::new(),
            told: false,
        }
    }
}

impl Call<'_> {
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
        let code = error.code().name;
        let mut patience = self
            .log
            .patience
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let told = patience.failed(self.log.clock.now());
        drop(patience);
        match told {
            Some(untold) => {
                tracing::warn!(method, volume_id, pod, code, ms, untold, %error, "a CSI call failed");
            }
            None => {
                tracing::debug!(method, volume_id, pod, code, ms, %error, "a CSI call failed");
            }
        }
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

impl Patience {
    /// `Some`: tell it, and that so many were not told before it.
    fn failed(&mut self, now: Mono) -> Option<u64> {
        let same_minute = self
            .minute
            .is_some_and(|minute| now.since(minute) < limits::WARN_INTERVAL);
        if !same_minute {
            (self.minute, self.told) = (Some(now), 0);
        }
        if self.told == limits::CSI_WARNINGS {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_warnings_and_the_next_one_counts_the_rest() {
        let mut patience = Patience::default();
        let at = |seconds: u64| Mono::from_nanos(seconds * 1_000_000_000);
        for _ in 0..limits::CSI_WARNINGS {
            assert_eq!(patience.failed(at(7)), Some(0));
        }
        assert_eq!(patience.failed(at(8)), None);
        assert_eq!(patience.failed(at(66)), None);
        assert_eq!(patience.failed(at(67)), Some(2));
        assert_eq!(patience.failed(at(67)), Some(0));
    }
}
