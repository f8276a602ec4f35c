//! A new connection: socket file, or addresses, TCP, the proxy's leave, TLS. Each step within its own time.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tower_service::Service;

use super::{
    Address, Settings, UNIX_HOST,
    fault::{Fault, Phase},
    resolve::Resolver,
    tls::Tls,
};
use crate::clock::{Clock, SystemClock};

/// Makes connections of one backend.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    resolver: Resolver,
    tls: Tls,
}

/// What hyper reads and writes.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection.
pub(super) struct Conn(TokioIo<Box<dyn Io>>);

impl Connector {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self(Arc::new(Inner {
            settings,
            resolver: Resolver::new(),
            tls: Tls::default(),
        }))
    }
}

impl Service<Uri> for Connector {
    type Response = Conn;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Conn, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let io = inner.connect(&to).await?;
            tracing::trace!("connected");
            Ok(Conn(TokioIo::new(io)))
        })
    }
}

impl Inner {
    /// 1. A socket file has no name, no proxy and no TLS.
    /// 2. To the proxy, or the server itself.
    /// 3. A proxy is asked to let us through.
    /// 4. TLS, to the server, whoever is between.
    async fn connect(self: &Arc<Self>, to: &Uri) -> Result<Box<dyn Io>, Fault> {
        let settings = &self.settings;
        let times = settings.timeouts;
        let host = to.host().unwrap_or_default();
        if let (Address::Unix(path), UNIX_HOST) = (&settings.address, host) {
            let stream = within(times.connect, Phase::Connect, UnixStream::connect(path)); // 1
            return Ok(Box::new(stream.await?.map_err(Fault::Connect)?));
        }
        let is_tls = to.scheme_str() == Some("https");
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = to.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let mut stream = match &settings.proxy {
            Some((proxy, proxy_port)) => self.tcp(proxy, *proxy_port).await?, // 2
            None => self.tcp(host, port).await?,
        };
        if settings.proxy.is_some() {
            within(times.connect, Phase::Proxy, tunnel(&mut stream, host, port)).await??; // 3
        }
        if !is_tls {
            return Ok(Box::new(stream));
        }
        let inner = self.clone();
        let config = tokio::task::spawn_blocking(move || inner.tls.config(&inner.settings.tls));
        let config = config.await.map_err(|_| Fault::Broken)??; // 4
        let name = settings.tls.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| Fault::Name)?;
        let handshake = TlsConnector::from(config).connect(name, stream);
        let stream = within(times.tls, Phase::Tls, handshake).await?;
        Ok(Box::new(stream.map_err(Fault::Handshake)?))
    }

    /// The first address that answers, all of them within one time.
    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, Fault> {
        let times = self.settings.timeouts;
        let find = self.resolver.find(host, port);
        let found = within(times.resolve, Phase::Resolve, find).await?;
        let addresses = found.map_err(|_| Fault::Unresolved)?; // the system's words are no better
        let connect = async {
            let mut last = None;
            for address in addresses {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = Some(error),
                }
            }
            Err(last.map_or(Fault::Unresolved, Fault::Connect))
        };
        let stream = within(times.connect, Phase::Connect, connect).await??;
        let _ = stream.set_nodelay(true); // it would only be slower
        Ok(stream)
    }
}

/// Longest head of a proxy's answer.
const PROXY_HEAD: usize = 8 << 10;

/// CONNECT (RFC 9110, 9.3.6). Read byte by byte: what follows the head is the server's.
async fn tunnel(stream: &mut TcpStream, host: &str, port: u16) -> Result<(), Fault> {
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    let asked = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    stream
        .write_all(asked.as_bytes())
        .await
        .map_err(Fault::Connect)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == PROXY_HEAD {
            return Err(Fault::Proxy(None));
        }
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return Err(Fault::Proxy(None)),
        }
    }
    let status = std::str::from_utf8(&head).ok().and_then(|head| {
        let rest = head.strip_prefix("HTTP/1.")?;
        rest.get(2..5)?.parse::<u16>().ok()
    });
    match status {
        Some(200..=299) => Ok(()),
        other => Err(Fault::Proxy(other)),
    }
}

/// A phase of its own time.
async fn within<T>(
    longest: Duration,
    phase: Phase,
    work: impl Future<Output = T>,
) -> Result<T, Fault> {
    let clock = SystemClock;
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = clock.sleep_until(clock.now().after(longest)) => Err(Fault::Late(phase)),
    }
}

impl Conn {
    fn io(self: Pin<&mut Self>) -> Pin<&mut TokioIo<Box<dyn Io>>> {
        Pin::new(&mut self.get_mut().0)
    }
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buffer)
    }
}

impl Write for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
