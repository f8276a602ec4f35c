//! Our CSIDriver object: that its judgement stays current whatever the API server does. `kube_judgement` has the judgement itself.
//!
//! The API server is a fake on a loopback port; time is the test's. Nothing here waits for time to pass: a test waits until the
//! server has been asked, or until somebody sleeps on the manual clock, and then moves it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secretfs::{
    clock::{Clock, Mono},
    csi::{
        context::{Expect, TokensIn},
        driver_object::{PART, Watching},
    },
    error::{Error, codes},
    kube::{Kube, Way},
    limits,
    observe::ready::Readiness,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};

use crate::support::{
    apiserver::{ApiServer, Call, Fault},
    clock::ManualClock,
    program::eventually,
};

const TOKEN: &str = "canary-token-5d1f";

/// As the chart makes it, with this in place of some fields of `spec`.
pub fn object(change: Value) -> Value {
    let mut object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
        "metadata": {"name": "csi.secretfs.dev"},
        "spec": {"attachRequired": false, "podInfoOnMount": true, "requiresRepublish": true,
                 "volumeLifecycleModes": ["Ephemeral"]},
    });
    for (key, value) in change.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn good() -> Value {
    object(json!({}))
}

fn bad() -> Value {
    object(json!({"podInfoOnMount": false}))
}

pub fn set(audiences: &[&str]) -> BTreeSet<String> {
    audiences.iter().map(|one| (*one).to_owned()).collect()
}

/// A watcher of the object, and all around it.
pub struct Rig {
    pub runtime: Runtime,
    pub clock: Arc<ManualClock>,
    pub server: ApiServer,
    readiness: Readiness,
    heard: watch::Sender<bool>,
    expect: watch::Receiver<Expect>,
    audiences: watch::Sender<BTreeSet<String>>,
    dir: TempDir,
}

impl Rig {
    /// Nothing runs yet.
    pub fn new(server: impl FnOnce(&tokio::runtime::Handle) -> ApiServer) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
        Self {
            server: server(runtime.handle()),
            clock: ManualClock::new(),
            readiness: Readiness::default(),
            heard: watch::Sender::default(),
            expect: watch::channel(expect()).1,
            audiences: watch::channel(BTreeSet::new()).0,
            dir: tempfile::tempdir().unwrap(),
            runtime,
        }
    }

    /// The object is watched, by a kubeconfig without TLS.
    fn watching(server: impl FnOnce(&tokio::runtime::Handle) -> ApiServer) -> Self {
        let mut rig = Self::new(server);
        let way = rig.kubeconfig();
        rig.watch(&way);
        rig
    }

    fn watch(&mut self, way: &Way) {
        let (sender, expect) = watch::channel(expect());
        self.expect = expect;
        let watching = Watching {
            kube: self.kube(way).unwrap(),
            clock: self.clock.clone(),
            driver: "csi.secretfs.dev".to_owned(),
            audiences: self.audiences.subscribe(),
            readiness: self.readiness.clone(),
            expect: sender,
            heard: self.heard.clone(),
        };
        self.runtime.spawn(watching.start());
    }

    /// Its object is good, and is being watched.
    fn watched(mut self) -> Self {
        let way = self.kubeconfig();
        self.watch(&way);
        self.becomes("");
        eventually("the first watch", || {
            self.server.asked(Call::Watch).len() == 1
        });
        self
    }

    pub fn kube(&self, way: &Way) -> Result<Kube, Error> {
        self.runtime.block_on(Kube::open(way, self.clock.clone()))
    }

    pub fn kubeconfig(&self) -> Way {
        let token = self.dir.path().join("token");
        fs::write(&token, TOKEN).unwrap();
        let server = format!("http://127.0.0.1:{}", self.server.port());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"tokenFile": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        });
        let file = self.dir.path().join("kubeconfig");
        fs::write(&file, config.to_string()).unwrap();
        Way::Kubeconfig(file)
    }

    /// As in a pod.
    fn in_cluster(&self, ca: &str) -> Way {
        fs::write(self.dir.path().join("token"), TOKEN).unwrap();
        fs::write(self.dir.path().join("ca.crt"), ca).unwrap();
        Way::InCluster {
            host: "127.0.0.1".to_owned(),
            port: self.server.port(),
            account: self.dir.path().to_owned(),
        }
    }

    fn objection(&self) -> Option<(&'static str, String)> {
        let all = self.readiness.objections();
        let ours = all.into_iter().find(|(part, _)| *part == PART);
        ours.map(|(_, error)| (error.code().name, error.to_string()))
    }

    /// The code of our objection; "" when ready.
    fn code(&self) -> &'static str {
        self.objection().map_or("", |(code, _)| code)
    }

    #[track_caller]
    fn becomes(&self, code: &str) {
        eventually(&format!("{code:?}"), || self.code() == code);
    }

    /// Waits until a watch runs.
    #[track_caller]
    fn settled(&self) {
        eventually("a watch", || self.server.watching() == 1);
    }

    /// Waits until somebody sleeps, at most so long, and says until when. The end of a call that runs is no such sleep, unless it
    /// is asked for.
    #[track_caller]
    fn asleep(&self, at_most: Duration) -> Mono {
        let now = self.clock.now();
        let call = now.after(limits::KUBE_CALL);
        let wanted = |at: &Mono| {
            *at > now && *at <= now.after(at_most) && (*at != call || at_most == limits::KUBE_CALL)
        };
        let mut found = None;
        eventually("a sleep", || {
            found = self.clock.next_sleeper().filter(wanted);
            found.is_some()
        });
        found.unwrap()
    }

    /// Lets that sleep end.
    #[track_caller]
    pub fn skip(&self, at_most: Duration) {
        let at = self.asleep(at_most);
        self.clock.jump(at.since(self.clock.now()));
    }

    fn lists(&self) -> usize {
        self.server.asked(Call::List).len()
    }
}

