//! A volume's audit trail: which records it owes, and when.
//!
//! A delivery is one version of one secret that readers of this volume can read from now on: owed once, and again where the mount had gone and
//! is back. A removal is a secret that they can no longer read: the store has it no more, another spec names it no more, or the mount has
//! gone. A denial is owed when it begins, not for each question that is answered so.
//!
//! A new process knows nothing of its forerunner's records: it writes what its volumes hold once more. Twice is better than never.

use crate::{
    caller::Identity,
    error::{Code, Error, codes},
    mount::VolumeId,
    observe::audit::{Audit, Record, What},
    path::TargetPath,
    render::Known,
    secret::Version,
    spec::ObjectRef,
    volume::{AskedSpec, followed::Followed, served::Served, task::Task},
};

/// What is to be put on record of one set of files, when readers see it.
#[derive(Default)]
pub(super) struct Trail {
    /// Versions that they did not see before.
    pub deliveries: Vec<Record>,
    /// Secrets that they see no more.
    pub removals: Vec<Record>,
}

/// Whose volume, and where.
#[derive(Clone, Copy)]
pub(super) struct About<'v> {
    pub id: &'v VolumeId,
    pub who: Option<&'v Identity>,
    pub target: &'v TargetPath,
}

impl About<'_> {
    /// A record about the whole volume.
    fn whole(&self, what: What, code: Option<&'static Code>) -> Record {
        Record {
            who: self.who.cloned(),
            path: Some(self.target.to_string()),
            code,
            ..Record::new(what, self.id)
        }
    }

    /// A record about one of its secrets.
    fn secret(&self, what: What, object: &ObjectRef, version: Option<&Version>) -> Record {
        Record {
            secret: Some(object.into()),
            version: version.map(|version| version.as_str().to_owned()),
            ..self.whole(what, None)
        }
    }

    /// A denial of one of its secrets.
    pub fn denial(&self, object: &ObjectRef, code: &'static Code) -> Record {
        Record {
            code: Some(code),
            ..self.secret(What::Deny, object, None)
        }
    }
}

impl Trail {
    /// Of a set in which this is known of these sources.
    pub fn of(about: About<'_>, sources: &[Followed], known: &[Known]) -> Self {
        let mut trail = Self::default();
        for (source, known) in sources.iter().zip(known) {
            let (object, before) = (&source.key.object, source.delivered.as_ref());
            match (known, before) {
                (Known::Object(new), _) => {
                    let (epoch, version) = (source.key.epoch, &new.version);
                    if before.is_none_or(|before| (before.0, &before.1) != (epoch, version)) {
                        let delivery = about.secret(What::Deliver, object, Some(version));
                        trail.deliveries.push(delivery);
                    }
                }
                (Known::Absent, Some((_, version))) => trail.removals.push(Record {
                    code: Some(&codes::BACKEND_NOT_FOUND),
                    ..about.secret(What::Remove, object, Some(version))
                }),
                (Known::Absent, None) | (Known::Unknown | Known::Withdrawn, _) => {}
            }
        }
        trail
    }

    /// And the secrets that were shown before, and that the new set does not name.
    pub fn without(mut self, about: About<'_>, before: &[Followed], now: &[Followed]) -> Self {
        let same = |a: &ObjectRef, b: &ObjectRef| a.backend == b.backend && a.path == b.path;
        for source in before {
            let object = &source.key.object;
            if let Some((_, version)) = &source.delivered
                && !now.iter().any(|new| same(&new.key.object, object))
            {
                let gone = about.secret(What::Remove, object, Some(version));
                self.removals.push(gone);
            }
        }
        self
    }

    /// Shows something, and puts it on record when it has been shown. Blocks.
    ///
    /// # Errors
    /// `audit.unavailable`: it must not be shown. What `show` says.
    pub fn shown<T>(
        &self,
        audit: &Audit,
        show: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let places = audit.reserve(self.deliveries.len())?;
        let shown = show()?;
        places.deliver(&self.deliveries);
        for removal in &self.removals {
            audit.record(removal);
        }
        Ok(shown)
    }
}

