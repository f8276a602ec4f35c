//! Whoever may connect to the socket and means ill, or is broken: messages that lie about themselves, come slowly or in masses, and frames
//! of HTTP/2 that no client sends. The call or the connection ends; a kubelet beside it is answered as ever.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request,
    body::{Body as HttpBody, Bytes, Frame},
};
use prost::Message as _;
use secretfs::{
    csi::client::Channel,
    limits::{
        CSI_CALLS, CSI_HEADER_BYTES, CSI_LONG_IN_FLIGHT, CSI_MESSAGE_BYTES, CSI_MESSAGE_TIME,
        CSI_ROOM_TIME, CSI_SHORT_BYTES, CSI_STREAMS,
    },
};
use tokio::sync::mpsc;
use tonic::{Code, body::Body, codegen::Service as _};

use super::{
    Stage, code,
    counted::{call, error},
    logs::Told,
};

/// A body whose pieces come when they are sent.
struct Pieces(mpsc::UnboundedReceiver<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.0.poll_recv(context);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A call that has begun.
struct Begun {
    send: mpsc::UnboundedSender<Bytes>,
    answer: tokio::task::JoinHandle<Option<i32>>,
}

impl Begun {
    fn send(&self, bytes: &[u8]) {
        let _ = self.send.send(Bytes::copy_from_slice(bytes)); // an error: it has been answered
    }
}

/// Begins a publish without a byte of its message.
fn begin(channel: &Channel) -> Begun {
    let (send, pieces) = mpsc::unbounded_channel();
    let request = Request::post("http://localhost/csi.v1.Node/NodePublishVolume")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Pieces(pieces)))
        .unwrap();
    let mut channel = channel.clone();
    let answer = tokio::spawn(async move {
        let response = channel.call(request).await.ok()?;
        if let Some(status) = response.headers().get("grpc-status") {
            return status.to_str().unwrap().parse().ok();
        }
        let trailers = http_body_util::BodyExt::collect(response.into_body())
            .await
            .ok()?;
        let status = trailers
            .trailers()?
            .get("grpc-status")?
            .to_str()
            .ok()?
            .parse();
        status.ok()
    });
    Begun { send, answer }
}

/// Five bytes before a message of so many.
pub fn head(bytes: usize) -> [u8; 5] {
    let [a, b, c, d] = u32::try_from(bytes).unwrap().to_be_bytes();
    [0, a, b, c, d]
}

/// The status of a publish with these pieces as its body.
async fn answered(channel: &Channel, pieces: &[&[u8]]) -> Option<i32> {
    let call = begin(channel);
    for piece in pieces {
        call.send(piece);
    }
    drop(call.send);
    call.answer.await.unwrap()
}

/// The status of a publish with this body.
pub async fn publish_bytes(channel: &Channel, body: Bytes) -> Option<i32> {
    let call = begin(channel);
    let _ = call.send.send(body); // an error: it has been answered
    drop(call.send);
    call.answer.await.unwrap()
}

async fn lives(stage: &Stage) {
    let answer = stage.kubelet.publish(&stage.volume()).await;
    assert_eq!(code(&answer), Code::Ok, "{answer:?}");
}

/// A field of a message: number, and bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend(bytes);
    field
}

/// What it is, its pieces, and what it may be answered with.
type Row = (&'static str, Vec<Vec<u8>>, &'static [Code]);

