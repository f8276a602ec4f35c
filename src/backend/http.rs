//! The one HTTP client of the backends.
//!
//! A [`Client`] belongs to one backend: one base [`Address`], one way there (TLS, proxy, socket file), connections kept for the next
//! request. It sends an [`Ask`] and gives back an [`Answer`], whatever its status: what a status means is for the backend to say.
//!
//! - **Nothing hangs.** Finding the address, connecting, the proxy, the TLS handshake, the head of the answer and its body each have a time of their
//!   own, all of them within the request's deadline.
//! - **Nothing is large.** A body ends at [`limits::BACKEND_ANSWER_BYTES`], in a buffer that is wiped.
//! - **Nobody is followed**, but for a 307 to a host of the configuration, with path and query as they were: a store's standby names the
//!   active one so. Any other place to go to is an error.
//! - **Errors are in our words**: no body, no header of an answer is in one.
//!
//! Does not: retry (the pool does), know a store's protocol, read the environment (proxies named there are not used).

mod connect;
mod fault;
mod resolve;
mod tls;

use std::{path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::{Body, Bytes, Incoming},
    header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER},
};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};

pub use tls::TlsFiles;

use crate::{
    backend::Cx,
    error::{Error, Result, codes},
    limits,
    secret::SecretBytes,
};
use connect::Connector;

/// Where a server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `https://HOST[:PORT]` or, without TLS, `http://HOST[:PORT]`.
    Net {
        /// Whether it speaks TLS.
        tls: bool,
        /// A name or an IP address, without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// `unix:///PATH`: a socket file, without TLS.
    Unix(PathBuf),
}

/// What stands for a socket file in a URI, which cannot name one. No name ends so (RFC 2606).
const UNIX_HOST: &str = "socket.invalid";

impl Address {
    /// Reads an address: a scheme, a host, a port perhaps, and nothing more.
    ///
    /// # Errors
    /// Why it is refused, as a phrase that follows it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') && !path.contains(char::is_control) {
                true => Ok(Self::Unix(PathBuf::from(path))),
                false => Err("is not `unix:///PATH`"),
            };
        }
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("does not begin with `https://`, `http://` or `unix://`"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err("has more than a host and a port");
        }
        if rest.contains('@') {
            return Err("has a user before the host");
        }
        let uri: Uri = format!("http://{rest}/")
            .parse()
            .map_err(|_| "names no host")?;
        let host = uri.host().unwrap_or_default();
        let authority = uri.authority();
        if host.is_empty() {
            return Err("names no host");
        }
        let port = match authority.and_then(|authority| authority.port_u16()) {
            Some(port) => port,
            None if authority.is_some_and(|authority| authority.as_str() != host) => {
                return Err("has a port that is none");
            }
            None if tls => 443,
            None => 80,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Self::Net {
            tls,
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The URI of a path and query below it.
    fn uri(&self, path_and_query: &str) -> Result<Uri> {
        let text = match self {
            Self::Net { tls, host, port } => {
                let scheme = if *tls { "https" } else { "http" };
                let host = match host.contains(':') {
                    true => format!("[{host}]"),
                    false => host.clone(),
                };
                format!("{scheme}://{host}:{port}{path_and_query}")
            }
            Self::Unix(_) => format!("http://{UNIX_HOST}{path_and_query}"),
        };
        text.parse()
            .map_err(|_| Error::new(&codes::BUG).detail("a request's path is no part of a URI"))
    }
}

/// Longest that each phase of a request may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Finding a name's addresses.
    pub resolve: Duration,
    /// Connecting, to the server or the proxy, and the proxy's answer.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// From the request to the head of the answer, and again from there to its end.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            resolve: limits::BACKEND_RESOLVE,
            connect: limits::BACKEND_CONNECT,
            tls: limits::BACKEND_TLS,
            answer: limits::BACKEND_ANSWER,
        }
    }
}

/// Where a backend's server is and how to get there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub address: Address,
    /// Files for TLS.
    pub tls: TlsFiles,
    /// An HTTP proxy (`host`, `port`) through which everything but a socket file is reached, by CONNECT.
    pub proxy: Option<(String, u16)>,
    /// Where else a 307 may lead.
    pub redirects: Vec<Address>,
    /// How long each phase may take.
    pub timeouts: Timeouts,
}

/// A request. Its path and query are part of log events, its body and headers never.
pub struct Ask {
    /// GET, POST ...
    pub method: Method,
    /// Encoded, with a leading `/`.
    pub path_and_query: String,
    /// Beside those that every request has.
    pub headers: HeaderMap,
    /// JSON.
    pub body: Option<Vec<u8>>,
}

