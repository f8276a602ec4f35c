//! The plugin: installed as `docs/install.md` says, asked, killed.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use super::{Cluster, IMAGE, eventually, fed, processes};

/// The store of the node, on it.
const STORE: &str = "/var/lib/secretfs/store";
const AWAY: &str = "/var/lib/secretfs/away";
const IDENTITY: &str = "/var/lib/secretfs/identity.age";
const KEPT: &str = "/var/lib/secretfs/identity.kept";

/// What the bed changes of the manifests: where the image is, and who may read what.
const OVERLAY: &str = r#"apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [BASE]
images:
- {name: localhost/secretfs, newTag: e2e}
patches:
- target: {kind: ConfigMap, name: secretfs}
  patch: |
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: secretfs}
    data:
      config.yaml: |
CONFIG"#;

/// Every namespace's `default` account may read everything.
pub const CONFIG: &str = r#"http: ":9809"
logLevel: debug
backends:
  store: {kind: store, path: /etc/secretfs/store, identity: /etc/secretfs/identity.age}
policy:
- {namespaces: ["*"], serviceAccounts: [default], allow: ["store:**"]}
limits: {bytesPerNode: 256Mi}
"#;

/// As an administrator does: an image, a store on the node, `kubectl apply -k`.
pub fn install(cluster: &Cluster) {
    let program = std::env::var("SECRETFS_E2E_PROGRAM").expect("run tests/e2e/run");
    cluster.bed("image", &[IMAGE, &program]);
    fs::create_dir_all(cluster.node("/var/lib/secretfs")).unwrap();
    if !cluster.node(STORE).exists() {
        store(cluster, &["init"], "");
    }
    apply(cluster, CONFIG);
    wait_until_ready(cluster);
}

/// `kubectl apply -k`, with this configuration.
pub fn apply(cluster: &Cluster, config: &str) {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let overlay = cluster.scratch().join("overlay");
    fs::create_dir_all(&overlay).unwrap();
    // kustomize takes relative paths only
    let up = "../".repeat(overlay.components().count() - 1);
    let base = format!("{up}{}", deploy.strip_prefix("/").unwrap().display());
    let config: String = config
        .lines()
        .map(|line| format!("        {line}\n"))
        .collect();
    let text = OVERLAY.replace("BASE", &base).replace("CONFIG", &config);
    fs::write(overlay.join("kustomization.yaml"), text).unwrap();
    cluster.kubectl(&["apply", "-k", overlay.to_str().unwrap()]);
}

/// Until the DaemonSet has one pod, of the newest template, and that is ready.
#[track_caller]
pub fn wait_until_ready(cluster: &Cluster) {
    eventually(
        "the plugin is ready",
        || {
            let set = cluster.get_json(&["-n", "secretfs", "daemonset", "secretfs"])?;
            let status = &set["status"];
            let current = status["observedGeneration"] == set["metadata"]["generation"];
            (current && status["updatedNumberScheduled"] == 1 && status["numberReady"] == 1)
                .then_some(())
        },
        || told(cluster),
    );
}

/// What there is to say about the plugin when a test fails.
pub fn told(cluster: &Cluster) -> String {
    let pods = cluster.try_kubectl(&["-n", "secretfs", "describe", "pods"], "");
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&pods.stdout),
        logs(cluster)
    )
}

