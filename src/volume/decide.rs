//! What to do when somebody calls: the whole idempotency table, pure.
//!
//! Three things are compared: what is asked, what this task remembers, and what the kernel shows. Where memory and kernel
//! differ the kernel is right.

use crate::{
    error::{Code, codes},
    mount::{Probe, VolumeId},
    spec::Digest,
};

/// Where a volume's task stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It serves nothing yet: the first call, or the first since a restart.
    New,
    /// A publish waits for its sources.
    Publishing,
    /// It serves a mount.
    Serving,
    /// An unpublish has begun and could not be finished.
    Closing,
}

/// What is at the target, as far as it matters to this volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// No mount.
    Absent,
    /// Ours, of this volume.
    Ours,
    /// Ours, of another volume.
    Another,
    /// Somebody else's.
    Foreign,
}

impl Seen {
    /// Reads a probe with the eyes of volume `id`.
    pub fn of(probe: &Probe, id: &VolumeId) -> Self {
        match probe {
            Probe::Absent => Seen::Absent,
            Probe::Ours { volume, .. } if volume == id => Seen::Ours,
            Probe::Ours { .. } => Seen::Another,
            Probe::Foreign => Seen::Foreign,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Publish this spec at the target.
    Publish(Digest),
    /// Publish at another target than the one that is served.
    PublishElsewhere,
    /// Unpublish the target.
    Unpublish,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Decision {
    /// Fetch, render, mount.
    Mount,
    /// All is as asked: take the credentials, answer.
    Keep,
    /// Wait together with the publish that is under way.
    Join,
    /// Fetch what is new, render, replace the files.
    Update,
    /// Take a former process's mount over as it is, and complete it when the sources are known.
    Adopt,
    /// Take the mount down.
    Unmount,
    /// There is nothing of ours to take down.
    Forget,
    /// Do nothing, and say why.
    Refuse(&'static Code),
}

/// Decides. `remembered` is the spec that is served or being published, if it is asked for by the same caller of the same
/// backends; another caller's is not the same volume's content, whatever its text.
pub fn decide(call: Call, phase: Phase, remembered: Option<Digest>, seen: Seen) -> Decision {
    use {Call as C, Decision as D, Phase as P, Seen as S};
    match (call, phase, seen) {
        (C::Unpublish, _, S::Ours | S::Absent) => D::Unmount, // absent: the directory may still have to go
        (C::Unpublish, _, S::Another | S::Foreign) => D::Forget, // not ours to undo
        (C::Publish(_) | C::PublishElsewhere, P::Closing, _) => D::Refuse(&codes::VOLUME_CLOSED),
        (C::PublishElsewhere, P::New | P::Publishing | P::Serving, _) => {
            D::Refuse(&codes::MOUNT_HELD)
        }
        (C::Publish(_), P::New | P::Publishing | P::Serving, S::Foreign) => {
            D::Refuse(&codes::MOUNT_FOREIGN)
        }
        (C::Publish(_), P::New | P::Publishing | P::Serving, S::Another) => {
            D::Refuse(&codes::MOUNT_HELD)
        }
        (C::Publish(new), P::Publishing, S::Absent | S::Ours) => match remembered {
            Some(old) if old == new => D::Join,
            _ => D::Refuse(&codes::MOUNT_BUSY),
        },
        (C::Publish(_), P::New | P::Serving, S::Absent) => D::Mount, // remembered or not: it is not there
        (C::Publish(_), P::New, S::Ours) => D::Adopt,
        (C::Publish(new), P::Serving, S::Ours) => match remembered {
            Some(old) if old == new => D::Keep,
            _ => D::Update,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{Call as C, Decision as D, Phase as P, Seen as S, *};

    const A: Digest = Digest([1; 32]);
    const B: Digest = Digest([2; 32]);

    #[test]
    fn what_the_kernel_shows_wins_over_what_we_remember() {
        let publish = C::Publish;
        let rows = [
            (publish(A), P::New, None, S::Absent, D::Mount),
            (publish(A), P::New, None, S::Ours, D::Adopt),
            (publish(A), P::New, Some(A), S::Absent, D::Mount),
            (publish(A), P::New, Some(A), S::Ours, D::Adopt),
            (publish(A), P::New, Some(B), S::Absent, D::Mount),
            (publish(A), P::New, Some(B), S::Ours, D::Adopt),
            (publish(A), P::Publishing, Some(A), S::Absent, D::Join),
            (publish(A), P::Publishing, Some(A), S::Ours, D::Join),
            (publish(A), P::Serving, None, S::Absent, D::Mount),
            (publish(A), P::Serving, None, S::Ours, D::Update),
            (publish(A), P::Serving, Some(A), S::Absent, D::Mount),
            (publish(A), P::Serving, Some(A), S::Ours, D::Keep),
            (publish(A), P::Serving, Some(B), S::Absent, D::Mount),
            (publish(A), P::Serving, Some(B), S::Ours, D::Update),
        ];
        for (call, phase, remembered, seen, expect) in rows {
            let got = decide(call, phase, remembered, seen);
            assert_eq!(got, expect, "{call:?} {phase:?} {remembered:?} {seen:?}");
        }
    }

    #[test]
    fn every_other_combination_is_refused_or_undone() {
        let mut refused = 0;
        for phase in [P::New, P::Publishing, P::Serving, P::Closing] {
            for remembered in [None, Some(A), Some(B)] {
                for seen in [S::Absent, S::Ours, S::Another, S::Foreign] {
                    let told = format!("{phase:?} {remembered:?} {seen:?}");
                    let undo = match seen {
                        S::Absent | S::Ours => D::Unmount,
                        S::Another | S::Foreign => D::Forget,
                    };
                    assert_eq!(
                        decide(C::Unpublish, phase, remembered, seen),
                        undo,
                        "{told}"
                    );
                    for call in [C::Publish(A), C::PublishElsewhere] {
                        let code = match (call, phase, seen) {
                            (_, P::Closing, _) => &codes::VOLUME_CLOSED,
                            (C::PublishElsewhere, ..) => &codes::MOUNT_HELD,
                            (_, _, S::Foreign) => &codes::MOUNT_FOREIGN,
                            (_, _, S::Another) => &codes::MOUNT_HELD,
                            (_, P::Publishing, _) if remembered != Some(A) => &codes::MOUNT_BUSY,
                            _ => continue,
                        };
                        let got = decide(call, phase, remembered, seen);
                        assert_eq!(got, D::Refuse(code), "{call:?} {told}");
                        refused += 1;
                    }
                }
            }
        }
        // 96 combinations of a publish, of which the 14 rows above, and their 0 repetitions, are not refused
        assert_eq!(refused, 96 - 14);
    }

    #[test]
    fn another_volumes_mount_is_not_ours() {
        let (me, other) = (id("a"), id("b"));
        let ours = |volume| Probe::Ours {
            kind: crate::spec::MountKind::Tmpfs,
            volume,
            layers: 1,
        };
        assert_eq!(Seen::of(&ours(me.clone()), &me), S::Ours);
        assert_eq!(Seen::of(&ours(other), &me), S::Another);
        assert_eq!(Seen::of(&Probe::Absent, &me), S::Absent);
        assert_eq!(Seen::of(&Probe::Foreign, &me), S::Foreign);
    }

    fn id(text: &str) -> VolumeId {
        VolumeId::parse(text).unwrap()
    }
}
