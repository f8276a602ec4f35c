//! `secretfs node` as a kubelet, a prober and an operator see it: the built program, real sockets, mounts and signals.

pub mod bed;
mod changes;

use std::{
    fs,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    process::Command,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags as Propagation},
    process::Signal,
};
use secretfs::csi::proto::{
    GetPluginInfoRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest, ProbeRequest,
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use bed::{NodeBed, get, get_at};

use crate::support::program::{Running, eventually, layers, program};

#[test]
fn it_says_who_it_is_and_serves_a_volume_from_publish_to_unpublish() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    let endpoint = bed.csi();
    let expect = format!(
        "ready: csi.secretfs.dev on n1, 0 volumes restored, unix://{}, http 127.0.0.1:",
        endpoint.display()
    );
    assert!(running.ready.starts_with(&expect), "{}", running.ready);
    let channel = bed.channel();
    bed.runtime.block_on(async {
        let mut identity = channel.identity();
        let info = identity.get_plugin_info(GetPluginInfoRequest {}).await;
        assert_eq!(info.unwrap().into_inner().name, "csi.secretfs.dev");
        let probe = identity.probe(ProbeRequest {}).await.unwrap().into_inner();
        assert_eq!(probe.ready, Some(true));
        let info = channel.node().node_get_info(NodeGetInfoRequest {}).await;
        assert_eq!(info.unwrap().into_inner().node_id, "n1");
    });
    bed.publish("v").unwrap();
    assert_eq!(bed.file("v"), "value of a");
    let stats = NodeGetVolumeStatsRequest {
        volume_id: bed.request("v").volume_id,
        volume_path: bed.request("v").target_path,
        ..Default::default()
    };
    let stats = bed
        .runtime
        .block_on(channel.node().node_get_volume_stats(stats));
    assert!(!stats.unwrap().into_inner().usage.is_empty());
    bed.unpublish("v").unwrap();
    assert!(fs::symlink_metadata(bed.target("v")).is_err());
    for socket in [endpoint, bed.admin()] {
        let found = fs::symlink_metadata(&socket).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(
            found.permissions().mode() & 0o777,
            0o600,
            "{}",
            socket.display()
        );
    }
    running.stop();
    for gone in [bed.csi(), bed.admin()] {
        assert!(fs::symlink_metadata(&gone).is_err(), "{}", gone.display());
    }
}

// --- two of us

/// Another instance, which waits.
fn waiting(bed: &NodeBed, first: &Running) -> Running {
    let second = bed.spawn();
    let says = format!(
        "waiting: another instance, process {} on ",
        first.child.id()
    );
    eventually("the second one says whom it waits for", || {
        second.log().contains(&says)
    });
    second
}

#[test]
fn a_second_instance_waits_and_serves_as_soon_as_the_first_has_gone() {
    for signal in [Signal::TERM, Signal::KILL] {
        let bed = NodeBed::shared();
        let mut first = bed.start();
        let mut second = waiting(&bed, &first);
        bed.publish("v").unwrap(); // the first answers
        first.signal(signal);
        first.ended();
        second.first_line();
        let says = "ready: csi.secretfs.dev on n1, 1 volume restored, ";
        assert!(
            second.ready.starts_with(says),
            "{} {}",
            second.ready,
            second.log()
        );
        assert_eq!(bed.file("v"), "value of a", "the mount has stayed");
        assert_eq!(bed.node()["volumes"], 1, "and is served");
        bed.publish("v").unwrap();
        bed.publish("w").unwrap();
        for volume in ["v", "w"] {
            assert_eq!(layers(&bed.target(volume)), 1);
            bed.unpublish(volume).unwrap();
        }
        second.stop();
    }
}

#[test]
fn one_that_waits_touches_nothing_when_it_goes() {
    let bed = NodeBed::shared();
    let mut first = bed.start();
    let before = fs::metadata(bed.csi()).unwrap().ino();
    for signal in [Signal::TERM, Signal::KILL] {
        let mut second = waiting(&bed, &first);
        second.signal(signal);
        let ended = second.ended();
        assert_eq!(ended.success(), signal == Signal::TERM, "{}", second.log());
    }
    assert_eq!(fs::metadata(bed.csi()).unwrap().ino(), before);
    bed.publish("v").unwrap();
    bed.unpublish("v").unwrap();
    first.stop();
}

