//! What a client sends to the admin socket and to the health checks.

use std::{
    io,
    path::PathBuf,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use secretfs::{
    admin::{
        Admin, ConfigState, NodeView,
        health::Health,
        http,
        scrape::{Scrape, Scraped},
    },
    clock::{SystemClock, Wall},
    error::{Error, codes},
    mount::memory::MemoryMounter,
    observe::{audit::Audit, events::Events, metrics::Metrics, ready::Readiness},
    source::pool::Rules,
    volume::{Mounters, Parts, Settings, Volumes, record::Records},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Runtime,
    sync::watch,
};

use super::Verdict;

/// Looks at a connection after which it should have ended: it waits for nobody but a task of ours, which waits for nobody.
const POLLS: usize = 10_000;
/// Looks after which what could be answered has been.
const ANSWERED: usize = 4;
/// Bytes of the longest body: the metrics.
const BODY_BYTES: usize = 64 << 10;
/// Bytes of the longest error: of what was asked it shows 60 characters, each as `\\u{2066}` at worst.
const ERROR_BYTES: usize = 720;
/// Bytes of the shortest request: `GET / HTTP/1.1` and two line ends.
const REQUEST_BYTES: usize = 16;

/// `FLAGS BYTES`. Bits 0 and 1 of FLAGS: in which pieces the bytes come; bit 2: to the health checks, else to the admin socket; bit 3: the
/// client reads in small pieces.
///
/// The connection ends by itself. What is answered is HTTP, of known kinds and bounded; each JSON body is one; nothing fails inside.
pub fn admin_http(data: &[u8]) -> Verdict {
    let Some((flags, bytes)) = data.split_first() else {
        return Verdict::Refused;
    };
    let (mut out, gone) = (Vec::new(), AtomicBool::new(false));
    let client = Client {
        bytes,
        gone: &gone,
        piece: match flags & 3 {
            0 => bytes.len(),
            1 => 1,
            2 => 7,
            _ => 64,
        },
        takes: match flags >> 3 & 1 {
            0 => usize::MAX,
            _ => 11,
        },
        out: &mut out,
    };
    let house = HOUSE.with(|house| *house);
    match flags >> 2 & 1 {
        0 => house.run(http::connection(client, house.admin.clone()), &gone),
        _ => house.run(http::connection(client, house.health.clone()), &gone),
    }
    let statuses = answers(&out);
    assert!(statuses.len() <= 1 + 2 * data.len() / REQUEST_BYTES);
    Verdict::of(statuses.contains(&200))
}

/// Who answers: a node plugin without volumes, which is not ready.
struct House {
    runtime: Runtime,
    admin: Admin,
    health: Health,
}

thread_local! {
    /// For ever: a runtime that ends with its thread would look for what that thread has given up already.
    static HOUSE: &'static House = Box::leak(Box::new(House::new()));
}

impl House {
    /// The client goes when it has been answered all that it is, and not before: a server may end what it does for one that has gone.
    fn run(&self, connection: impl Future<Output = ()>, gone: &AtomicBool) {
        let mut connection = pin!(connection);
        let mut context = Context::from_waker(Waker::noop());
        for look in 0..POLLS {
            let inside = self.runtime.enter();
            if connection.as_mut().poll(&mut context).is_ready() {
                return;
            }
            drop(inside);
            self.runtime.block_on(tokio::task::yield_now()); // others have their turn
            gone.store(look >= ANSWERED, Relaxed);
        }
        panic!("it neither answers nor ends");
    }

    fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        let inside = runtime.enter();
        let volumes = Volumes::start(Parts {
            clock: Arc::new(SystemClock),
            settings: watch::channel(Arc::new(Settings::default())).1,
            mounters: Mounters {
                tmpfs: Arc::new(MemoryMounter::default()),
            },
            rules: Rules::default(),
            records: Records::off(),
            events: Events::off(),
            audit: Audit::off(),
            metrics: Metrics::default(),
        });
        let scrape = Scrape::new(Scraped {
            metrics: Metrics::default(),
            volumes: volumes.clone(),
            audit: Audit::off(),
            commit: "unknown",
            config: Box::new(|| (true, Wall::from_millis(0))),
        });
        let readiness = Readiness::default();
        readiness.set("propagation", Err(Error::new(&codes::MOUNT_NO_PROPAGATION)));
        let admin = Admin::new(volumes).of_node(NodeView {
            driver: "csi.secretfs.dev".into(),
            node: "node-1".into(),
            readiness: readiness.clone(),
            scrape: scrape.clone(),
            kubernetes: true,
            http: None,
            config: Box::new(|| ConfigState {
                file: PathBuf::from("/etc/secretfs/node.yaml"),
                loaded_at: Wall::from_millis(0),
                error: None,
            }),
        });
        let health = Health::new(readiness, scrape);
        drop(inside);
        Self {
            runtime,
            admin,
            health,
        }
    }
}

/// A client that has sent all that it will.
struct Client<'a> {
    bytes: &'a [u8],
    /// It has closed its end.
    gone: &'a AtomicBool,
    /// Bytes of the next piece; each is five times as long as the one before, or long inputs took for ever.
    piece: usize,
    /// Bytes that it takes at once.
    takes: usize,
    out: &'a mut Vec<u8>,
}

impl AsyncRead for Client<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() && !self.gone.load(Relaxed) {
            return Poll::Pending;
        }
        let piece = self.piece.min(self.bytes.len()).min(into.remaining());
        let (now, later) = self.bytes.split_at(piece);
        into.put_slice(now);
        self.bytes = later;
        self.piece = self.piece.saturating_mul(5);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = bytes.len().min(self.takes);
        self.out.extend(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The statuses of all answers, which are whole.
fn answers(mut out: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !out.is_empty() {
        let end = out.windows(4).position(|four| four == b"\r\n\r\n");
        let (head, rest) = out.split_at(end.expect("a whole head"));
        let head = std::str::from_utf8(head).expect("a head of text");
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let version = first.strip_prefix("HTTP/1.1 ");
        let version = version.or_else(|| first.strip_prefix("HTTP/1.0 "));
        let status = version.and_then(|status| status.get(..3)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status line: {first:?}"));
        assert!((100..600).contains(&status) && status != 500, "{first}");
        let header = |name: &str| {
            let found = head.split("\r\n").find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            });
            found.unwrap_or_default()
        };
        for line in lines {
            assert!(
                line.contains(": ") && !line.contains(char::is_control),
                "{line:?}"
            );
        }
        out = &rest[4..];
        let length = match header("content-length") {
            "" => 0,
            length => length.parse().expect("a length"),
        };
        assert!(length <= BODY_BYTES, "{head}");
        // after a HEAD there is none
        if !(out.starts_with(b"HTTP/1.") || out.is_empty()) {
            let (body, rest) = out.split_at_checked(length).expect("a whole body");
            shown(
                header("content-type"),
                std::str::from_utf8(body).expect("text"),
            );
            out = rest;
        }
        statuses.push(status);
    }
    statuses
}

/// A body is what its head says.
fn shown(kind: &str, body: &str) {
    assert!(
        !body.chars().any(|c| c.is_control() && c != '\n'),
        "{body:?}"
    );
    if kind == "application/json" {
        let json = serde_json::from_str::<Value>(body).expect("a JSON body");
        let error = &json["error"];
        assert!(
            error.is_null() || error["code"].is_string() && body.len() <= ERROR_BYTES,
            "{body}"
        );
    }
}
