//! The kubelet's plugin registration, which a sidecar does elsewhere.
//!
//! The kubelet watches `plugins_registry` below its directory. When a socket appears there it connects, asks who we are (`GetInfo`), calls
//! `NodeGetInfo` at the endpoint that we name, and tells us how it went (`NotifyRegistrationStatus`). A socket that goes is a plugin that goes:
//! so ours is bound after the CSI socket and removed before it.

use std::{os::unix::net::UnixListener, path::Path, sync::Arc};

use hyper::Response;
use tokio::sync::watch;
use tonic::{Request, Status, async_trait, body::Body, codegen::Service as _};

use crate::{
    csi::{
        inlet::Inbound,
        proto::registration::{
            InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
            registration_server::{self, RegistrationServer},
        },
        server::{Desk, service_of, unknown},
    },
    error::Result,
    limits,
    spec::read::shown,
};

/// What the kubelet takes us for.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Registered {
    /// It has not called yet.
    #[default]
    Unasked,
    /// It knows us and will send volumes.
    Yes,
    /// It would not have us; its own words.
    No(String),
}

/// Answers the kubelet. Cloned freely; all clones are one.
#[derive(Clone)]
pub struct Registration {
    service: RegistrationServer<Answers>,
    state: watch::Sender<Registered>,
    desk: Desk,
}

struct Answers {
    driver: String,
    endpoint: String,
    state: watch::Sender<Registered>,
}

impl Registration {
    /// For a driver whose CSI socket is at `endpoint`, on the host and in our container alike.
    pub fn new(driver: &str, endpoint: &Path) -> Self {
        let state = watch::Sender::default();
        let answers = Answers {
            driver: driver.to_owned(),
            endpoint: endpoint.display().to_string(),
            state: state.clone(),
        };
        let service = RegistrationServer::from_arc(Arc::new(answers));
        Self {
            service: service.max_decoding_message_size(limits::CSI_MESSAGE_BYTES),
            state,
            desk: Desk::default(),
        }
    }

    /// What the kubelet said last. A kubelet that forgets us does not say so.
    pub fn state(&self) -> watch::Receiver<Registered> {
        self.state.subscribe()
    }

    /// Serves `<kubeletDir>/plugins_registry/<driver>-reg.sock` until the future is dropped.
    ///
    /// # Errors
    /// `node.io` if the runtime cannot take the socket.
    pub async fn serve(&self, listener: &UnixListener) -> Result<()> {
        let service = self.service.clone();
        self.desk
            .serve(listener, move |request| answer(service.clone(), request))
            .await
    }
}

async fn answer(
    mut service: RegistrationServer<Answers>,
    request: hyper::Request<Inbound>,
) -> Response<Body> {
    let answered = match service_of(&request) {
        "pluginregistration.Registration" => service.call(request).await,
        _ => Ok(unknown()),
    };
    answered.unwrap_or_else(|never| match never {})
}

#[async_trait]
impl registration_server::Registration for Answers {
    async fn get_info(
        &self,
        _: Request<InfoRequest>,
    ) -> Result<tonic::Response<PluginInfo>, Status> {
        Ok(tonic::Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.driver.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<tonic::Response<RegistrationStatusResponse>, Status> {
        let said = request.into_inner();
        let state = match said.plugin_registered {
            true => Registered::Yes,
            false => Registered::No(shown(&said.error)),
        };
        match &state {
            Registered::No(why) => {
                tracing::warn!(why, "the kubelet would not register the driver");
            }
            _ => tracing::info!("registered with the kubelet"),
        }
        self.state.send_replace(state);
        Ok(tonic::Response::new(RegistrationStatusResponse {}))
    }
}
