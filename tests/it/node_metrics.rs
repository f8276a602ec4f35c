//! `/metrics` of the built program, as a scraper sees it: complete, of the table, and about nobody.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::fd::OwnedFd,
    thread,
};

use rustix::fs::{CWD, Mode, OFlags};
use secretfs::csi::{
    client::Channel,
    proto::registration::{InfoRequest, RegistrationStatus},
};

use crate::{
    node::bed::{NodeBed, get, get_at},
    support::{
        canary::{CANARY, found_in},
        kubelet::Pod,
        machine::{Machine, SPEC},
        program::{Running, eventually},
        scrape::{Scraped, passes_promtool},
    },
};

#[track_caller]
fn scrape(running: &Running) -> Scraped {
    let (status, text) = get_at(running, "/metrics");
    assert_eq!(status, 200, "{text}");
    let scraped = Scraped::parse(&text);
    scraped.is_of_the_table();
    scraped
}

/// Waits until this has been counted since, at least once.
#[track_caller]
fn until(running: &Running, before: &Scraped, series: &str) {
    eventually(series, || {
        let counted = scrape(running).since(before);
        let series = format!("{series} +");
        counted.iter().any(|one| one.starts_with(&series))
    });
}

const FETCHED: &str = "backend_requests_total{backend=\"store\",operation=\"fetch\",result=\"ok\"}";

const OLDEST: &str = "secretfs_oldest_content_timestamp_seconds";
const FRESH: &str = "secretfs_volumes{mount=\"tmpfs\",state=\"fresh\"}";

/// Of a plugin to which nothing has happened yet.
#[track_caller]
fn says_nothing_yet(start: &Scraped) {
    for (series, value) in [
        ("volumes{mount=\"tmpfs\",state=\"fresh\"}", 0.0),
        ("errors_total{code=\"backend.unavailable\"}", 0.0),
        (FETCHED, 0.0),
        ("leases{backend=\"store\"}", 0.0),
        ("panics_total", 0.0),
        ("audit_records_dropped_total", 0.0),
        ("config_last_reload_successful", 1.0),
        ("memory_bytes{kind=\"limit\"}", 268_435_456.0),
    ] {
        let series = format!("secretfs_{series}");
        assert_eq!(start.value(&series), value, "{series}");
    }
    assert_eq!(start.find(OLDEST), None);
    let registered = start.find("secretfs_kubelet_registered");
    assert_eq!(registered, None, "nobody asks");
    assert!(start.value("secretfs_memory_bytes{kind=\"resident\"}") > 1e6);
}

/// From the start of a plugin to its end: each event moves its own numbers.
#[test]
fn what_happens_on_a_node_is_counted() {
    let machine = Machine::new();
    let volume = machine.volumes(1).remove(0);
    let mut running = machine.start(0);
    let start = scrape(&running);
    says_nothing_yet(&start);

    machine.publish(&volume).unwrap();
    let published = scrape(&running);
    let counted = published.since(&start);
    for one in [
        "rpc_duration_seconds_count{method=\"NodePublishVolume\",code=\"OK\"} +1",
        "cache_requests_total{backend=\"store\",result=\"miss\"} +3",
        &format!("{FETCHED} +3"),
    ] {
        assert!(counted.iter().any(|c| c == one), "no {one} in {counted:?}");
    }
    assert_eq!(published.value(FRESH), 1.0);
    let started = start.value("secretfs_config_last_reload_success_timestamp_seconds");
    assert!(published.value(OLDEST) >= started - 1.0);
    let bytes = |kind: &str| published.value(&format!("secretfs_memory_bytes{{kind=\"{kind}\"}}"));
    assert!(bytes("tmpfs_used") > 0.0 && bytes("tmpfs_promised") >= bytes("tmpfs_used"));

    machine.put("a", 2); // the store tells of it
    until(&running, &published, "rotations_total{result=\"ok\"}");
    let rotated = scrape(&running);
    let sum = rotated.value("secretfs_rotation_duration_seconds_sum");
    assert!(sum > 0.0 && sum < 10.0, "{sum}");

    let identity = machine.node.bed.path("identity.age");
    let kept = identity.with_extension("kept");
    fs::rename(&identity, &kept).unwrap();
    machine.put("a", 3);
    let failed = "errors_total{code=\"store.identity_missing\"}";
    until(&running, &rotated, failed);
    fs::rename(&kept, &identity).unwrap();
    machine.unpublish(&volume).unwrap();
    let end = scrape(&running);
    assert_eq!((end.value(FRESH), end.find(OLDEST)), (0.0, None));
    let (_, text) = get_at(&running, "/metrics");
    passes_promtool(&text);
    running.stop();
}

#[test]
fn a_configuration_that_is_refused_shows_until_it_is_mended() {
    let bed = NodeBed::shared();
    let running = bed.start();
    let successful = "secretfs_config_last_reload_successful";
    let at = "secretfs_config_last_reload_success_timestamp_seconds";
    let before = scrape(&running).value(at);
    bed.configure("policy: 7\n");
    eventually("it is refused", || {
        scrape(&running).value(successful) == 0.0
    });
    assert_eq!(scrape(&running).value(at), before);
    bed.configure("limits: {bytesPerNode: 512Mi}\n");
    eventually("it is mended", || scrape(&running).value(successful) == 1.0);
    assert!(scrape(&running).value(at) > before);
    let limit = "secretfs_memory_bytes{kind=\"limit\"}";
    eventually("it is in force", || {
        scrape(&running).value(limit) == 536_870_912.0
    });
}

