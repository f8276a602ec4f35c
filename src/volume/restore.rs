//! What a former process left, before the first call comes: each mount and each record gets its task again.
//!
//! The mounts themselves are looked at; where a record and the kernel differ the kernel is right. A mount with a record goes on
//! as if nothing had been: its sources are asked at once, those that need a pod's token when the kubelet brings one. Any other
//! is *held*: served as it is, until a publish says what it is or an unpublish ends it. A volume whose pod has gone is not told
//! from others; the kubelet will unpublish it.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    caller::{Credentials, Identity},
    error::{Error, Result, codes},
    limits,
    mount::{Grant, MountOptions, Mounted, Usage, VolumeId},
    path::TargetPath,
    render::Generation,
    spec::MountKind,
    volume::{
        AskedSpec, Volumes,
        decide::{Call, Decision, Remembered, Seen, decide},
        publish::Order,
        read::parse,
        record::{Skip, Stage, VolumeRecord},
        served::Served,
        status::{Failure, Report},
        task::Task,
        volumes::{Command, Shared},
        wanted::wanted,
    },
};

/// How many volumes a former process left.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Restored {
    /// They are served as before.
    pub restored: usize,
    /// They are served as they are: there is no record, or its spec cannot be served any more.
    pub held: usize,
    /// Their mount has gone.
    pub lost: usize,
    /// Records that are none, or not for us.
    pub skipped: usize,
}

/// What was found of one volume.
#[derive(Default)]
pub(super) struct Found {
    record: Option<(VolumeRecord, Stage)>,
    /// Where the kernel shows it.
    at: Vec<TargetPath>,
}

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Restored,
    Held,
    Lost,
    Nothing,
}

/// A mount that is served as it is.
pub(super) struct Held {
    pub target: TargetPath,
    /// As far as a record tells.
    pub owner: Option<Identity>,
    /// `None`: something of somebody else's lies above it.
    pub mounted: Option<Box<dyn Mounted>>,
    pub generation: Generation,
    usage: Option<Usage>,
    /// Why it is not served by its record.
    failure: Option<Failure>,
}

impl Held {
    pub fn report(&self, id: &VolumeId, refusal: Option<&Failure>) -> Report {
        Report {
            id: id.clone(),
            owner: self
                .owner
                .as_ref()
                .map(Identity::to_string)
                .unwrap_or_default(),
            target: self.target.to_string(),
            mount: MountKind::Tmpfs,
            generation: self.generation,
            changed_at: None,
            lost: false,
            adopted: true,
            failure: refusal.or(self.failure.as_ref()).cloned(),
            sources: Vec::new(),
            usage: self.usage,
        }
    }
}

impl Volumes {
    /// Takes over what a former process left. Call it once, before the first publish.
    ///
    /// 1. Look at all mounts, and read all records.
    /// 2. Each volume's task takes its own over, a few at a time.
    ///
    /// What cannot be taken over is left as it is, and a publish or unpublish will find it: nothing here fails a start.
    pub async fn restore(&self) -> Restored {
        let shared = self.shared().clone();
        let found = self.shared().blocking(move || look(&shared)).await; // 1
        let (found, skipped) = match found.and_then(|found| found) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(code = error.code().name, %error, "what a former process left cannot be looked at");
                return Restored::default();
            }
        };
        let mut restored = Restored {
            skipped,
            ..Restored::default()
        };
        let mut found = found.into_iter().peekable();
        while found.peek().is_some() {
            let some = found.by_ref().take(limits::RESTORE_AT_ONCE); // 2
            let asked: Vec<_> = some
                .map(|(id, found)| self.restore_one(&id, found))
                .collect();
            for answer in asked {
                match answer.await {
                    Ok(Outcome::Restored) => restored.restored += 1,
                    Ok(Outcome::Held) => restored.held += 1,
                    Ok(Outcome::Lost) => restored.lost += 1,
                    Ok(Outcome::Nothing) | Err(_) => {} // an error: its task panicked, or we are stopping
                }
            }
        }
        tracing::info!(?restored, "what a former process left is taken over");
        restored
    }

    fn restore_one(&self, id: &VolumeId, found: Found) -> oneshot::Receiver<Outcome> {
        let (reply, answer) = oneshot::channel();
        let _ = self.send(id, true, Command::Restore(Box::new(found), reply)); // an error: we are stopping
        answer
    }
}

/// What there is of each volume, and how many files were no records.
fn look(shared: &Shared) -> Result<(BTreeMap<VolumeId, Found>, usize)> {
    let mut all: BTreeMap<VolumeId, Found> = BTreeMap::new();
    for (id, place) in shared.mounters.tmpfs.all()? {
        let found = all.entry(id).or_default();
        if let Ok(target) = TargetPath::parse(&place)
            && !found.at.contains(&target)
        {
            found.at.push(target);
        }
    }
    let loaded = shared.records.load();
    for (file, why) in loaded.skipped.iter().take(limits::PROBLEMS) {
        let gone = matches!(why, Skip::Damaged | Skip::OtherBoot);
        tracing::warn!(file, ?why, gone, "a record is not used");
    }
    if loaded.skipped.len() > limits::PROBLEMS {
        let more = loaded.skipped.len() - limits::PROBLEMS;
        tracing::warn!(more, "more records are not used");
    }
    for (id, record) in loaded.records {
        all.entry(id).or_default().record = Some(record);
    }
    Ok((all, loaded.skipped.len()))
}

