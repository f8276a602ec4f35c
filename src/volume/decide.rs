//! What to do when somebody calls: the whole idempotency table, pure.
//!
//! Three things are compared: what is asked, what is on record of the volume (in its task's memory; on disk when the task is
//! new), and what the kernel shows. Where record and kernel differ the kernel is right.

use crate::{
    error::{Code, codes},
    mount::{Probe, VolumeId},
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

/// What is on record of a volume, beside what is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remembered {
    /// Nothing.
    Nothing,
    /// A former process's publish, which may have ended before its mount was attached.
    Begun,
    /// What is asked: the same text for the same caller of the same backends. In a restore: a publish that was answered.
    Same,
    /// Something else. Another caller's volume is not the same content, whatever its text.
    Other,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Publish a spec at the target.
    Publish,
    /// Publish at another target than the one that is served, or with another group or context.
    PublishElsewhere,
    /// Unpublish the target.
    Unpublish,
    /// Go on with what a former process left: once, before the first call.
    Restore,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Decision {
    /// Fetch, render, mount.
    Mount,
    /// All is as asked: take the credentials, answer.
    Keep,
    /// Fetch what is new, render, replace the files.
    Update,
    /// The mount has gone: bring it back, then decide again.
    Reattach,
    /// Take a former process's mount over as it is, and complete it when the sources are known.
    Adopt,
    /// Serve a mount of which nothing is known as it is: a running pod may read it, and the next publish says whose it is.
    Hold,
    /// A pod may be running without its mount: go on, so that the next publish mounts anew and says so.
    Lose,
    /// Take the mount down.
    Unmount,
    /// There is nothing of ours to serve or take down; a record goes.
    Forget,
    /// Do nothing, and say why.
    Refuse(&'static Code),
}

/// Decides.
///
/// A publish that was under way when we died (`Begun`) and attached nothing is forgotten: its caller never heard an answer, so no
/// container runs on it. One that was answered is not: somebody has unmounted it since, and who reads it should be told.
pub fn decide(call: Call, phase: Phase, record: Remembered, seen: Seen) -> Decision {
    use {Call as C, Decision as D, Phase as P, Remembered as R, Seen as S};
    match (call, phase, record, seen) {
        (C::Unpublish, _, _, S::Ours | S::Absent) => D::Unmount, // absent: the directory may still have to go
        (C::Unpublish, _, _, S::Another | S::Foreign) => D::Forget, // not ours to undo

        (C::Publish | C::PublishElsewhere, P::Closing, _, _) => D::Refuse(&codes::VOLUME_CLOSED),
        (C::Publish | C::PublishElsewhere, P::Publishing, _, _) => D::Refuse(&codes::MOUNT_BUSY),
        (C::PublishElsewhere, P::New | P::Serving, _, _) => D::Refuse(&codes::VOLUME_ELSEWHERE),
        (C::Publish, P::New | P::Serving, _, S::Foreign) => D::Refuse(&codes::MOUNT_FOREIGN),
        (C::Publish, P::New | P::Serving, _, S::Another) => D::Refuse(&codes::MOUNT_HELD),
        (C::Publish, P::New, _, S::Absent) => D::Mount, // on record or not: it is not there
        (C::Publish, P::New, _, S::Ours) => D::Adopt,
        (C::Publish, P::Serving, _, S::Absent) => D::Reattach,
        (C::Publish, P::Serving, R::Same, S::Ours) => D::Keep,
        (C::Publish, P::Serving, R::Nothing | R::Begun | R::Other, S::Ours) => D::Update,

        (C::Restore, P::Publishing | P::Serving | P::Closing, _, _) => D::Keep, // a call came first, and knows better
        (C::Restore, P::New, R::Nothing, S::Ours) => D::Hold,
        (C::Restore, P::New, R::Begun | R::Same | R::Other, S::Ours) => D::Adopt,
        (C::Restore, P::New, R::Same | R::Other, S::Absent | S::Another | S::Foreign) => D::Lose,
        (C::Restore, P::New, R::Nothing | R::Begun, S::Absent | S::Another | S::Foreign) => {
            D::Forget
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Call as C, Decision as D, Phase as P, Remembered as R, Seen as S, *};

    const UNDO: [D; 4] = [D::Unmount, D::Unmount, D::Forget, D::Forget];
    const HELD: D = D::Refuse(&codes::MOUNT_HELD);
    const FOREIGN: D = D::Refuse(&codes::MOUNT_FOREIGN);
    const FIRST: [D; 4] = [D::Mount, D::Adopt, HELD, FOREIGN];
    const UPDATE: [D; 4] = [D::Reattach, D::Update, HELD, FOREIGN];
    const SAME: [D; 4] = [D::Reattach, D::Keep, HELD, FOREIGN];
    const BUSY: [D; 4] = [D::Refuse(&codes::MOUNT_BUSY); 4];
    const CLOSED: [D; 4] = [D::Refuse(&codes::VOLUME_CLOSED); 4];
    const ELSEWHERE: [D; 4] = [D::Refuse(&codes::VOLUME_ELSEWHERE); 4];
    const KNOWN: [D; 4] = [D::Keep; 4];
    const UNKNOWN: [D; 4] = [D::Forget, D::Hold, D::Forget, D::Forget];
    const BEGUN: [D; 4] = [D::Forget, D::Adopt, D::Forget, D::Forget];
    const ANSWERED: [D; 4] = [D::Lose, D::Adopt, D::Lose, D::Lose];

    /// For each call and phase: by record (nothing, begun, same, other), then by what is seen (absent, ours, another, foreign).
    #[rustfmt::skip]
    const TABLE: [(C, P, [[D; 4]; 4]); 16] = [
        (C::Publish, P::New, [FIRST, FIRST, FIRST, FIRST]),
        (C::Publish, P::Publishing, [BUSY, BUSY, BUSY, BUSY]),
        (C::Publish, P::Serving, [UPDATE, UPDATE, SAME, UPDATE]),
        (C::Publish, P::Closing, [CLOSED, CLOSED, CLOSED, CLOSED]),
        (C::PublishElsewhere, P::New, [ELSEWHERE, ELSEWHERE, ELSEWHERE, ELSEWHERE]),
        (C::PublishElsewhere, P::Publishing, [BUSY, BUSY, BUSY, BUSY]),
        (C::PublishElsewhere, P::Serving, [ELSEWHERE, ELSEWHERE, ELSEWHERE, ELSEWHERE]),
        (C::PublishElsewhere, P::Closing, [CLOSED, CLOSED, CLOSED, CLOSED]),
        (C::Unpublish, P::New, [UNDO, UNDO, UNDO, UNDO]),
        (C::Unpublish, P::Publishing, [UNDO, UNDO, UNDO, UNDO]),
        (C::Unpublish, P::Serving, [UNDO, UNDO, UNDO, UNDO]),
        (C::Unpublish, P::Closing, [UNDO, UNDO, UNDO, UNDO]),
        (C::Restore, P::New, [UNKNOWN, BEGUN, ANSWERED, ANSWERED]),
        (C::Restore, P::Publishing, [KNOWN, KNOWN, KNOWN, KNOWN]),
        (C::Restore, P::Serving, [KNOWN, KNOWN, KNOWN, KNOWN]),
        (C::Restore, P::Closing, [KNOWN, KNOWN, KNOWN, KNOWN]),
    ];

    #[test]
    fn what_the_kernel_shows_wins_over_what_we_remember() {
        let mut rows = 0;
        for (call, phase, by_record) in TABLE {
            let records = [R::Nothing, R::Begun, R::Same, R::Other];
            for (record, by_seen) in records.into_iter().zip(by_record) {
                let shown = [S::Absent, S::Ours, S::Another, S::Foreign];
                for (seen, expect) in shown.into_iter().zip(by_seen) {
                    let got = decide(call, phase, record, seen);
                    assert_eq!(got, expect, "{call:?} {phase:?} {record:?} {seen:?}");
                    rows += 1;
                }
            }
        }
        assert_eq!(rows, 4 * 4 * 4 * 4);
    }

    #[test]
    fn another_volumes_mount_is_not_ours() {
        let (me, other) = (id("a"), id("b"));
        let ours = |volume| Probe::Ours {
            kind: crate::spec::MountKind::Tmpfs,
            volume,
            layers: 1,
            altered: None,
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
