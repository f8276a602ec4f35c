//! What a volume takes from its readers again: files of a secret that its store, or the node's policy, has been refusing, or that the store
//! has no more, for longer than the spec lets them stay (`onDenied`).
//!
//! The moment counts from the first refusal, over outages that come after it; the files go only while a refusal is the last word, so that a
//! store which is down removes nothing. What has gone comes back with the object. A process that starts counts anew.
//!
//! Does not: remove a file (the next set of files is made without it), say what is a refusal (`Error::takes_back`).

use std::sync::Arc;

use crate::{
    clock::Mono,
    error::{Error, ErrorKind, codes},
    observe::metrics::Removal,
    render::Known,
    source::SourceView,
    spec::{ObjectRef, OnDenied},
    volume::{followed::Followed, served::Served, status::Failure, task::Task},
};

/// A secret that readers see no more.
pub(super) struct Withdrawal {
    /// Place among the sources.
    pub nth: usize,
    /// Which.
    pub object: ObjectRef,
    /// Why.
    pub error: Arc<Error>,
}

/// What becomes of a secret's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Stay,
    Until(Mono),
    Gone,
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

    /// Whether it has to go, or has gone and nothing has brought it back. After a change of the configuration nothing is known for a while.
    pub fn is_over(&self, view: &SourceView, on_denied: OnDenied, now: Mono) -> bool {
        let has_to_go = self.goes_at(view, on_denied).is_some_and(|at| at <= now);
        let is_refused = self.refused_since(view).is_some();
        has_to_go || (self.is_withdrawn && (is_refused || matches!(view.known, Known::Unknown)))
    }

    /// Takes it away, or gives it back; notes why it is missed. Why it was withdrawn does not change with what the store says later.
    pub fn judge(&mut self, on_denied: OnDenied, now: Mono) {
        let view = self.view.borrow();
        let is_withdrawn = self.is_over(&view, on_denied, now);
        let is_absent = !self.optional && matches!(view.known, Known::Absent);
        let since = self.refused_since(&view).unwrap_or(now);
        let said = view.error.clone().filter(|error| error.takes_back());
        drop(view);
        if !is_withdrawn && !is_absent {
            self.missed = None;
        } else if self.missed.is_none() || (is_withdrawn && !self.is_withdrawn) {
            let gone = || Error::new(&codes::BACKEND_NOT_FOUND).object(&self.key.object);
            let error = said.unwrap_or_else(|| Arc::new(gone()));
            self.missed = Some(Failure { error, since });
        }
        self.is_withdrawn = is_withdrawn;
    }
}

impl Served {
    /// Takes away what has to go, and gives back what has come.
    pub fn judge(&mut self, now: Mono) {
        let on_denied = self.spec.on_denied;
        let all = self.sources.iter_mut();
        all.for_each(|source| source.judge(on_denied, now));
    }

    /// The next moment at which something has to go.
    pub fn withdraws_at(&self) -> Option<Mono> {
        let moment = |source: &Followed| {
            let view = source.view.borrow();
            source.goes_at(&view, self.spec.on_denied)
        };
        let all = self.sources.iter().filter(|source| !source.is_withdrawn);
        all.filter_map(moment).min()
    }

    /// What becomes of the files of the secret that has this failure.
    pub fn fate(&self, failure: &Failure) -> Fate {
        let has_it = |source: &&Followed| {
            let of_view = source.view.borrow().error.clone();
            let missed = source.missed.as_ref().map(|missed| &missed.error);
            let its = [of_view.as_ref(), missed];
            its.into_iter()
                .flatten()
                .any(|error| Arc::ptr_eq(error, &failure.error))
        };
        let mut all = self.sources.iter().zip(&self.rendered);
        let Some((source, rendered)) = all.find(|(source, _)| has_it(source)) else {
            return Fate::Stay;
        };
        let goes_at = source.goes_at(&source.view.borrow(), self.spec.on_denied);
        match (rendered, goes_at) {
            (Known::Withdrawn, _) => Fate::Gone,
            (_, Some(at)) => Fate::Until(at),
            (_, None) => Fate::Stay,
        }
    }

    /// What readers see, without what has to go now; `None`: nothing has.
    pub fn only_withdrawn(&self, known: &[Known]) -> Option<Vec<Known>> {
        if self.withdrawals(known).is_empty() {
            return None;
        }
        let pairs = self.rendered.iter().zip(known);
        let left = pairs.map(|(before, now)| match now {
            Known::Withdrawn => Known::Withdrawn,
            Known::Unknown | Known::Absent | Known::Object(_) => before.clone(),
        });
        Some(left.collect())
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
                error: source.missed.as_ref()?.error.clone(),
            })
        })
        .collect()
    }
}

impl Task {
    /// Says in the log, by a number, and to the pod's author that readers see these secrets no more.
    pub fn tell_withdrawals(&self, gone: &[Withdrawal]) {
        for gone in gone {
            let (error, code) = (&gone.error, gone.error.code());
            tracing::warn!(volume_id = %self.id, secret = %gone.object, code = code.name, %error, "the files of a secret are removed");
            let meter = self.shared.metrics.backend(&gone.object.backend);
            meter.removed(match error.kind() {
                ErrorKind::SecretNotFound => Removal::Deleted,
                _ => Removal::Denied,
            });
        }
        let Some(first) = gone.first() else {
            return;
        };
        let all: Vec<String> = gone.iter().map(|gone| gone.object.to_string()).collect();
        let (error, code) = (&first.error, first.error.code());
        let message = format!(
            "the files made of {} are removed, as `onDenied` says: {error}. {} They come back with the secret. [{}]",
            all.join(", "),
            code.fix,
            code.name
        );
        self.tell_pod("SecretRemoved", message);
    }
}
