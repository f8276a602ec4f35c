//! The CSI Node service: decode, send, wait, encode. No decisions.

use tonic::{Request, Response, Status, async_trait};

use crate::{
    csi::{
        context::{self, Expect},
        log::{Call, RpcLog},
        proto::{
            NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest,
            NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
            NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
            NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, VolumeCondition, VolumeUsage,
            node_server, node_service_capability, volume_usage::Unit,
        },
        status,
    },
    error::{Error, ErrorKind, Result, codes},
    limits,
    observe::{
        audit::{Audit, Record, What},
        ready::Readiness,
    },
    path::{TargetPath, VolumeId},
    volume::{Refused, UsageStatus, VolumeState, VolumeStatus, Volumes},
};

/// Answers for one node.
pub struct Node {
    /// Its name.
    pub node: String,
    /// Who serves.
    pub volumes: Volumes,
    /// What publishes are held against.
    pub expect: tokio::sync::watch::Receiver<Expect>,
    /// Whether publishes would work.
    pub readiness: Readiness,
    /// Where refusals are recorded.
    pub audit: Audit,
    /// Where calls are logged.
    pub log: RpcLog,
}

impl Node {
    /// 1. Are all fields there? A call that is wrong is wrong at any time.
    /// 2. Are we ready? If not, what the call says cannot be believed, or nothing could be mounted.
    /// 3. Who asks, and does what is said of him agree?
    /// 4. Serve it.
    async fn publish(
        &self,
        request: NodePublishVolumeRequest,
        call: &mut Call<'_>,
    ) -> Result<(), Refused> {
        call.at(&request.target_path);
        let known = VolumeId::parse(&request.volume_id);
        let served = known.as_ref().is_some_and(|id| self.volumes.knows(id));
        let refused = |error| Refused { error, served };
        let id = context::complete(&request, &self.expect.borrow()).map_err(refused)?; // 1
        call.volume = id.to_string();
        self.readiness.check().map_err(refused)?; // 2
        tracing::trace!(volume_id = %id, served, attributes = request.volume_context.len(), "a publish is read");
        let expect = self.expect.borrow().clone(); // not before 2: who says that we are ready has said where tokens are
        let target = TargetPath::parse(request.target_path.as_ref()).ok();
        let read = match served {
            true => context::read_again(request, &expect),
            false => context::read(request, &expect),
        };
        let asked = read.map_err(|error| {
            self.denied(&id, target.as_ref(), &error);
            refused(error)
        })?; // 3
        call.pod = asked.caller.0.to_string();
        self.volumes.publish(asked).await?; // 4
        match served {
            true => call.repeated(),
            false => call.done(),
        }
        Ok(())
    }

    async fn unpublish(
        &self,
        request: NodeUnpublishVolumeRequest,
        call: &mut Call<'_>,
    ) -> Result<()> {
        call.at(&request.target_path);
        let place = {
            let expect = self.expect.borrow();
            context::place(&request.volume_id, &request.target_path, &expect)
        };
        let (id, target) = place?;
        call.volume = id.to_string();
        let known = self.volumes.knows(&id);
        self.volumes.unpublish(&id, Some(target), true).await?;
        match known {
            true => call.done(),
            false => call.repeated(), // or what a former process left
        }
        Ok(())
    }

    /// A volume that is served, if it is where the call says.
    fn served(&self, request: &NodeGetVolumeStatsRequest) -> Result<VolumeStatus> {
        let missing = |field| {
            let says = format!("{field} is missing");
            Err(Error::new(&codes::CSI_BAD_REQUEST).detail(says))
        };
        if request.volume_id.is_empty() {
            return missing("volume_id");
        }
        if request.volume_path.is_empty() {
            return missing("volume_path");
        }
        let path = TargetPath::parse(request.volume_path.as_ref()).ok();
        let path = path.map(|path| path.to_string());
        VolumeId::parse(&request.volume_id)
            .and_then(|id| self.volumes.one(&id))
            .filter(|one| Some(&one.target) == path.as_ref())
            .ok_or_else(|| Error::new(&codes::VOLUME_UNKNOWN))
    }

    /// A refusal for what somebody is, or says that he is, goes on record.
    fn denied(&self, id: &VolumeId, target: Option<&TargetPath>, error: &Error) {
        if error.kind() == ErrorKind::PermissionDenied {
            self.audit.record(&Record {
                who: None, // no name: what was said of him does not agree
                path: target.map(ToString::to_string),
                code: Some(error.code()),
                ..Record::new(What::Deny, id)
            });
        }
    }
}

