//! What a pod's author is told of a volume by Events.
//!
//! A denial at once; that a volume cannot be kept current once that has lasted for [`limits::WARN_INTERVAL`], because most outages are shorter and the
//! files are there; and the end of what was told. `waiting_for_token` is nobody's trouble: the kubelet brings one.

use super::{
    VolumeState,
    status::{Failure, state},
    task::Task,
    withdraw::Fate,
};
use crate::{
    caller::Identity,
    clock::{Mono, Wall},
    error::codes,
    limits,
    observe::events::Event,
};

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
        let reason = match state(false, false, Some(failure)) {
            VolumeState::Denied => "SecretAccessDenied",
            VolumeState::Stale if lasted >= limits::WARN_INTERVAL => "SecretStale",
            _ => return,
        };
        let (error, code) = (&failure.error, failure.error.code());
        let wall = self.shared.clock.wall();
        let since = self.told_since.get_or_insert_with(|| {
            let lasted = i64::try_from(lasted.as_millis()).unwrap_or(i64::MAX);
            Wall::from_millis(wall.as_millis().saturating_sub(lasted)).to_rfc3339()
        });
        let fate = self.served.as_ref().map(|served| served.fate(failure));
        let kept = match fate {
            Some(Fate::Until(at)) => {
                let left = i64::try_from(at.since(now).as_millis()).unwrap_or(i64::MAX);
                let at = Wall::from_millis(wall.as_millis().saturating_add(left)).to_rfc3339();
                format!("the files are kept as they were, those of what is refused until {at}")
            }
            Some(Fate::Gone) => {
                "the files of what is refused are removed, all others kept as they were".to_owned()
            }
            Some(Fate::Stay) | None => "the files are kept as they were".to_owned(),
        };
        let message = format!(
            "{kept}; not current since {since}: {error}. {} [{}]",
            code.fix, code.name
        );
        self.tell_pod(reason, message);
    }

    /// Nothing is wrong with it any more.
    pub fn tell_recovery(&mut self) {
        if let Some(since) = self.told_since.take() {
            let message = format!("the files are current again; they were not since {since}");
            self.event("SecretCurrent", message, true);
        }
    }
}
