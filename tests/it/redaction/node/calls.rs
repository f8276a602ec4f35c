//! What callers, the API server and clients of its sockets do to the plugin.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::symlink, net::UnixStream},
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags};
use secretfs::{
    csi::{
        client::Channel,
        proto::{
            GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest,
            NodeGetInfoRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest,
            NodeUnpublishVolumeRequest, ProbeRequest,
            registration::{InfoRequest, RegistrationStatus},
            volume_capability::{AccessType, MountVolume},
        },
    },
    limits,
    sys::socket::Short,
};
use serde_json::json;

use super::{
    AUDIENCE, GOOD, Night, OF_ATTRIBUTES, OF_CLIENTS, OF_SECRETS, get, post, token_in, with,
};
use crate::{
    kube::object,
    redaction::{
        cli::{FAILING, failing_spec},
        sinks::ECHO,
    },
    support::{
        apiserver::Call,
        canary::CANARY,
        kubelet::{FAR, Pod, TOKENS, Volume, jwt, tokens},
        program::{Running, eventually},
    },
};

/// The API server: away, refusing, talking nonsense; an object that is wrong; then one that is right.
pub(super) fn the_api_server(night: &mut Night, running: &Running) {
    let volume = night.volume("early", "v");
    night.fails("kubernetes.unreachable", volume.request());
    let words = "the API server cannot be asked";
    night.until_logged(running, words);
    night.http("health", running, &get("/readyz"));
    night.server.fail_always(Call::List, None);
    night.server.put(object(json!({"podInfoOnMount": false})));
    night.until_logged(running, "nothing is published: the CSIDriver object");
    night.fails("driver.object", volume.request());
    let token_requests = json!([{"audience": AUDIENCE}]);
    night
        .server
        .put(object(json!({"tokenRequests": token_requests})));
    night.until_logged(running, "the CSIDriver object is as it must be");
}

/// The kubelet's registration: refused in words of its own, then done.
pub(super) fn the_registration(night: &mut Night, running: &Running) {
    let socket = night.path("k/plugins_registry/csi.secretfs.dev-reg.sock");
    let runtime = night.machine.node.runtime.handle().clone();
    let channel = runtime.block_on(Channel::connect(&socket)).unwrap();
    for (done, error) in [(false, ECHO), (true, "")] {
        let said = runtime.block_on(async {
            let mut registration = channel.registration();
            let info = registration.get_info(InfoRequest {}).await.unwrap();
            let status = RegistrationStatus {
                plugin_registered: done,
                error: error.to_owned(),
            };
            let told = registration.notify_registration_status(status).await;
            format!("{info:?} {told:?}")
        });
        night.sinks.add("registration", said);
        if !done {
            eventually("readyz says it", || {
                let answer = night.http("health", running, &get("/readyz"));
                String::from_utf8_lossy(&answer).contains(ECHO)
            });
        }
    }
}

/// Publishes that fail for what they say of themselves.
pub(super) fn bad_requests(night: &mut Night) {
    let good = night.volume("p0", "bad");
    let attribute = |key: &str, value: &str| {
        let mut volume = good.clone();
        volume.attributes.insert(key.into(), value.into());
        volume.request()
    };
    night.fails("spec.unknown_key", attribute("password", OF_ATTRIBUTES));
    night.fails("spec.unknown_key", attribute("Spec", OF_ATTRIBUTES));
    let long = OF_ATTRIBUTES.repeat(limits::CSI_VALUE_BYTES / 10);
    night.fails(
        "csi.bad_request",
        attribute("csi.storage.k8s.io/other", &long),
    );
    let context = |key: &str, value: &str| {
        with(&good, |request| {
            let key = format!("csi.storage.k8s.io/{key}");
            request.volume_context.insert(key, value.into());
        })
    };
    for key in [
        "pod.name",
        "pod.namespace",
        "pod.uid",
        "serviceAccount.name",
        "ephemeral",
    ] {
        night.fails("csi.bad_request", context(key, OF_ATTRIBUTES));
    }
    night.fails(
        "identity.forged",
        context("pod.uid", &Pod::new("other").uid),
    );
    claims(night, &good);
    night.fails(
        "csi.not_readonly",
        with(&good, |request| request.readonly = false),
    );
    let request = with(&good, |request| {
        request
            .secrets
            .insert("large".into(), OF_SECRETS.repeat(50_000));
    });
    night.fails("csi.bad_request", request);
    let request = with(&good, |request| {
        let more = (0..200).map(|nth| (format!("key{nth}"), OF_SECRETS.to_owned()));
        request.secrets.extend(more);
    });
    night.fails("csi.bad_request", request);
    night.fails(
        "csi.bad_request",
        with(&good, |request| request.volume_id = OF_ATTRIBUTES.into()),
    );
    let nowhere = format!("/{OF_ATTRIBUTES}");
    night.fails(
        "csi.bad_target",
        with(&good, |request| request.target_path = nowhere),
    );
    night.fails("csi.bad_request", NodePublishVolumeRequest::default());
    mount_options(night, &good);
    specs(night, &good);
}

