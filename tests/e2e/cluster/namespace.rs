//! A test's own namespace, and its pods.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use serde_json::Value;

use super::{Cluster, eventually, plugin};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// It goes with everything in it, also when the test fails.
pub struct Namespace<'c> {
    pub cluster: &'c Cluster,
    pub name: String,
}

/// A pod that is to be: its volume is at `/secrets`.
#[derive(Clone)]
pub struct Pod {
    pub name: String,
    /// Paths of the files, and where each is from.
    pub files: Vec<(String, String)>,
    /// A shell's commands, after all files were there.
    pub then: String,
    /// More lines of the pod's spec, each with two spaces before it.
    pub spec: String,
    /// More lines of the volume's spec.
    pub volume: String,
    /// `restartPolicy`.
    pub restart: String,
    /// More of the container's mounts.
    pub mounts: String,
    /// More attributes of the volume, as `key: value` lines.
    pub attributes: String,
}

impl Pod {
    /// One file `word`, from the field `word` of the namespace's secret `a`; sleeps then.
    pub fn new(name: &str, namespace: &Namespace<'_>) -> Self {
        Self {
            name: name.to_owned(),
            files: vec![(
                "word".to_owned(),
                format!("store:{}/a#word", namespace.name),
            )],
            then: "exec sleep 100000".to_owned(),
            spec: String::new(),
            volume: String::new(),
            restart: "Never".to_owned(),
            mounts: String::new(),
            attributes: String::new(),
        }
    }

    /// As it is applied.
    pub fn manifest(&self) -> String {
        let indented = |text: &str, by: usize| -> String {
            let space = " ".repeat(by);
            text.lines()
                .map(|line| format!("{space}{line}\n"))
                .collect()
        };
        let files: String = self
            .files
            .iter()
            .map(|(path, from)| format!("- {{path: {path}, from: \"{from}\"}}\n"))
            .collect();
        let there: String = self
            .files
            .iter()
            .map(|(path, _)| format!("test -s /secrets/{path} || {{ echo '{path} is missing'; ls -la /secrets; exit 1; }}\n"))
            .collect();
        let spec = indented(&format!("{}files:\n{files}", self.volume), 10);
        let attributes = indented(&self.attributes, 8);
        let script = indented(&format!("{there}echo all there\n{}", self.then), 6);
        let more = indented(&self.spec, 2);
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: {restart}
{more}  containers:
  - name: reader
    image: localhost/busybox:1
    imagePullPolicy: Never
    command: [sh, -c]
    args:
    - |
{script}    volumeMounts: [{{name: secrets, mountPath: /secrets, readOnly: true}}{mounts}]
  volumes:
  - name: secrets
    csi:
      driver: csi.secretfs.dev
      readOnly: true
      volumeAttributes:
{attributes}        spec: |
{spec}",
            name = self.name,
            restart = self.restart,
            mounts = self.mounts,
        )
    }
}

impl<'c> Namespace<'c> {
    /// With a secret `a` that has the field `word`, `first`.
    pub fn new(cluster: &'c Cluster, test: &str) -> Self {
        let name = format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        cluster.kubectl(&["create", "namespace", &name]);
        let namespace = Self { cluster, name };
        eventually(
            "the namespace has its service account",
            || {
                cluster.get_json(&[
                    "-n",
                    &namespace.name,
                    "serviceaccount/default",
                    "configmap/kube-root-ca.crt",
                ])
            },
            String::new,
        );
        namespace.put("a", "first");
        namespace
    }

    /// Puts `word` of one of the namespace's secrets.
    #[track_caller]
    pub fn put(&self, secret: &str, word: &str) {
        self.cluster
            .put(&format!("{}/{secret}", self.name), "word", word);
    }

