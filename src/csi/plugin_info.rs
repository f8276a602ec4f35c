//! The CSI Identity service: who we are, and whether publishes would work.

use std::collections::HashMap;

use tonic::{Request, Response, Status, async_trait};

use crate::{
    csi::proto::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
        GetPluginInfoResponse, ProbeRequest, ProbeResponse, identity_server::Identity,
    },
    observe::ready::Readiness,
};

/// Answers for one driver.
pub struct PluginInfo {
    driver: String,
    readiness: Readiness,
}

impl PluginInfo {
    /// Of this driver's name.
    pub fn new(driver: impl Into<String>, readiness: Readiness) -> Self {
        Self {
            driver: driver.into(),
            readiness,
        }
    }
}

#[async_trait]
impl Identity for PluginInfo {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    /// None: a node-only driver (CSI specification, GetPluginCapabilities: the list may be empty).
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: Vec::new(),
        }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = self.readiness.probe().is_ok();
        tracing::trace!(ready, "probed");
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::error::{Error, codes};

    #[tokio::test]
    async fn it_says_who_it_is_and_is_ready_only_when_told() {
        let readiness = Readiness::default();
        let info = PluginInfo::new("csi.secretfs.dev", readiness.clone());
        let answer = info
            .get_plugin_info(Request::new(GetPluginInfoRequest {}))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (answer.name.as_str(), answer.manifest.len()),
            ("csi.secretfs.dev", 0)
        );
        for ready in [false, true] {
            let state = Err(Error::new(&codes::MOUNT_NO_PROPAGATION));
            readiness.set("propagation", if ready { Ok(()) } else { state });
            let answer = info
                .probe(Request::new(ProbeRequest {}))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(answer.ready, Some(ready));
        }
    }

    #[test]
    fn the_wire_is_as_the_specification_has_it() {
        // field 1, length-delimited, holding BoolValue{1: true}: what every CSI client reads as "ready"
        assert_eq!(
            ProbeResponse { ready: Some(true) }.encode_to_vec(),
            [0x0a, 0x02, 0x08, 0x01]
        );
        let info = GetPluginInfoResponse {
            name: "d".into(),
            vendor_version: "1".into(),
            manifest: HashMap::new(),
        };
        assert_eq!(info.encode_to_vec(), [0x0a, 1, b'd', 0x12, 1, b'1']);
    }
}