/// What it said last, and the instance before it.
pub fn logs(cluster: &Cluster) -> String {
    let of = |more: &[&str]| {
        let base = ["-n", "secretfs", "logs", "daemonset/secretfs", "--tail=20"];
        let output = cluster.try_kubectl(&[&base, more].concat(), "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    format!("{}\n{}", of(&["--previous"]), of(&[]))
}

/// Its pod; `None` while one goes and the next is not there yet.
fn find_pod(cluster: &Cluster) -> Option<serde_json::Value> {
    let pods = cluster.get_json(&["-n", "secretfs", "pods"])?;
    let mut stay = pods["items"]
        .as_array()?
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    stay.next().cloned()
}

/// Its pod's name.
#[track_caller]
pub fn pod(cluster: &Cluster) -> String {
    let pod = eventually(
        "the plugin has a pod",
        || find_pod(cluster),
        || told(cluster),
    );
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

/// What it answers at this path of its HTTP port.
pub fn http(cluster: &Cluster, path: &str) -> String {
    let pod = pod(cluster);
    let path = format!("/api/v1/namespaces/secretfs/pods/{pod}:9809/proxy{path}");
    cluster.kubectl(&["get", "--raw", &path])
}

/// One of its metrics, that has no labels.
pub fn metric(cluster: &Cluster, name: &str) -> Option<f64> {
    let metrics = http(cluster, "/metrics");
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value?.parse().ok()
}

/// Why it is not ready, in its own words.
pub fn not_ready(cluster: &Cluster) -> Option<String> {
    // kubectl does not show what an error's answer says
    let object = find_pod(cluster)?;
    let address = object["status"]["podIP"].as_str()?;
    let busybox = format!("{}/bin/busybox", cluster.get("BED_DEBIAN"));
    let ask = format!(
        "printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' | {busybox} nc -w 5 {address} 9809 || true"
    );
    let answer = cluster.bed("run", &["sh", "-c", &ask]);
    answer.starts_with("HTTP/1.0 503").then_some(answer)
}

/// As `deploy/` has it, also when the test fails.
pub struct Restored<'c>(pub &'c Cluster);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        // the whole object: an apply does not bring back what a patch has taken from a list
        self.0
            .kubectl(&["-n", "secretfs", "delete", "daemonset", "secretfs"]);
        apply(self.0, CONFIG);
        wait_until_ready(self.0);
    }
}

/// Until it follows the configuration that was applied last.
#[track_caller]
pub fn wait_for_config(cluster: &Cluster) {
    let wanted = cluster.kubectl(&[
        "-n",
        "secretfs",
        "get",
        "configmap",
        "secretfs",
        "-o",
        "jsonpath={.data.config\\.yaml}",
    ]);
    eventually(
        "it follows the new configuration",
        || {
            let pid = pid(cluster)?;
            let file = fs::read_to_string(format!("/proc/{pid}/root/config/config.yaml")).ok()?;
            let changed = fs::metadata(format!("/proc/{pid}/root/config/..data/"))
                .ok()?
                .modified()
                .ok()?;
            let name = "secretfs_config_last_reload_success_timestamp_seconds";
            let followed = UNIX_EPOCH + Duration::from_secs_f64(metric(cluster, name)?);
            (file == wanted && followed >= changed).then_some(())
        },
        || told(cluster),
    );
}

/// Another configuration, as long as this lives.
pub struct Configured<'c>(&'c Cluster);

impl<'c> Configured<'c> {
    /// Changed, and followed.
    pub fn with(cluster: &'c Cluster, config: &str) -> Self {
        let configured = Self(cluster);
        configured.set(config);
        wait_for_config(cluster);
        configured
    }

    fn set(&self, config: &str) {
        let patch = serde_json::json!({"data": {"config.yaml": config}}).to_string();
        let map = ["-n", "secretfs", "patch", "configmap", "secretfs"];
        self.0
            .kubectl(&[&map[..], &["--type=merge", "-p", &patch]].concat());
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        self.set(CONFIG);
    }
}

/// [`CONFIG`], under which nobody's pod may read anything.
pub fn nobody_may() -> String {
    CONFIG.replace("serviceAccounts: [default]", "serviceAccounts: [nobody]")
}

