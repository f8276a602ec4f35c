//! How volumes hear of their sources.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// How a volume is told that its sources show something new. That a store was asked, and said nothing new, is told only to who
/// listens: on a node at rest no volume wakes, however many there are.
#[derive(Default)]
pub struct Bell {
    notify: Notify,
    listening: AtomicBool,
}

impl Bell {
    /// Waits until it is rung.
    pub async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Rings it.
    pub fn ring(&self) {
        self.notify.notify_one();
    }

    /// Whether questions and answers that change nothing are told as well. Who begins to listen then looks at the views: what was shown
    /// before he sees, and what is shown later is told, because a view is locked while it is shown and while it is looked at.
    pub fn listen(&self, listening: bool) {
        self.listening.store(listening, Ordering::Release);
    }

    /// What [`Self::listen`] said last.
    pub fn is_listened_to(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }
}
