//! What a volume takes from its readers again: files of a secret that its store, or the node's policy, has been refusing, or that the store
//! has no more, for longer than the spec lets them stay (`onDenied`).
//!
//! The moment counts from the first refusal, over outages that come after it; the files go only while a refusal is the last word, so that a
//! store which is down removes nothing. What has gone comes back with the object. A process that starts counts anew.
//!
//! Does not: remove a file (the next set of files is made without it), say what is a refusal (`Error::takes_back`).

use crate::{
    clock::Mono,
    error::{Error, ErrorKind, codes},
    observe::metrics::Removal,
    render::Known,
    source::SourceView,
    spec::{ObjectRef, OnDenied},
    volume::{followed::Followed, served::Served, task::Task},
};

/// A secret that readers see no more.
pub(super) struct Withdrawal {
    /// Place among the sources.
    pub nth: usize,
    /// Which.
    pub object: ObjectRef,
    /// Why.
    pub error: Error,
}

impl Followed {
    /// Since when it has been refused; not where a volume that can do without it has heard that there is none.
    fn refused_since(&self, view: &SourceView) -> Option<Mono> {
        let is_missed = !self.optional || !matches!(view.known, Known::Absent);
        view.refused_since.filter(|_| is_missed)
    }

    /// When what the view shows has to go; `None`: there is nothing against it.
    fn goes_at(&self, view: &SourceView, on_denied: OnDenied) -> Option<Mono> {
        let OnDenied::RemoveAfter(grace) = on_denied else {
            return None;
        };
        let since = self.refused_since(view)?;
        view.is_refused().then(|| since.after(grace))
    }

    /// Whether it has to go, or has gone and nothing has brought it back.
    pub fn is_over(&self, view: &SourceView, on_denied: OnDenied, now: Mono) -> bool {
        let has_to_go = self.goes_at(view, on_denied).is_some_and(|at| at <= now);
        has_to_go || (self.is_withdrawn && self.refused_since(view).is_some())
    }

    /// Takes it away, or gives it back.
    pub fn judge(&mut self, on_denied: OnDenied, now: Mono) {
        self.is_withdrawn = self.is_over(&self.view.borrow(), on_denied, now);
    }

    /// Why it is withdrawn.
    fn refusal(&self) -> Error {
        let view = self.view.borrow();
        let said = view.error.as_deref().filter(|error| error.takes_back());
        let gone = || Error::new(&codes::BACKEND_NOT_FOUND).object(&self.key.object);
        said.cloned().unwrap_or_else(gone)
    }
}

impl Served {
    /// The next moment at which something has to go.
    pub fn withdraws_at(&self) -> Option<Mono> {
        let moment = |source: &Followed| {
            let view = source.view.borrow();
            source.goes_at(&view, self.spec.on_denied)
        };
        let all = self.sources.iter().filter(|source| !source.is_withdrawn);
        all.filter_map(moment).min()
    }

    /// Whether something has gone.
    pub fn has_withdrawn(&self) -> bool {
        self.sources.iter().any(|source| source.is_withdrawn)
    }

    /// What readers would not see any more if this were shown to them.
    pub fn withdrawals(&self, known: &[Known]) -> Vec<Withdrawal> {
        let is_new = |(now, before): (&Known, &Known)| {
            matches!(now, Known::Withdrawn) && !matches!(before, Known::Withdrawn)
        };
        let pairs = known.iter().zip(&self.rendered).enumerate();
        let new = pairs.filter_map(|(nth, pair)| is_new(pair).then_some(nth));
        new.filter_map(|nth| {
            let source = self.sources.get(nth)?;
            Some(Withdrawal {
                nth,
                object: source.key.object.clone(),
                error: source.refusal(),
            })
        })
        .collect()
    }
}

impl Task {
    /// Says in the log, by a number, and to the pod's author that readers see a secret no more.
    pub fn tell_withdrawal(&self, gone: &Withdrawal) {
        let (error, code) = (&gone.error, gone.error.code());
        tracing::warn!(volume_id = %self.id, secret = %gone.object, code = code.name, %error, "the files of a secret are removed");
        let meter = self.shared.metrics.backend(&gone.object.backend);
        meter.removed(match error.kind() {
            ErrorKind::SecretNotFound => Removal::Deleted,
            _ => Removal::Denied,
        });
        let message = format!(
            "the files made of {} are removed, as `onDenied` says: {error}. {} They come back with the secret. [{}]",
            gone.object, code.fix, code.name
        );
        self.tell_pod("SecretRemoved", message);
    }
}