/// Tokens that are none, and those of somebody else.
fn claims(night: &mut Night, good: &Volume) {
    let context = |text: &str| {
        with(good, |request| {
            request.volume_context.insert(TOKENS.into(), text.into());
        })
    };
    for text in [
        format!("{{\"{AUDIENCE}\": {{\"token\": \"{OF_SECRETS}\"}}}}"),
        OF_SECRETS.to_owned(),
        format!("{{\"{AUDIENCE}\": \"{OF_SECRETS}\"}}"),
        format!("{{\"{AUDIENCE}\": {{\"token\": \"{OF_SECRETS}.{OF_SECRETS}.{OF_SECRETS}\"}}}}"),
        format!(
            "{{\"{AUDIENCE}\": {{\"token\": \"{}\"}}}}",
            OF_SECRETS.repeat(1000)
        ),
        OF_SECRETS.repeat(20_000),
    ] {
        night.fails("csi.bad_request", context(&text));
    }
    let other = Pod::of(&format!("{ECHO}-p1"), "payments", "api");
    let foreign = jwt(&other.claims(AUDIENCE, FAR));
    night.sinks.secret("another pod's token", foreign.clone());
    let foreign = tokens(&[(AUDIENCE, foreign)]);
    night.fails("identity.forged", context(&foreign));
    let elsewhere = tokens(&[("other", token_in(&good.tokens()))]);
    night.fails("identity.forged", context(&elsewhere));
    let request = with(good, |request| {
        let tokens = request.volume_context[TOKENS].clone();
        request.secrets.insert(TOKENS.into(), tokens);
    });
    night.fails("identity.forged", request);
}

fn mount_options(night: &mut Night, good: &Volume) {
    let option = |mount: MountVolume| {
        with(good, |request| {
            let capability = request.volume_capability.as_mut().unwrap();
            capability.access_type = Some(AccessType::Mount(mount));
        })
    };
    let text = OF_ATTRIBUTES.to_owned();
    for mount in [
        MountVolume {
            fs_type: text.clone(),
            ..Default::default()
        },
        MountVolume {
            mount_flags: vec![text.clone()],
            ..Default::default()
        },
        MountVolume {
            mount_flags: vec![format!("context=\"{text}\"")],
            ..Default::default()
        },
        MountVolume {
            volume_mount_group: text,
            ..Default::default()
        },
    ] {
        night.fails("csi.bad_request", option(mount));
    }
}

/// Specs that are wrong, and values that do not fit them.
fn specs(night: &mut Night, good: &Volume) {
    for (code, spec) in [
        ("spec.syntax", "files: [\n\t{"),
        ("spec.unknown_key", "files: [{path: a, form: store:doc}]"),
        (
            "spec.unknown_backend",
            "files: [{path: a, from: vault:doc}]",
        ),
        (
            "backend.not_found",
            "files: [{path: a, from: echo-5d1f7a:none}]",
        ),
        ("store.corrupt", "files: [{path: a, from: wrong:doc}]"),
        ("store.missing", "files: [{path: a, from: absent:doc}]"),
    ] {
        night.fails(code, good.clone().with_spec(spec).request());
    }
    for (what, rule) in FAILING {
        let volume = good.clone().with_spec(&failing_spec(rule));
        let answer = night.machine.publish(&volume);
        night.heard(what, &answer);
        assert!(answer.is_err(), "{what}");
    }
    let large = json!({ "password": CANARY.repeat(200) });
    night.put("large", &large);
    let spec = "files: [{path: a, from: store:large#password}]";
    night.fails("render.too_large", good.clone().with_spec(spec).request());
}

/// Who may not, and who has too many.
pub(super) fn refusals(night: &mut Night) {
    let pod = Pod::of(&format!("{ECHO}-web"), "shop", "web");
    let mut denied = night.machine.kubelet.volume(&pod, "v", GOOD);
    denied.audiences = vec![AUDIENCE.to_owned()];
    denied.secrets.insert("password".into(), OF_SECRETS.into());
    night
        .sinks
        .secret("a denied pod's token", token_in(&denied.tokens()));
    night.fails("policy.denied", denied.request());
    let volumes = ["a", "b", "c"].map(|name| night.volume("many", name));
    night.works("the first", &volumes[0]);
    night.works("the second", &volumes[1]);
    night.fails("limit.exceeded", volumes[2].request());
    for volume in &volumes {
        night.unpublish(volume);
    }
}

