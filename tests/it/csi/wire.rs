//! What is not about volumes: panics, messages that are none, connections that idle, and the end.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::atomic::Ordering,
};

use http_body_util::Full;
use hyper::{Request, body::Bytes};
use secretfs::{
    csi::{client::Channel, proto::NodeGetInfoRequest},
    limits::{CSI_FIRST_CALL, CSI_IDLE, CSI_LINGER},
};
use tonic::{Code, body::Body, codegen::Service as _};

use super::{Stage, code};
use crate::support::scripted::Answer;

#[tokio::test]
async fn a_panic_is_answered_and_counted() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    let volume = stage.volume();
    stage.clock.armed.store(true, Ordering::Relaxed);
    let answer = stage.kubelet.send_on(&channel, volume.request()).await;
    assert_eq!(
        (code(&answer), stage.services.panics()),
        (Code::Internal, 1)
    );
    stage.clock.armed.store(false, Ordering::Relaxed);
    let answer = stage.kubelet.send_on(&channel, volume.request()).await;
    assert_eq!((code(&answer), stage.services.panics()), (Code::Ok, 1));
}

/// Sends bytes as the body of a publish.
async fn send_raw(channel: &Channel, message: &[u8]) -> Option<String> {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let request = Request::post("http://localhost/csi.v1.Node/NodePublishVolume")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(Bytes::from(body))))
        .unwrap();
    let response = channel.clone().call(request).await.unwrap();
    let status = response.headers().get("grpc-status")?;
    Some(status.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_the_connection_goes_on() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    let number = |code: Code| Some((code as i32).to_string());
    // field 1, two bytes, which are not UTF-8
    let answer = send_raw(&channel, &[0x0a, 2, 0xff, 0xfe]).await;
    assert_eq!(answer, number(Code::Internal));
    // field 1, longer than what is there
    assert_eq!(
        send_raw(&channel, &[0x0a, 200]).await,
        number(Code::Internal)
    );
    let huge = stage.volume().with_spec(&"#".repeat(5 << 20));
    let answer = stage.kubelet.send_on(&channel, huge.request()).await;
    assert_eq!(code(&answer), Code::OutOfRange, "{answer:?}");
    let answer = stage
        .kubelet
        .send_on(&channel, stage.volume().request())
        .await;
    assert_eq!(code(&answer), Code::Ok);
}

#[tokio::test]
async fn a_method_that_is_not_offered_is_unimplemented() {
    let stage = Stage::new();
    let mut channel = stage.kubelet.connect().await;
    for path in [
        "/csi.v1.Node/NodeStageVolume",
        "/csi.v1.Controller/CreateVolume",
        "/",
    ] {
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .body(Body::empty())
            .unwrap();
        let response = channel.call(request).await.unwrap();
        let status = response.headers().get("grpc-status").unwrap();
        assert_eq!(status, &(Code::Unimplemented as i32).to_string(), "{path}");
    }
}

#[tokio::test]
async fn garbage_on_the_socket_ends_its_own_connection_only() {
    let stage = Stage::new();
    let channel = stage.kubelet.connect().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 100],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ] {
        let socket = stage.kubelet.socket.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.write_all(garbage).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest) // until the plugin closes it
        });
        let _ = ended.await.unwrap(); // or it is reset
    }
    let answer = stage
        .kubelet
        .send_on(&channel, stage.volume().request())
        .await;
    assert_eq!(code(&answer), Code::Ok);
}

