//! The task's half that looks at what the kernel shows. A mount that has gone is `lost`; one of a local program, which may
//! look again, is brought back.

use crate::{
    caller::Identity,
    error::{Error, Result, codes},
    path::TargetPath,
    render::{Generation, Known},
    spec::MountKind,
    volume::{
        decide::Seen,
        served::{self, Job},
        task::Task,
    },
};

impl Task {
    /// What is at `target`.
    pub async fn probe(&mut self, kind: MountKind, target: &TargetPath) -> Result<Seen> {
        let mounter = self.shared.mounters.of(kind)?.clone();
        let (target, id) = (target.clone(), self.id.clone());
        let probe = self
            .shared
            .blocking(move || mounter.probe(&target))
            .await??;
        Ok(Seen::of(&probe, &id))
    }

    /// Whether it is time to look: a source has answered, or somebody waits to be told that all is well.
    pub fn is_to_look(&mut self) -> bool {
        let Some(served) = &mut self.served else {
            return false;
        };
        let (mut answered, mut in_flight) = (false, false);
        for source in &mut served.sources {
            let news = source.view.has_changed().unwrap_or(false);
            let view = source.view.borrow_and_update();
            answered |= news && !view.in_flight;
            in_flight |= view.in_flight;
        }
        answered || (!in_flight && !self.refreshing.is_empty())
    }

    /// Notes whether the target shows the mount. What cannot be looked at is not judged.
    pub async fn look(&mut self) {
        let Some(served) = self.served.as_ref().filter(|_| !self.closing) else {
            return;
        };
        let (kind, target) = (served.spec.mount, served.target.clone());
        let is_local = matches!(served.identity, Identity::Local { .. });
        let Ok(seen) = self.probe(kind, &target).await else {
            return;
        };
        let is_back = match seen {
            Seen::Ours => true,
            Seen::Absent => is_local && self.bring_back().await,
            Seen::Another | Seen::Foreign => false,
        };
        let Some(served) = &mut self.served else {
            return;
        };
        match (is_back, served.gone) {
            (true, true) => served.shows_again(),
            (false, false) => {
                let error = Error::new(&codes::MOUNT_GONE).object(&target);
                served.failed(self.shared.clock.now(), error);
            }
            (true, false) | (false, true) => {}
        }
    }

    /// 1. Attach the mount that we hold: who has a copy of it sees the next changes too.
    /// 2. Where the kernel cannot (before Linux 6.15), mount anew.
    async fn bring_back(&mut self) -> bool {
        let Some(served) = &mut self.served else {
            return false;
        };
        if let Some(mut mounted) = served.mounted.take() {
            let call = move || (mounted.attach(), mounted);
            let Ok((attached, mounted)) = self.shared.blocking(call).await else {
                return false;
            };
            served.mounted = Some(mounted);
            if attached.is_ok() {
                tracing::warn!(volume_id = %self.id, "the mount had gone; it is attached again"); // 1
                return true;
            }
        }
        let known = served.known();
        if known.iter().any(|known| matches!(known, Known::Unknown)) {
            return false;
        }
        let job = Job {
            spec: served.spec.clone(),
            known: known.clone(),
            generation: Generation(served.generation.0 + 1),
        };
        let Ok(shown) = served::mount(&self.shared, &self.id, &served.target, job).await else {
            return false;
        };
        served.former.extend(served.mounted.take());
        served.shows_again();
        self.took(shown, known);
        tracing::warn!(volume_id = %self.id, "the mount had gone; there is a new one"); // 2
        true
    }
}
