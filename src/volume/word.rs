//! What a pod's author is told of a volume by Events.
//!
//! A denial at once; that a volume cannot be kept current once that has lasted for [`limits::WARN_INTERVAL`], because most outages are shorter and the
//! files are there; and the end of what was told. `waiting_for_token` is nobody's trouble: the kubelet brings one.

use super::{
    VolumeState,
    status::{Failure, state},
    task::Task,
};
use crate::{
    caller::Identity,
    clock::{Mono, Wall},
    error::codes,
    limits,
    observe::events::Event,
};

/// What the pod was told of the trouble that lasts.
#[derive(Default)]
pub(super) struct Told {
    /// Of a denial, of a store that cannot be read.
    denied: bool,
    stale: bool,
    /// When it began, for people. Always the same words, so that the same Event is not written again and again.
    since: String,
}

impl Task {
    /// An Event about the pod, if it is one's volume.
    pub fn tell_pod(&self, reason: &'static str, message: String) {
        self.event(reason, message, false);
    }

    fn event(&self, reason: &'static str, message: String, mended: bool) {
        if let Some(Identity::Pod(pod)) = self.owner() {
            self.shared.events.tell(Event {
                about: pod.clone(),
                reason,
                message,
                mended,
            });
        }
    }

    /// The volume is as this failure says.
    pub fn tell_trouble(&mut self, now: Mono, failure: &Failure) {
        let lost = [
            &codes::MOUNT_GONE,
            &codes::MOUNT_FOREIGN,
            &codes::MOUNT_ALTERED,
        ];
        if lost.contains(&failure.error.code()) {
            return; // the content is current; `SecretVolumeLost` says what to do, once there is another mount
        }
        let lasted = now.since(failure.since);
        let (reason, told) = match state(false, false, Some(failure)) {
            VolumeState::Denied => ("SecretAccessDenied", &mut self.told.denied),
            VolumeState::Stale if lasted >= limits::WARN_INTERVAL => {
                ("SecretStale", &mut self.told.stale)
            }
            _ => return,
        };
        *told = true;
        if self.told.since.is_empty() {
            let lasted = i64::try_from(lasted.as_millis()).unwrap_or(i64::MAX);
            let began = self.shared.clock.wall().as_millis().saturating_sub(lasted);
            self.told.since = Wall::from_millis(began).to_rfc3339();
        }
        let (error, code) = (&failure.error, failure.error.code());
        let since = &self.told.since;
        let message = format!(
            "the files are kept as they were; not current since {since}: {error}. {} [{}]",
            code.fix, code.name
        );
        self.tell_pod(reason, message);
    }

    /// Nothing is wrong with it any more.
    pub fn tell_recovery(&mut self) {
        let told = std::mem::take(&mut self.told);
        if told.denied || told.stale {
            let message = format!(
                "the files are current again; they were not since {}",
                told.since
            );
            self.event("SecretCurrent", message, true);
        }
    }
}