/// On paused time, which goes on as soon as nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_happens_is_closed() {
    let stage = Stage::new();
    let silent = tokio::net::UnixStream::connect(&stage.kubelet.socket)
        .await
        .unwrap();
    let talker = stage.kubelet.connect().await;
    talker
        .node()
        .node_get_info(NodeGetInfoRequest {})
        .await
        .unwrap();
    let before = tokio::time::Instant::now();
    loop {
        silent.readable().await.unwrap();
        match silent.try_read(&mut [0; 1024]) {
            Ok(0) => break,
            Ok(_) => {} // its settings, and that it ends
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let waited = before.elapsed();
    let (first, linger) = (CSI_FIRST_CALL, CSI_LINGER);
    assert!(
        waited >= first && waited <= first + 2 * linger,
        "{waited:?}"
    );
    let answer = talker.node().node_get_info(NodeGetInfoRequest {}).await;
    assert_eq!(
        code(&answer),
        Code::Ok,
        "one that has called may wait longer"
    );
    tokio::time::sleep(CSI_IDLE + 2 * linger).await;
    let answer = talker.node().node_get_info(NodeGetInfoRequest {}).await;
    assert_ne!(code(&answer), Code::Ok);
}

#[tokio::test]
async fn a_stop_answers_what_is_in_flight_and_nothing_more() {
    let stage = Stage::new();
    let volume = stage.volume();
    stage.bed.a.answer("db", Answer::Hang);
    let idle = stage.kubelet.connect().await;
    let publish = stage.begin(&volume);
    stage.asked().await;
    let (closing, idling) = (stage.services.clone(), stage.services.clone());
    let idling = tokio::spawn(async move { idling.idle().await });
    let closing = tokio::spawn(async move { closing.close().await });
    while code(&idle.node().node_get_info(NodeGetInfoRequest {}).await) == Code::Ok {}
    assert!(!closing.is_finished() && !idling.is_finished());
    stage.bed.volumes.shutdown().await;
    let answer = publish.await.unwrap();
    assert_eq!(code(&answer), Code::Unavailable, "{answer:?}");
    idling.await.unwrap();
    closing.await.unwrap();
}

/// A header block as the kubelet's plugin watcher sends it, by Go's `hpack`: its `:authority` is
/// `%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcsi.secretfs.dev-reg.sock`.
const KUBELETS: &[u8] = b"\x83\x86\x45\x9c\x62\xba\x2d\x98\xd5\x58\x59\x8c\x84\xd8\x34\x98\xf5\x2f\xb4\xb3\x19\x09\xb0\x69\x31\xea\x63\x11\x53\x92\xa9\x4f\
\x41\xb2\x54\x58\x7b\x8e\xc5\x45\x86\x83\x46\xa8\xb0\xf5\xb6\x32\xd0\x54\xaa\x2c\x35\xd1\x6c\xc6\xa9\x11\x58\x59\x8c\x84\xd9\xe9\x51\x61\x22\x0c\xba\x0a\
\x4b\x0a\x99\x50\xbc\x85\xee\xb5\x85\x99\x74\x1c\x9d\x7f\x5f\x8b\x1d\x75\xd0\x62\x0d\x26\x3d\x4c\x4d\x65\x64\x7a\x8a\x9a\xca\xc8\xb4\xc7\x60\x2b\xba\x25\
\xc3\x40\x02\x74\x65\x86\x4d\x83\x35\x05\xb1\x1f";

/// The least of it, and an authority as other libraries write it.
const PLAIN: &[u8] =
    b"\x83\x86\x04\x18/csi.v1.Identity/GetInfo\x01\x0d/run/csi.sock\x0f\x10\x10application/grpc";

// Goal: whoever calls at a socket's path is answered, whatever his library takes for an authority (hyperium/h2#487).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_the_sockets_path_for_an_authority_is_answered() {
    let stage = Stage::new();
    for block in [KUBELETS, PLAIN] {
        let mut stream = UnixStream::connect(&stage.kubelet.socket).unwrap();
        let length = u8::try_from(block.len()).unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .unwrap();
        stream.write_all(&[0, 0, length, 1, 4, 0, 0, 0, 1]).unwrap();
        stream.write_all(block).unwrap();
        stream
            .write_all(b"\0\0\x05\0\x01\0\0\0\x01\0\0\0\0\0")
            .unwrap();
        let kind = loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).unwrap();
            let length = u16::from_be_bytes([head[1], head[2]]);
            stream.read_exact(&mut vec![0; length.into()]).unwrap();
            if head[8] == 1 {
                break head[3];
            }
        };
        assert_eq!(kind, 1, "HEADERS, and not RST_STREAM (3)");
    }
}
