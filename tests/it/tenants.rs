//! Tenants of one node, through the volumes: totals, neighbours that hang, and a configuration that changes under mounted volumes.

mod limits;
mod neighbours;
mod settings;

use std::sync::Arc;

use secretfs::{
    caller::{Identity, PodIdentity},
    error::Result,
    spec::VolumeSpec,
    volume::{Published, Settings},
};

use crate::support::bed::{Bed, request_as};

/// A pod of some namespace.
fn pod(namespace: &str, name: &str) -> Identity {
    Identity::Pod(PodIdentity {
        namespace: namespace.into(),
        pod: name.into(),
        pod_uid: format!("{namespace}-{name}").into(),
        service_account: "app".into(),
        service_account_uid: None,
    })
}

/// Publishes for it, and lets the work of the moment be done.
async fn publish(bed: &Bed, who: &Identity, id: &str, spec: &Arc<VolumeSpec>) -> Result<Published> {
    let published = bed.volumes.publish(request_as(who.clone(), id, spec)).await;
    bed.clock.settle().await;
    Ok(published?)
}

/// The configuration changes.
async fn change(bed: &Bed, change: impl FnOnce(&mut Settings)) {
    let mut settings = Settings::clone(&bed.settings.borrow());
    change(&mut settings);
    bed.settings.send_replace(Arc::new(settings));
    bed.clock.settle().await;
}
