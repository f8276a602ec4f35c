//! The configuration of a running plugin: what changes in its file takes effect without a restart, or is refused as a whole.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use rustix::process::Signal;
use secretfs::store::{Identities, Recipients, Store};
use tonic::Code;

use crate::node::bed::NodeBed;
use crate::support::{
    kubelet::{Pod, Volume},
    machine::{FILES, Machine, SPEC, kill, mounts_at, numbers, put, shown, until_shows},
    program::{Running, eventually},
};

const EVERYBODY: &str =
    "policy: [{namespaces: [\"*\"], serviceAccounts: [\"*\"], allow: [\"store:**\"]}]";
const PAYMENTS: &str =
    "policy: [{namespaces: [payments], serviceAccounts: [\"*\"], allow: [\"store:**\"]}]";

/// A machine whose plugin has its configuration from a ConfigMap, as the kubelet mounts one: the file is a link into `..data`, which is
/// replaced by a rename.
struct Configured {
    machine: Machine,
    dir: PathBuf,
    version: u32,
}

impl Configured {
    fn new(more: &str) -> Self {
        let machine = Machine::new();
        let dir = machine.node.bed.path("cm");
        fs::create_dir(&dir).unwrap();
        symlink("..data/node.yaml", dir.join("node.yaml")).unwrap();
        let mut configured = Self {
            machine,
            dir,
            version: 0,
        };
        configured.swap(more);
        configured
    }

    /// Puts the next version in place: a line of `more` replaces the line with its key.
    fn swap(&mut self, more: &str) {
        let old = self.dir.join(format!("..v{}", self.version));
        self.version += 1;
        let name = format!("..v{}", self.version);
        fs::create_dir(self.dir.join(&name)).unwrap();
        self.machine.node.configure(more);
        let text = self.machine.node.bed.path("node.yaml");
        fs::copy(text, self.dir.join(&name).join("node.yaml")).unwrap();
        symlink(&name, self.dir.join("..data_tmp")).unwrap();
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        let _ = fs::remove_dir_all(old); // there is none before the first
    }

    fn start(&self) -> Running {
        let running = self
            .machine
            .node
            .bed
            .start(&["node", "--config", "cm/node.yaml"]);
        let ready = &running.ready;
        assert!(ready.starts_with("ready: "), "{ready} {}", running.log());
        running
    }

    /// How the last look at the file ended, as `GET /v1/node` says.
    fn error(&self) -> Option<String> {
        self.machine.node.node()["config"]["error"]
            .as_str()
            .map(Into::into)
    }

    /// [`Self::swap`], and waits until it is in force.
    fn change(&mut self, more: &str) {
        let loaded_at = |node: &NodeBed| node.node()["config"]["loadedAt"].clone();
        let before = loaded_at(&self.machine.node);
        self.swap(more);
        eventually("the change is seen", || {
            loaded_at(&self.machine.node) != before
        });
        assert_eq!(self.error(), None);
    }

    fn volume(&self, namespace: &str, name: &str) -> Volume {
        let pod = Pod::of(name, namespace, "api");
        self.machine.kubelet.volume(&pod, "secrets", SPEC)
    }
}

#[test]
fn a_policy_takes_and_gives_back_what_mounted_volumes_may_read() {
    let mut bed = Configured::new(PAYMENTS);
    let mut running = bed.start();
    let (mine, theirs) = (bed.volume("payments", "api-0"), bed.volume("shop", "web-0"));
    bed.machine.publish(&mine).unwrap();
    let refused = bed.machine.publish(&theirs).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(!theirs.target.exists());

    bed.change(EVERYBODY);
    eventually("it is allowed", || bed.machine.publish(&theirs).is_ok());
    until_shows(&theirs, 1);
    let mounts = mounts_at(&theirs);

    bed.change(PAYMENTS);
    let status = bed.machine.until(&theirs, "denied");
    assert_eq!(status.error.unwrap().code, "policy.denied");
    bed.machine.put_all(2);
    until_shows(&mine, 2);
    bed.machine.publish(&theirs).unwrap(); // no final code: it is mounted
    assert_eq!(bed.machine.state(&theirs), "denied");
    assert_eq!(
        numbers(&theirs),
        [Some(1); 3],
        "its files are kept, and are not the new ones"
    );
    let other = bed.volume("shop", "web-1");
    let refused = bed.machine.publish(&other).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    bed.change(EVERYBODY);
    until_shows(&theirs, 2);
    bed.machine.until(&theirs, "fresh");
    assert_eq!(mounts_at(&theirs), mounts);
    bed.machine.publish(&other).unwrap();
    bed.machine.unpublish_all(&[mine, theirs, other]);
    running.stop();
}

#[test]
fn a_policy_that_changed_while_nobody_served_keeps_the_mounts() {
    let mut bed = Configured::new(EVERYBODY);
    let mut running = bed.start();
    let (mine, theirs) = (bed.volume("payments", "api-0"), bed.volume("shop", "web-0"));
    bed.machine.publish(&mine).unwrap();
    bed.machine.publish(&theirs).unwrap();
    let before = shown(&theirs);
    kill(&mut running);
    bed.swap(PAYMENTS);
    bed.machine.put_all(2);
    let mut running = bed.start();
    until_shows(&mine, 2);
    bed.machine.publish(&theirs).unwrap();
    let status = bed.machine.status(&theirs).unwrap();
    assert_eq!(status.error.unwrap().code, "policy.denied");
    assert_eq!(shown(&theirs), before);
    bed.change(EVERYBODY);
    eventually("its kubelet calls again", || {
        bed.machine.publish(&theirs).unwrap();
        numbers(&theirs) == [Some(2); 3]
    });
    bed.machine.until(&theirs, "fresh");
    assert_eq!(mounts_at(&theirs), before.mounts);
    bed.machine.unpublish_all(&[mine, theirs]);
    running.stop();
}

