//! The task's half for the common first publish: nothing is remembered of the volume, its spec is good, and other volumes have its sources,
//! so that each is known. Then one call on the blocking thread looks, renders and mounts; a call for the look alone would cost as
//! much as half of the mount. Nothing is decided here: where the look finds anything, the publish begins again and asks the table.

use crate::{
    error::{Error, codes},
    limits,
    mount::{Mounter, Probe, VolumeId},
    path::TargetPath,
    volume::{
        AskedSpec, PublishRequest,
        attempt::{Attempt, Waiting},
        decide::Phase,
        followed::Followed,
        publish::Order,
        task::Task,
        wanted::wanted,
    },
};

impl Task {
    /// What to mount, and from which sources. An error: this is not that publish, and nothing has been done; with what was read, if that
    /// was good.
    pub async fn shortcut(
        &mut self,
        request: &PublishRequest,
    ) -> Result<(Order, Vec<Followed>), Option<Order>> {
        if self.phase() != Phase::New || self.held.is_some() {
            return Err(None);
        }
        let settings = self.shared.settings.borrow().clone();
        let order = self.read(request, &settings).map_err(|_| None)?;
        match self.known_sources(&order).await {
            Some(sources) => Ok((order, sources)),
            None => Err(Some(order)),
        }
    }

    async fn known_sources(&mut self, order: &Order) -> Option<Vec<Followed>> {
        let wanted = wanted(&self.id, &order.spec, &order.caller.0, &order.settings).ok()?;
        let admitted = self.shared.ledger.admit(&self.id, &order.caller.0);
        admitted.ok()?;
        let subscription = self.subscription(order, wanted.clone());
        let views = self.shared.sources.subscribe_known(subscription).await;
        Some(self.followed(wanted, views.ok()??))
    }

    /// Begins an attempt that looks when it mounts.
    pub fn mount_at_once(&mut self, order: Order, sources: Vec<Followed>, caller: Waiting) {
        tracing::trace!(volume_id = %self.id, "all sources are known");
        self.attempt = Some(Attempt {
            order,
            sources,
            mount: true,
            look: true,
            deadline: self.shared.clock.now().after(limits::PUBLISH_DEADLINE),
            served: false,
            caller,
        });
    }
}

impl Order {
    /// The spec as it was asked for.
    pub fn asked(&self) -> AskedSpec {
        let raw = self.raw.clone().map(AskedSpec::Raw);
        raw.unwrap_or_else(|| AskedSpec::Parsed(self.spec.clone()))
    }

    /// The call that it came from.
    pub fn again(&self, id: VolumeId) -> PublishRequest {
        PublishRequest {
            id,
            target: self.target.clone(),
            spec: self.asked(),
            caller: self.caller.clone(),
            placing: self.placing.clone(),
        }
    }
}

/// Refuses a target at which something is mounted, before anything is put on record.
pub(super) fn refuse_taken(mounter: &dyn Mounter, target: &TargetPath) -> Result<(), Error> {
    match mounter.probe(target)? {
        Probe::Absent => Ok(()),
        Probe::Ours { .. } => Err(Error::new(&codes::MOUNT_HELD).object(target)),
        Probe::Foreign => Err(Error::new(&codes::MOUNT_FOREIGN).object(target)),
    }
}

/// Whether a mount failed because something was there.
pub(super) fn is_taken(error: &Error) -> bool {
    [&codes::MOUNT_HELD, &codes::MOUNT_FOREIGN].contains(&error.code())
}
