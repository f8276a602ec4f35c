//! The task's half that takes a volume down. Gone means gone: who holds a copy of the mount, or a file open, reads nothing
//! any more, whatever has become of the target meanwhile.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Result, codes},
    mount::{Mounter, VolumeId},
    path::TargetPath,
    spec::MountKind,
    volume::{
        decide::{Call, Decision, Remembered, Seen, decide},
        task::Task,
    },
};

impl Task {
    /// 1. End what is under way.
    /// 2. Let go of the sources: their leases are revoked while we go on.
    /// 3. Overwrite and remove the files by the handle that is held: it leads to them whatever stands at the target.
    /// 4. Take down what is ours, at the target that is served and at the one that is named.
    /// 5. And wherever else the kernel shows the volume: a parent of the target may have been renamed. Its record goes.
    /// 6. Forget the volume; or, if anything failed, stay until it succeeds.
    pub async fn unpublish(&mut self, named: Option<TargetPath>, remove: bool) -> Result<()> {
        tracing::trace!(volume_id = %self.id, "an unpublish begins");
        self.end_waiting(&codes::VOLUME_CLOSED); // 1
        let kind = self
            .served
            .as_ref()
            .map_or(MountKind::Tmpfs, |served| served.spec.mount);
        let mut targets: Vec<TargetPath> = named.into_iter().collect();
        if let Some(served) = &mut self.served {
            served.close();
        }
        let served = self.served.as_ref().map(|served| &served.target);
        let held = self.held.as_ref().map(|held| &held.target);
        for target in served.into_iter().chain(held) {
            if !targets.contains(target) {
                targets.push(target.clone());
            }
        }
        self.shared.sources.unsubscribe(&self.id); // 2
        self.closing = true;
        let was_there = match self.take_all_down(kind, &targets, remove).await {
            Ok(was_there) => was_there,
            Err(error) => return Err(self.not_taken_down(error)),
        };
        let is_known = self.served.is_some() || self.held.is_some();
        if let Some(target) = targets.first().filter(|_| is_known || was_there) {
            self.put_removal_on_record(target);
        }
        self.forget(); // 6
        Ok(())
    }

    fn not_taken_down(&mut self, error: Error) -> Error {
        tracing::warn!(volume_id = %self.id, code = error.code().name, %error, "a volume could not be taken down");
        if let Some(served) = &mut self.served {
            served.failed(self.shared.clock.now(), error.clone());
            served.retry_at = None; // whoever called calls again
        }
        error
    }

    fn forget(&mut self) {
        self.closing = false;
        self.served = None;
        self.held = None;
        self.refusal = None;
        self.report.send_replace(None);
        if let Some(follow) = self.follow.take() {
            follow.send_replace(None);
        }
    }

    /// Whether anything of ours was at one of the targets.
    async fn take_all_down(
        &mut self,
        kind: MountKind,
        targets: &[TargetPath],
        remove: bool,
    ) -> Result<bool> {
        let wiped = self.wipe().await; // 3
        let mut was_there = false;
        for target in targets {
            was_there |= self.take_down(kind, target, remove).await?; // 4
        }
        let (mounter, id) = (self.shared.mounters.of(kind)?.clone(), self.id.clone());
        let shared = self.shared.clone();
        let call = move || {
            let left = take_rest_down(&*mounter, &id); // 5
            if left.as_ref().is_ok_and(Vec::is_empty) {
                shared.recorded(shared.records.remove(&id));
            }
            left
        };
        let left = self.shared.blocking(call).await??;
        match (left.first(), &wiped) {
            (None, _) => wiped.map(|_| was_there),
            (Some(place), Ok(true)) => Err(below(place, "our mount, emptied, lies below it")),
            (Some(place), _) => Err(below(place, "our mount lies below it, with its files")),
        }
    }

    /// Whether there was anything to wipe by. A handle is kept until all is done.
    async fn wipe(&mut self) -> Result<bool> {
        let mut held = Vec::new();
        if let Some(served) = &mut self.served {
            held.append(&mut served.former);
            held.extend(served.mounted.take());
        }
        held.extend(self.held.as_mut().and_then(|held| held.mounted.take()));
        if held.is_empty() {
            return Ok(false);
        }
        let call = move || {
            let results: Vec<_> = held.iter_mut().map(|mounted| mounted.wipe()).collect();
            (results, held)
        };
        let (results, mut held) = self.shared.blocking(call).await?;
        match (&mut self.served, &mut self.held) {
            (Some(served), _) => served.former = held,
            (None, Some(former)) => former.mounted = held.pop(),
            (None, None) => {}
        }
        results.into_iter().collect::<Result<()>>().map(|()| true)
    }

    async fn take_down(
        &mut self,
        kind: MountKind,
        target: &TargetPath,
        remove: bool,
    ) -> Result<bool> {
        let seen = self.probe(kind, target).await?;
        if decide(Call::Unpublish, self.phase(), Remembered::Nothing, seen) != Decision::Unmount {
            return Ok(false);
        }
        let mounter = self.shared.mounters.of(kind)?.clone();
        let target = target.clone();
        let call = move || mounter.unpublish(&target, remove);
        self.shared.blocking(call).await??;
        Ok(seen == Seen::Ours)
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
