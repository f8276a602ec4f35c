//! What a pod can trigger fills no log: ten thousand bad calls through the socket of the built program, at the level that a node has.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::Arc,
};

use secretfs::{
    csi::{
        client::Channel,
        proto::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest},
    },
    limits,
    sys::socket::Short,
};

use crate::support::{
    kubelet::{Pod, TOKENS, Volume, jwt, tokens},
    machine::{Machine, SPEC},
    program::{Running, eventually},
};

/// Calls that fail.
const CALLS: usize = 10_000;
/// Calls in flight.
const AT_ONCE: usize = 16;

/// What is wrong with a publish.
const KINDS: [fn(&Machine, &Volume) -> NodePublishVolumeRequest; 8] = [
    |_, volume| {
        volume
            .clone()
            .with_spec("files: [{path: a, form: store:a}]")
            .request()
    },
    |_, volume| {
        volume
            .clone()
            .with_spec("files: [{path: a, from: store:none}]")
            .request()
    },
    |machine, volume| {
        let pod = Pod::of("denied", "shop", "web");
        machine
            .kubelet
            .volume(&pod, &volume.id[..12], SPEC)
            .request()
    },
    |_, volume| {
        let forged = jwt(&Pod::of("other", "shop", "web").claims("vault", 4_102_444_800));
        let mut request = volume.request();
        request
            .volume_context
            .insert(TOKENS.into(), tokens(&[("vault", forged)]));
        request
    },
    |_, _| NodePublishVolumeRequest::default(),
    |_, volume| {
        let mut request = volume.request();
        let large = "x".repeat(limits::CSI_VALUE_BYTES + 1);
        request.volume_context.insert("comment".into(), large);
        request
    },
    |_, volume| {
        let mut request = volume.request();
        request.readonly = false;
        request
    },
    |_, volume| volume.clone().with_spec(": no YAML\n\t{").request(),
];

/// A plugin whose policy allows the namespace `payments` alone, at the default level.
fn started(machine: &Machine) -> Running {
    machine.node.configure(
        "policy: [{namespaces: [payments], serviceAccounts: [\"*\"], allow: [\"store:**\"]}]",
    );
    let running = machine.node.bed.start(&["node", "--config", "node.yaml"]);
    assert!(running.ready.starts_with("ready: "), "{}", running.log());
    running
}

/// Sends `CALLS` bad calls for the volumes of one pod.
fn storm(machine: &Machine) {
    let pod = Pod::of("noisy", "payments", "api");
    let volumes: Vec<Volume> = (0..4)
        .map(|nth| machine.kubelet.volume(&pod, &format!("v{nth}"), SPEC))
        .collect();
    let request = |nth: usize| KINDS[nth % KINDS.len()](machine, &volumes[nth % volumes.len()]);
    let runtime = &machine.node.runtime;
    let channel = Arc::new(runtime.block_on(machine.kubelet.connect()));
    let mut nth = 0;
    runtime.block_on(async {
        let mut running = tokio::task::JoinSet::new();
        while nth < CALLS || !running.is_empty() {
            while nth < CALLS && running.len() < AT_ONCE {
                let (channel, request) = (channel.clone(), request(nth));
                let unpublish = nth % 50 == 0;
                running.spawn(async move { fails(&channel, request, unpublish).await });
                nth += 1;
            }
            running.join_next().await.unwrap().unwrap();
        }
    });
}

async fn fails(channel: &Channel, request: NodePublishVolumeRequest, unpublish: bool) {
    let mut node = channel.node();
    if unpublish {
        let request = NodeUnpublishVolumeRequest {
            volume_id: "no id/at all".into(),
            target_path: request.target_path,
        };
        node.node_unpublish_volume(request).await.unwrap_err();
    } else {
        node.node_publish_volume(request).await.unwrap_err();
    }
}

/// Bytes that are no call, and connections that end in the middle, at every socket.
fn garbage(machine: &Machine, running: &Running) {
    let address = running.ready.trim().rsplit(' ').next().unwrap();
    for nth in 0..200 {
        let bytes: &[u8] = match nth % 4 {
            0 => b"GET / HTTP/1.1\r\n",
            1 => b"\x16\x03\x01\x02\x00\x01\x00",
            2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense that is no frame at all",
            _ => b"",
        };
        for socket in [machine.node.csi(), machine.node.admin()] {
            let mut stream = UnixStream::connect(&Short::of(&socket).unwrap().path).unwrap();
            let _ = stream.write_all(bytes); // whoever hangs up does so early
        }
        let _ = TcpStream::connect(address).unwrap().write_all(bytes);
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

/// The number behind `name=` in each line.
fn numbers(log: &str, name: &str) -> u64 {
    let name = format!(" {name}=");
    let behind = log.split(&name).skip(1);
    let number = |text: &str| {
        text.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    behind.map(number).sum()
}

#[test]
fn ten_thousand_bad_calls_are_a_page_of_log_that_counts_them_all_and_hides_no_other_pod() {
    let machine = Machine::new();
    let mut running = started(&machine);
    storm(&machine);
    garbage(&machine, &running);
    let mut quiet = machine
        .kubelet
        .volume(&Pod::of("quiet", "payments", "api"), "v", SPEC);
    quiet.read_only = false;
    machine.publish(&quiet).unwrap_err();
    let good = machine.volumes(1);
    machine.publish_all(&good);
    let says = format!("volume_id=\"{}\"", quiet.id);
    eventually("the quiet pod is heard", || running.log().contains(&says));
    machine.unpublish_all(&good);
    running.stop();

    let log = running.log();
    let lines = log.lines().count();
    assert!(lines < 200, "{lines} lines:\n{log}");
    let one_by_one = log.matches("a CSI call failed").count() as u64;
    assert_eq!(
        one_by_one + numbers(&log, "calls"),
        CALLS as u64 + 1,
        "{log}"
    );
    assert!(!log.contains("panic"), "{log}");
}