    /// `kubectl` in this namespace.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster
            .kubectl(&[&["-n", &self.name], arguments].concat())
    }

    /// Makes it.
    #[track_caller]
    pub fn create(&self, pod: &Pod) {
        let manifest = pod.manifest();
        self.cluster
            .kubectl_with(&["-n", &self.name, "create", "-f", "-"], &manifest);
    }

    /// Makes it, and waits until it runs and has seen all its files.
    #[track_caller]
    pub fn run(&self, pod: &Pod) {
        self.create(pod);
        self.wait_running(&pod.name);
    }

    /// Until it runs and has seen all its files.
    #[track_caller]
    pub fn wait_running(&self, pod: &str) {
        self.wait("it runs, and all files are there", pod, |phase, log| {
            assert!(phase != "Failed", "{pod}: {log}\n{}", self.told(pod));
            phase == "Running" && log.contains("all there")
        });
    }

    /// Until it has ended well.
    #[track_caller]
    pub fn wait_succeeded(&self, pod: &str) -> String {
        self.wait("it ends", pod, |phase, log| {
            assert!(phase != "Failed", "{pod}: {log}\n{}", self.told(pod));
            phase == "Succeeded"
        });
        self.log(pod)
    }

    #[track_caller]
    fn wait(&self, what: &str, pod: &str, is_so: impl Fn(&str, &str) -> bool) {
        eventually(
            &format!("{pod}: {what}"),
            || {
                let phase = self.pod(pod)?["status"]["phase"].as_str()?.to_owned();
                is_so(&phase, &self.log(pod)).then_some(())
            },
            || self.told(pod),
        );
    }

    /// As the API server has it.
    pub fn pod(&self, pod: &str) -> Option<Value> {
        self.cluster.get_json(&["-n", &self.name, "pod", pod])
    }

    /// Its uid.
    pub fn uid(&self, pod: &str) -> String {
        let object = self.pod(pod).unwrap();
        object["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// What its container said so far.
    pub fn log(&self, pod: &str) -> String {
        let output = self
            .cluster
            .try_kubectl(&["-n", &self.name, "logs", pod], "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a command in its container prints.
    #[track_caller]
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.kubectl(&[&["exec", pod, "--"], command].concat())
    }

    /// Its first file, as its container reads it now.
    #[track_caller]
    pub fn word(&self, pod: &str) -> String {
        self.exec(pod, &["cat", "/secrets/word"])
    }

    /// Inode and times of its file, and of `..data`: the same as long as nobody has touched anything.
    #[track_caller]
    pub fn look(&self, pod: &str) -> String {
        let script = "stat -c '%n %i %Y %Z' /secrets/..data /secrets/word; stat -Lc '%i %Y %Z' /secrets/word";
        self.exec(pod, &["sh", "-c", script])
    }

    /// How often its container has been started again.
    pub fn restarts(&self, pod: &str) -> Option<u64> {
        let pod = self.pod(pod)?;
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64()
    }

    /// Until its container reads this.
    #[track_caller]
    pub fn wait_for_word(&self, pod: &str, word: &str) {
        eventually(
            &format!("{pod} reads {word}"),
            || (self.word(pod) == word).then_some(()),
            || self.told(pod),
        );
    }

    /// The texts of the events about a pod.
    pub fn events(&self, pod: &str) -> Vec<(String, String)> {
        let selector = format!("involvedObject.name={pod}");
        let events =
            self.cluster
                .get_json(&["-n", &self.name, "events", "--field-selector", &selector]);
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        events.map_or_else(Vec::new, |events| {
            let items = events["items"].as_array().unwrap();
            items
                .iter()
                .map(|event| (text(event, "reason"), text(event, "message")))
                .collect()
        })
    }

    /// The text of an event with this reason that holds all these words.
    #[track_caller]
    pub fn wait_for_event(&self, pod: &str, reason: &str, words: &[&str]) -> String {
        eventually(
            &format!("{pod}: an event {reason} with {words:?}"),
            || {
                let events = self.events(pod).into_iter();
                let mut fitting = events.filter(|(found, text)| {
                    found == reason && words.iter().all(|word| text.contains(word))
                });
                fitting.next().map(|(_, text)| text)
            },
            || self.told(pod),
        )
    }

    /// Deletes it, and waits until the node has nothing of its volume.
    #[track_caller]
    pub fn delete(&self, pod: &str) {
        let uid = self.uid(pod);
        self.kubectl(&["delete", "pod", pod, "--wait=false"]);
        self.wait_gone(pod, &uid);
    }

    /// Until the API server and the node have nothing of it.
    #[track_caller]
    pub fn wait_gone(&self, pod: &str, uid: &str) {
        let directory = self.cluster.node(&format!("/var/lib/kubelet/pods/{uid}"));
        eventually(
            &format!("{pod} goes"),
            || {
                (self
                    .pod(pod)
                    .is_none_or(|other| other["metadata"]["uid"] != uid)
                    && self.cluster.mounts_of(uid).is_empty()
                    && !directory.exists())
                .then_some(())
            },
            || self.told(pod),
        );
    }

    /// What there is to say when a test fails.
    pub fn told(&self, pod: &str) -> String {
        let described = self
            .cluster
            .try_kubectl(&["-n", &self.name, "describe", "pod", pod], "");
        format!(
            "{}\n{}\n{}",
            String::from_utf8_lossy(&described.stdout),
            self.log(pod),
            plugin::told(self.cluster)
        )
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let force = ["delete", "namespace", &self.name, "--wait=false"];
        let deleted = self.cluster.try_kubectl(&force, "");
        if !deleted.status.success() && !thread::panicking() {
            panic!("{}", String::from_utf8_lossy(&deleted.stderr));
        }
    }
}
