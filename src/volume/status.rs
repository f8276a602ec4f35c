//! What is to be told of a volume, and how it reads at some moment.
//!
//! The task puts a [`Report`] on a channel whenever something of its own changes. What ages by itself (the sources' views,
//! "12 s ago") is read when somebody asks, from the sources' own channels: a hung fetch or a slow mount hides nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    clock::{Mono, Wall},
    error::{Error, ErrorKind, codes},
    mount::{Usage, VolumeId},
    render::Generation,
    secret::Version,
    source::SourceView,
    spec::MountKind,
    volume::{SourceStatus, StatusError, VolumeState, VolumeStatus, shown},
};

/// A failure, and since when.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub error: Arc<Error>,
    pub since: Mono,
}

/// What a task tells of its volume.
pub(super) struct Report {
    pub id: VolumeId,
    pub owner: String,
    pub target: String,
    pub mount: MountKind,
    pub generation: Generation,
    pub changed_at: Option<Wall>,
    pub lost: bool,
    pub adopted: bool,
    /// The volume's own: a render, a mount.
    pub failure: Option<Failure>,
    pub sources: Vec<SourceReport>,
    pub usage: Option<Usage>,
}

/// One source of it.
pub(super) struct SourceReport {
    pub reference: String,
    pub pushes: bool,
    /// As mounted.
    pub version: Option<Version>,
    /// Readers had it, and may not have it any more.
    pub removed: bool,
    pub view: watch::Receiver<SourceView>,
}

impl Report {
    /// What its sources show now.
    pub fn views(&self) -> impl Iterator<Item = SourceView> {
        self.sources.iter().map(|s| s.view.borrow().clone())
    }

    /// As it reads now, on a machine that booted then.
    pub fn at(&self, now: Mono, boot: Wall) -> VolumeStatus {
        let views: Vec<SourceView> = self.views().collect();
        let failure = trouble(self.failure.as_ref(), &views);
        let told = |failure: &Failure| StatusError {
            code: failure.error.code().name.to_owned(),
            message: failure.error.to_string(),
            since: Some(shown(told_at(failure.since, boot))),
        };
        let oldest = views.iter().map(|view| view.checked_at).min().flatten();
        let next = views.iter().filter_map(|view| view.next_at).min();
        VolumeStatus {
            id: self.id.to_string(),
            owner: self.owner.clone(),
            target: self.target.clone(),
            mount: self.mount,
            state: state(self.lost, self.adopted, failure.as_ref()),
            generation: self.generation.0,
            changed_at: self.changed_at.map(shown),
            checked_seconds_ago: oldest.map(|at| now.since(at).as_secs_f64()),
            next_in_seconds: next.map(|at| at.since(now).as_secs_f64()),
            error: failure.as_ref().map(told),
            sources: self
                .sources
                .iter()
                .zip(&views)
                .map(|(source, view)| SourceStatus {
                    reference: source.reference.clone(),
                    version: source.version.as_ref().map(|v| v.as_str().to_owned()),
                    removed: source.removed,
                    pushes: source.pushes && view.watch_error.is_none(),
                    error: failure_of(view)
                        .as_ref()
                        .map(told)
                        .or_else(|| unwatched(view)),
                })
                .collect(),
            usage: self.usage.map(Into::into),
        }
    }
}

/// A source without its watch is as good as before, but changes take longer to be seen: told beside it, not of the volume.
fn unwatched(view: &SourceView) -> Option<StatusError> {
    let error = view.watch_error.as_ref()?;
    Some(StatusError {
        code: error.code().name.to_owned(),
        message: error.to_string(),
        since: None,
    })
}

/// How far the two clocks may part before a moment reads otherwise than before: less than anybody sets a clock by, and much more than
/// the millisecond to which the wall clock is read.
const CLOCKS_AGREE: Duration = Duration::from_millis(500);

/// When the machine booted, by the wall clock; by it a moment of ours is told. It stands still until the wall clock is set, so that a
/// moment reads the same at each look.
pub(super) struct Boot(AtomicI64);

impl Boot {
    /// By these clocks.
    pub fn new(now: Mono, wall: Wall) -> Self {
        Self(AtomicI64::new(boot(now, wall)))
    }

    /// By these clocks, unless they differ from those before by next to nothing.
    pub fn at(&self, now: Mono, wall: Wall) -> Wall {
        let (before, read) = (self.0.load(Ordering::Relaxed), boot(now, wall));
        let apart = Duration::from_millis(before.abs_diff(read));
        if apart <= CLOCKS_AGREE {
            return Wall::from_millis(before);
        }
        self.0.store(read, Ordering::Relaxed);
        Wall::from_millis(read)
    }
}