#[async_trait]
impl node_server::Node for Node {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let mut call = self.log.begin("NodePublishVolume");
        match self.publish(request.into_inner(), &mut call).await {
            Ok(()) => Ok(Response::new(NodePublishVolumeResponse {})),
            Err(Refused { error, served }) => {
                call.failed(&error);
                Err(match served {
                    true => status::republish(&error),
                    false => status::first_publish(&error),
                })
            }
        }
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let mut call = self.log.begin("NodeUnpublishVolume");
        match self.unpublish(request.into_inner(), &mut call).await {
            Ok(()) => Ok(Response::new(NodeUnpublishVolumeResponse {})),
            Err(error) => {
                call.failed(&error);
                Err(status::unpublish(&error))
            }
        }
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let mut call = self.log.begin("NodeGetVolumeStats");
        let found = self.served(request.get_ref());
        let found = found.map_err(|error| {
            self.log.count(&error);
            call.unknown(&error);
            status::stats(&error)
        })?;
        call.volume.clone_from(&found.id);
        call.repeated();
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: found.usage.as_ref().map(usage).unwrap_or_default(),
            volume_condition: Some(condition(&found)),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        use node_service_capability::{Rpc, Type, rpc::Type as T};
        let offered = [T::GetVolumeStats, T::VolumeCondition, T::VolumeMountGroup];
        let capabilities = offered.map(|one| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: one.into() })),
        });
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: capabilities.into(),
        }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        if self.node.is_empty() || self.node.len() > limits::NODE_ID_BYTES {
            return Err(Status::failed_precondition(
                "the node has no name of 1 to 256 bytes: set `node` in the configuration",
            ));
        }
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node.clone(),
            max_volumes_per_node: 0,
            accessible_topology: None,
        }))
    }
}

fn usage(usage: &UsageStatus) -> Vec<VolumeUsage> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let one = |used: u64, total: u64, unit: Unit| VolumeUsage {
        available: number(total.saturating_sub(used)),
        total: number(total),
        used: number(used),
        unit: unit.into(),
    };
    vec![
        one(usage.bytes, usage.bytes_capacity, Unit::Bytes),
        one(usage.inodes, usage.inodes_capacity, Unit::Inodes),
    ]
}

/// How it is, in a sentence: in which state, since when, why, and what to do.
fn condition(volume: &VolumeStatus) -> VolumeCondition {
    let state = volume.state.name();
    let help = match volume.state {
        VolumeState::Fresh => "",
        VolumeState::Stale | VolumeState::Denied => "Readers keep the last good files.",
        VolumeState::WaitingForToken => {
            "Readers keep the last good files; the kubelet brings a token."
        }
        VolumeState::Lost => "The mount is gone from the pod; restart the pod.",
        VolumeState::Adopted => {
            "Served as a former process left it; the next republish completes it."
        }
    };
    let healthy = matches!(volume.state, VolumeState::Fresh | VolumeState::Adopted);
    let message = match &volume.error {
        Some(error) => {
            let code = codes::ALL.iter().find(|code| code.name == error.code);
            let fix = code.map_or("", |code| code.fix);
            let since = error
                .since
                .as_deref()
                .map(|since| format!(" since {since}"));
            let since = since.unwrap_or_default();
            status::line(
                &format!("{state}{since}: {}: {}", error.code, error.message),
                format!(". {help} {fix}").trim_end(),
            )
        }
        None if help.is_empty() => state.to_owned(),
        None => format!("{state}: {help}"),
    };
    VolumeCondition {
        abnormal: !healthy || volume.error.is_some(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spec::MountKind, volume::StatusError};

    fn status(state: VolumeState, error: Option<(&str, &str)>) -> VolumeStatus {
        VolumeStatus {
            id: "v".into(),
            owner: "default/web".into(),
            target: "/t".into(),
            mount: MountKind::Tmpfs,
            state,
            generation: 1,
            changed_at: None,
            checked_seconds_ago: None,
            next_in_seconds: None,
            error: error.map(|(code, message)| StatusError {
                code: code.into(),
                message: message.into(),
                since: Some("2026-11-24T10:00:00.000Z".into()),
            }),
            sources: Vec::new(),
            usage: None,
        }
    }

    #[test]
    fn the_condition_says_which_state_since_when_why_and_what_to_do() {
        use VolumeState as V;
        let down = Some(("backend.unavailable", "store:db: connection refused"));
        let gone = Some(("mount.gone", "The mount has gone from the target"));
        for (state, error, abnormal, message) in [
            (V::Fresh, None, false, "fresh"),
            (
                V::Adopted,
                None,
                false,
                "adopted: Served as a former process left it; the next republish completes it.",
            ),
            (
                V::Lost,
                None,
                true,
                "lost: The mount is gone from the pod; restart the pod.",
            ),
            (
                V::Stale,
                down,
                true,
                "stale since 2026-11-24T10:00:00.000Z: backend.unavailable: store:db: connection refused. Readers keep the last good files. Nothing: it is asked again.",
            ),
            (
                V::Adopted,
                down,
                true,
                "adopted since 2026-11-24T10:00:00.000Z: backend.unavailable: store:db: connection refused. Served as a former process left it; the next republish completes it. Nothing: it is asked again.",
            ),
            (
                V::Lost,
                gone,
                true,
                "lost since 2026-11-24T10:00:00.000Z: mount.gone: The mount has gone from the target. The mount is gone from the pod; restart the pod. Restart the program or the pod that uses it, and see who unmounted it.",
            ),
        ] {
            let got = condition(&status(state, error));
            assert_eq!((got.abnormal, got.message.as_str()), (abnormal, message));
        }
        let endless = "x\n".repeat(10_000);
        let got = condition(&status(V::Stale, Some(("bug", &endless))));
        assert!(got.message.len() <= limits::CSI_STATUS_BYTES && !got.message.contains('\n'));
    }
}
