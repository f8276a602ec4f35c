//! `--spec SPEC`: a volume of our own, in memory, or with `--mount` at a directory that only we and the program see.

use std::{path::Path, sync::Arc};

use super::{dir::Files, names::Naming};
use crate::{
    caller::{Credentials, Identity},
    cli::{hook::Followed, load},
    error::{Error, Result, codes},
    mount::memory::MemoryMounter,
    observe::audit::Audit,
    path::{TargetPath, VolumeId},
    spec::VolumeSpec,
    sys::process,
    volume::{AskedSpec, Mounters, Parts, Placing, PublishRequest, Volumes},
};

/// Where a volume in memory is said to be.
const NOWHERE: &str = "/memory";

/// A volume that is about to be served.
pub struct Volume {
    spec: Arc<VolumeSpec>,
    node: load::Node,
    target: Option<TargetPath>,
}

impl Volume {
    /// `None`: the configuration or the spec has problems, which were printed.
    ///
    /// # Errors
    /// `config.unreadable`, `usage`.
    pub fn of(spec: &Path, node: load::Node, target: Option<TargetPath>) -> Result<Option<Self>> {
        let Some(spec) = load::spec(spec, &node)? else {
            return Ok(None);
        };
        Ok(Some(Self { spec, node, target }))
    }

    /// Where it is mounted, if it is.
    pub fn target(&self) -> Option<&TargetPath> {
        self.target.as_ref()
    }

    /// Fetches, and mounts if there is a target. Losing the future before its end leaves nothing that anybody sees.
    ///
    /// # Errors
    /// Those of the spec's backends, of the render, of the mount and of the audit log.
    pub async fn serve(self) -> Result<Served> {
        let memory = MemoryMounter::default();
        let audit = self.node.audit()?; // it starts a thread
        let mut parts = load::parts(self.node.registry, audit.clone());
        if self.target.is_none() {
            let tmpfs = Arc::new(memory.clone());
            parts = Parts {
                mounters: Mounters { tmpfs },
                ..parts
            };
        }
        let bug = || Error::new(&codes::BUG).detail("a name of exec's own is none");
        // each has its own: what another one has mounted at the target is not this one's to take over
        let id = VolumeId::parse(&format!("exec-{:016x}", fastrand::u64(..))).ok_or_else(bug)?;
        let mounted = self.target.is_some();
        let target = match self.target {
            Some(target) => target,
            None => TargetPath::parse(Path::new(NOWHERE)).map_err(|_| bug())?,
        };
        tracing::trace!(volume_id = %id, mounted, "a volume for one program");
        let identity = Identity::Local {
            uid: process::uid(),
        };
        let volumes = Volumes::start(parts);
        let request = PublishRequest {
            id: id.clone(),
            target: target.clone(),
            spec: AskedSpec::Parsed(self.spec),
            caller: Arc::new((identity, Credentials::default())),
            placing: Placing::default(),
        };
        let published = match volumes.publish(request).await {
            Ok(_) => volumes.follow(&id).await,
            Err(refused) => Err(refused.error),
        };
        let followed = match published {
            Ok(followed) => followed,
            Err(error) => {
                volumes.shutdown().await;
                audit.flush();
                return Err(error);
            }
        };
        Ok(Served {
            followed,
            volumes,
            id,
            target,
            memory,
            audit,
        })
    }
}

/// A volume that is served.
pub struct Served {
    volumes: Volumes,
    id: VolumeId,
    target: TargetPath,
    memory: MemoryMounter,
    followed: Followed,
    audit: Audit,
}

impl Served {
    /// Returns when there is another set of files, or the same again.
    pub async fn changed(&mut self) {
        if self.followed.changed().await.is_err() {
            std::future::pending::<()>().await; // the volume is gone; whoever ended it ends us
        }
    }

    /// The files of a volume in memory, or those of them that are named.
    ///
    /// # Errors
    /// `volume.unknown`: it is gone.
    pub fn files(&self, naming: &Naming) -> Result<Files> {
        let shown = self.memory.shown(&self.target);
        let shown = shown.ok_or_else(|| Error::new(&codes::VOLUME_UNKNOWN).object(&self.id))?;
        let wanted = naming.wanted();
        let mut files: Files = shown
            .files
            .0
            .into_iter()
            .map(|(path, file)| (path, file.bytes))
            .collect();
        files.retain(|path, _| wanted.as_ref().is_none_or(|wanted| wanted.contains(&path)));
        Ok(files)
    }

    /// The number of the set that readers see.
    pub fn generation(&self) -> u64 {
        let snapshot = self.followed.borrow();
        snapshot
            .as_ref()
            .map_or(0, |snapshot| snapshot.generation.0)
    }

    /// Ends requests, and leaves the values as they are, and their leases: the program that takes our place has them.
    pub async fn leave(self) {
        self.volumes.shutdown().await;
        self.audit.flush();
    }

    /// Takes it down: files are overwritten, leases given back.
    pub async fn end(self) {
        let ended = self
            .volumes
            .unpublish(&self.id, Some(self.target), false)
            .await;
        if let Err(error) = ended {
            tracing::warn!(volume_id = %self.id, code = error.code().name, %error, "a volume cannot be taken down");
        }
        self.volumes.shutdown().await;
        self.audit.flush();
    }
}
