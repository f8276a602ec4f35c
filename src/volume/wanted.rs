//! Which sources a spec's objects are, for one caller. Pure.

use crate::{
    caller::{Identity, Principal},
    error::{Error, Result, codes},
    mount::VolumeId,
    source::{SourceKey, runner::Wanted},
    spec::{ObjectRef, Refresh, Share, VolumeSpec},
    volume::Settings,
};

/// One source for each object, in their order.
///
/// A backend that asks as the node lets whoever asks through: the node's policy has to allow it, and without a policy nobody
/// may. A local user is himself.
///
/// # Errors
/// `spec.unknown_backend`, `policy.denied`.
pub(super) fn wanted(
    id: &VolumeId,
    spec: &VolumeSpec,
    identity: &Identity,
    settings: &Settings,
) -> Result<Vec<Wanted>> {
    let each = wanted_each(id, spec, identity, settings).into_iter();
    each.map(|one| Ok(one?)).collect()
}

/// One source, or why not.
pub(super) type Judged = Result<Wanted, Unwanted>;

/// A source that may not be asked for.
pub(super) struct Unwanted {
    /// It, if only the policy is against it.
    pub want: Option<Box<Wanted>>,
    /// Why.
    pub error: Error,
}

impl From<Unwanted> for Error {
    fn from(refused: Unwanted) -> Self {
        refused.error
    }
}

/// The same, with a verdict on each.
pub(super) fn wanted_each(
    id: &VolumeId,
    spec: &VolumeSpec,
    identity: &Identity,
    settings: &Settings,
) -> Vec<Judged> {
    let every = match spec.refresh {
        Refresh::Every(interval) => Some(interval),
        Refresh::Never => None,
    };
    let one = |(index, object): (usize, &ObjectRef)| {
        let (backend, epoch) =
            settings
                .registry
                .named(&object.backend)
                .ok_or_else(|| Unwanted {
                    want: None,
                    error: Error::new(&codes::SPEC_UNKNOWN_BACKEND).object(object),
                })?;
        let principal = identity.principal(backend.asks_as(object));
        let allowed = match (&principal, identity) {
            (Principal::Node, Identity::Pod(pod)) => settings.policy.allows(pod, object),
            _ => Ok(()),
        };
        let want = Wanted {
            recent: every,
            key: SourceKey {
                object: object.clone(),
                principal,
                volume: (object.share == Share::Volume).then(|| id.clone()),
                epoch,
            },
            every,
            pushes: backend.pushes(object),
            optional: optional(spec, index),
            backend: backend.clone(),
        };
        match allowed {
            Ok(()) => Ok(want),
            Err(error) => Err(Unwanted {
                want: Some(Box::new(want)),
                error,
            }),
        }
    };
    spec.objects.iter().enumerate().map(one).collect()
}

/// Whether the volume can do without this object: every file that is made of it may be absent.
fn optional(spec: &VolumeSpec, index: usize) -> bool {
    spec.files
        .iter()
        .filter(|rule| rule.origin.objects().contains(&index))
        .all(|rule| rule.optional)
}