#[test]
fn a_lock_that_somebody_removed_is_no_lock() {
    let bed = NodeBed::shared();
    let first = bed.start();
    let mut second = waiting(&bed, &first);
    let lock = bed.bed.path("rt/lock");
    fs::rename(&lock, bed.bed.path("rt/old")).unwrap();
    let mut third = bed.start(); // it found no lock, so it took over the sockets
    let live = fs::metadata(bed.csi()).unwrap().ino();
    drop(first); // killed: the second one gets a lock that no name leads to
    eventually("the second one waits for the third", || {
        second
            .log()
            .contains(&format!("process {} on ", third.child.id()))
    });
    assert_eq!(fs::metadata(bed.csi()).unwrap().ino(), live);
    third.stop();
    second.first_line();
    assert!(second.ready.starts_with("ready: "), "{}", second.log());
    second.stop();
}

// --- what lies in the way

#[test]
fn dead_sockets_are_replaced() {
    let bed = NodeBed::shared();
    fs::create_dir_all(bed.csi().parent().unwrap()).unwrap();
    drop(UnixListener::bind(bed.csi()).unwrap());
    let mut running = bed.start();
    bed.publish("v").unwrap();
    bed.unpublish("v").unwrap();
    running.stop();
}

/// The configuration must be refused with this exit code and these words, before anything is bound.
#[track_caller]
fn refused(bed: &NodeBed, code: i32, line: &str, says: &str) {
    bed.configure(line);
    let stderr = bed.bed.fails(code, &["node", "--config", "node.yaml"]);
    assert!(stderr.contains(says), "{line}: {stderr}");
    let left = fs::symlink_metadata(bed.csi()).is_ok();
    assert!(!left, "{line}: a socket is left");
}

#[test]
fn what_is_in_the_way_is_named_and_left_alone() {
    let bed = NodeBed::shared();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = format!("http: {}", taken.local_addr().unwrap());
    refused(&bed, 1, &http, "another program listens there");
    let file = bed.bed.path("file");
    fs::write(&file, "somebody's").unwrap();
    let there = "something that is not a socket is there";
    for key in ["endpoint", "http"] {
        let line = format!("{key}: unix://{}", file.display());
        refused(&bed, 1, &line, there);
    }
    let read_only = bed.bed.path("read-only");
    fs::create_dir(&read_only).unwrap();
    let flags = MountFlags::RDONLY;
    rustix::mount::mount("fixed", &read_only, "tmpfs", flags, Some(c"mode=0700")).unwrap();
    let open = bed.bed.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for (dir, says) in [
        (read_only.join("rt"), "make runtimeDir"),
        (open, "can be written by, another user"),
        (file.clone(), "make runtimeDir"),
    ] {
        let line = format!("runtimeDir: {}", dir.display());
        refused(&bed, 1, &line, says);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "somebody's");
}

#[test]
fn a_wrong_configuration_is_refused_as_check_refuses_it() {
    let bed = NodeBed::shared();
    let long = bed.bed.path(&"l".repeat(108));
    let long = long.display();
    for (lines, says) in [
        (format!("endpoint: unix://{long}"), "107 at most"),
        (format!("http: unix://{long}"), "107 at most"),
        (
            format!("kubeletDir: {long}\nregistration: true"),
            "107 at most",
        ),
        ("endpont: x\ndriver: '-'".to_owned(), "2 problems"),
    ] {
        refused(&bed, 2, &lines, says);
        let checked = bed.bed.run(&["check", "--config", "node.yaml"], "");
        assert_eq!(checked.status.code(), Some(2), "{lines}");
        let shown = String::from_utf8([checked.stdout, checked.stderr].concat()).unwrap();
        assert!(shown.contains(says), "{lines}: {shown}");
    }
}