fn expect() -> Expect {
    Expect {
        kubelet_dir: PathBuf::from("/var/lib/kubelet"),
        tokens_in: TokensIn::Either,
    }
}

#[test]
fn readiness_follows_the_object() {
    let rig = Rig::new(ApiServer::up);
    rig.server.put(good());
    let mut rig = rig;
    assert_eq!(rig.code(), "");
    let way = rig.kubeconfig();
    rig.watch(&way);
    rig.becomes("");
    rig.settled();
    assert_eq!(rig.expect.borrow().tokens_in, TokensIn::Nowhere);
    rig.server.put(bad());
    rig.becomes("driver.object");
    assert!(rig.objection().unwrap().1.contains("podInfoOnMount: true"));
    assert_eq!(
        rig.expect.borrow().tokens_in,
        TokensIn::Nowhere,
        "of the last good one"
    );
    rig.server.put(object(
        json!({"tokenRequests": [{"audience": "aws"}], "serviceAccountTokenInSecrets": true}),
    ));
    rig.becomes("");
    assert_eq!(rig.expect.borrow().tokens_in, TokensIn::Secrets);
    rig.server.delete();
    rig.becomes("driver.object");
    assert!(rig.objection().unwrap().1.contains("no such object"));
    rig.server.put(good());
    rig.becomes("");
    assert_eq!(rig.lists(), 1, "all that came by the one watch");
    let asked = [rig.server.asked(Call::List), rig.server.asked(Call::Watch)].concat();
    for one in asked {
        assert_eq!(one.authorization, format!("Bearer {TOKEN}"));
    }
}

#[test]
fn not_ready_until_the_object_was_seen() {
    let mut rig = Rig::watching(ApiServer::down);
    assert_eq!(
        rig.code(),
        "kubernetes.unreachable",
        "from the first moment on"
    );
    eventually("the cause", || {
        rig.objection().unwrap().1.contains("refused")
    });
    for _ in 0..5 {
        rig.skip(limits::KUBE_RETRY_MAX);
    }
    assert_eq!(rig.code(), "kubernetes.unreachable");
    assert!(!*rig.heard.borrow());
    rig.asleep(limits::KUBE_RETRY_MAX);
    rig.server.start(); // up, without an object
    rig.skip(limits::KUBE_RETRY_MAX);
    rig.becomes("driver.object");
    eventually("it has been heard", || *rig.heard.borrow());
    rig.settled();
    rig.server.put(good());
    rig.becomes("");
}

#[test]
fn an_outage_changes_no_judgement() {
    for (object, code) in [(good(), ""), (bad(), "driver.object")] {
        let mut rig = Rig::watching(ApiServer::up);
        rig.server.put(object);
        rig.becomes(code);
        rig.settled();
        rig.server.stop();
        let start = rig.clock.now();
        for _ in 0..20 {
            rig.skip(limits::KUBE_RETRY_MAX);
            assert_eq!(rig.code(), code);
        }
        rig.asleep(limits::KUBE_RETRY_MAX);
        let passed = rig.clock.now().since(start);
        // 1 + 2 + 4 + 8 + 16 + 15 * 30 s, half to the whole of it
        assert!((240..=481).contains(&passed.as_secs()), "{passed:?}");
        rig.server.put(if code.is_empty() { bad() } else { good() });
        rig.server.start();
        rig.skip(limits::KUBE_RETRY_MAX);
        rig.becomes(if code.is_empty() { "driver.object" } else { "" });
    }
}