impl Task {
    /// Goes on with what was found, as the table says.
    pub async fn restore(&mut self, found: Found) -> Outcome {
        let (remembered, target) = match &found.record {
            None => (Remembered::Nothing, found.at.first()),
            Some((record, stage)) => {
                let at = found.at.contains(&record.target).then_some(&record.target);
                let remembered = match stage {
                    Stage::Begun => Remembered::Begun,
                    Stage::Attached => Remembered::Same,
                };
                (remembered, at.or(found.at.first()))
            }
        };
        let target = target.cloned();
        let seen = target.as_ref().map_or(Seen::Absent, |_| Seen::Ours);
        let decision = decide(Call::Restore, self.phase(), remembered, seen);
        let outcome = match (decision, found.record, target) {
            (Decision::Adopt, Some((record, stage)), Some(target)) => {
                self.take_over(record, stage, target).await
            }
            (Decision::Hold, _, Some(target)) => self.hold(target, None, None).await,
            (Decision::Lose, Some((record, _)), _) => self.lose(record).await,
            (Decision::Forget, Some(_), _) => self.forget_record().await,
            _ => Outcome::Nothing,
        };
        self.tell(self.shared.clock.now());
        outcome
    }

    async fn take_over(&mut self, record: VolumeRecord, stage: Stage, at: TargetPath) -> Outcome {
        let (who, asked) = (record.who.clone(), AskedSpec::Raw(record.spec.clone()));
        let settings = self.shared.settings.borrow().clone();
        let order = self.order(&record);
        let spec = order.as_ref().ok().map(|order| order.spec.clone());
        let adopted = match order {
            Ok(order) if order.target == at => {
                let record = (stage == Stage::Begun).then_some(record);
                self.adopt(order, record).await
            }
            Ok(_) => Err(Error::new(&codes::MOUNT_GONE)
                .object(&record.target)
                .detail(format!("the mount is at {at} now"))),
            Err(error) => Err(error),
        };
        match adopted {
            Ok(_) => Outcome::Restored,
            Err(error) => {
                let outcome = self.hold(at, Some(who), Some(error.clone())).await;
                if self.stays(&error) {
                    // the kubelet will ask for the same: what is told and put on record of it now is not told again
                    let _ = self.refuse(asked, settings, spec, error); // its answer is nobody's
                }
                outcome
            }
        }
    }

    /// Serves it as it is.
    async fn hold(
        &mut self,
        target: TargetPath,
        owner: Option<Identity>,
        error: Option<Error>,
    ) -> Outcome {
        let limits = self.shared.settings.borrow().volume_limits;
        let options = MountOptions {
            volume: self.id.clone(),
            bytes_limit: limits.bytes_per_volume,
            files_limit: limits.files_per_volume,
            context: None,
            make_target: true,
            grant: Grant::default(), // it is there already
        };
        let (mounter, place) = (self.shared.mounters.tmpfs.clone(), target.clone());
        let call = move || {
            let mounted = mounter.adopt(&place, &options)?;
            Ok((mounted.usage().ok(), mounted))
        };
        let adopted = self.shared.blocking(call).await.and_then(|adopted| adopted);
        let (mounted, usage, failed) = match adopted {
            Ok((usage, mounted)) => (Some(mounted), usage, None),
            Err(error) => (None, None, Some(error)),
        };
        if let Some(error) = &error {
            tracing::warn!(volume_id = %self.id, code = error.code().name, %error, "a mount is kept as it is");
        }
        let bytes = usage.map_or(0, |usage| usage.bytes_capacity);
        self.shared.ledger.adopt(&self.id, owner.as_ref(), bytes);
        let since = self.shared.clock.now();
        let failure = error.or(failed).map(Arc::new);
        self.held = Some(Held {
            target,
            owner,
            generation: mounted.as_ref().map_or(Generation(0), |m| m.generation()),
            mounted,
            usage,
            failure: failure.map(|error| Failure { error, since }),
        });
        Outcome::Held
    }

    /// Its mount has gone: the sources are asked all the same, so that the next publish mounts anew at once.
    async fn lose(&mut self, record: VolumeRecord) -> Outcome {
        let Ok(order) = self.order(&record) else {
            return self.forget_record().await;
        };
        let Ok(wanted) = wanted(&self.id, &order.spec, &order.caller.0, &order.settings) else {
            return self.forget_record().await;
        };
        let Ok(sources) = self.subscribe(&order, wanted).await else {
            return Outcome::Nothing; // stopping
        };
        self.shared.ledger.adopt(&self.id, Some(&record.who), 0); // a mount anew is charged to him
        let mut served = Served::new(&order, sources, Generation(0));
        let gone = Error::new(&codes::MOUNT_GONE).object(&order.target);
        served.failed(self.shared.clock.now(), gone);
        self.served = Some(served);
        Outcome::Lost
    }

    async fn forget_record(&mut self) -> Outcome {
        let (shared, id) = (self.shared.clone(), self.id.clone());
        let call = move || shared.recorded(shared.records.remove(&id));
        let _ = self.shared.blocking(call).await; // a panic has been counted
        Outcome::Nothing
    }

    /// What a record asks for, under the configuration of now. Without proof: the kubelet brings one.
    fn order(&self, record: &VolumeRecord) -> Result<Order> {
        let settings = self.shared.settings.borrow().clone();
        let caller = Arc::new((record.who.clone(), Credentials::default()));
        let (known, placing) = (&self.shared.specs, &record.placing);
        let (spec, raw) = parse(known, &record.spec, &caller, placing, &settings)?;
        Ok(Order {
            target: record.target.clone(),
            spec,
            raw: Some(raw),
            caller,
            placing: record.placing.clone(),
            settings,
        })
    }
}
