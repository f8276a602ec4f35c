//! Specs that are served, by their text: the pods of a node have a few texts among them, and each is read once. Nothing is kept alive
//! here: what no volume serves any more is read again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    limits,
    spec::{Place, VolumeSpec},
    volume::Settings,
};

/// The texts that were read last.
#[derive(Default)]
pub(super) struct Specs(Mutex<Texts>);

#[derive(Default)]
struct Texts {
    /// By which they were read.
    settings: Weak<Settings>,
    read: VecDeque<Text>,
}

struct Text {
    text: Weak<str>,
    place: Place,
    spec: Weak<VolumeSpec>,
}

impl Specs {
    /// The spec of a text that was read before, and the text itself.
    pub fn find(
        &self,
        text: &str,
        place: Place,
        settings: &Arc<Settings>,
    ) -> Option<(Arc<VolumeSpec>, Arc<str>)> {
        let texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Weak::as_ptr(&texts.settings) != Arc::as_ptr(settings) {
            return None;
        }
        texts.read.iter().find_map(|one| {
            let (known, spec) = (one.text.upgrade()?, one.spec.upgrade()?);
            (one.place == place && *known == *text).then_some((spec, known))
        })
    }

    /// Notes what was read.
    pub fn note(
        &self,
        text: &Arc<str>,
        place: Place,
        settings: &Arc<Settings>,
        spec: &Arc<VolumeSpec>,
    ) {
        let mut texts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Weak::as_ptr(&texts.settings) != Arc::as_ptr(settings) {
            texts.settings = Arc::downgrade(settings);
            texts.read.clear();
        }
        texts.read.retain(|one| one.spec.strong_count() > 0);
        texts.read.truncate(limits::SPECS_KNOWN - 1);
        texts.read.push_front(Text {
            text: Arc::downgrade(text),
            place,
            spec: Arc::downgrade(spec),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{self, Facts, Setting};

    #[test]
    fn a_text_is_known_while_it_is_served_under_one_configuration() {
        let (specs, settings) = (Specs::default(), Arc::new(Settings::default()));
        let text: Arc<str> = Arc::from("files: [{path: a, from: \"a:b\"}]");
        let facts = Facts {
            pushes: true,
            versions: true,
        };
        let parsed = spec::parse(&text, &Setting::local(), &|_| Ok(facts));
        let read = Arc::new(parsed.unwrap_or_else(|problems| panic!("{problems:?}")));
        let other = Arc::new(Settings::default());
        let found = |place, settings| specs.find(&text, place, settings);
        assert!(found(Place::Local, &settings).is_none());
        specs.note(&text, Place::Local, &settings, &read);
        let (again, known) = found(Place::Local, &settings).unwrap();
        assert!(Arc::ptr_eq(&known, &text) && Arc::ptr_eq(&again, &read));
        drop((known, again));

        let in_a_pod = Place::Kubernetes { fs_group: None };
        assert!(found(in_a_pod, &settings).is_none());
        assert!(found(Place::Local, &other).is_none());
        for _ in 0..2 * limits::SPECS_KNOWN {
            specs.note(&text, in_a_pod, &settings, &read);
        }
        assert_eq!(specs.0.lock().unwrap().read.len(), limits::SPECS_KNOWN);
        assert!(found(Place::Local, &settings).is_none(), "the oldest goes");
        drop(read);
        assert!(found(in_a_pod, &settings).is_none(), "nobody serves it");
    }
}