impl Served {
    fn about<'v>(&'v self, id: &'v VolumeId) -> About<'v> {
        About {
            id,
            who: Some(&self.identity),
            target: &self.target,
        }
    }

    /// What is to be put on record when readers see this.
    pub fn trail(&self, id: &VolumeId, known: &[Known]) -> Trail {
        let about = self.about(id);
        let mut trail = Trail::of(about, &self.sources, known);
        for gone in self.withdrawals(known) {
            let Some(source) = self.sources.get(gone.nth) else {
                continue;
            };
            let version = source.delivered.as_ref().map(|(_, version)| version);
            trail.removals.push(Record {
                code: Some(gone.error.code()),
                ..about.secret(What::Remove, &source.key.object, version)
            });
        }
        trail
    }

    /// What is known of these is on record.
    pub fn delivered(&mut self, known: &[Known]) {
        for (source, known) in self.sources.iter_mut().zip(known) {
            match known {
                Known::Object(object) => {
                    source.delivered = Some((source.key.epoch, object.version.clone()));
                }
                Known::Absent | Known::Withdrawn => source.delivered = None,
                Known::Unknown => {}
            }
        }
    }

    /// Nobody can read it where it was: that is on record once, and whatever can be read again will be.
    pub fn put_loss_on_record(&mut self, id: &VolumeId, audit: &Audit) {
        if self.is_loss_told {
            return;
        }
        self.is_loss_told = true;
        audit.record(&self.about(id).whole(What::Remove, Some(&codes::MOUNT_GONE)));
        for source in &mut self.sources {
            source.delivered = None;
        }
    }

    fn put_denials_on_record(&mut self, id: &VolumeId, audit: &Audit) {
        let mut denials = Vec::new();
        for source in &mut self.sources {
            let error = source.view.borrow().error.clone();
            match error.filter(|error| error.is_denial()) {
                Some(error) if !source.is_denied => {
                    source.is_denied = true;
                    denials.push((source.key.object.clone(), error.code()));
                }
                Some(_) => {}
                // a store that is down in between has not changed its mind
                None => source.is_denied &= source.view.borrow().error.is_some(),
            }
        }
        for (object, code) in denials {
            audit.record(&self.about(id).denial(&object, code));
        }
    }
}

impl Task {
    /// What has begun by itself since the last look: the mount has gone, a store or the policy denies a secret that is served.
    pub fn put_changes_on_record(&mut self) {
        let Some(served) = self.served.as_mut().filter(|_| !self.closing) else {
            return;
        };
        if served.gone {
            served.put_loss_on_record(&self.id, &self.shared.audit);
        }
        served.put_denials_on_record(&self.id, &self.shared.audit);
    }

    /// A publish was refused these secrets. One of a volume that is served is asked again and again with the same spec: told once.
    pub fn put_refusals_on_record<'o>(
        &self,
        about: About<'_>,
        asked: &AskedSpec,
        denied: impl IntoIterator<Item = (&'o ObjectRef, &'static Code)>,
    ) {
        if self.is_denied_already(asked) {
            return;
        }
        for (object, code) in denied {
            self.shared.audit.record(&about.denial(object, code));
        }
    }

    fn is_denied_already(&self, asked: &AskedSpec) -> bool {
        let refusal = self.refusal.as_ref();
        refusal.is_some_and(|before| before.is_of(asked) && before.failure.error.is_denial())
    }

    /// The volume is gone from this node, with its files.
    pub fn put_removal_on_record(&self, target: &TargetPath) {
        let about = About {
            id: &self.id,
            who: self.owner(),
            target,
        };
        self.shared.audit.record(&about.whole(What::Remove, None));
    }
}