// --- health

#[test]
fn health_is_served_at_an_address_and_at_a_socket() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    for (path, expect) in [
        ("/healthz", (200, "ok\n")),
        ("/readyz", (200, "ok\n")),
        (
            "/v1/node",
            (404, "there are: GET /healthz, GET /metrics, GET /readyz\n"),
        ),
    ] {
        let (status, body) = get_at(&running, path);
        assert_eq!((status, body.as_str()), expect, "{path}");
    }
    running.stop();
    let socket = bed.bed.path("health.sock");
    bed.configure(&format!("http: unix://{}", socket.display()));
    let mut running = bed.start();
    assert_eq!(get(&socket, "/readyz"), (200, "ok\n".to_owned()));
    running.stop();
    assert!(fs::symlink_metadata(&socket).is_err());
    bed.configure("http: \"\"");
    let mut running = bed.start();
    assert!(
        running.ready.trim().ends_with("csi.sock"),
        "{}",
        running.ready
    );
    running.stop();
}

#[test]
fn status_and_refresh_speak_to_the_plugin() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    bed.publish("v").unwrap();
    let config = ["--config", "node.yaml"];
    let text = bed.bed.ok(&[&["status"], &config[..]].concat(), "");
    assert!(
        text.starts_with("node n1, driver csi.secretfs.dev, ready\n  kubernetes: off: "),
        "{text}"
    );
    let row = text.lines().nth_back(1).unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    let expect = ["fresh", "payments/api-0", "v", "tmpfs", "1"];
    assert_eq!(words[..5], expect, "{text}");
    let json = bed
        .bed
        .ok(&[&["status", "--json"], &config[..]].concat(), "");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["nodes"][0], bed.node());
    assert_eq!(json["nodes"][0]["volumes"], 1);
    assert_eq!(
        json["nodes"][0]["http"],
        running.ready.trim().rsplit(' ').next().unwrap()
    );
    assert_eq!(json["volumes"][0]["owner"], "payments/api-0");
    let refreshed = bed.bed.ok(&[&["refresh"], &config[..]].concat(), "");
    assert!(
        refreshed.ends_with(": generation 1, fresh\n"),
        "{refreshed}"
    );
    running.stop();
    let stderr = bed.bed.fails(1, &[&["status"], &config[..]].concat());
    assert!(stderr.contains("admin.unreachable"), "{stderr}");
}

// --- propagation

#[test]
fn without_propagation_it_is_not_ready_and_refuses_until_that_is_mended() {
    for propagation in [Propagation::PRIVATE, Propagation::DOWNSTREAM] {
        let bed = NodeBed::new(propagation);
        let mut running = bed.bed.start(&NodeBed::ARGS);
        let says = "not ready (the mount at ";
        assert!(
            running.ready.starts_with(says),
            "{propagation:?} {}",
            running.ready
        );
        let fix = "mountPropagation: Bidirectional";
        let (status, why) = get_at(&running, "/readyz");
        assert_eq!(status, 503);
        assert!(
            why.starts_with("propagation: ") && why.contains(fix),
            "{why}"
        );
        assert_eq!(bed.node()["ready"], false);
        assert_eq!(bed.node()["objections"][0]["part"], "propagation");
        let probe = bed.channel().identity();
        let probe = bed
            .runtime
            .block_on(async { { probe }.probe(ProbeRequest {}).await });
        assert_eq!(probe.unwrap().into_inner().ready, Some(false));
        let refused = bed.publish("v").unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(fix), "{refused}");
        assert!(
            fs::symlink_metadata(bed.target("v")).is_err(),
            "nothing is left"
        );
        rustix::mount::mount_change(bed.bed.path("k"), Propagation::SHARED).unwrap();
        assert_eq!(get_at(&running, "/readyz"), (200, "ok\n".to_owned()));
        bed.publish("v").unwrap();
        bed.unpublish("v").unwrap();
        running.stop();
    }
}

