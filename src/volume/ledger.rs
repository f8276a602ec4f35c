//! The budget that all volumes share, behind the one lock that it needs, with the limits of the moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::{
    caller::Identity,
    config::NodeLimits,
    error::Result,
    mount::{Grant, VolumeId},
    volume::{Settings, budget::Budget},
};

/// Cloned freely; nothing is waited for under its lock.
#[derive(Clone)]
pub(super) struct Ledger {
    budget: Arc<Mutex<Budget>>,
    settings: watch::Receiver<Arc<Settings>>,
}

impl Ledger {
    pub fn new(settings: watch::Receiver<Arc<Settings>>) -> Self {
        Self {
            budget: Arc::default(),
            settings,
        }
    }

    /// [`Budget::admit`].
    pub fn admit(&self, id: &VolumeId, who: &Identity) -> Result<()> {
        let limits = self.limits();
        let admitted = self.lock().admit(id, who, &limits);
        tracing::trace!(volume_id = %id, ok = admitted.is_ok(), "counted against the limits");
        admitted
    }

    /// [`Budget::adopt`].
    pub fn adopt(&self, id: &VolumeId, who: Option<&Identity>, bytes: u64) {
        self.lock().adopt(id, who, bytes);
    }

    /// [`Budget::release`].
    pub fn release(&self, id: &VolumeId) {
        self.lock().release(id);
    }

    /// What the volume's mounter asks before it makes or grows the mount: [`Budget::charge`].
    pub fn grant(&self, id: &VolumeId) -> Grant {
        let (ledger, id) = (self.clone(), id.clone());
        Grant::new(move |bytes| {
            let limits = ledger.limits();
            ledger.lock().charge(&id, bytes, &limits)
        })
    }

    /// Bytes charged to all, and how many there may be.
    pub fn of_node(&self) -> (u64, u64) {
        let limit = self.limits().bytes_per_node;
        (self.lock().of_node(), limit)
    }

    fn limits(&self) -> NodeLimits {
        self.settings.borrow().node_limits
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
