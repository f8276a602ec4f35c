//! gRPC over a Unix socket: HTTP/2 by hyper, the services by tonic's generated code.
//!
//! Not tonic's own server: it would add axum and tower for a choice between path prefixes. What it would do besides is here:
//! bounds on connections, calls and messages, an end for connections on which nothing happens, a panic that becomes INTERNAL, and a
//! stop that lets answers out. A caller that gives up resets its stream, and hyper drops the handler's future: `grpc-timeout` needs no more.

use std::{
    convert::Infallible,
    future::Future,
    os::unix::net::UnixListener as StdListener,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, codegen::Service as _};

use crate::{
    clock::Clock,
    csi::{
        authority::Lenient,
        inlet::{Inbound, Inlet},
        measured::Measured,
        node::Node,
        plugin_info::PluginInfo,
        proto::{identity_server::IdentityServer, node_server, node_server::NodeServer},
    },
    error::{Error, Result, codes},
    limits,
    observe::metrics::Metrics,
    volume::caught,
};

/// What is served, and what is in flight. Cloned freely; all clones are one. The Node service may be another than ours: the
/// benchmarks serve one that makes system calls only.
pub struct Services<N = Node> {
    identity: IdentityServer<PluginInfo>,
    node: NodeServer<N>,
    desk: Desk,
}

impl<N> Clone for Services<N> {
    fn clone(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            node: self.node.clone(),
            desk: self.desk.clone(),
        }
    }
}

impl<N: node_server::Node> Services<N> {
    /// These two.
    pub fn new(info: Arc<PluginInfo>, node: Arc<N>) -> Self {
        Self {
            identity: IdentityServer::from_arc(info)
                .max_decoding_message_size(limits::CSI_MESSAGE_BYTES),
            node: NodeServer::from_arc(node).max_decoding_message_size(limits::CSI_MESSAGE_BYTES),
            desk: Desk::default(),
        }
    }

    /// And measures each call there, by this clock; one that is refused because there are too many is counted and told too.
    pub fn measured(self, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        let mut desk = self.desk;
        desk.measured = Measured::new(clock, metrics);
        Self { desk, ..self }
    }

    /// Returns when no call is in flight. New ones may come; they are answered.
    pub async fn idle(&self) {
        self.desk.calls.none().await;
    }

    /// Takes no more calls, and returns when the last answers have been written and their connections closed.
    pub async fn close(&self) {
        self.desk.close().await;
    }

    /// How many handlers have panicked.
    pub fn panics(&self) -> u64 {
        self.desk.panics.load(Ordering::Relaxed)
    }

    async fn answer(self, request: Request<Inbound>) -> Response<Body> {
        let (mut identity, mut node) = (self.identity, self.node);
        let measuring = self.desk.measured.begin(&request);
        let answered = match service_of(&request) {
            "csi.v1.Identity" => identity.call(request).await,
            "csi.v1.Node" => node.call(request).await,
            _ => Ok(unknown()),
        };
        let answer = answered.unwrap_or_else(|never| match never {});
        measuring.answered(&answer);
        answer
    }
}

/// The service in the path of a call: `/SERVICE/METHOD`.
pub(super) fn service_of<B>(request: &Request<B>) -> &str {
    request.uri().path().split('/').nth(1).unwrap_or("")
}

/// The answer where there is no such service.
pub(super) fn unknown() -> Response<Body> {
    Status::unimplemented("no such service").into_http()
}

/// The answer where there are too many calls already: the kubelet tries again.
fn too_many() -> Response<Body> {
    Status::resource_exhausted("too many calls at once; try again [csi.busy]").into_http()
}

/// Serves until the future is dropped; then no new connection is taken, and what is in flight goes on until
/// [`Services::close`].
///
/// # Errors
/// `node.io` if the runtime cannot take the socket.
pub async fn serve<N: node_server::Node>(
    listener: &StdListener,
    services: Services<N>,
) -> Result<()> {
    let desk = services.desk.clone();
    desk.serve(listener, move |request| services.clone().answer(request))
        .await
}

/// The connections of one socket.
#[derive(Clone)]
pub(super) struct Desk {
    calls: Count,
    connections: Count,
    places: Arc<Semaphore>,
    /// For calls that are being answered, beyond one on each connection.
    seats: Arc<Semaphore>,
    inlet: Inlet,
    measured: Measured,
    closing: CancellationToken,
    panics: Arc<AtomicU64>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            calls: Count::default(),
            connections: Count::default(),
            places: Arc::new(Semaphore::new(limits::CSI_CONNECTIONS)),
            seats: Arc::new(Semaphore::new(limits::CSI_CALLS)),
            inlet: Inlet::default(),
            measured: Measured::default(),
            closing: CancellationToken::new(),
            panics: Arc::default(),
        }
    }
}

