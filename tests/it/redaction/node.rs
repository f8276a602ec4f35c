//! The node plugin: everything that its callers, its stores, the API server and a killed process can do to it, with a canary in each secret.

mod calls;

use std::{
    fs, net::TcpStream, os::unix::fs::PermissionsExt as _, os::unix::net::UnixStream,
    path::PathBuf, time::Duration,
};

use rustix::{
    mount::{MountPropagationFlags as Propagation, UnmountFlags},
    process::Signal,
};
use secretfs::{
    csi::{client::Channel, context::TokensIn, proto::NodePublishVolumeRequest},
    sys::socket::Short,
};
use serde_json::{Value, json};
use tonic::Status;

use self::calls::{
    bad_requests, impatience, refusals, sockets, targets, the_api_server, the_registration,
};
use super::{
    cli::{FAILING, damage, failing_spec, fill, identity_of},
    modules::{Seen, assert_seen},
    sinks::{ECHO, Sinks},
};
use crate::{
    kube::object,
    node::bed::NodeBed,
    support::{
        apiserver::{ApiServer, Call, Fault},
        canary::CANARY,
        kubelet::{Pod, Volume},
        machine::{Machine, kill},
        program::{Bed, Running, eventually},
    },
};

const OF_SECRETS: &str = "canary-of-secrets/81c2+x=";
const OF_ATTRIBUTES: &str = "canary-of-attributes/55ab+x=";
const OF_THE_SERVER: &str = "canary-of-the-server-9d7e";
const OF_CLIENTS: &str = "canary-of-clients/77aa+x=";
const AUDIENCE: &str = "vault";

/// What a volume shows when all is well.
const GOOD: &str = "sources:\n  doc: echo-5d1f7a:doc\nfiles:\n  - path: echo-5d1f7a\n    from: doc#password\n  - path: t\n    template: '{{ doc.password }}'\n";

/// A plugin, its kubelet and its API server, and all that they say.
struct Night {
    machine: Machine,
    server: ApiServer,
    sinks: Sinks,
    format: &'static str,
}

impl Night {
    fn new(format: &'static str) -> Self {
        let machine = Machine::of(NodeBed::on(Bed::named(ECHO), Propagation::SHARED));
        let bed = &machine.node.bed;
        fill(bed);
        let mut sinks = Sinks::new();
        sinks.secret("the identity", identity_of(&bed.path("identity.age")));
        sinks.secret("a secret of a pod", OF_SECRETS);
        sinks.secret("an attribute", OF_ATTRIBUTES);
        sinks.secret("the token for the API server", OF_THE_SERVER);
        sinks.secret("what a client sends", OF_CLIENTS);
        bed.ok(
            &[
                "store",
                "init",
                "--store",
                "other",
                "--identity",
                "other.age",
            ],
            "",
        );
        sinks.secret("another identity", identity_of(&bed.path("other.age")));
        let server = ApiServer::up(machine.node.runtime.handle());
        server.believe(OF_THE_SERVER);
        let mut night = Self {
            machine,
            server,
            sinks,
            format,
        };
        let token = night.volume("p0", "v").tokens();
        night.sinks.secret("a token", token_in(&token));
        night.kubeconfig();
        night.configure("");
        night
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.node.bed.path(name)
    }