/// A header whose value is a secret.
///
/// # Errors
/// `backend.unauthenticated`: it has characters that no header may have.
pub fn secret_header(value: &[u8]) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_bytes(value).map_err(|_| {
        Error::new(&codes::BACKEND_UNAUTHENTICATED)
            .detail("the token is not one line of text (a line break at the end counts)")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a server said, all of it.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// When it wants to be asked again, at the earliest; from `Retry-After` in seconds.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: SecretBytes,
}

/// See the module.
#[derive(Clone)]
pub struct Client {
    settings: Arc<Settings>,
    pool: legacy::Client<Connector, Full<Bytes>>,
}

impl Client {
    /// A client without a connection yet. Files of TLS are read when a connection is made, and again when they have changed.
    pub fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits::BACKEND_IDLE)
            .pool_max_idle_per_host(limits::BACKEND_IDLE_CONNECTIONS)
            .build(Connector::new(settings.clone()));
        Self { settings, pool }
    }

    /// Sends it, and again to each host of the configuration that a 307 names.
    ///
    /// # Errors
    /// What no status says: `backend.unavailable`, `backend.unresolved`, `backend.proxy`, `backend.tls...`, `backend.timeout`,
    /// `backend.cancelled`, `backend.answer_cut`, `backend.answer_too_large`, `backend.redirected`.
    pub async fn send(&self, cx: &Cx, ask: Ask) -> Result<Answer> {
        let Ask {
            method,
            path_and_query,
            headers,
            body,
        } = ask;
        let body = Bytes::from(body.unwrap_or_default());
        let mut to = &self.settings.address;
        for _ in 0..=limits::BACKEND_REDIRECTS {
            tracing::trace!(%method, path = %path_and_query, "a request");
            let request = request(to, &method, &path_and_query, &headers, &body)?;
            match self.once(cx, request).await? {
                Said::Whole(answer) => return Ok(answer),
                Said::Elsewhere(location) => to = self.follow(&location, &path_and_query)?,
            }
        }
        Err(Error::new(&codes::BACKEND_REDIRECTED)
            .detail("the servers of this store send us to each other without end"))
    }

    async fn once(&self, cx: &Cx, request: Request<Full<Bytes>>) -> Result<Said> {
        let answer = within(cx, self.settings.timeouts.answer, async {
            let sent = self.pool.request(request).await;
            sent.map_err(|error| fault::error(&error))
        })
        .await?;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::TEMPORARY_REDIRECT
            && let Some(location) = head.headers.get(LOCATION)
        {
            let location = location.to_str().unwrap_or_default();
            return Ok(Said::Elsewhere(location.to_owned()));
        }
        let retry_after = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = within(cx, self.settings.timeouts.answer, collect(body)).await?;
        tracing::trace!(status = head.status.as_u16(), "an answer");
        Ok(Said::Whole(Answer {
            status: head.status,
            retry_after,
            body,
        }))
    }

    /// The host of the configuration that `location` names, if the rest of it is what was asked for.
    fn follow(&self, location: &str, path_and_query: &str) -> Result<&Address> {
        let elsewhere = |what: &str| Error::new(&codes::BACKEND_REDIRECTED).detail(what);
        let base = location.strip_suffix(path_and_query).ok_or_else(|| {
            elsewhere("the store sends us to another path than the one we asked for")
        })?;
        let address = Address::parse(base)
            .map_err(|_| elsewhere("the store sends us to what is no address"))?;
        let mut known = self
            .settings
            .redirects
            .iter()
            .chain([&self.settings.address]);
        known.find(|one| **one == address).ok_or_else(|| {
            elsewhere("the store sends us to a host that `redirectHosts` does not name")
        })
    }
}

/// One exchange's end.
enum Said {
    Whole(Answer),
    /// A 307, to there.
    Elsewhere(String),
}