/// Publishes that it has answered so far.
fn publishes(cluster: &Cluster) -> f64 {
    let metrics = http(cluster, "/metrics");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("secretfs_rpc_duration_seconds_count{method=\"NodePublishVolume\"")
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Until it has answered so many more.
#[track_caller]
pub fn wait_for_publishes(cluster: &Cluster, more: f64) {
    let before = publishes(cluster);
    eventually(
        &format!("{more} publishes"),
        || (publishes(cluster) >= before + more).then_some(()),
        || told(cluster),
    );
}

/// Its process id, outside; `None` when it does not run.
pub fn pid(cluster: &Cluster) -> Option<i32> {
    let groups = Path::new(cluster.get("BED_CGROUPS").split(':').next()?);
    let bed = groups.file_name()?.to_str()?;
    processes(bed).find_map(|process| {
        let command = fs::read(process.join("cmdline")).ok()?;
        let is_ours = command.starts_with(b"/secretfs\0node\0");
        process
            .file_name()?
            .to_str()?
            .parse()
            .ok()
            .filter(|_| is_ours)
    })
}

/// SIGKILL; which process it was.
pub fn kill(cluster: &Cluster) -> i32 {
    let pid = pid(cluster).expect("it runs");
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
    pid
}

/// Changes the DaemonSet.
pub fn patch(cluster: &Cluster, patch: &str) {
    cluster.kubectl(&[
        "-n",
        "secretfs",
        "patch",
        "daemonset",
        "secretfs",
        "-p",
        patch,
    ]);
}

/// The next instance is ready.
#[track_caller]
pub fn wait_for_another(cluster: &Cluster, before: i32) {
    eventually(
        "another instance",
        || pid(cluster).filter(|pid| *pid != before),
        || told(cluster),
    );
    wait_until_ready(cluster);
}

/// The node's store is elsewhere, as long as this lives.
pub struct StoreAway<'c>(&'c Cluster);

impl<'c> StoreAway<'c> {
    pub fn from(cluster: &'c Cluster) -> Self {
        fs::rename(cluster.node(STORE), cluster.node(AWAY)).unwrap();
        Self(cluster)
    }
}

impl Drop for StoreAway<'_> {
    fn drop(&mut self) {
        fs::rename(self.0.node(AWAY), self.0.node(STORE)).unwrap();
    }
}

/// The driver's own object, as `deploy/` has it once this is dropped.
pub struct DriverObject<'c> {
    cluster: &'c Cluster,
    good: serde_json::Value,
}

impl<'c> DriverObject<'c> {
    pub fn of(cluster: &'c Cluster) -> Self {
        let mut good = cluster
            .get_json(&["csidriver", "csi.secretfs.dev"])
            .unwrap();
        let meta = good["metadata"].as_object_mut().unwrap();
        meta.retain(|key, _| ["name", "labels"].contains(&key.as_str()));
        Self { cluster, good }
    }

    /// With these fields instead.
    pub fn with(&self, fields: &serde_json::Value) {
        let mut object = self.good.clone();
        for (key, value) in fields.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        self.cluster
            .kubectl_with(&["replace", "--force", "-f", "-"], &object.to_string());
    }
}

impl Drop for DriverObject<'_> {
    fn drop(&mut self) {
        self.with(&serde_json::json!({}));
        wait_until_ready(self.cluster);
    }
}

/// The key of the node's store is a pipe to which nobody writes, as long as this lives: whoever reads the store waits.
pub struct StoreHangs<'c>(&'c Cluster);

impl<'c> StoreHangs<'c> {
    pub fn from(cluster: &'c Cluster) -> Self {
        fs::rename(cluster.node(IDENTITY), cluster.node(KEPT)).unwrap();
        let made = Command::new("mkfifo").arg(cluster.node(IDENTITY)).status();
        assert!(made.unwrap().success());
        Self(cluster)
    }

    /// Whether somebody waits.
    pub fn is_asked(&self) -> bool {
        self.writer().is_some()
    }

    fn writer(&self) -> Option<fs::File> {
        // a pipe that opens for writing at once has a reader
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).custom_flags(libc::O_NONBLOCK);
        options.open(self.0.node(IDENTITY)).ok()
    }
}

impl Drop for StoreHangs<'_> {
    fn drop(&mut self) {
        let writer = self.writer();
        fs::rename(self.0.node(KEPT), self.0.node(IDENTITY)).unwrap();
        drop(writer); // who waits reads an empty key
    }
}

/// `secretfs store ...` on the node's store.
#[track_caller]
pub fn store(cluster: &Cluster, arguments: &[&str], input: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secretfs"));
    command
        .arg("store")
        .args(arguments)
        .env("SECRETFS_STORE", cluster.node(STORE))
        .env("SECRETFS_IDENTITY", cluster.node(IDENTITY));
    let output = fed(&mut command, input);
    assert!(
        output.status.success(),
        "secretfs store {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
