//! The built plugin under attack: it answers a publish, a probe and a health check after each, and its memory stays below a bound.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use hyper::body::Bytes;
use prost::Message as _;
use secretfs::{
    csi::{
        client::Channel,
        proto::{NodePublishVolumeRequest, ProbeRequest},
    },
    limits::{CSI_CONNECTIONS, CSI_MESSAGE_BYTES, CSI_STREAMS, HTTP_CONNECTIONS},
    sys::socket::Short,
};
use tonic::Code;

use crate::{
    csi::flood::{call_headers, frame, head, hello, publish_bytes},
    node::bed::{NodeBed, get, get_at},
    support::program::{Running, eventually},
};

/// MiB that attacks may add to what it takes when it is idle. The largest thing in memory are hostile messages being decoded, one by each of
/// two workers: 2 MiB become some 30.
const MORE_MIB: u64 = 224;

/// The most memory that it ever had, in MiB.
fn peak_mib(running: &Running) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

/// It serves as before.
#[track_caller]
fn lives(bed: &NodeBed, running: &Running, after: &str) {
    let served = bed.publish("v").and_then(|()| bed.publish("v"));
    assert!(served.is_ok(), "after {after}: {served:?}");
    assert_eq!(bed.file("v"), "value of a", "after {after}");
    bed.unpublish("v").unwrap();
    let probe = bed.channel();
    let probe = bed
        .runtime
        .block_on(probe.identity().probe(ProbeRequest {}));
    assert_eq!(
        probe.unwrap().into_inner().ready,
        Some(true),
        "after {after}"
    );
    assert_eq!(get_at(running, "/healthz").0, 200, "after {after}");
    assert_eq!(get(&bed.admin(), "/v1/volumes").0, 200, "after {after}");
}

/// As many descriptors as the machine lets us have, for us and for the plugin that we start: attacks take some thousand.
fn many_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(
        limit.maximum.is_none_or(|most| most >= 4096),
        "too few descriptors: {limit:?}"
    );
}

fn address(running: &Running) -> String {
    running.ready.trim().rsplit(' ').next().unwrap().to_owned()
}

/// `count` connections that each publish `request` at once; the statuses that they get.
fn publish_at_once(bed: &NodeBed, request: &NodePublishVolumeRequest, count: usize) -> Vec<i32> {
    let message = request.encode_to_vec();
    assert!(message.len() <= CSI_MESSAGE_BYTES);
    let body = Bytes::from([&head(message.len())[..], &message].concat());
    let socket = bed.csi();
    bed.runtime.block_on(async {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let (socket, body) = (socket.clone(), body.clone());
                tokio::spawn(async move {
                    let channel = Channel::connect(&socket).await.unwrap();
                    publish_bytes(&channel, body).await.unwrap()
                })
            })
            .collect();
        let mut codes = Vec::new();
        for call in calls {
            codes.push(call.await.unwrap());
        }
        codes
    })
}

/// What a publish that is wrong is answered with.
const INVALID: i32 = Code::InvalidArgument as i32;

