//! A Kubernetes API server, as far as a CSI node plugin meets one: one CSIDriver object to list and watch, and Events to post.
//!
//! It listens on a loopback port of its own, with TLS or without, and is as strict as the real one where that shows: a list or watch
//! without the field selector `metadata.name=` is forbidden (as RBAC's `resourceNames` makes it), a watch begins right after its
//! `resourceVersion`, and an Event that lacks a required field is refused with 422.
//! [`Fault`]s are scripted, per kind of call, for the next call or for all.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use hyper::{
    Request, Response,
    body::{Body, Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpSocket, runtime::Handle, sync::mpsc, task::JoinHandle};
use tokio_rustls::{TlsAcceptor, rustls};

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    List,
    Watch,
    PostEvent,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// This HTTP status, with a Status object.
    Status(u16),
    /// Likewise, and to be asked again after so many seconds.
    RetryAfter(u16, u32),
    /// No answer at all.
    Hang,
    /// Headers, half the answer, and the connection breaks.
    HalfBody,
    /// An answer that is no JSON.
    Garbage,
    /// A good answer, or line of a watch, behind so many blanks.
    Long(usize),
    /// A watch that ends at once, in good order.
    Ends,
    /// A watch whose first line is an error of this status.
    ErrorLine(u16),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub call: Call,
    pub query: String,
    pub authorization: String,
}

type Chunk = Result<Bytes, io::Error>;

#[derive(Default)]
struct State {
    object: Option<Value>,
    version: u64,
    /// All changes, for watches that begin at an older version.
    changes: Vec<(u64, Value)>,
    watchers: Vec<mpsc::UnboundedSender<Chunk>>,
    /// Senders of answers that never come.
    hanging: Vec<mpsc::UnboundedSender<Chunk>>,
    next: HashMap<Call, VecDeque<Fault>>,
    always: HashMap<Call, Fault>,
    asked: Vec<Asked>,
    events: Vec<Value>,
    /// The only token that is believed; `None`: all are.
    token: Option<String>,
}

/// See the module. Dropping it ends it.
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    tls: Option<(TlsAcceptor, String)>,
    runtime: Handle,
    serving: Option<JoinHandle<()>>,
    /// Holds the port while nobody listens: whoever connects is refused.
    port: Option<TcpSocket>,
}

impl ApiServer {
    /// Not yet up: connections are refused. Without TLS.
    pub fn down(runtime: &Handle) -> Self {
        let port = bind(([127, 0, 0, 1], 0).into());
        Self {
            state: Arc::default(),
            address: port.local_addr().unwrap(),
            tls: None,
            runtime: runtime.clone(),
            serving: None,
            port: Some(port),
        }
    }

    /// Up, without TLS.
    pub fn up(runtime: &Handle) -> Self {
        let mut server = Self::down(runtime);
        server.start();
        server
    }

