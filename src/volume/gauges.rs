//! How all volumes are together, for metrics: looked at when somebody asks, without asking a task or forming a text.

use std::collections::BTreeMap;

use crate::{
    clock::{Mono, Wall},
    secret::Known,
    source::SourceView,
    spec::{BackendName, MountKind},
    volume::{
        VolumeState, Volumes,
        status::{Report, SourceReport, ago, state, trouble},
    },
};

/// The sums.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Gauges {
    /// Volumes by kind of mount and state.
    pub volumes: BTreeMap<(&'static str, &'static str), u64>,
    /// When the store last confirmed what was confirmed longest ago. Content that no clock asks for is left out.
    pub oldest: Option<Wall>,
    /// Bytes of all files, as each volume last changed.
    pub bytes_used: u64,
    /// Bytes that all mounts may grow to.
    pub bytes_promised: u64,
    /// How much those may be together.
    pub bytes_limit: u64,
}

impl Volumes {
    /// How they are now.
    pub fn gauges(&self) -> Gauges {
        let shared = self.shared();
        let (now, wall) = (shared.clock.now(), shared.clock.wall());
        let (bytes_promised, bytes_limit) = shared.ledger.of_node();
        let mut gauges = Gauges {
            bytes_promised,
            bytes_limit,
            ..Gauges::default()
        };
        let mut oldest = None;
        for report in self.reports() {
            let views: Vec<SourceView> = report.views().collect();
            let failure = trouble(report.failure.as_ref(), &views);
            let state = state(report.lost, report.adopted, failure.as_ref());
            let key = (kind(report.mount), VolumeState::name(state));
            *gauges.volumes.entry(key).or_default() += 1;
            gauges.bytes_used += report.usage.map_or(0, |usage| usage.bytes);
            let confirmed = confirmed(&report, &views, shared.started);
            oldest = [oldest, confirmed].into_iter().flatten().min();
        }
        gauges.oldest = oldest.map(|at: Mono| ago(wall, now.since(at)));
        gauges
    }

    /// How many leases are held, by backend. Does not wait for a store.
    pub async fn leases(&self) -> BTreeMap<BackendName, u64> {
        self.shared().sources.leases().await
    }
}

fn kind(mount: MountKind) -> &'static str {
    match mount {
        MountKind::Tmpfs => "tmpfs",
        MountKind::Fuse => "fuse",
    }
}

/// When the source of this volume that was confirmed longest ago was so; one that this process has not seen confirmed counts with its
/// start, also those of a mount of which nothing is known but that it is there.
///
/// Left out is a source that no clock asks for and no error hides: its store tells of changes, or its version is fixed. It is as
/// current as it will ever be, and its age says nothing. So is one whose files are removed: nobody reads it.
fn confirmed(report: &Report, views: &[SourceView], started: Mono) -> Option<Mono> {
    let is_known_only_by_its_mount = report.adopted && views.is_empty();
    let is_content = |(view, source): (_, &SourceReport)| (!source.removed).then_some(view);
    let content = views.iter().zip(&report.sources).filter_map(is_content);
    let aging = content.filter(|view: &&SourceView| {
        let is_asked = view.next_at.is_some() || view.in_flight;
        let is_in_doubt = view.error.is_some() || view.watch_error.is_some();
        is_asked || is_in_doubt || matches!(view.known, Known::Unknown)
    });
    let ages = aging.map(|view| view.checked_at.unwrap_or(started));
    ages.chain(is_known_only_by_its_mount.then_some(started))
        .min()
}