#[test]
fn attacks_on_the_csi_socket_are_answered_and_take_no_memory_for_ever() {
    many_descriptors();
    let bed = NodeBed::shared();
    let mut running = bed.start();
    lives(&bed, &running, "nothing");
    let idle = peak_mib(&running);
    let told = |attack: &str| {
        lives(&bed, &running, attack);
        let peak = peak_mib(&running);
        println!("{attack}: peak {peak} MiB, idle {idle} MiB");
        assert!(
            peak < idle + MORE_MIB,
            "{attack}: {peak} MiB, idle {idle} MiB"
        );
    };

    // 64 connections with the longest message that there may be
    let mut longest = bed.request("v");
    let attribute = CSI_MESSAGE_BYTES - 2048;
    longest
        .volume_context
        .insert("csi.storage.k8s.io/k".into(), "x".repeat(attribute));
    let codes = publish_at_once(&bed, &longest, 64);
    assert_eq!(codes, [INVALID; 64]);
    told("64 messages of 4 MiB");

    // the same length in as many entries as it holds: decoded, each takes many times its bytes
    let mut many = bed.request("v");
    (0..200_000).for_each(|n| drop(many.volume_context.insert(format!("{n:x}"), String::new())));
    let codes = publish_at_once(&bed, &many, 16);
    // on a busy machine one may not come in time
    let refused = |code: &i32| [INVALID, Code::DeadlineExceeded as i32].contains(code);
    assert!(codes.iter().all(refused), "{codes:?}");
    told("16 messages of 200,000 attributes");

    // connections that say nothing, and ones with calls that say nothing
    let silent: Vec<_> = (0..CSI_CONNECTIONS - 24)
        .map(|_| UnixStream::connect(Short::of(&bed.csi()).unwrap().path).unwrap())
        .collect();
    told("1,000 silent connections");
    drop(silent);
    let call = call_headers();
    let held: Vec<_> = (0..125)
        .map(|_| {
            let mut stream = hello(&Short::of(&bed.csi()).unwrap().path);
            for nth in 0..CSI_STREAMS {
                stream.write_all(&frame(1, 4, 2 * nth + 1, &call)).unwrap();
                stream
                    .write_all(&frame(0, 0, 2 * nth + 1, &[0, 0, 63, 0, 0]))
                    .unwrap(); // of 4 MiB
            }
            stream
        })
        .collect();
    told("2,000 calls that promise 4 MiB each");
    drop(held);
    // as many as there may be, but for those that the test needs, each with something of a message
    let calls: Vec<u8> = (0..CSI_STREAMS)
        .flat_map(|nth| {
            let data = [&head(60_000)[..], &[b'x'; 595]].concat();
            let data = frame(0, 0, 2 * nth + 1, &data);
            [frame(1, 4, 2 * nth + 1, &call), data].concat()
        })
        .collect();
    let held: Vec<_> = (0..CSI_CONNECTIONS - 24)
        .map(|_| {
            let mut stream = hello(&Short::of(&bed.csi()).unwrap().path);
            stream.write_all(&calls).unwrap();
            stream
        })
        .collect();
    told("1,000 connections with 16 pieces of messages");
    drop(held);
    running.stop();
    assert!(!running.log().contains("panic"), "{}", running.log());
}

#[test]
fn one_connection_more_than_there_may_be_waits_until_one_goes() {
    many_descriptors();
    let bed = NodeBed::shared();
    let mut running = bed.start();
    let socket = Short::of(&bed.csi()).unwrap();
    // served, once it has said something itself
    let speaks = |stream: &mut UnixStream| stream.read_exact(&mut [0; 9]).is_ok();
    let mut held: Vec<_> = (0..CSI_CONNECTIONS).map(|_| hello(&socket.path)).collect();
    for stream in &mut held {
        assert!(speaks(stream), "there are fewer places");
    }
    let mut one_more = hello(&socket.path);
    let moment = Duration::from_millis(200);
    one_more.set_read_timeout(Some(moment)).unwrap();
    assert!(!speaks(&mut one_more), "there is no end of places");
    held.pop();
    let patience = Duration::from_secs(20);
    one_more.set_read_timeout(Some(patience)).unwrap();
    assert!(speaks(&mut one_more));
    drop(held);
    lives(&bed, &running, "as many connections as there may be");
    running.stop();
}

/// As many connections as there may be, each of which sends without an end; none is told 200.
fn endless_requests(address: &str) {
    let endless: Vec<_> = (0..HTTP_CONNECTIONS)
        .map(|nth| {
            let address = address.to_owned();
            thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                let head = [
                    "GET /",
                    "GET / HTTP/1.1\r\nX: ",
                    "POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
                    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                ][nth % 4];
                let _ = stream.write_all(head.as_bytes());
                let more = (0..64).take_while(|_| stream.write_all(&[b'x'; 64 << 10]).is_ok());
                more.for_each(drop);
                let _ = stream.shutdown(Shutdown::Write);
                let patience = Duration::from_secs(15);
                stream.set_read_timeout(Some(patience)).unwrap();
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer); // or it is reset
                String::from_utf8_lossy(&answer).into_owned()
            })
        })
        .collect();
    for thread in endless {
        let answer = thread.join().unwrap();
        assert!(!answer.contains(" 200 "), "{answer:?}");
    }
}