    /// Up, with TLS and a certificate of its own.
    pub fn with_tls(runtime: &Handle) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        let mut server = Self::down(runtime);
        server.tls = Some((TlsAcceptor::from(Arc::new(config)), made.cert.pem()));
        server.start();
        server
    }

    /// Comes up.
    pub fn start(&mut self) {
        let _inside = self.runtime.enter();
        let listener = self.port.take().unwrap().listen(64).unwrap();
        let (state, tls) = (self.state.clone(), self.tls.clone());
        self.serving = Some(self.runtime.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, tls) = (state.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, state).await,
                        Some((acceptor, _)) => {
                            // else a client that does not trust us
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        }));
    }

    /// Goes down: all connections break, new ones are refused.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = self.runtime.block_on(serving);
        }
        let mut state = self.lock();
        (state.watchers, state.hanging) = (Vec::new(), Vec::new());
        drop(state);
        self.port = Some(bind(self.address));
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Its certificate in PEM.
    pub fn ca(&self) -> &str {
        &self.tls.as_ref().unwrap().1
    }

    /// Only this token is believed from now on.
    pub fn believe(&self, token: &str) {
        self.lock().token = Some(token.to_owned());
    }

    /// Creates the object or changes it.
    pub fn put(&self, object: Value) {
        let mut state = self.lock();
        let kind = match state.object {
            None => "ADDED",
            Some(_) => "MODIFIED",
        };
        state.change(kind, object.clone());
        state.object = Some(object);
    }

    /// Deletes the object.
    pub fn delete(&self) {
        let mut state = self.lock();
        let object = state.object.take().unwrap();
        state.change("DELETED", object);
    }

    /// A fault of the next such call.
    pub fn fail_next(&self, call: Call, fault: Fault) {
        let mut state = self.lock();
        state.next.entry(call).or_default().push_back(fault);
    }

    /// A fault of every such call; `None`: no more, and what hung is let go (its connection breaks).
    pub fn fail_always(&self, call: Call, fault: Option<Fault>) {
        let mut state = self.lock();
        match fault {
            Some(fault) => drop(state.always.insert(call, fault)),
            None => {
                state.always.remove(&call);
                state.hanging.clear();
            }
        }
    }

    /// Ends all watches, in good order, as a server does that shuts down.
    pub fn end_watches(&self) {
        self.lock().watchers.clear();
    }

    /// What was asked so far.
    pub fn asked(&self, call: Call) -> Vec<Asked> {
        let state = self.lock();
        let of_kind = state.asked.iter().filter(|asked| asked.call == call);
        of_kind.cloned().collect()
    }

    /// Watches that run.
    pub fn watching(&self) -> usize {
        let mut state = self.lock();
        state.watchers.retain(|watcher| !watcher.is_closed());
        state.watchers.len()
    }

    /// Events that were taken.
    pub fn events(&self) -> Vec<Value> {
        self.lock().events.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn serve<S>(stream: S, state: Arc<Mutex<State>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Response<Feed> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let watch = query.split('&').any(|pair| pair == "watch=true");
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let call = match (request.method().as_str(), &segments[..]) {
        ("GET", ["apis", "storage.k8s.io", "v1", "csidrivers"]) if watch => Call::Watch,
        ("GET", ["apis", "storage.k8s.io", "v1", "csidrivers"]) => Call::List,
        ("POST", ["apis", "events.k8s.io", "v1", "namespaces", _, "events"]) => Call::PostEvent,
        _ => return status(404),
    };
    let authorization = request.headers().get("authorization");
    let authorization = authorization.map_or("", |value| value.to_str().unwrap());
    let asked = Asked {
        call,
        query: query.clone(),
        authorization: authorization.to_owned(),
    };
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let mut state = state.lock().unwrap();
    let believed = state
        .token
        .as_ref()
        .is_none_or(|token| asked.authorization == format!("Bearer {token}"));
    state.asked.push(asked);
    if !believed {
        return status(401);
    }
    let always = state.always.get(&call).copied();
    let fault = state.next.get_mut(&call).and_then(VecDeque::pop_front);
    match fault.or(always) {
        Some(fault) => state.fail(call, fault),
        None => match call {
            Call::List => state.list(&query),
            Call::Watch => state.watch(&query),
            Call::PostEvent => state.post(&body, segments[4]),
        },
    }
}

impl State {
    fn change(&mut self, kind: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let line = json!({"type": kind, "object": object});
        self.watchers
            .retain(|watcher| watcher.send(Ok(json_line(&line))).is_ok());
        self.changes.push((self.version, line));
    }

    /// What RBAC with `resourceNames` lets through: exactly one name.
    fn allowed(&self, query: &str) -> bool {
        query
            .split('&')
            .any(|pair| pair == "fieldSelector=metadata.name%3Dcsi.secretfs.dev")
    }

    fn list(&self, query: &str) -> Response<Feed> {
        if !self.allowed(query) {
            return status(403);
        }
        whole(200, &self.all())
    }

    fn all(&self) -> Value {
        json!({
            "kind": "CSIDriverList", "apiVersion": "storage.k8s.io/v1",
            "metadata": {"resourceVersion": self.version.to_string()},
            "items": Vec::from_iter(&self.object),
        })
    }

    fn watch(&mut self, query: &str) -> Response<Feed> {
        if !self.allowed(query) {
            return status(403);
        }
        let from = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from: u64 = from.unwrap().parse().unwrap();
        let (send, receive) = mpsc::unbounded_channel();
        let bookmark = json!({"type": "BOOKMARK", "object": {
            "kind": "CSIDriver", "apiVersion": "storage.k8s.io/v1",
            "metadata": {"resourceVersion": from.to_string()}, "spec": {}}});
        send.send(Ok(json_line(&bookmark))).unwrap();
        for (_, line) in self.changes.iter().filter(|(version, _)| *version > from) {
            send.send(Ok(json_line(line))).unwrap();
        }
        self.watchers.push(send);
        Response::new(Feed(receive))
    }

    fn post(&mut self, body: &[u8], namespace: &str) -> Response<Feed> {
        let event: Value = serde_json::from_slice(body).unwrap();
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let good = !text("eventTime").is_empty()
            && (1..=128).contains(&text("action").len())
            && (1..=128).contains(&text("reason").len())
            && (1..=1024).contains(&text("note").len())
            && (1..=128).contains(&text("reportingInstance").len())
            && !text("reportingController").is_empty()
            && ["Normal", "Warning"].contains(&&*text("type"))
            && event["regarding"]["namespace"] == namespace
            && event["metadata"]["namespace"] == namespace
            && is_dns_subdomain(event["metadata"]["name"].as_str().unwrap_or_default());
        if !good {
            return status(422);
        }
        self.events.push(event.clone());
        whole(201, &event)
    }

    fn fail(&mut self, call: Call, fault: Fault) -> Response<Feed> {
        let (send, receive) = mpsc::unbounded_channel();
        let chunk = |text: &str| Ok(Bytes::from(text.to_owned()));
        match fault {
            Fault::Status(code) => return status(code),
            Fault::RetryAfter(code, seconds) => {
                let mut body = status_object(code);
                body["details"] = json!({"retryAfterSeconds": seconds});
                return whole(code, &body);
            }
            Fault::Hang => self.hanging.push(send), // headers come, and then nothing
            Fault::HalfBody => {
                send.send(chunk("{\"kind\":\"CSIDriverLi")).unwrap();
                send.send(Err(io::Error::other("scripted"))).unwrap();
            }
            Fault::Garbage => send.send(chunk("<html>a proxy's page</html>\n")).unwrap(),
            Fault::Long(blanks) => {
                let object = self.object.clone().unwrap_or_default();
                let good = match call {
                    Call::Watch => json!({"type": "MODIFIED", "object": object}),
                    Call::List | Call::PostEvent => self.all(),
                };
                send.send(chunk(&" ".repeat(blanks))).unwrap();
                send.send(Ok(json_line(&good))).unwrap();
                if call == Call::Watch {
                    self.watchers.push(send); // the stream itself stays open
                }
            }
            Fault::Ends => {}
            Fault::ErrorLine(code) => {
                let line = json!({"type": "ERROR", "object": status_object(code)});
                send.send(Ok(json_line(&line))).unwrap();
                self.watchers.push(send); // the stream itself stays open
            }
        }
        Response::new(Feed(receive))
    }
}

fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(good)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn json_line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

fn status_object(code: u16) -> Value {
    // the message has the canary that no error of ours may show
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "Scripted",
           "message": "words of the server"})
}

fn status(code: u16) -> Response<Feed> {
    whole(code, &status_object(code))
}

fn whole(code: u16, body: &Value) -> Response<Feed> {
    let (send, receive) = mpsc::unbounded_channel();
    send.send(Ok(Bytes::from(body.to_string()))).unwrap();
    let response = Response::builder().status(code);
    response.body(Feed(receive)).unwrap()
}

/// A body that comes as it is fed, and ends when nobody feeds it.
pub struct Feed(mpsc::UnboundedReceiver<Chunk>);

impl Body for Feed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