    fn kubeconfig(&self) {
        let token = self.path("api-token");
        fs::write(&token, OF_THE_SERVER).unwrap();
        let server = format!("http://127.0.0.1:{}", self.server.port());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        });
        fs::write(self.path("kubeconfig"), config.to_string()).unwrap();
    }

    fn configure(&self, more: &str) {
        let dir = self.machine.node.bed.dir.display().to_string();
        let store = |name: &str, dir_of: &str, key: &str| {
            format!("{name}: {{kind: store, path: {dir}/{dir_of}, identity: {dir}/{key}}}")
        };
        let backends = [
            store("store", "store", "identity.age"),
            store(ECHO, "store", "identity.age"),
            store("wrong", "store", "other.age"),
            store("absent", "none", "none.age"),
        ];
        let usual = format!(
            "registration: true\nkubernetes: auto\nbackends: {{{}}}\n\
             policy: [{{namespaces: [payments], serviceAccounts: [\"*\"], allow: [{}]}}]\n\
             limits: {{bytesPerFile: 2000, volumesPerPod: 2}}\n",
            backends.join(", "),
            ["store", ECHO, "wrong", "absent"]
                .map(|name| format!("\"{name}:**\""))
                .join(", ")
        );
        let key = |line: &str| line.split(':').next().unwrap().to_owned();
        let kept = usual
            .lines()
            .filter(|line| more.lines().all(|new| key(new) != key(line)));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        self.machine.node.configure(&format!("{text}{more}"));
    }

    /// Starts the plugin, and the API server shows it the object.
    fn start(&mut self) -> Running {
        let config = self.path("node.yaml");
        let config = config.to_str().unwrap();
        let args = ["node", "--config", config, "--log-level", "trace"];
        let args = [&args[..], &["--log-format", self.format]].concat();
        let mut command = self.machine.node.bed.command(&args);
        command.env("KUBECONFIG", self.path("kubeconfig"));
        let mut running = self.machine.node.bed.spawn(command);
        running.first_line();
        assert!(running.ready.contains("ready"), "{}", running.log());
        running
    }

    /// A volume of a pod in `payments`, with a token and a secret.
    fn volume(&self, pod: &str, name: &str) -> Volume {
        let pod = Pod::of(&format!("{ECHO}-{pod}"), "payments", "api");
        let mut volume = self.machine.kubelet.volume(&pod, name, GOOD);
        volume.audiences = vec![AUDIENCE.to_owned()];
        volume.secrets.insert("password".into(), OF_SECRETS.into());
        volume
    }

    fn heard<T: std::fmt::Debug>(&mut self, what: &str, answer: &Result<T, Status>) {
        let said = match answer {
            Ok(good) => format!("{what}: {good:?}"),
            Err(status) => {
                let details = String::from_utf8_lossy(status.details()).into_owned();
                format!("{what}: {status:?} {} {details}", status.message())
            }
        };
        self.sinks.add("answers", said);
    }

    /// A call that must work.
    #[track_caller]
    fn works(&mut self, what: &str, volume: &Volume) {
        let answer = self.machine.publish(volume);
        self.heard(what, &answer);
        answer.unwrap_or_else(|status| panic!("{what}: {status}"));
    }

    /// A call that must fail, with this code.
    #[track_caller]
    fn fails(&mut self, code: &str, request: NodePublishVolumeRequest) {
        let kubelet = &self.machine.kubelet;
        let answer = self.machine.node.runtime.block_on(kubelet.send(request));
        self.heard(code, &answer);
        let status = answer.expect_err(code);
        let says = format!("[{code}]");
        assert!(status.message().contains(&says), "not {code}: {status}");
    }

    fn ask<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        call: impl AsyncFnOnce(Channel) -> Result<T, Status>,
    ) {
        let kubelet = &self.machine.kubelet;
        let answer = self.machine.node.runtime.block_on(async {
            let channel = kubelet.connect().await;
            call(channel).await
        });
        self.heard(what, &answer);
    }

    fn unpublish(&mut self, volume: &Volume) {
        let answer = self.machine.unpublish(volume);
        self.heard("unpublish", &answer);
        answer.unwrap();
    }

    fn put(&self, name: &str, value: &Value) {
        self.machine.node.bed.put(name, &value.to_string());
    }

    /// Runs a command beside the plugin.
    fn run(&mut self, args: &[&str]) {
        self.sinks.run(&self.machine.node.bed, args, "");
    }

    fn status(&mut self) {
        self.run(&["status", "--config", "node.yaml"]);
        self.run(&["status", "--config", "node.yaml", "--json"]);
    }

    /// Sends bytes to the admin socket; its answer.
    fn admin(&mut self, request: &[u8]) {
        let short = Short::of(&self.machine.node.admin()).unwrap();
        let answer = exchange(UnixStream::connect(&short.path).unwrap(), request);
        self.sinks.add("the admin socket", answer);
    }

    /// Sends bytes to the address of the health checks; its answer.
    fn http(&mut self, sink: &str, running: &Running, request: &[u8]) -> Vec<u8> {
        let address = running.ready.trim().rsplit(' ').next().unwrap();
        let answer = exchange(TcpStream::connect(address).unwrap(), request);
        self.sinks.add(sink, &answer);
        answer
    }

    /// What is in the log by now, and must be.
    #[track_caller]
    fn until_logged(&self, running: &Running, text: &str) {
        eventually(text, || running.log().contains(text));
    }
}