#[test]
fn attacks_on_the_health_checks_and_the_admin_socket_are_answered() {
    many_descriptors();
    let bed = NodeBed::shared();
    let mut running = bed.start();
    lives(&bed, &running, "nothing");
    let idle = peak_mib(&running);
    let address = address(&running);

    // two thousand that say nothing, or half of something, while it is asked how it is
    let mut open = Vec::new();
    for nth in 0..2_000 {
        let mut stream = TcpStream::connect(&address).unwrap();
        let first: &[u8] = [&b""[..], b"G", b"GET /healthz HTTP/1.1\r\nX: "][nth % 3];
        let _ = stream.write_all(first); // it may be closed by now
        open.push(stream);
        if nth % 500 == 499 {
            lives(&bed, &running, "idle connections");
        }
    }
    drop(open);
    endless_requests(&address);
    lives(&bed, &running, "endless requests");
    for path in [
        "/%2e%2e/%2e%2e/etc/passwd",
        "//healthz",
        "/healthz/",
        "/HEALTHZ",
        "/healthz%00",
        "/v1/volumes",
        "*",
    ] {
        assert_ne!(get_at(&running, path).0, 200, "{path}");
    }
    let long = format!("/v1/volumes/{}", "a".repeat(10_000));
    for (path, status) in [
        ("/v1/volumes/..", 404),
        ("/v1/volumes/%2e%2e", 404),
        ("/v1/volumes/a/b", 400),
        ("/v2", 400),
        (&long, 404),
    ] {
        let (got, body) = get(&bed.admin(), path);
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.len() < 1_000, "{path}: {} bytes", body.len());
    }
    let peak = peak_mib(&running);
    println!("peak {peak} MiB, idle {idle} MiB");
    assert!(peak < idle + 64, "{peak} MiB, idle {idle} MiB");
    running.stop();
    assert!(!running.log().contains("panic"), "{}", running.log());
}

#[test]
fn many_files_where_records_belong_end_no_start() {
    let bed = NodeBed::shared();
    let volumes = bed.bed.path("rt/volumes");
    fs::create_dir_all(&volumes).unwrap();
    for n in 0..20_000 {
        fs::File::create(volumes.join(format!("{n}.json"))).unwrap();
    }
    let mut running = bed.start();
    lives(&bed, &running, "20,000 records that are none");
    let lines = running.log().matches("record").count();
    assert!(lines < 500, "{lines} lines about them");
    eventually("it is told how many more", || {
        running.log().contains("more records are not used")
    });
    running.stop();
}

#[test]
fn a_descriptor_a_level_and_a_name_that_are_none_are_told() {
    let bed = NodeBed::shared();
    bed.bed
        .write("app.yaml", "files: [{path: a, from: \"store:a\"}]");
    for number in ["-1", "0", "2", "77", "1000000000", "2147483648", "x", ""] {
        let fd = format!("--ready-fd={number}");
        let told = bed.bed.fails(2, &["mount", "app.yaml", "target", &fd]);
        assert!(told.contains("--ready-fd"), "{number}: {told}");
    }
    for args in [
        &["node", "--config", "none"][..],
        &["node", "--config", "/dev/zero"],
        &["node"],
        &["check", "/dev/zero"],
    ] {
        bed.bed.fails(2, args);
    }
    for (key, value) in [
        ("node", "a\\u0000b".to_owned()),
        ("node", "n".repeat(257)),
        ("endpoint", "unix:///a\\nb".into()),
        ("endpoint", "unix:///a/../b".into()),
    ] {
        bed.configure(&format!("{key}: \"{value}\""));
        let told = bed.bed.fails(2, &["node", "--config", "node.yaml"]);
        assert!(told.contains(key), "{key}: {told}");
    }
}