#[test]
fn a_watch_that_breaks_in_any_way_is_begun_anew() {
    for fault in [
        Fault::ErrorLine(410),
        Fault::ErrorLine(500),
        Fault::Status(410),
        Fault::Status(403),
        Fault::Status(500),
        Fault::Ends,
        Fault::HalfBody,
        Fault::Garbage,
        Fault::Long(limits::KUBE_ANSWER_BYTES),
    ] {
        let rig = Rig::new(ApiServer::up);
        rig.server.put(good());
        rig.server.fail_next(Call::Watch, fault);
        let rig = rig.watched();
        rig.skip(limits::KUBE_RETRY_FIRST);
        eventually("another list", || rig.lists() == 2);
        assert_eq!(rig.code(), "", "{fault:?}");
        eventually("another watch", || rig.server.asked(Call::Watch).len() == 2);
        rig.server.put(bad());
        rig.becomes("driver.object");
    }
}

#[test]
fn an_answer_may_be_as_long_as_any_object() {
    let rig = Rig::new(ApiServer::up);
    rig.server.put(good());
    let blanks = Fault::Long(limits::KUBE_ANSWER_BYTES - (64 << 10));
    rig.server.fail_next(Call::List, blanks);
    rig.server.fail_next(Call::Watch, blanks);
    let rig = rig.watched();
    rig.server.put(bad());
    rig.becomes("driver.object");
    assert_eq!(rig.lists(), 1, "by the watch");
}

#[test]
fn a_watch_that_says_nothing_does_not_last_for_ever() {
    let rig = Rig::watching(ApiServer::up);
    rig.server.put(good());
    rig.becomes("");
    rig.settled();
    let watched = rig.server.asked(Call::Watch)[0].query.clone();
    let asked = watched
        .split('&')
        .find_map(|pair| pair.strip_prefix("timeoutSeconds="));
    let asked: u64 = asked.unwrap().parse().unwrap();
    assert!((230..=290).contains(&asked), "{watched}");
    let start = rig.clock.now();
    rig.skip(Duration::from_secs(300)); // the server was to end it and did not
    let lasted = rig.clock.now().since(start).as_secs();
    assert_eq!(lasted, asked + limits::KUBE_CALL.as_secs());
    rig.skip(limits::KUBE_RETRY_FIRST);
    eventually("another watch", || rig.server.asked(Call::Watch).len() == 2);
    rig.settled();
    rig.server.end_watches(); // and this time it does, early
    rig.skip(limits::KUBE_RETRY_FIRST);
    eventually("one more", || rig.server.asked(Call::Watch).len() == 3);
    assert_eq!(rig.code(), "");
}

#[test]
fn an_answer_that_is_none_leaves_us_unready_with_its_cause() {
    for (fault, cause) in [
        (
            Fault::Status(401),
            "401: the API server does not believe our token",
        ),
        (
            Fault::Status(403),
            "403: our service account may not do this",
        ),
        (Fault::Status(404), "the API server answered 404"),
        (Fault::Status(500), "the API server answered 500"),
        (Fault::Garbage, "the answer is not an API server's"),
        (Fault::HalfBody, "the API server cannot be reached"),
        (
            Fault::Long(limits::KUBE_ANSWER_BYTES),
            "the API server's answer is longer than 4 MiB",
        ),
        (Fault::Hang, "the API server did not answer within 10 s"),
    ] {
        let mut rig = Rig::new(ApiServer::up);
        rig.server.put(good());
        rig.server.fail_always(Call::List, Some(fault));
        let way = rig.kubeconfig();
        rig.watch(&way);
        if fault == Fault::Hang {
            rig.skip(limits::KUBE_CALL);
        }
        eventually(cause, || rig.objection().unwrap().1.contains(cause));
        let (code, text) = rig.objection().unwrap();
        assert_eq!(code, "kubernetes.unreachable");
        for word in [TOKEN, "words of the server", "html"] {
            assert!(!text.contains(word), "{text}");
        }
        rig.server.fail_always(Call::List, None);
        rig.skip(limits::KUBE_RETRY_FIRST);
        rig.becomes("");
    }
}

#[test]
fn a_server_that_asks_for_a_rest_gets_it() {
    let rig = Rig::watching(ApiServer::down);
    let mut rig = rig;
    rig.asleep(limits::KUBE_RETRY_MAX);
    rig.server.fail_next(Call::List, Fault::RetryAfter(429, 20));
    rig.server.put(good());
    rig.server.start();
    rig.skip(limits::KUBE_RETRY_MAX);
    eventually("a list", || rig.lists() == 1);
    let rest = rig.clock.now().after(Duration::from_secs(20));
    eventually("a rest", || rig.clock.next_sleeper() == Some(rest));
    rig.clock.jump(Duration::from_secs(20));
    rig.becomes("");
}

