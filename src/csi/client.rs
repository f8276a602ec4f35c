//! The kubelet's side of the socket.

use std::{
    future::Future,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{Request, Response, Uri, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::{body::Body, codegen::Service};

use crate::{
    csi::proto::{
        identity_client::IdentityClient, node_client::NodeClient,
        registration::registration_client::RegistrationClient,
    },
    error::{Error, Result, codes},
    sys::socket::Short,
};

/// One connection to a CSI socket; cloned freely, calls share it.
#[derive(Clone)]
pub struct Channel {
    sender: hyper::client::conn::http2::SendRequest<Body>,
}

impl Channel {
    /// Connects. Call it inside a runtime.
    ///
    /// # Errors
    /// `node.io`: nobody answers there.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(&codes::NODE_IO)
                .object(socket.display())
                .step("connect to the CSI socket")
                .source(error)
        };
        let short = Short::of(socket).map_err(failed)?;
        let stream = UnixStream::connect(&short.path).await.map_err(failed)?;
        let shake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = shake
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?;
        tokio::spawn(connection); // ends with the last sender
        tracing::trace!("connected to a CSI socket");
        Ok(Self { sender })
    }

    /// The Identity service.
    pub fn identity(&self) -> IdentityClient<Self> {
        IdentityClient::with_origin(self.clone(), Uri::from_static("http://localhost"))
    }

    /// The kubelet's Registration service, on a socket of its own.
    pub fn registration(&self) -> RegistrationClient<Self> {
        RegistrationClient::with_origin(self.clone(), Uri::from_static("http://localhost"))
    }

    /// The Node service.
    pub fn node(&self) -> NodeClient<Self> {
        NodeClient::with_origin(self.clone(), Uri::from_static("http://localhost"))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}