#[test]
fn a_backend_that_goes_keeps_its_series_and_a_new_one_has_its_own() {
    let bed = NodeBed::shared();
    let dir = bed.bed.dir.display();
    let other = format!(
        "backends: {{other: {{kind: store, path: {dir}/store, identity: {dir}/identity.age}}}}\n\
         policy: [{{namespaces: [\"*\"], serviceAccounts: [\"*\"], allow: [\"other:**\"]}}]\n"
    );
    let running = bed.start();
    bed.publish("v").unwrap();
    let fetched =
        "secretfs_backend_requests_total{backend=\"store\",operation=\"fetch\",result=\"ok\"}";
    let before = scrape(&running).value(fetched);
    assert!(before >= 1.0);
    bed.configure(&other);
    let other = fetched.replace("\"store\"", "\"other\"");
    eventually("it is there", || scrape(&running).find(&other).is_some());
    assert!(scrape(&running).value(fetched) >= before);
}

#[test]
fn the_kubelets_word_is_shown() {
    let bed = NodeBed::shared();
    bed.configure("registration: true\n");
    let running = bed.bed.start(&NodeBed::ARGS);
    let registered = |value: f64| {
        eventually("it is shown", || {
            scrape(&running).value("secretfs_kubelet_registered") == value
        });
    };
    registered(0.0);
    let socket = bed.bed.path("k/plugins_registry/csi.secretfs.dev-reg.sock");
    bed.runtime.block_on(async {
        let mut kubelet = Channel::connect(&socket).await.unwrap().registration();
        kubelet.get_info(InfoRequest {}).await.unwrap();
        let yes = RegistrationStatus {
            plugin_registered: true,
            error: String::new(),
        };
        kubelet.notify_registration_status(yes).await.unwrap();
    });
    registered(1.0);
}

/// Names of pods, secrets, fields, paths and accounts, and a secret's value: in no label, whatever fails.
#[test]
fn no_label_names_a_pod_or_a_secret() {
    let machine = Machine::new();
    let name = "zz-kanarie";
    machine.node.bed.put(name, CANARY);
    let running = machine.start(0);
    let pod = Pod::of(name, name, name);
    let spec = format!("files: [{{path: {name}, from: \"store:{name}\"}}]");
    let good = machine.kubelet.volume(&pod, name, &spec);
    machine.publish(&good).unwrap();
    machine.node.bed.put(name, &format!("{CANARY}2"));
    let wrong = [
        spec.replace("store:zz", "zz:zz"),
        spec.replace("\"}", "#zz-kanarie\"}"),
        spec.replace("store:zz", "store:zz/zz"),
        spec.replace("path", "zz-kanarie"),
        format!("{name}\"}} 1\n"),
    ];
    for (nth, spec) in wrong.iter().enumerate() {
        let volume = format!("{name}-{nth}");
        let volume = machine.kubelet.volume(&pod, &volume, spec);
        machine.publish(&volume).unwrap_err();
        let refused = good.clone().with_spec(spec);
        machine.publish(&refused).unwrap(); // the old one stays
    }
    let (_, text) = get_at(&running, "/metrics");
    Scraped::parse(&text).is_of_the_table();
    assert!(!text.contains("zz"), "{text}");
    assert!(!text.contains(&good.id) && !text.contains(&pod.uid));
    assert_eq!(found_in(text.as_bytes()), [] as [&str; 0]);
    // the search can find what is there
    assert!(text.contains("backend=\"store\""));
}

#[test]
fn it_answers_get_and_head_with_its_type_and_the_admin_socket_as_well() {
    let bed = NodeBed::shared();
    let running = bed.start();
    let address = running.ready.trim().rsplit(' ').next().unwrap();
    let ask = |method: &str, path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    };
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    for (method, path, status) in [
        ("GET", "/metrics", 200),
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/v1/volumes", 404),
    ] {
        let (head, body) = ask(method, path);
        let line = format!("http/1.1 {status} ");
        assert!(head.starts_with(&line), "{method} {path}: {head}");
        assert_eq!(head.contains(kind), status == 200, "{head}");
        assert_eq!(body.is_empty(), method == "HEAD", "{method} {path}");
    }
    let (status, text) = get(&bed.admin(), "/metrics");
    assert_eq!(status, 200);
    Scraped::parse(&text).is_of_the_table();
}

/// The store's identity is a pipe that nobody writes to, so whoever asks the store hangs; a scrape and the health checks do not.
#[test]
fn scrapes_and_health_checks_wait_for_no_volume() {
    let machine = Machine::new();
    let volumes = machine.volumes(2);
    let running = machine.start(0);
    machine.publish(&volumes[0]).unwrap();
    let identity = machine.node.bed.path("identity.age");
    let pipe = machine.node.bed.path("pipe");
    rustix::fs::mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    fs::rename(&identity, identity.with_extension("kept")).unwrap();
    fs::rename(&pipe, &identity).unwrap();
    machine.put_all(2);
    let hanging = volumes[1]
        .clone()
        .with_spec(&SPEC.replace("store:b", "store:b@1"));
    let (kubelet, runtime) = (machine.kubelet.clone(), &machine.node.runtime);
    let call = runtime.spawn(async move { kubelet.publish(&hanging).await });
    let mut reader: Option<OwnedFd> = None;
    eventually("the store is asked", || {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        reader = rustix::fs::open(&identity, flags, Mode::empty()).ok();
        reader.is_some()
    });
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    scrape(&running);
                    assert_eq!(get_at(&running, "/healthz").0, 200);
                    assert_eq!(get_at(&running, "/readyz").0, 200);
                }
            });
        }
    });
    assert!(!call.is_finished());
    call.abort();
}