#[test]
fn a_backend_that_means_another_store_changes_the_files_of_mounted_volumes() {
    let mut bed = Configured::new("");
    let dir = bed.machine.node.bed.path("other");
    let identity = bed.machine.node.bed.path("other.age");
    let (public, _) = Identities::load_or_make(&identity).unwrap();
    let other = Store::init(&dir, &Recipients::of(&public).unwrap()).unwrap();
    FILES.iter().for_each(|name| put(&other, name, 7));
    let mut running = bed.start();
    let volume = bed.volume("payments", "api-0");
    bed.machine.publish(&volume).unwrap();
    let reader = bed.machine.reader(&volume);
    let mounts = mounts_at(&volume);
    let line = format!(
        "backends: {{store: {{kind: store, path: {}, identity: {}}}}}",
        dir.display(),
        identity.display()
    );
    bed.change(&line);
    until_shows(&volume, 7);
    reader.until(7);
    FILES.iter().for_each(|name| put(&other, name, 8));
    until_shows(&volume, 8);
    bed.machine.put_all(2); // nobody asks that one any more
    bed.machine.publish(&volume).unwrap();
    assert_eq!(numbers(&volume), [Some(8); 3]);
    reader.end();
    bed.change("");
    until_shows(&volume, 2);
    assert_eq!(mounts_at(&volume), mounts);
    bed.machine.unpublish_all(&[volume]);
    running.stop();
}

#[test]
fn limits_and_the_log_level_change_for_what_comes_next() {
    let mut bed = Configured::new("");
    let mut running = bed.start();
    let (first, second) = (
        bed.volume("payments", "api-0"),
        bed.volume("payments", "api-1"),
    );
    bed.machine.publish(&first).unwrap();
    let before = shown(&first);
    bed.change("limits: {bytesPerFile: 100}");
    let refused = bed.machine.publish(&second).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    bed.machine.publish(&first).unwrap();
    assert_eq!(shown(&first), before);
    bed.change("limits: {bytesPerFile: 5000}");
    bed.machine.publish(&second).unwrap();
    bed.machine.put_all(2);
    until_shows(&first, 2);

    let says = "a CSI call changed nothing";
    bed.machine.publish(&first).unwrap();
    assert!(!running.log().contains(says), "told at warn");
    bed.change("logLevel: debug");
    eventually("it is told at debug", || {
        bed.machine.publish(&first).unwrap();
        running.log().contains(says)
    });
    bed.change("logLevel: error");
    let told = running.log().len();
    bed.machine.unpublish_all(&[first, second]);
    assert_eq!(running.log()[told..], *"", "told at error");
    running.stop();
}

#[test]
fn a_key_that_cannot_change_is_named_and_nothing_of_that_file_is_in_force() {
    let mut bed = Configured::new("");
    let mut running = bed.start();
    let first = bed.volume("shop", "web-0");
    bed.machine.publish(&first).unwrap();
    bed.swap(&format!(
        "driver: csi.other.dev\n{PAYMENTS}\nlimits: {{volumesPerPod: 1}}"
    ));
    eventually("it is refused", || bed.error().is_some());
    let error = bed.error().unwrap();
    assert!(error.contains("`driver` cannot change"), "{error}");
    let log = running.log();
    assert!(
        log.contains("config.fixed_key") && log.contains("csi.other.dev"),
        "{log}"
    );
    assert!(log.contains("is refused; the running one stays"), "{log}");
    let second = bed.volume("shop", "web-1");
    bed.machine.publish(&second).unwrap(); // the policy of that file denies it
    bed.machine.put_all(2);
    for volume in [&first, &second] {
        until_shows(volume, 2);
        assert_eq!(bed.machine.state(volume), "fresh");
    }
    bed.change(PAYMENTS);
    bed.machine.until(&first, "denied");
    bed.machine.unpublish_all(&[first, second]);
    running.stop();
}

#[test]
fn a_wrong_file_is_told_with_all_its_problems_and_again_with_a_hangup() {
    let mut bed = Configured::new("");
    let mut running = bed.start();
    let volume = bed.volume("payments", "api-0");
    bed.swap("endpont: unix:///x\nlimits: {bytesPerFile: much}\nlogLevel: loud");
    eventually("it is refused", || bed.error().is_some());
    let error = bed.error().unwrap();
    assert!(error.contains("(3 in all)"), "{error}");
    let refused = "the new configuration is refused; the running one stays";
    let problems = |log: &str| log.matches("the new configuration is wrong").count();
    let log = running.log();
    assert_eq!(
        (problems(&log), log.matches(refused).count()),
        (3, 1),
        "{log}"
    );
    for named in ["endpont", "bytesPerFile", "logLevel"] {
        assert!(log.contains(named), "{named}: {log}");
    }
    let check = ["check", "--config", "cm/node.yaml"];
    let check = bed.machine.node.bed.run(&check, "");
    assert_eq!(check.status.code(), Some(2));
    let says = String::from_utf8(check.stdout).unwrap();
    for named in ["endpont", "bytesPerFile", "logLevel"] {
        assert!(says.contains(named), "{named}: {says}");
    }
    bed.machine.publish(&volume).unwrap();

    running.signal(Signal::HUP);
    eventually("it is told again", || {
        running.log().matches(refused).count() == 2
    });
    assert_eq!(problems(&running.log()), 6);
    bed.machine.publish(&volume).unwrap();
    bed.swap("");
    eventually("it is right again", || bed.error().is_none());
    bed.machine.unpublish_all(&[volume]);
    running.stop();
}