/// What is no publish. `whole` is a good one.
#[rustfmt::skip]
fn no_messages(whole: &[u8]) -> Vec<Row> {
    let flag = |flag: u8| vec![[&[flag], &whole[1..]].concat()];
    let deep = (0..500).fold(Vec::new(), |inner, _| field(5, &inner));
    let deep = [&head(deep.len())[..], &deep].concat();
    let group = [&head(20_000)[..], &[0x7b; 20_000]].concat();
    let whole = whole.to_vec();
    vec![
        ("nothing", vec![], &[Code::Internal]),
        ("half a head", vec![vec![0, 0]], &[Code::Internal, Code::Unknown]),
        ("an empty message", vec![head(0).to_vec()], &[Code::InvalidArgument]),
        ("less than it says", vec![head(100).to_vec(), vec![0; 10]], &[Code::Internal, Code::Unknown]),
        ("more than it says", vec![whole.clone(), b"x".to_vec()], &[Code::Internal]),
        ("two messages", vec![whole.clone(), whole.clone()], &[Code::Internal]),
        ("two in one", vec![[&whole[..], &whole].concat()], &[Code::Internal]),
        ("compressed", flag(1), &[Code::Internal, Code::Unimplemented]),
        ("another flag", flag(7), &[Code::Internal]),
        ("too long", vec![head(CSI_MESSAGE_BYTES + 1).to_vec()], &[Code::OutOfRange]),
        ("the longest there is", vec![[&[0][..], &[0xff; 4]].concat()], &[Code::OutOfRange]),
        ("deep", vec![deep], &[Code::Internal, Code::InvalidArgument]),
        ("groups in groups", vec![group], &[Code::Internal]),
        ("no message", vec![head(7).to_vec(), b"garbage".to_vec()], &[Code::Internal]),
        ("not UTF-8", vec![[&head(4)[..], &field(1, &[0xff, 0xfe])].concat()], &[Code::Internal]),
    ]
}

#[tokio::test]
async fn a_message_that_lies_about_itself_ends_its_own_call_only() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    let good = stage.volume().request().encode_to_vec();
    let whole = [&head(good.len())[..], &good].concat();
    let (first, rest) = whole.split_at(7);
    let pieces: Vec<&[u8]> = first.chunks(1).chain(rest.chunks(100)).collect();
    assert_eq!(answered(&channel, &pieces).await, Some(0), "in pieces");
    assert_eq!(answered(&channel, &[&whole]).await, Some(0));
    // a field of tomorrow, and one twice: the last one counts
    let id = stage.volume().id;
    let more = [&good[..], &field(15, b"x"), &field(1, id.as_bytes())].concat();
    let more = [&head(more.len())[..], &more].concat();
    assert_eq!(answered(&channel, &[&more]).await, Some(0));
    for (what, pieces, codes) in no_messages(&whole) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let got = answered(&channel, &pieces).await;
        let good = codes.iter().any(|code| got == Some(*code as i32));
        assert!(good, "{what}: {got:?}");
        assert_eq!(answered(&channel, &[&whole]).await, Some(0), "after {what}");
    }
}

/// On paused time, which goes on as soon as nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_come_ends_its_call_in_time() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    for first in [&[][..], &[0], &head(100), &head(1 << 20)] {
        let began = tokio::time::Instant::now();
        let call = begin(&channel);
        call.send(first);
        let got = call.answer.await.unwrap();
        assert_eq!(got, Some(Code::DeadlineExceeded as i32), "{first:?}");
        let waited = began.elapsed();
        let second = Duration::from_secs(1);
        assert!(
            (CSI_MESSAGE_TIME..CSI_MESSAGE_TIME + second).contains(&waited),
            "{waited:?}"
        );
    }
    // a byte now and then does not help
    let began = tokio::time::Instant::now();
    let call = begin(&channel);
    call.send(&head(100));
    while !call.answer.is_finished() {
        call.send(&[0]);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(began.elapsed() < CSI_MESSAGE_TIME + Duration::from_secs(2));
    lives(&stage).await;
}

#[tokio::test]
async fn a_caller_that_goes_while_its_message_comes_in_is_counted_as_one_that_gave_up() {
    let stage = Stage::new();
    let begun = [
        frame(HEADERS, END_HEADERS, 1, &call_headers()),
        frame(DATA, 0, 1, &head(100)),
    ];
    let reset = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
    for reset in [Some(reset), None] {
        let mut stream = hello(&stage.kubelet.socket);
        stream.write_all(&begun.concat()).unwrap();
        lives(&stage).await; // read after it
        let before = stage.counted();
        match &reset {
            Some(reset) => stream.write_all(reset).unwrap(),
            None => stream.shutdown(std::net::Shutdown::Both).unwrap(),
        }
        stage.services.idle().await;
        let gave_up = call("NodePublishVolume", "CANCELLED");
        assert_eq!(stage.since(&before), [gave_up], "{reset:?}");
    }
}