fn boot(now: Mono, wall: Wall) -> i64 {
    wall.as_millis().saturating_sub(millis(now))
}

fn millis(at: Mono) -> i64 {
    i64::try_from(at.as_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// A moment, by a boot.
fn told_at(at: Mono, boot: Wall) -> Wall {
    Wall::from_millis(boot.as_millis().saturating_add(millis(at)))
}

/// So long before `wall`.
pub(super) fn ago(wall: Wall, age: Duration) -> Wall {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Wall::from_millis(wall.as_millis().saturating_sub(age))
}

/// Why a source is not as it should be.
pub(super) fn failure_of(view: &SourceView) -> Option<Failure> {
    let error = view.error.clone()?;
    Some(Failure {
        error,
        since: view.failing_since.unwrap_or(Mono::from_nanos(0)),
    })
}

/// What is to be told first: the volume's own failure, else that of the source that makes the worst state, and of those the one that has
/// failed longest.
pub(super) fn trouble(own: Option<&Failure>, views: &[SourceView]) -> Option<Failure> {
    let of_sources = || {
        views
            .iter()
            .filter_map(failure_of)
            .min_by_key(|failure| (rank(failure), failure.since))
    };
    own.cloned().or_else(of_sources)
}

/// Of failures: a denial first, a token that is late last.
fn rank(failure: &Failure) -> u8 {
    match state(false, false, Some(failure)) {
        VolumeState::Denied => 0,
        VolumeState::Lost | VolumeState::Stale => 1,
        VolumeState::WaitingForToken | VolumeState::Adopted | VolumeState::Fresh => 2,
    }
}

/// The worst first: what cannot mend itself without somebody's help hides what can, and a failure hides that the volume was taken over.
pub(super) fn state(lost: bool, adopted: bool, failure: Option<&Failure>) -> VolumeState {
    let Some(failure) = failure else {
        return match (lost, adopted) {
            (true, _) => VolumeState::Lost,
            (false, true) => VolumeState::Adopted,
            (false, false) => VolumeState::Fresh,
        };
    };
    let kind = failure.error.kind();
    match kind {
        _ if lost => VolumeState::Lost,
        _ if failure.error.code() == &codes::IDENTITY_TOKEN_STALE => VolumeState::WaitingForToken,
        ErrorKind::PermissionDenied | ErrorKind::Unauthenticated => VolumeState::Denied,
        ErrorKind::InvalidSpec
        | ErrorKind::Conflict
        | ErrorKind::SecretNotFound
        | ErrorKind::Busy
        | ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Exhausted
        | ErrorKind::Corrupt
        | ErrorKind::Node
        | ErrorKind::Bug => VolumeState::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Known;

    fn view(known: Known, error: Option<&'static crate::error::Code>, since: u64) -> SourceView {
        SourceView {
            known,
            checked_at: Some(Mono::from_nanos(3_000_000_000)),
            error: error.map(|code| Arc::new(Error::new(code))),
            failing_since: error.map(|_| Mono::from_nanos(since)),
            refused_since: None,
            in_flight: false,
            watch_error: None,
            next_at: Some(Mono::from_nanos(60_000_000_000)),
        }
    }

    #[test]
    fn the_state_follows_from_the_worst_failure() {
        use VolumeState as V;
        for (lost, adopted, error, expect) in [
            (false, false, None, V::Fresh),
            (false, true, None, V::Adopted),
            (true, false, None, V::Lost),
            (false, false, Some(&codes::BACKEND_UNAVAILABLE), V::Stale),
            (false, false, Some(&codes::BUG), V::Stale),
            (
                false,
                false,
                Some(&codes::BACKEND_PERMISSION_DENIED),
                V::Denied,
            ),
            (false, false, Some(&codes::POLICY_DENIED), V::Denied),
            (
                false,
                false,
                Some(&codes::BACKEND_UNAUTHENTICATED),
                V::Denied,
            ),
            (
                false,
                false,
                Some(&codes::IDENTITY_TOKEN_STALE),
                V::WaitingForToken,
            ),
            (false, true, Some(&codes::BACKEND_UNAVAILABLE), V::Stale),
            (false, true, Some(&codes::POLICY_DENIED), V::Denied),
            (
                false,
                true,
                Some(&codes::IDENTITY_TOKEN_STALE),
                V::WaitingForToken,
            ),
            (true, true, Some(&codes::MOUNT_GONE), V::Lost),
        ] {
            let views = [view(Known::Unknown, error, 5)];
            assert_eq!(
                state(lost, adopted, trouble(None, &views).as_ref()),
                expect,
                "{error:?}"
            );
        }
    }

    #[test]
    fn an_absent_secret_is_an_answer_and_the_oldest_failure_is_told() {
        let absent = view(Known::Absent, None, 1);
        assert!(failure_of(&absent).is_none());
        let views = [
            absent,
            view(Known::Unknown, Some(&codes::BACKEND_TIMEOUT), 9),
            view(Known::Unknown, Some(&codes::BACKEND_UNAVAILABLE), 7),
        ];
        let code = |own| trouble(own, &views).unwrap().error.code();
        assert_eq!(code(None), &codes::BACKEND_UNAVAILABLE);
        let mut with_denied = views.to_vec();
        let late = view(Known::Unknown, Some(&codes::IDENTITY_TOKEN_STALE), 1);
        let denied = view(Known::Unknown, Some(&codes::POLICY_DENIED), 10);
        with_denied.extend([late, denied]);
        let first = trouble(None, &with_denied).unwrap();
        assert_eq!(first.error.code(), &codes::POLICY_DENIED);
        let own = Failure {
            error: Arc::new(Error::new(&codes::RENDER_NO_FIELD)),
            since: Mono::from_nanos(11),
        };
        assert_eq!(code(Some(&own)), &codes::RENDER_NO_FIELD);
    }

    #[test]
    fn ages_are_those_of_the_moment_of_asking() {
        let report = report(view(
            Known::Unknown,
            Some(&codes::BACKEND_TIMEOUT),
            4_000_000_000,
        ));
        let status = report.at(Mono::from_nanos(10_000_000_000), Wall::from_millis(40_000));
        assert_eq!(status.checked_seconds_ago, Some(7.0));
        assert_eq!(status.next_in_seconds, Some(50.0));
        let since = status.error.unwrap().since.unwrap();
        assert_eq!(since, "1970-01-01T00:00:44.000Z"); // 6 s before
        assert_eq!(
            status.sources[0].error.as_ref().unwrap().code,
            "backend.timeout"
        );
    }

    #[test]
    fn since_when_reads_the_same_at_each_look_until_the_wall_clock_is_set() {
        let report = report(view(
            Known::Unknown,
            Some(&codes::BACKEND_TIMEOUT),
            4_000_700_000,
        ));
        let wall = |nanos: u64, set: i64| {
            let nanos = i64::try_from(nanos).unwrap() + 300_400_000; // the clocks tick their milliseconds at other moments
            Wall::from_millis(nanos / 1_000_000 + set)
        };
        let boot = Boot::new(Mono::from_nanos(0), wall(0, 0));
        let since = |nanos, set| {
            let now = Mono::from_nanos(nanos);
            let status = report.at(now, boot.at(now, wall(nanos, set)));
            status.error.unwrap().since.unwrap()
        };
        for look in 0..1000 {
            let at = 5_000_000_000 + look * 1_000_123_457;
            assert_eq!(since(at, 0), "1970-01-01T00:00:04.300Z", "look {look}");
        }
        assert_eq!(since(5_000_000_000, 60_000), "1970-01-01T00:01:04.300Z");
    }

    #[test]
    fn a_source_without_its_watch_does_not_push_and_says_why() {
        let mut seen = view(Known::Absent, None, 0);
        seen.watch_error = Some(Arc::new(Error::new(&codes::STORE_IO)));
        let status = report(seen).at(Mono::from_nanos(0), Wall::from_millis(0));
        assert_eq!(status.state, VolumeState::Fresh);
        let source = &status.sources[0];
        assert!(!source.pushes);
        assert_eq!(source.error.as_ref().unwrap().code, "store.io");
        let status = report(view(Known::Absent, None, 0));
        let status = status.at(Mono::from_nanos(0), Wall::from_millis(0));
        assert!(status.sources[0].pushes && status.sources[0].error.is_none());
    }

    fn report(view: SourceView) -> Report {
        Report {
            id: VolumeId::parse("v").unwrap(),
            owner: "uid 0".into(),
            target: "/t".into(),
            mount: MountKind::Tmpfs,
            generation: Generation(4),
            changed_at: None,
            lost: false,
            adopted: false,
            failure: None,
            sources: vec![SourceReport {
                reference: "s:a".into(),
                pushes: true,
                version: None,
                removed: false,
                view: watch::channel(view).1,
            }],
            usage: None,
        }
    }
}
