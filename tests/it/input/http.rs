//! The admin socket and the health checks against clients that are slow, huge, many, or speak something else.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use hyper::{Method, StatusCode};
use secretfs::{
    admin::http::{Answers, Listener, Reply, serve, text_reply},
    error::Result,
    limits::{ADMIN_REQUEST_BYTES, HTTP_BODY, HTTP_CONNECTION, HTTP_CONNECTIONS, HTTP_HEADER},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UnixListener, UnixStream},
    time::Instant,
};

/// Answers everything, with the path.
#[derive(Clone)]
struct Echo {
    patience: Option<Duration>,
}

#[async_trait]
impl Answers for Echo {
    async fn answer(&self, method: &Method, path: &str) -> Result<Reply> {
        Ok(text_reply(StatusCode::OK, format!("{method} {path}")))
    }

    fn patience(&self) -> Option<Duration> {
        self.patience
    }
}

struct Server {
    dir: Arc<tempfile::TempDir>,
}

impl Server {
    /// As the health checks are served.
    fn open_to_all() -> Self {
        Self::new(Some(HTTP_CONNECTION))
    }

    /// As the admin socket is.
    fn of_owner() -> Self {
        Self::new(None)
    }

    fn new(patience: Option<Duration>) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        tokio::spawn(serve(Listener::Unix(listener), Echo { patience }));
        Self { dir }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("s"))
            .await
            .unwrap()
    }

    /// Sends, and reads to the end.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes).await; // it may have had enough
        rest(&mut stream).await
    }

    /// An ordinary client is answered.
    async fn lives(&self) {
        let answer = self
            .say(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
}

/// What comes until the other side closes.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await; // or it is reset
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// What is sent, and the status that it may get; "none" is a connection that is closed.
type Row = (&'static str, Vec<u8>, &'static [&'static str]);

/// What is no request of ours.
#[rustfmt::skip]
fn no_requests() -> Vec<Row> {
    let long = |n: usize| "a".repeat(n);
    let head = |lines: &str| format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n").into_bytes();
    let chunked = "Transfer-Encoding: chunked\r\n";
    let length = |n: &str| head(&format!("Content-Length: {n}\r\n"));
    let bad: &[&str] = &["400", "none"];
    vec![
        ("nothing", b"\r\n\r\n".to_vec(), bad),
        ("zeros", vec![0; 10_000], bad),
        ("garbage", (0..=255).cycle().take(100_000).collect(), bad),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), bad),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), bad),
        ("HTTP/0.9", b"GET /x\r\n".to_vec(), bad),
        ("HTTP/9", b"GET /x HTTP/9.9\r\n\r\n".to_vec(), bad),
        ("a huge header", head(&format!("X: {}\r\n", long(2 * ADMIN_REQUEST_BYTES))), &["431", "none"]),
        ("a huge path", format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", long(2 * ADMIN_REQUEST_BYTES)).into_bytes(), &["414", "431", "none"]),
        ("many headers", head(&"X: 1\r\n".repeat(200)), &["431", "none"]),
        ("a bad header", head("X\u{1}: 1\r\n"), bad),
        ("two lengths", head("Content-Length: 1\r\nContent-Length: 2\r\n"), bad),
        ("a length that is none", length("-1"), bad),
        ("a huge length", length("99999999999999999999999"), bad),
        ("chunks that are none", head(&format!("{chunked}\r\nzz\r\n")), bad),
        ("an endless chunk", [head(&format!("{chunked}\r\nffffffffffffffff\r\n")), vec![b'x'; 100_000]].concat(), bad),
        ("a large body", [length(&(ADMIN_REQUEST_BYTES + 1).to_string()), vec![b'x'; ADMIN_REQUEST_BYTES + 1]].concat(), bad),
    ]
}

#[tokio::test]
async fn what_is_no_request_is_answered_400_or_closed_and_the_next_one_is_served() {
    let server = Server::open_to_all();
    for (what, bytes, expect) in no_requests() {
        let mut stream = server.connect().await;
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let answer = rest(&mut stream).await;
        assert!(
            expect.contains(&status(&answer)),
            "{what}: {:?}",
            &answer[..answer.len().min(200)]
        );
        server.lives().await;
    }
}

#[tokio::test]
async fn what_is_odd_and_still_a_request_is_answered_as_it_is_written() {
    let server = Server::open_to_all();
    let close = "Host: h\r\nConnection: close\r\n\r\n";
    for (line, expect) in [
        ("GET /%2e%2e/%00 HTTP/1.1", "GET /%2e%2e/%00"),
        ("GET http://elsewhere/x HTTP/1.1", "GET /x"),
        ("GET /a//b/../c HTTP/1.1", "GET /a//b/../c"),
        ("GET /x?y=z HTTP/1.1", "GET /x"),
        ("OPTIONS * HTTP/1.1", "OPTIONS *"),
        ("BREW /x HTTP/1.1", "BREW /x"),
        ("POST /x HTTP/1.0", "POST /x"),
    ] {
        let answer = server.say(format!("{line}\r\n{close}").as_bytes()).await;
        assert!(answer.ends_with(expect), "{line}: {answer:?}");
    }
    // a body of the limit; it is read and thrown away
    let body = "x".repeat(ADMIN_REQUEST_BYTES);
    let request = format!(
        "POST /x HTTP/1.1\r\nContent-Length: {}\r\n{close}{body}",
        body.len()
    );
    assert_eq!(status(&server.say(request.as_bytes()).await), "200");
    // a thousand at once, one after the other on one connection
    let mut many = "GET /x HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1_000);
    many += &format!("GET /last HTTP/1.1\r\n{close}");
    let mut stream = server.connect().await;
    let (mut read, mut write) = stream.split();
    let mut answer = Vec::new();
    let (_, done) = tokio::join!(
        write.write_all(many.as_bytes()),
        read.read_to_end(&mut answer)
    );
    done.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1_001);
    assert!(answer.ends_with("GET /last"));
}