#[tokio::test]
async fn long_messages_wait_for_each_other_and_keep_no_short_one_waiting() {
    let stage = Stage::new();
    let mut open = Vec::new();
    // as many as there is room for say how long they will be, and then nothing
    for _ in 0..CSI_LONG_IN_FLIGHT / CSI_MESSAGE_BYTES {
        let channel = stage.kubelet.connect().await;
        let call = begin(&channel);
        call.send(&head(CSI_MESSAGE_BYTES));
        open.push((channel, call));
    }
    let channel = stage.kubelet.connect().await;
    // each of them has its room once a short call behind it has been answered
    lives(&stage).await;
    let long = head(CSI_SHORT_BYTES + 1);
    let padding = field(15, &vec![0; CSI_SHORT_BYTES + 1 - 4]);
    let Begun { send, answer } = begin(&channel);
    let _ = send.send([&long[..], &padding].concat().into());
    drop(send); // whole: with room it would be answered before the next few are
    for _ in 0..20 {
        lives(&stage).await;
    }
    assert!(!answer.is_finished(), "there was room for it");
    open.pop(); // its client goes: the stream is reset
    let got = tokio::time::timeout(Duration::from_secs(5), answer).await;
    let missing = Code::InvalidArgument as i32; // of all fields
    assert_eq!(got.expect("it never gets room").unwrap(), Some(missing));
}

/// 38 MB are claimed, and none comes.
#[tokio::test]
async fn messages_that_are_only_claimed_keep_no_other_connection_waiting() {
    let stage = Stage::new();
    let call = |nth| {
        let begun = frame(HEADERS, END_HEADERS, 2 * nth + 1, &call_headers());
        [begun, frame(DATA, 0, 2 * nth + 1, &head(60_000))].concat()
    };
    let calls: Vec<u8> = (0..CSI_STREAMS).flat_map(call).collect();
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut stream = hello(&stage.kubelet.socket);
        stream.write_all(&calls).unwrap();
        held.push(stream);
    }
    for _ in 0..10 {
        let lives = tokio::time::timeout(Duration::from_secs(10), lives(&stage));
        lives.await.expect("it waits for room");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_for_room_for_ever() {
    let stage = Stage::new();
    let mut open = Vec::new();
    for _ in 0..10 {
        let channel = stage.kubelet.connect().await;
        let call = begin(&channel);
        call.send(&head(CSI_MESSAGE_BYTES));
        open.push((channel, call));
    }
    let began = tokio::time::Instant::now();
    for (_channel, call) in open {
        let got = call.answer.await.unwrap();
        assert_eq!(got, Some(Code::DeadlineExceeded as i32));
    }
    let most = CSI_ROOM_TIME + CSI_MESSAGE_TIME + Duration::from_secs(2);
    assert!(began.elapsed() < most, "{:?}", began.elapsed());
}

#[tokio::test]
async fn ten_thousand_attributes_are_refused_by_their_number() {
    let stage = Stage::new();
    let mut request = stage.volume().request();
    for n in 0..10_000 {
        request
            .volume_context
            .insert(format!("k{n}"), "v".repeat(100));
    }
    let answer = stage.kubelet.send(request).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument);
    assert!(
        answer.message().contains("more than 128 entries"),
        "{answer:?}"
    );
    lives(&stage).await;
}

// --- HTTP/2, frame by frame

/// A frame: type, flags, stream, payload.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A literal header that no table remembers (RFC 7541, 6.2.2).
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // a length of seven bits, or 127 and the rest in pieces of seven
        match text.len() {
            short @ 0..127 => bytes.push(u8::try_from(short).unwrap()),
            long => {
                bytes.push(127);
                prost::encoding::encode_varint((long - 127) as u64, &mut bytes);
            }
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The headers of a call.
pub fn call_headers() -> Vec<u8> {
    [
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":path", "/csi.v1.Node/NodePublishVolume"),
        header(":authority", "localhost"),
        header("content-type", "application/grpc"),
        header("te", "trailers"),
    ]
    .concat()
}