impl Desk {
    /// Takes connections, as many as there are places for; others wait in the socket.
    pub async fn serve<F, A>(&self, listener: &StdListener, answer: A) -> Result<()>
    where
        A: Fn(Request<Inbound>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let registered = listener.try_clone().and_then(UnixListener::from_std);
        let listener = registered.map_err(|error| {
            Error::new(&codes::NODE_IO)
                .step("serve the CSI socket")
                .source(error)
        })?;
        loop {
            let Ok(place) = self.places.clone().acquire_owned().await else {
                return Ok(()); // never: nobody closes it
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (desk, answer) = (self.clone(), answer.clone());
                    tokio::spawn(async move { desk.connection(stream, place, answer).await });
                }
                Err(_) => sleep(limits::ACCEPT_PAUSE).await, // EMFILE: others will close some
            }
        }
    }

    /// No more calls; returns when all connections have ended.
    pub async fn close(&self) {
        self.closing.cancel();
        self.connections.none().await;
    }

    /// One connection, until
    ///
    /// 1. its client closes it, or
    /// 2. we close: it is told so (GOAWAY) and calls in flight are answered, or
    /// 3. nothing happens on it for too long: it is told so, and dropped if it does not listen.
    async fn connection<F, A>(&self, stream: UnixStream, place: OwnedSemaphorePermit, answer: A)
    where
        A: Fn(Request<Inbound>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let (_one, _place) = (self.connections.one(), place);
        tracing::trace!("a connection to the CSI socket, or that of the registration");
        let mine = Activity::default();
        let (mut desk, activity) = (self.clone(), mine.clone());
        desk.inlet = self.inlet.another();
        let first = Arc::new(Semaphore::new(1));
        let service = service_fn(move |request: Request<Incoming>| {
            let counted = (desk.calls.one(), activity.call());
            let desk = desk.clone();
            let seat = first.clone().try_acquire_owned();
            let taken = match seat.or_else(|_| desk.seats.clone().try_acquire_owned()) {
                Ok(seat) => Ok((seat, answer(request.map(|body| desk.inlet.body(body))))),
                Err(_) => Err(desk.refused(&request)),
            };
            async move {
                let answered = match taken {
                    Ok((_seat, call)) => caught(call).await.unwrap_or_else(|| desk.panicked()),
                    Err(refusal) => refusal,
                };
                drop(counted);
                Ok::<_, Infallible>(answered)
            }
        });
        let mut served = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits::CSI_STREAMS)
                .initial_stream_window_size(limits::CSI_WINDOW_BYTES)
                .initial_connection_window_size(limits::CSI_WINDOW_BYTES)
                .max_header_list_size(limits::CSI_HEADER_BYTES)
                .serve_connection(TokioIo::new(Lenient::new(stream)), service)
        );
        tokio::select! {
            _ = served.as_mut() => return, // 1: well or not, there is nobody to tell
            () = self.closing.cancelled() => {} // 2
            () = mine.quiet() => {} // 3
        }
        served.as_mut().graceful_shutdown();
        tokio::select! {
            _ = served => {}
            () = mine.unanswering() => {}
        }
    }

    /// There is no seat for this call.
    fn refused(&self, request: &Request<Incoming>) -> Response<Body> {
        let answer = too_many();
        let error = Error::new(&codes::CSI_BUSY);
        self.measured.refused(request, &answer, &error);
        answer
    }

    fn panicked(&self) -> Response<Body> {
        self.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!("a handler of a CSI call panicked");
        Status::internal("a bug of secretfs: its log has the place [bug]").into_http()
    }
}

/// What happens on one connection.
#[derive(Clone, Default)]
struct Activity {
    calls: Count,
    /// Whether there ever was a call.
    spoke: Arc<AtomicBool>,
}

impl Activity {
    fn call(&self) -> One {
        self.spoke.store(true, Ordering::Relaxed);
        self.calls.one()
    }

    /// Returns when there has been no call for as long as one may keep us waiting.
    async fn quiet(&self) {
        let mut calls = self.calls.0.subscribe();
        loop {
            let _ = calls.wait_for(|count| *count == 0).await; // an error: see `Count::none`
            let patience = match self.spoke.load(Ordering::Relaxed) {
                true => limits::CSI_IDLE,
                false => limits::CSI_FIRST_CALL,
            };
            tokio::select! {
                () = sleep(patience) => return,
                _ = calls.changed() => {} // also a call that is over by now
            }
        }
    }

    /// Returns when all calls have been answered and their client has had time to read.
    async fn unanswering(&self) {
        self.calls.none().await;
        sleep(limits::CSI_LINGER).await;
    }
}

/// How many of something there are. Cloned freely; all clones are one.
#[derive(Clone, Default)]
struct Count(watch::Sender<usize>);

/// One of them, until it is dropped.
struct One(Count);

impl Count {
    fn one(&self) -> One {
        self.0.send_modify(|count| *count += 1);
        One(self.clone())
    }

    async fn none(&self) {
        // an error would mean that the sender is gone, which we are
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