/// The JWT in the text of tokens.
fn token_in(text: &str) -> String {
    let tokens: Value = serde_json::from_str(text).unwrap();
    tokens[AUDIENCE]["token"].as_str().unwrap().to_owned()
}

fn exchange(mut stream: impl std::io::Read + std::io::Write, request: &[u8]) -> Vec<u8> {
    let _ = stream.write_all(request); // a server may have hung up
    let _ = stream.flush();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {OF_CLIENTS}\r\nConnection: close\r\n\r\n").into()
}

fn post(path: &str) -> Vec<u8> {
    let length = OF_CLIENTS.len();
    format!("POST {path} HTTP/1.1\r\nHost: n\r\nCookie: {OF_CLIENTS}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{OF_CLIENTS}")
        .into()
}

fn with(
    volume: &Volume,
    change: impl FnOnce(&mut NodePublishVolumeRequest),
) -> NodePublishVolumeRequest {
    let mut request = volume.request();
    change(&mut request);
    request
}

/// Rotations that fail, a spec that changes, a mount that is gone: and a republish and a look at each.
fn rotations(night: &mut Night, volume: &Volume) {
    let look = |night: &mut Night, what: &str| {
        let answer = night.machine.publish(volume);
        night.heard(what, &answer);
        let stats = night
            .machine
            .node
            .runtime
            .block_on(night.machine.kubelet.stats(volume));
        night.heard(what, &stats);
        night.run(&["refresh", "--config", "node.yaml", &volume.id]);
        night.status();
    };
    look(night, "well");
    night.put(
        "doc",
        &json!({"username": "app", "password": format!("{CANARY}2")}),
    );
    eventually("a new value", || volume.file(ECHO).ends_with('2'));
    look(night, "rotated");
    night.put("doc", &json!({ "other": CANARY }));
    night.machine.until(volume, "stale");
    look(night, "no such field");
    night.put(
        "doc",
        &json!({"username": "app", "password": CANARY.repeat(200)}),
    );
    look(night, "too large");
    night.put("doc", &json!({"username": "app", "password": CANARY}));
    night.machine.until(volume, "fresh");

    let other = volume.clone().with_spec(&failing_spec(FAILING[7].1));
    let answer = night.machine.publish(&other);
    night.heard("another spec, which fails", &answer);
    let wrong = volume
        .clone()
        .with_spec(&format!("files: [{{path: {ECHO}, form: store:doc}}]"));
    let answer = night.machine.publish(&wrong);
    night.heard("another spec, which is wrong", &answer);
    look(night, "the first again");
    eventually("an Event about the pod", || {
        !night.server.events().is_empty()
    });

    rustix::mount::unmount(&volume.target, UnmountFlags::DETACH).unwrap();
    look(night, "unmounted by somebody");
    identities(night, look);
}

/// The store's identity: missing, open to others, another's, none at all; a store that is damaged, and away.
fn identities(night: &mut Night, look: impl Fn(&mut Night, &str)) {
    let identity = night.path("identity.age");
    let whole = fs::read(&identity).unwrap();
    let other = fs::read(night.path("other.age")).unwrap();
    let mode =
        |mode: u32| fs::set_permissions(&identity, fs::Permissions::from_mode(mode)).unwrap();
    for (number, (what, text, bits)) in [
        ("another's", other, 0o600),
        ("nonsense", CANARY.into(), 0o600),
        ("open to all", whole.clone(), 0o644),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&identity, text).unwrap();
        mode(bits);
        night.put_sealed("doc", number);
        look(night, what);
    }
    fs::remove_file(&identity).unwrap();
    night.put_sealed("doc", 9);
    look(night, "no identity");
    fs::write(&identity, whole).unwrap();
    mode(0o600);
    damage(&night.path("store"));
    look(night, "damaged");
    fs::rename(night.path("store"), night.path("away")).unwrap();
    look(night, "away");
    fs::rename(night.path("away"), night.path("store")).unwrap();
    look(night, "back");
}

impl Night {
    /// A new version, so that there is something to decrypt: a put needs no identity.
    fn put_sealed(&self, name: &str, number: usize) {
        let value = json!({"username": "app", "password": format!("{CANARY}{number}")});
        self.put(name, &value);
    }
}