/// A connection that has said what every client says first.
pub fn hello(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// Sends frames; whether the other side then closed the connection, and not by our patience.
fn closed_after(mut stream: UnixStream, frames: &[u8]) -> bool {
    // read beside it: a peer that answers each frame would wait for us, as we for it
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        match reading.read_to_end(&mut all) {
            Ok(_) => true,
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ),
        }
    });
    let _ = stream.write_all(frames); // it may have had enough
    let _ = stream.shutdown(std::net::Shutdown::Write);
    reader.join().unwrap()
}

/// What no client sends, or not so often.
#[rustfmt::skip]
fn no_frames() -> Vec<(&'static str, Vec<u8>)> {
    let call = call_headers();
    let begun = |stream| frame(HEADERS, END_HEADERS, stream, &call);
    let each = |n: u32, one: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        (0..n).flat_map(|nth| one(2 * nth + 1)).collect()
    };
    let huge = header("x", &"y".repeat(2 * CSI_HEADER_BYTES as usize));
    let more = frame(CONTINUATION, 0, 1, &header("x", "y").repeat(500));
    // a header in the table once, and then named ten thousand times by one byte
    let once = [&[0x40][..], &header("x", &"y".repeat(3_000))[1..], &[0xbe; 10_000]].concat();
    let overflow = frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
    vec![
        ("resets", each(5_000, &|s| [begun(s), frame(RST_STREAM, 0, s, &[0, 0, 0, 8])].concat())),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(20_000)),
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(20_000)),
        ("more streams than there may be", each(2 * CSI_STREAMS, &begun)),
        ("empty data", [begun(1), frame(DATA, 0, 1, &[]).repeat(20_000)].concat()),
        ("data of no stream", frame(DATA, 0, 7, &[0; 100]).repeat(100)),
        ("headers without an end", [frame(HEADERS, 0, 1, &call), more.repeat(200)].concat()),
        ("huge headers", frame(HEADERS, END_HEADERS, 1, &[&call[..], &huge[..15_000]].concat())),
        ("a header that is many", frame(HEADERS, END_HEADERS, 1, &[&call[..], &once].concat())),
        ("headers that are none", frame(HEADERS, END_HEADERS, 1, &[0xff; 1000])),
        ("a window that overflows", overflow.repeat(3)),
        ("a window of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 10])),
        ("a frame of no kind", frame(0xfa, 0xff, 1, &[0; 1000]).repeat(1000)),
        ("a frame too large", frame(DATA, 0, 1, &vec![0; 1 << 20])),
        ("streams backwards", [begun(9), begun(7), begun(5)].concat()),
        ("an even stream", begun(2)),
        ("settings that are none", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff])),
        ("half a frame", vec![0, 0, 100, 1]),
    ]
}

#[tokio::test]
async fn frames_that_no_client_sends_end_their_connection_and_no_other() {
    let stage = Stage::new();
    for (what, frames) in no_frames() {
        let socket = stage.kubelet.socket.clone();
        let closed = tokio::task::spawn_blocking(move || closed_after(hello(&socket), &frames));
        assert!(closed.await.unwrap(), "{what}: the connection is left open");
        lives(&stage).await;
    }
}

/// The next frame of one of these kinds: which, its stream and its payload. Panics when none comes.
fn next(stream: &mut UnixStream, wanted: &[u8]) -> (u8, u32, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).expect("no such frame comes");
        let [a, b, c, kind, _, number @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).unwrap();
        if wanted.contains(&kind) {
            return (kind, u32::from_be_bytes(number), payload);
        }
    }
}