fn request(
    to: &Address,
    method: &Method,
    path_and_query: &str,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::new(body.clone()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = to.uri(path_and_query)?;
    let into = request.headers_mut();
    into.extend(headers.clone());
    if matches!(to, Address::Unix(_)) {
        into.insert(HOST, HeaderValue::from_static("localhost"));
    }
    if !body.is_empty() {
        into.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    into.insert(
        HeaderName::from_static("user-agent"),
        HeaderValue::from_static(concat!("secretfs/", env!("CARGO_PKG_VERSION"))),
    );
    Ok(request)
}

/// The whole body, in one buffer that is wiped.
async fn collect(mut body: Incoming) -> Result<SecretBytes> {
    let too_large = || {
        Error::new(&codes::BACKEND_ANSWER_TOO_LARGE).detail(format!(
            "the store's answer is longer than {} MiB",
            limits::BACKEND_ANSWER_BYTES >> 20
        ))
    };
    let said = body.size_hint().lower();
    let said = usize::try_from(said).map_err(|_| too_large())?;
    if said > limits::BACKEND_ANSWER_BYTES {
        return Err(too_large());
    }
    let mut whole = Vec::with_capacity(said); // what it grows out of is wiped by the allocator
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| fault::cut(&error))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > limits::BACKEND_ANSWER_BYTES {
                return Err(too_large());
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(SecretBytes::new(whole))
}

/// Waits for `work`: as long as it may take, as the request may take, and as somebody wants it.
async fn within<T>(cx: &Cx, longest: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let until = cx.clock.now().after(longest).min(cx.deadline);
    tokio::select! {
        biased;
        done = work => done,
        () = cx.cancel.cancelled() => Err(Error::new(&codes::BACKEND_CANCELLED)),
        () = cx.clock.sleep_until(until) => Err(Error::new(&codes::BACKEND_TIMEOUT)),
    }
}

/// `text` as a part of a path or of a query: everything but unreserved characters as `%XX`, and `/` only where it is kept.
pub fn encode(text: &str, keep_slash: bool, into: &mut String) {
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain || (keep_slash && byte == b'/') {
            into.push(char::from(byte));
        } else {
            let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('0');
            into.push('%');
            into.push(digit(byte >> 4).to_ascii_uppercase());
            into.push(digit(byte & 15).to_ascii_uppercase());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_perhaps_a_port() {
        let net = |tls, host: &str, port| {
            Ok(Address::Net {
                tls,
                host: host.into(),
                port,
            })
        };
        for (text, expect) in [
            ("https://vault.example", net(true, "vault.example", 443)),
            (
                "https://Vault.example:8200/",
                net(true, "vault.example", 8200),
            ),
            ("http://127.0.0.1:1", net(false, "127.0.0.1", 1)),
            ("https://[::1]:8200", net(true, "::1", 8200)),
            (
                "unix:///run/bao.sock",
                Ok(Address::Unix("/run/bao.sock".into())),
            ),
            ("unix://run", Err("is not `unix:///PATH`")),
            (
                "vault:8200",
                Err("does not begin with `https://`, `http://` or `unix://`"),
            ),
            ("https://", Err("names no host")),
            ("https://a:", Err("has a port that is none")),
            ("https://a:99999", Err("has a port that is none")),
            ("https://a/b", Err("has more than a host and a port")),
            ("https://a?b", Err("has more than a host and a port")),
            ("https://u:p@a", Err("has a user before the host")),
        ] {
            assert_eq!(Address::parse(text), expect, "{text}");
        }
    }

    #[test]
    fn a_redirect_leads_to_known_hosts_with_the_same_path_and_query_only() {
        let address = |text| Address::parse(text).unwrap();
        let client = Client::new(Settings {
            address: address("https://a:8200"),
            tls: TlsFiles::default(),
            proxy: None,
            redirects: vec![address("https://b:8200")],
            timeouts: Timeouts::default(),
        });
        let asked = "/v1/pay/db?version=3";
        for (location, good) in [
            ("https://b:8200/v1/pay/db?version=3", true),
            ("https://a:8200/v1/pay/db?version=3", true),
            ("https://c:8200/v1/pay/db?version=3", false),
            ("http://b:8200/v1/pay/db?version=3", false),
            ("https://b:8200/v1/oth/db?version=3", false),
            ("https://b:8200/v1/pay/db", false),
            ("https://b:8200/x/v1/pay/db?version=3", false),
            ("https://b:8200@c/v1/pay/db?version=3", false),
            ("/v1/pay/db?version=3", false),
            ("", false),
        ] {
            let found = client.follow(location, asked);
            assert_eq!(found.is_ok(), good, "{location}");
            if let Err(error) = found {
                assert_eq!(error.code().name, "backend.redirected");
                assert!(!error.to_string().contains("/v1/"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_not_unreserved_is_encoded() {
        let mut out = String::new();
        encode("a/b c%é~", true, &mut out);
        assert_eq!(out, "a/b%20c%25%C3%A9~");
        out.clear();
        encode("a/b", false, &mut out);
        assert_eq!(out, "a%2Fb");
    }
}