#[test]
fn without_a_kubelet_propagation_need_not_be() {
    let bed = NodeBed::new(Propagation::PRIVATE);
    bed.configure("requirePropagation: false");
    let mut running = bed.start();
    bed.publish("v").unwrap();
    assert_eq!(bed.file("v"), "value of a");
    bed.unpublish("v").unwrap();
    running.stop();
}

// --- the end

/// A publish that hangs, because the store's identity is a pipe that nobody has written to.
struct Hanging {
    key: Vec<u8>,
    pipe: OwnedFd,
    call: JoinHandle<Result<(), Status>>,
}

impl Hanging {
    fn publish(bed: &NodeBed, volume: &str) -> Self {
        bed.bed.put("b", "value of b"); // what is known already would not be fetched
        let identity = bed.bed.path("identity.age");
        let key = fs::read(&identity).unwrap();
        fs::remove_file(&identity).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &identity, Mode::RUSR | Mode::WUSR).unwrap();
        let (mut node, mut request) = (bed.channel().node(), bed.request(volume));
        let spec = bed::SPEC.replace("store:a", "store:b");
        request.volume_context.insert("spec".to_owned(), spec);
        let call = async move { node.node_publish_volume(request).await.map(drop) };
        let call = bed.runtime.spawn(call);
        // a pipe that opens for writing has a reader: the fetch has begun
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let mut pipe = None;
        eventually("the publish waits for the store", || {
            pipe = rustix::fs::open(&identity, flags, Mode::empty()).ok();
            pipe.is_some()
        });
        let pipe = pipe.unwrap();
        Self { key, pipe, call }
    }

    /// Lets it end.
    fn answer(self, bed: &NodeBed) -> Result<(), Status> {
        assert!(!self.call.is_finished());
        rustix::io::write(&self.pipe, &self.key).unwrap();
        drop(self.pipe);
        bed.runtime.block_on(self.call).unwrap()
    }
}

#[test]
fn a_stop_lets_calls_in_flight_end_and_leaves_the_mounts() {
    let bed = NodeBed::shared();
    let mut running = bed.start();
    bed.publish("old").unwrap();
    let hanging = Hanging::publish(&bed, "v");
    running.signal(Signal::TERM);
    eventually("it is not ready", || get_at(&running, "/readyz").0 == 503);
    let (_, why) = get_at(&running, "/readyz");
    assert!(why.contains("stopping: The program is stopping"), "{why}");
    assert_eq!(get_at(&running, "/healthz").0, 200);
    let refused = bed.publish("new").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    bed.unpublish("old").unwrap();
    hanging.answer(&bed).unwrap();
    assert!(running.ended().success(), "{}", running.log());
    assert_eq!(bed.file("v"), "value of b");
    assert_eq!(layers(&bed.target("old")), 0);
    assert!(fs::symlink_metadata(bed.csi()).is_err());
}

#[test]
fn told_to_stop_twice_it_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let bed = NodeBed::shared();
        let mut running = bed.start();
        let hanging = Hanging::publish(&bed, "v");
        running.signal(signal);
        eventually("it is not ready", || get_at(&running, "/readyz").0 == 503);
        running.signal(signal);
        assert!(running.ended().success(), "{}", running.log());
        let log = running.log();
        assert!(
            !log.contains("calls are still in flight"),
            "it waited: {log}"
        );
        assert_eq!(layers(&bed.target("v")), 0);
        drop(hanging);
    }
}

// --- power

#[test]
fn it_may_open_as_many_files_as_the_system_allows() {
    let bed = NodeBed::shared();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 256; exec \"$@\"", "sh"])
        .arg(program());
    command.args(NodeBed::ARGS).current_dir(&bed.bed.dir);
    bed.bed
        .environment(&mut command)
        .stdout(std::process::Stdio::piped());
    let mut running = bed.bed.spawn(command);
    running.first_line();
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.child.id())).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files: Vec<_> = line.unwrap().split_whitespace().collect();
    assert_eq!(files[0], files[1], "soft is hard");
    assert_ne!(files[0], "256");
    running.stop();
}