/// Configurations: wrong, not to be read, another one; each told in the log, and by `check` and `/v1/node`.
fn configurations(night: &mut Night, running: &Running) {
    let loaded = |night: &mut Night, text: &str| {
        night.until_logged(running, text);
        night.admin(&get("/v1/node"));
        night.run(&["check", "--config", "node.yaml"]);
        night.run(&["check", "--config", "node.yaml", "--json"]);
    };
    night.configure(&format!("endpont: {ECHO}\n"));
    loaded(night, "is wrong");
    night.configure("driver: csi.other.dev\n");
    loaded(night, "config.fixed_key");
    night.configure(
        "policy: [{namespaces: [payments], serviceAccounts: [\"*\"], allow: [\"store:**\"]}]\n",
    );
    running.signal(Signal::HUP);
    loaded(night, "the volume follows it");
}

/// One night: all of it, with two kills in between.
fn a_night(format: &'static str) -> Sinks {
    let mut night = Night::new(format);
    night
        .server
        .fail_always(Call::List, Some(Fault::Status(500)));
    let mut running = night.start();
    the_api_server(&mut night, &running);
    the_registration(&mut night, &running);
    let volume = night.volume("p0", "v");
    night.works("a publish", &volume);
    night.works("a republish", &volume);
    let second = night.volume("p1", "v");
    night.works("of sources that are known", &second);
    bad_requests(&mut night);
    refusals(&mut night);
    targets(&mut night);
    impatience(&mut night);
    sockets(&mut night, &running, &volume);
    night.sinks.running(&running);
    night.sinks.files_below("records", &night.path("rt"));
    kill(&mut running);
    night.sinks.running(&running);

    // the next one finds a record that is good, one that is not, and one that nobody wrote
    let record = night.machine.record(&second);
    fs::write(&record, "{\"version\": 1, \"id\": ").unwrap();
    fs::write(record.with_file_name("csi-none.json"), OF_CLIENTS).unwrap();
    let mut running = night.start();
    night.until_logged(&running, "the CSIDriver object is as it must be");
    night.works("after a kill", &volume);
    night.works("after a kill, without its record", &second);
    night.server.fail_next(Call::PostEvent, Fault::Status(403));
    rotations(&mut night, &volume);
    configurations(&mut night, &running);
    night.machine.kubelet.deadline = Duration::from_secs(20);
    let third = {
        let mut volume = night.volume("p3", "v");
        volume.tokens_in = TokensIn::Secrets;
        volume
    };
    let requests =
        json!({"tokenRequests": [{"audience": AUDIENCE}], "serviceAccountTokenInSecrets": true});
    night.server.put(object(requests));
    let answer = night.machine.publish(&third);
    night.heard("tokens in secrets", &answer);
    night.server.believe("another");
    night.server.end_watches();
    night.until_logged(&running, "401");
    night.sinks.running(&running);
    night.sinks.files_below("records", &night.path("rt"));
    for volume in [&volume, &second, &third] {
        night.unpublish(volume);
    }
    running.stop();
    night.sinks.running(&running);
    night
        .sinks
        .add("audit", fs::read(night.path("audit.log")).unwrap());
    for event in night.server.events() {
        night.sinks.add("Events", event.to_string());
    }
    night.sinks
}

/// Sinks that a night must have looked into. `metrics` too, where there are any.
const LOOKED_INTO: [&str; 14] = [
    "log",
    "stdout",
    "cmdline",
    "environ",
    "answers",
    "registration",
    "Events",
    "audit",
    "records",
    "the admin socket",
    "stdout of commands",
    "text log of commands",
    "json log of commands",
    "health",
];

#[test]
fn a_nights_work_of_the_plugin_says_nothing() {
    for format in ["text", "json"] {
        let sinks = a_night(format);
        sinks.assert_silent();
        assert_seen(Seen::Node, &sinks.text("log"));
        let echoes = sinks.echoes();
        for sink in LOOKED_INTO
            .iter()
            .chain(sinks.said.contains_key("metrics").then_some(&"metrics"))
        {
            assert!(
                echoes.contains(sink),
                "{sink} was not looked into: {echoes:?}"
            );
        }
    }
}