#[tokio::test]
async fn one_connection_has_so_many_calls_and_one_more_is_refused() {
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let stage = Stage::new();
    let socket = stage.kubelet.socket.clone();
    let calls = tokio::task::spawn_blocking(move || {
        let (mut stream, call) = (hello(&socket), call_headers());
        let begin = |stream: &mut UnixStream, nth: u32| {
            let begun = frame(HEADERS, END_HEADERS, 2 * nth + 1, &call);
            stream.write_all(&begun).unwrap();
        };
        (0..=CSI_STREAMS).for_each(|nth| begin(&mut stream, nth));
        let told = next(&mut stream, &[RST_STREAM, HEADERS]);
        let refused = (RST_STREAM, 2 * CSI_STREAMS + 1, REFUSED_STREAM.to_vec());
        assert_eq!(told, refused);
        // one goes, and there is room again: the next one is answered
        let gone = frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]);
        stream.write_all(&gone).unwrap();
        begin(&mut stream, CSI_STREAMS + 1);
        let its = 2 * (CSI_STREAMS + 1) + 1;
        stream.write_all(&frame(DATA, 1, its, &head(0))).unwrap();
        let (kind, number, _) = next(&mut stream, &[RST_STREAM, HEADERS]);
        assert_eq!((kind, number), (HEADERS, its));
    });
    calls.await.unwrap();
    lives(&stage).await;
}

#[tokio::test]
async fn the_headers_of_a_call_have_a_limit_and_beyond_it_nobody_waits_for_its_message() {
    let stage = Stage::new();
    let socket = stage.kubelet.socket.clone();
    let calls = tokio::task::spawn_blocking(move || {
        let begin = |bytes: u32| {
            let mut stream = hello(&socket);
            let patience = Duration::from_secs(5);
            stream.set_read_timeout(Some(patience)).unwrap();
            let more = header("x", &"y".repeat(bytes as usize / 2));
            let call = [&call_headers()[..], &more].concat();
            stream.write_all(&frame(HEADERS, 0, 1, &call)).unwrap();
            let rest = frame(CONTINUATION, END_HEADERS, 1, &more);
            stream.write_all(&rest).unwrap();
            stream
        };
        let mut good = begin(CSI_HEADER_BYTES - 1024);
        good.write_all(&frame(DATA, 1, 1, &head(0))).unwrap();
        assert_eq!(next(&mut good, &[HEADERS]).1, 1);
        let mut long = begin(CSI_HEADER_BYTES);
        assert_eq!(next(&mut long, &[HEADERS, RST_STREAM]).1, 1);
    });
    calls.await.unwrap();
    lives(&stage).await;
}

#[tokio::test]
async fn more_calls_than_there_are_seats_are_told_to_try_again() {
    let (told, _guard) = Told::start();
    let stage = Stage::new();
    let mut held = Vec::new();
    let headers = call_headers();
    let extra = CSI_STREAMS as usize - 1; // the first has a seat of its own
    for _ in 0..CSI_CALLS.div_ceil(extra) {
        let mut stream = hello(&stage.kubelet.socket);
        for nth in 0..CSI_STREAMS {
            let call = frame(HEADERS, END_HEADERS, 2 * nth + 1, &headers);
            stream.write_all(&call).unwrap();
        }
        held.push(stream);
    }
    let channel = stage.kubelet.connect().await;
    let _first = begin(&channel);
    lives(&stage).await; // behind it
    let second = async || {
        let request = stage.volume().request();
        code(&stage.kubelet.send_on(&channel, request).await)
    };
    let refused = call("NodePublishVolume", "RESOURCE_EXHAUSTED");
    // those that got no seat are refused one by one as they come in: then all seats are taken
    let over = held.len() * extra - CSI_CALLS;
    let series = format!("secretfs_{}", refused.trim_end_matches(" +1"));
    let taken = async {
        while stage.counted().find(&series).unwrap_or(0.0) < over as f64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken)
        .await
        .expect("there is no end of seats");
    let before = stage.counted();
    assert_eq!(second().await, Code::ResourceExhausted);
    assert_eq!(stage.since(&before), [error("csi.busy"), refused]);
    lives(&stage).await; // the first call of a connection
    assert!(!told.one_by_one().is_empty(), "no line in the log");
    held.pop();
    let served = async {
        while second().await != Code::Ok {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), served)
        .await
        .expect("no seat is given back");
}