#[test]
fn a_new_set_of_audiences_is_judged_at_once() {
    let rig = Rig::watching(ApiServer::up);
    rig.server
        .put(object(json!({"tokenRequests": [{"audience": "vault"}]})));
    rig.becomes("");
    rig.settled();
    rig.audiences.send_replace(set(&["vault", "aws"]));
    rig.becomes("driver.object");
    assert!(rig.objection().unwrap().1.contains("{audience: \"aws\"}"));
    rig.audiences.send_replace(set(&["vault"]));
    rig.becomes("");
    assert_eq!(rig.lists(), 1, "nobody was asked for it");
}

#[test]
fn in_a_pod_a_rotated_token_is_used_and_the_servers_certificate_checked() {
    let mut rig = Rig::new(ApiServer::with_tls);
    rig.server.put(good());
    let way = rig.in_cluster(rig.server.ca());
    rig.watch(&way);
    rig.becomes("");
    rig.settled();
    fs::write(rig.dir.path().join("token"), "rotated").unwrap();
    rig.server.believe("rotated");
    rig.server.end_watches();
    // the old one is tried, refused, and the file is read at once
    for _ in 0..2 {
        rig.skip(Duration::from_secs(2));
    }
    eventually("the new token", || {
        let asked = rig.server.asked(Call::List);
        asked.last().unwrap().authorization == "Bearer rotated"
    });
    rig.settled();
    rig.server.put(bad());
    rig.becomes("driver.object");
}

#[test]
fn a_token_with_a_line_break_is_told_apart_from_a_dead_server() {
    let mut rig = Rig::new(ApiServer::up);
    let way = rig.kubeconfig();
    fs::write(rig.dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
    rig.watch(&way);
    eventually("the cause", || {
        rig.objection().unwrap().1.contains("not one line")
    });
    assert!(!rig.objection().unwrap().1.contains(TOKEN));
}

#[test]
fn a_server_with_another_certificate_is_not_believed() {
    let mut rig = Rig::new(ApiServer::with_tls);
    rig.server.put(good());
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let way = rig.in_cluster(&other.cert.pem());
    rig.watch(&way);
    eventually("the cause", || {
        rig.objection().unwrap().1.contains("certificate")
    });
    assert_eq!(rig.lists(), 0);
}

#[test]
fn files_that_cannot_be_used_are_named_and_not_quoted() {
    let rig = Rig::new(ApiServer::down);
    let file = rig.dir.path().join("kubeconfig");
    let opened = |text: &str| {
        fs::write(&file, text).unwrap();
        rig.kube(&Way::Kubeconfig(file.clone())).err().unwrap()
    };
    let valid = |cluster: &str, user: &str| {
        format!(
            "current-context: c\nclusters: [{{name: k, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]"
        )
    };
    let server = "{server: 'http://127.0.0.1:1'}";
    for (text, cause) in [
        (
            format!("users: [{{name: u, user: {{token: {TOKEN}}}}}"),
            "not a valid kubeconfig",
        ),
        ("{}".to_owned(), "no current-context"),
        (valid("{}", "{}"), "no `server`"),
        (
            valid(server, "{tokenFile: /nowhere/token}"),
            "/nowhere/token cannot be read",
        ),
        (
            valid(
                "{server: 'https://127.0.0.1:1', certificate-authority: /nowhere/ca}",
                "{}",
            ),
            "/nowhere/ca",
        ),
        (
            valid(
                "{server: 'http://127.0.0.1:1', proxy-url: 'http://127.0.0.1:2'}",
                "{}",
            ),
            "proxies",
        ),
        (
            valid(
                server,
                &format!(
                    "{{exec: {{apiVersion: x, command: /bin/sh, args: ['-c', 'echo {TOKEN}; exit 1'], interactiveMode: Never}}}}"
                ),
            ),
            "our credentials cannot be used",
        ),
    ] {
        let error = opened(&text);
        assert_eq!(error.code(), &codes::KUBERNETES_UNREACHABLE);
        assert!(error.to_string().contains(cause), "{error}");
        assert!(!format!("{error:?}").contains(TOKEN), "{error}");
    }
    let gone = rig.kube(&Way::Kubeconfig(Path::new("/nowhere/kubeconfig").into()));
    assert!(
        gone.err()
            .unwrap()
            .to_string()
            .contains("/nowhere/kubeconfig: it cannot be read")
    );
    let account = Way::InCluster {
        host: "fd00::1".to_owned(),
        port: 443,
        account: "/nowhere".into(),
    };
    let error = rig.kube(&account).err().unwrap();
    assert!(error.to_string().contains("/nowhere/"), "{error}");
}