/// How long a connection lasts on which `first` is sent and then a byte each second.
async fn drips(server: &Server, first: &str) -> (Duration, String) {
    let began = Instant::now();
    let mut stream = server.connect().await;
    stream.write_all(first.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = read.read_to_end(&mut answer).await;
    dripping.abort();
    (
        began.elapsed(),
        String::from_utf8_lossy(&answer).into_owned(),
    )
}

/// On paused time, which goes on as soon as nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_slow_is_given_up() {
    let second = Duration::from_secs(1);
    let owner = Server::of_owner();
    let (lasted, _) = drips(&owner, "GET /").await;
    assert!(
        (HTTP_HEADER..HTTP_HEADER + 2 * second).contains(&lasted),
        "half a head: {lasted:?}"
    );
    let (lasted, _) = drips(&owner, "").await;
    assert!(lasted < HTTP_HEADER + 2 * second, "{lasted:?}");
    let (lasted, answer) = drips(
        &owner,
        "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n",
    )
    .await;
    assert!(
        (HTTP_BODY..HTTP_BODY + HTTP_HEADER + 2 * second).contains(&lasted),
        "half a body: {lasted:?}"
    );
    assert!(answer.contains("did not come within 10 s"), "{answer}");
    // silence, before a request and after one
    for first in [&b""[..], b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"] {
        let began = Instant::now();
        owner.say(first).await;
        assert!(
            began.elapsed() <= HTTP_HEADER + second,
            "{first:?}: {:?}",
            began.elapsed()
        );
    }
    // where everybody may connect, even one that is quick does not stay
    let server = Server::open_to_all();
    let began = Instant::now();
    let mut stream = server.connect().await;
    let mut answer = [0; 4096];
    while stream
        .write_all(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .is_ok()
        && stream.read(&mut answer).await.is_ok_and(|bytes| bytes > 0)
    {
        tokio::time::sleep(second).await;
    }
    assert!(
        (HTTP_CONNECTION..HTTP_CONNECTION + 2 * second).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
    server.lives().await;
}

// Goal: nobody who may connect to the health checks can keep the kubelet's own check waiting, which would have us restarted.
#[tokio::test]
async fn connections_that_say_nothing_keep_no_health_check_waiting() {
    let server = Server::open_to_all();
    let mut silent = Vec::new();
    for _ in 0..5 {
        for _ in 0..HTTP_CONNECTIONS {
            silent.push(server.connect().await);
        }
        let answered = tokio::time::timeout(Duration::from_secs(5), server.lives()).await;
        assert!(
            answered.is_ok(),
            "behind {} silent connections",
            silent.len()
        );
    }
    // all but the newest have been closed
    let mut closed = 0;
    for stream in &mut silent[..4 * HTTP_CONNECTIONS] {
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0])).await;
        closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert_eq!(closed, 4 * HTTP_CONNECTIONS);
}

/// The owner's own socket: whoever waits for a refresh is not thrown out by who comes later.
#[tokio::test]
async fn at_the_owners_socket_one_more_waits_until_one_goes() {
    let server = Server::of_owner();
    let mut held = Vec::new();
    for _ in 0..HTTP_CONNECTIONS {
        let mut stream = server.connect().await;
        stream
            .write_all(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        held.push(stream);
    }
    let one_more = async { server.lives().await };
    let waited = tokio::time::timeout(Duration::from_millis(200), one_more).await;
    assert!(
        waited.is_err(),
        "it is answered though all places are taken"
    );
    held.pop();
    server.lives().await;
}

/// Opens connections from another address as fast as one thread can, counts them, says nothing, and holds the newest hundred, until told to stop.
fn flood(server: SocketAddr, opened: &AtomicUsize, stop: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut held = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let connected = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())?;
            socket.connect(server).await
        });
        let Ok(stream) = connected else {
            continue; // of 30,000 ports none was free
        };
        opened.fetch_add(1, Ordering::Relaxed);
        held.push_back(stream);
        if held.len() > 100 {
            held.pop_front();
        }
    }
}

// Goal: a pod that reaches the port cannot have us restarted by opening connections faster than the kubelet's check is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_end_close_each_other_and_no_health_check() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let patience = Some(HTTP_CONNECTION);
    tokio::spawn(serve(Listener::tcp(listener).unwrap(), Echo { patience }));
    let (opened, stop) = <(Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let (opened, stop) = (opened.clone(), stop.clone());
            std::thread::spawn(move || flood(address, &opened, &stop))
        })
        .collect();
    let (mut checks, mut closed) = (0, 0);
    while checks < 200 || opened.load(Ordering::Relaxed) < 20 * HTTP_CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await; // a client may be slower than they are
        let _ = stream
            .write_all(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .await;
        closed += usize::from(status(&rest(&mut stream).await) != "200");
        checks += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for one in floods {
        one.join().unwrap();
    }
    assert_eq!(
        closed, 0,
        "of {checks} checks, beside {opened:?} connections"
    );
}
