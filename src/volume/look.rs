//! The task's half that looks at what the kernel shows. A mount that has gone is `lost`; one of a local program, which may
//! look again, is brought back.

use crate::{
    caller::Identity,
    error::{Error, Result, codes},
    mount::Probe,
    path::TargetPath,
    render::Known,
    spec::MountKind,
    volume::{
        decide::Seen,
        served::{self, Job, hides_the_mount},
        task::Task,
    },
};

impl Task {
    /// What is at `target`.
    pub async fn probe(&mut self, kind: MountKind, target: &TargetPath) -> Result<Seen> {
        let probe = self.probe_whole(kind, target).await?;
        Ok(Seen::of(&probe, &self.id))
    }

    /// The same, with how it is.
    pub async fn probe_whole(&mut self, kind: MountKind, target: &TargetPath) -> Result<Probe> {
        let mounter = self.shared.mounters.of(kind)?.clone();
        let target = target.clone();
        self.shared.blocking(move || mounter.probe(&target)).await?
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
        tracing::trace!(volume_id = %self.id, "a look at the mount");
        let is_local = matches!(served.identity, Identity::Local { .. });
        let Ok(probe) = self.probe_whole(kind, &target).await else {
            return;
        };
        let seen = Seen::of(&probe, &self.id);
        let is_back = match seen {
            Seen::Ours => true,
            Seen::Absent => is_local && self.bring_back().await,
            Seen::Another | Seen::Foreign => false,
        };
        let Some(served) = &mut self.served else {
            return;
        };
        if seen == Seen::Ours && probe.altered().is_none() {
            served.seen(self.shared.clock.now(), None);
        }
        match (is_back, served.gone) {
            (true, true) => served.shows_again(),
            (false, false) => {
                let error = Error::new(&codes::MOUNT_GONE).object(&target);
                served.failed(self.shared.clock.now(), error);
            }
            (true, false) | (false, true) => {}
        }
    }

    /// Notes on what is served that a publish found its mount altered, or as it was made.
    pub fn note_altered(&mut self, target: &TargetPath, altered: Option<Error>) {
        let served = self.served.as_mut();
        if let Some(served) = served.filter(|served| served.target == *target) {
            served.seen(self.shared.clock.now(), altered);
        }
    }

    /// Notes on what is served that a publish was refused because something lies on its mount. Asked again and again, it is one failure.
    pub fn note_hidden(&mut self, error: &Error) {
        if let Some(served) = &mut self.served
            && hides_the_mount(error.code())
        {
            let told = served.failure.as_ref();
            if told.is_none_or(|told| told.error.code() != error.code()) {
                served.failed(self.shared.clock.now(), error.clone());
            }
        }
    }

    /// 1. Attach the mount that we hold: who has a copy of it sees the next changes too.
    /// 2. Where the kernel cannot (before Linux 6.15), mount anew. A running container does not see that.
    ///
    /// False where neither is possible: a source is unknown.
    pub async fn bring_back(&mut self) -> bool {
        let Some(served) = &mut self.served else {
            return false;
        };
        served.put_loss_on_record(&self.id, &self.shared.audit);
        if let Some(mut mounted) = served.mounted.take() {
            let (audit, trail) = (
                self.shared.audit.clone(),
                served.trail(&self.id, &served.rendered),
            );
            let call = move || (trail.shown(&audit, || mounted.attach()), mounted);
            let Ok((attached, mounted)) = self.shared.blocking(call).await else {
                return false;
            };
            served.mounted = Some(mounted);
            if attached.is_ok() {
                served.delivered(&served.rendered.clone());
                served.shows_again();
                tracing::warn!(volume_id = %self.id, "the mount had gone; it is attached again"); // 1
                return true;
            }
        }
        served.judge(self.shared.clock.now());
        let known = served.known();
        if known.iter().any(|known| matches!(known, Known::Unknown)) {
            return false;
        }
        let trail = served.trail(&self.id, &known);
        let job = Job::new(&served.spec, &known, served.generation, trail);
        let (target, placing) = (&served.target, &served.placing);
        let shown = served::mount(&self.shared, &self.id, target, placing, job).await;
        let Ok(shown) = shown else {
            return false;
        };
        served.former.extend(served.mounted.take());
        served.shows_again();
        self.took(shown, known);
        self.lost(); // 2
        true
    }

    /// The mount had gone, and there is a new one. A local program may look again; a pod's container will not see it.
    pub fn lost(&mut self) {
        tracing::warn!(volume_id = %self.id, "the mount had gone; there is a new one");
        if let Some(served) = &mut self.served
            && matches!(served.identity, Identity::Pod(_))
        {
            served.lost = true;
            let message = "the volume was unmounted on the node and has been mounted anew; running containers do not see it: \
                           restart the pod";
            self.tell_pod("SecretVolumeLost", message.to_owned());
        }
    }
}
