//! Whether publishes would work, and if not why: what `/readyz`, CSI's `Probe` and each publish ask.
//!
//! Each *part* (`propagation`, `csidriver`, `stopping` ...) objects or does not, in one of three ways:
//! - [`Readiness::set`]: its owner says so when it changes, and a publish is refused with the objection.
//! - [`Readiness::ask`]: it is asked at each look. A publish is not refused for it: it finds out by itself.
//! - [`Readiness::note`]: its owner says so, but publishes would work; only whoever waits for us should wait on (`registration`).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use crate::error::{Error, Result};

/// What objects at present. Cloned freely; all clones are one.
#[derive(Clone, Default)]
pub struct Readiness(Arc<RwLock<BTreeMap<&'static str, Part>>>);

enum Part {
    Set(Error),
    Note(Error),
    Ask(Arc<dyn Fn() -> Result<()> + Send + Sync>),
}

impl Readiness {
    /// A part's state from now on. While it objects, publishes are refused.
    pub fn set(&self, part: &'static str, state: Result<()>) {
        self.put(part, state.err().map(Part::Set));
    }

    /// A part's state from now on, without which publishes would work as well.
    pub fn note(&self, part: &'static str, state: Result<()>) {
        self.put(part, state.err().map(Part::Note));
    }

    /// A part that is asked whenever somebody looks. It must answer at once. Each publish sees to it by itself.
    pub fn ask(&self, part: &'static str, state: impl Fn() -> Result<()> + Send + Sync + 'static) {
        self.put(part, Some(Part::Ask(Arc::new(state))));
    }

    fn put(&self, part: &'static str, state: Option<Part>) {
        tracing::trace!(part, may_object = state.is_some(), "readiness");
        let mut parts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match state {
            None => parts.remove(part),
            Some(state) => parts.insert(part, state),
        };
    }

    fn parts(&self) -> RwLockReadGuard<'_, BTreeMap<&'static str, Part>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a publish may go on.
    ///
    /// # Errors
    /// The first objection that was `set`.
    pub fn check(&self) -> Result<()> {
        let parts = self.parts();
        let first = parts.values().find_map(|part| match part {
            Part::Set(error) => Some(error.clone()),
            Part::Note(_) | Part::Ask(_) => None,
        });
        first.map_or(Ok(()), Err)
    }

    /// Whether publishes would work, as far as one can know without one: what `Probe` answers.
    ///
    /// # Errors
    /// The first objection but those of `note`.
    pub fn probe(&self) -> Result<()> {
        self.check()?;
        let asked: Vec<_> = self.parts().values().filter_map(asked).collect();
        asked.iter().try_for_each(|ask| ask())
    }

    /// All objections, by part.
    pub fn objections(&self) -> Vec<(&'static str, Error)> {
        let mut found = Vec::new();
        let mut to_ask = Vec::new();
        for (name, part) in self.parts().iter() {
            match part {
                Part::Set(error) | Part::Note(error) => found.push((*name, error.clone())),
                Part::Ask(ask) => to_ask.push((*name, ask.clone())),
            }
        }
        // after the lock: asking takes a look at the machine
        found.extend(
            to_ask
                .into_iter()
                .filter_map(|(name, ask)| Some((name, ask().err()?))),
        );
        found.sort_by_key(|(name, _)| *name);
        found
    }
}

fn asked(part: &Part) -> Option<Arc<dyn Fn() -> Result<()> + Send + Sync>> {
    match part {
        Part::Ask(ask) => Some(ask.clone()),
        Part::Set(_) | Part::Note(_) => None,
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.objections()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::error::codes;

    fn no() -> Result<()> {
        Err(Error::new(&codes::MOUNT_NO_PROPAGATION))
    }

    fn parts(readiness: &Readiness) -> Vec<&'static str> {
        let all = readiness.objections();
        all.into_iter().map(|(part, _)| part).collect()
    }

    #[test]
    fn each_way_of_objecting_reaches_those_whom_it_concerns() {
        let readiness = Readiness::default();
        let looks = |r: &Readiness| (r.check().is_ok(), r.probe().is_ok(), parts(r));
        assert_eq!(looks(&readiness), (true, true, vec![]));
        readiness.note("registration", no());
        assert_eq!(looks(&readiness), (true, true, vec!["registration"]));
        let good = Arc::new(AtomicBool::new(false));
        let asked = good.clone();
        readiness.ask("propagation", move || {
            if asked.load(Ordering::Relaxed) {
                Ok(())
            } else {
                no()
            }
        });
        let both = vec!["propagation", "registration"];
        assert_eq!(looks(&readiness), (true, false, both));
        good.store(true, Ordering::Relaxed);
        readiness.note("registration", Ok(()));
        assert_eq!(looks(&readiness), (true, true, vec![]));
        readiness.set("stopping", no());
        assert_eq!(looks(&readiness), (false, false, vec!["stopping"]));
        readiness.set("stopping", Ok(()));
        assert_eq!(looks(&readiness), (true, true, vec![]));
    }
}