/// Targets that are none.
pub(super) fn targets(night: &mut Night) {
    let volume = night.volume("targets", "v");
    let parent = volume.target.parent().unwrap().to_owned();
    fs::write(&volume.target, OF_ATTRIBUTES).unwrap();
    night.fails("mount.no_target", volume.request());
    fs::remove_file(&volume.target).unwrap();
    symlink("/", &volume.target).unwrap();
    night.fails("mount.link", volume.request());
    fs::remove_file(&volume.target).unwrap();
    fs::create_dir(&volume.target).unwrap();
    let none = MountFlags::empty();
    rustix::mount::mount("foreign", &volume.target, "tmpfs", none, None).unwrap();
    night.fails("mount.foreign", volume.request());
    rustix::mount::unmount(&volume.target, UnmountFlags::DETACH).unwrap();
    fs::remove_dir(&volume.target).unwrap();
    fs::remove_dir_all(&parent).unwrap();
    night.fails("mount.no_target", volume.request());
}

/// A kubelet that does not wait, and one that asks for what is not there.
pub(super) fn impatience(night: &mut Night) {
    let volume = night.volume("hurry", "v");
    let mut kubelet = night.machine.kubelet.clone();
    for micros in [1, 200, 1000, 3000] {
        kubelet.deadline = Duration::from_micros(micros);
        let answer = night
            .machine
            .node
            .runtime
            .block_on(kubelet.publish(&volume));
        night.heard("a kubelet in a hurry", &answer);
    }
    night.unpublish(&volume);
    night.unpublish(&volume);
    for (id, path) in [
        ("", ""),
        (&*volume.id, ""),
        (&*volume.id, "/x"),
        (OF_ATTRIBUTES, "/x"),
    ] {
        let (id, path) = (id.to_owned(), path.to_owned());
        let stats = NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: path.clone(),
            staging_target_path: OF_ATTRIBUTES.to_owned(),
        };
        night.ask("stats", async |channel| {
            channel.node().node_get_volume_stats(stats).await
        });
        let unpublish = NodeUnpublishVolumeRequest {
            volume_id: id,
            target_path: path,
        };
        night.ask("unpublish", async |channel| {
            channel.node().node_unpublish_volume(unpublish).await
        });
    }
    night.ask("info", async |channel| {
        channel.node().node_get_info(NodeGetInfoRequest {}).await
    });
    night.ask("capabilities", async |channel| {
        channel
            .node()
            .node_get_capabilities(NodeGetCapabilitiesRequest {})
            .await
    });
    night.ask("probe", async |channel| {
        channel.identity().probe(ProbeRequest {}).await
    });
    night.ask("plugin", async |channel| {
        channel
            .identity()
            .get_plugin_info(GetPluginInfoRequest {})
            .await
    });
    night.ask("plugin", async |channel| {
        let request = GetPluginCapabilitiesRequest {};
        channel.identity().get_plugin_capabilities(request).await
    });
}

/// Bytes that are no call, at every socket; every route, and some that are none.
pub(super) fn sockets(night: &mut Night, running: &Running, volume: &Volume) {
    let id = &volume.id;
    let requests = [
        get("/v1/volumes"),
        get(&format!("/v1/volumes/{id}")),
        get("/v1/volumes/none"),
        get("/v1/node"),
        get("/v2"),
        post("/v1/refresh"),
        post(&format!("/v1/volumes/{id}/refresh")),
        post("/v1/volumes/none/refresh"),
        post("/v1/node"),
        format!("{OF_CLIENTS}\r\n\r\n").into(),
        format!("GET / HTTP/9.{OF_CLIENTS}\r\n\r\n").into(),
        format!("GET / HTTP/1.1\r\n{OF_CLIENTS}\r\n\r\n").into(),
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", OF_CLIENTS.repeat(10_000)).into(),
        format!("POST /v1/refresh HTTP/1.1\r\nHost: n\r\nConnection: close\r\nContent-Length: 999999\r\n\r\n{}", OF_CLIENTS.repeat(40_000)).into(),
    ];
    for request in &requests {
        night.admin(request);
        night.http("health", running, request);
    }
    for path in ["/healthz", "/readyz"] {
        night.http("health", running, &get(path));
    }
    let metrics = night.http("metrics", running, &get("/metrics"));
    if metrics.starts_with(b"HTTP/1.1 404") {
        night.sinks.said.remove("metrics"); // there are none in this build: see `echoes`
    }
    for socket in [
        night.machine.node.csi(),
        night.path("k/plugins_registry/csi.secretfs.dev-reg.sock"),
    ] {
        for bytes in [
            OF_CLIENTS.to_owned(),
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{OF_CLIENTS}"),
        ] {
            let short = Short::of(&socket).unwrap();
            let mut stream = UnixStream::connect(&short.path).unwrap();
            let _ = stream.write_all(bytes.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            night.sinks.add("answers", answer);
        }
    }
}
