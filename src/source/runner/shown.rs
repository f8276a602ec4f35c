//! A source's view as volumes see it, and how many leases there are for whoever counts them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use super::{Message, Sources};
use crate::{
    clock::Mono,
    observe::metrics::Lookup,
    path::VolumeId,
    secret::Known,
    source::{SourceView, bell::Bell},
    spec::BackendName,
};

/// A source's view, and who looks at it.
pub(super) struct Shown {
    pub view: watch::Sender<SourceView>,
    pub subscribers: HashMap<VolumeId, Arc<Bell>>,
}

impl Shown {
    /// Of a source that was never asked.
    pub fn unknown() -> Self {
        Self {
            view: watch::Sender::new(SourceView::unknown()),
            subscribers: HashMap::new(),
        }
    }

    /// Puts a view there, and wakes whom it concerns.
    pub fn show(&self, view: SourceView) {
        // a newcomer is no news for the others: a thousand that come one by one would wake a thousand each time
        let before = self.view.borrow().clone();
        let news = !before.shows_the_same(&view);
        let says_news = !before.says_the_same(&view);
        self.view.send_if_modified(|old| {
            *old = view;
            news
        });
        let bells = self
            .subscribers
            .values()
            .filter(|bell| says_news || (news && bell.is_listened_to()));
        bells.for_each(|bell| bell.ring());
    }

    /// How a volume that comes finds it. Who waits for a first answer waits for one request with all others.
    pub fn found_by(&self, volume: &VolumeId, now: Mono, recent: Option<Duration>) -> Lookup {
        let view = self.view.borrow();
        let others = || self.subscribers.keys().any(|one| one != volume);
        let is_unknown = matches!(view.known, Known::Unknown);
        if view.serves(now, recent) {
            Lookup::Hit
        } else if view.in_flight || (is_unknown && view.error.is_none() && others()) {
            Lookup::Shared
        } else {
            Lookup::Miss
        }
    }
}

impl Sources {
    /// How many leases are held, by backend; none once it is stopped.
    pub async fn leases(&self) -> BTreeMap<BackendName, u64> {
        let (reply, answer) = oneshot::channel();
        let _ = self.inbox.send(Message::Leases(reply));
        answer.await.unwrap_or_default()
    }
}
