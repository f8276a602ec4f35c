//! The task's half that takes a volume down. Gone means gone: who holds a copy of the mount, or a file open, reads nothing
//! any more, whatever has become of the target meanwhile.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Result, codes},
    mount::{Mounter, VolumeId},
    path::TargetPath,
    spec::MountKind,
    volume::{
        decide::{Call, Decision, Phase, Seen, decide},
        task::Task,
    },
};

impl Task {
    /// 1. End what is under way.
    /// 2. Let go of the sources: their leases are revoked while we go on.
    /// 3. Overwrite and remove the files by the handle that is held: it leads to them whatever stands at the target.
    /// 4. Take down what is ours, at the target that is served and at the one that is named.
    /// 5. And wherever else the kernel shows the volume: a parent of the target may have been renamed.
    /// 6. Forget the volume; or, if anything failed, stay until it succeeds.
    pub async fn unpublish(&mut self, named: Option<TargetPath>, remove: bool) -> Result<()> {
        self.end_waiting(&codes::VOLUME_CLOSED); // 1
        let kind = self
            .served
            .as_ref()
            .map_or(MountKind::Tmpfs, |served| served.spec.mount);
        let mut targets: Vec<TargetPath> = named.into_iter().collect();
        if let Some(served) = &mut self.served {
            served.close();
            if !targets.contains(&served.target) {
                targets.push(served.target.clone());
            }
        }
        self.shared.sources.unsubscribe(&self.id); // 2
        self.closing = true;
        if let Err(error) = self.take_all_down(kind, &targets, remove).await {
            tracing::warn!(volume_id = %self.id, code = error.code().name, %error, "a volume could not be taken down");
            if let Some(served) = &mut self.served {
                served.failed(self.shared.clock.now(), error.clone());
                served.retry_at = None; // whoever called calls again
            }
            return Err(error);
        }
        self.closing = false; // 6
        self.served = None;
        self.report.send_replace(None);
        self.follow.send_replace(None);
        Ok(())
    }

    async fn take_all_down(
        &mut self,
        kind: MountKind,
        targets: &[TargetPath],
        remove: bool,
    ) -> Result<()> {
        let wiped = self.wipe().await; // 3
        for target in targets {
            self.take_down(kind, target, remove).await?; // 4
        }
        let (mounter, id) = (self.shared.mounters.of(kind)?.clone(), self.id.clone());
        let left = move || take_rest_down(&*mounter, &id);
        let left = self.shared.blocking(left).await??; // 5
        match (left.first(), &wiped) {
            (None, _) => wiped.map(|_| ()),
            (Some(place), Ok(true)) => Err(below(place, "our mount, emptied, lies below it")),
            (Some(place), _) => Err(below(place, "our mount lies below it, with its files")),
        }
    }

    /// Whether there was anything to wipe by. A handle is kept until all is done.
    async fn wipe(&mut self) -> Result<bool> {
        let Some(served) = &mut self.served else {
            return Ok(false);
        };
        let mut held = std::mem::take(&mut served.former);
        held.extend(served.mounted.take());
        let call = move || {
            let results: Vec<_> = held.iter_mut().map(|mounted| mounted.wipe()).collect();
            (results, held)
        };
        let (results, held) = self.shared.blocking(call).await?;
        if let Some(served) = &mut self.served {
            served.former = held;
        }
        let any = !results.is_empty();
        results.into_iter().collect::<Result<()>>().map(|()| any)
    }

    async fn take_down(
        &mut self,
        kind: MountKind,
        target: &TargetPath,
        remove: bool,
    ) -> Result<()> {
        let seen = self.probe(kind, target).await?;
        if decide(Call::Unpublish, Phase::Serving, None, seen) != Decision::Unmount {
            return Ok(());
        }
        let mounter = self.shared.mounters.of(kind)?.clone();
        let target = target.clone();
        let call = move || mounter.unpublish(&target, remove);
        self.shared.blocking(call).await?
    }
}

/// Takes down every mount of the volume that can be reached. Where one is left.
fn take_rest_down(mounter: &dyn Mounter, id: &VolumeId) -> Result<Vec<PathBuf>> {
    let places = mounter.places(id)?;
    if places.is_empty() {
        return Ok(places);
    }
    for place in places {
        // A path that leads to something else by now, or that no target has, is not followed.
        if let Ok(target) = TargetPath::parse(&place)
            && Seen::of(&mounter.probe(&target)?, id) == Seen::Ours
        {
            mounter.unpublish(&target, false)?;
        }
    }
    mounter.places(id)
}

fn below(place: &Path, what: &'static str) -> Error {
    Error::new(&codes::MOUNT_FOREIGN)
        .object(place.display())
        .detail(what)
}
