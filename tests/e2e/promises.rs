//! What the kubelet is told when something is wrong, and what a pod then has: all of its files, or no start.

use crate::cluster::{self, Cluster, Namespace, eventually, namespace::Pod, plugin, watch::Watch};

/// A configuration that does not stay, also when the test fails.
struct Configured<'c>(&'c Cluster);

impl<'c> Configured<'c> {
    fn with(cluster: &'c Cluster, config: &str) -> Self {
        plugin::apply(cluster, config);
        Self(cluster)
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        plugin::apply(self.0, plugin::CONFIG);
    }
}

/// Publishes that the plugin has answered so far.
fn publishes(cluster: &Cluster) -> f64 {
    let metrics = plugin::http(cluster, "/metrics");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("secretfs_rpc_duration_seconds_count{method=\"NodePublishVolume\"")
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Until it has answered so many more.
#[track_caller]
fn wait_for_publishes(cluster: &Cluster, more: f64) {
    let before = publishes(cluster);
    eventually(
        &format!("{more} publishes"),
        || (publishes(cluster) >= before + more).then_some(()),
        || plugin::told(cluster),
    );
}

/// Requests by the plugin that change something.
fn writes(cluster: &Cluster) -> usize {
    let ours = "system:serviceaccount:secretfs:secretfs";
    cluster
        .audit()
        .iter()
        .filter(|line| line["user"]["username"] == ours)
        .count()
}

#[test]
fn republishes_touch_no_file_and_write_nothing_to_the_api_server() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "quiet");
    let names: Vec<String> = (0..20).map(|n| format!("pod-{n}")).collect();
    for name in &names {
        namespace.create(&Pod::new(name, &namespace));
    }
    names.iter().for_each(|name| namespace.wait_running(name));
    let looked: Vec<String> = names.iter().map(|name| namespace.look(name)).collect();
    let mut watches: Vec<Watch> = names
        .iter()
        .map(|name| Watch::new(&namespace.uid(name)))
        .collect();
    let written = writes(cluster);
    wait_for_publishes(cluster, 60.0); // three of each
    for ((name, looked), watch) in names.iter().zip(looked).zip(&mut watches) {
        assert_eq!(namespace.look(name), looked);
        assert_eq!(watch.told(), [], "{name}");
    }
    assert_eq!(writes(cluster), written);
}

#[test]
fn a_pod_keeps_its_files_when_it_may_no_longer_read_them_or_the_store_is_gone() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "keeps");
    namespace.run(&Pod::new("keeps", &namespace));
    let uid = namespace.uid("keeps");
    {
        let _away = plugin::StoreAway::from(cluster);
        wait_for_publishes(cluster, 2.0);
    }
    assert_eq!(namespace.word("keeps"), "first");
    {
        let nobody =
            plugin::CONFIG.replace("serviceAccounts: [default]", "serviceAccounts: [nobody]");
        let _configured = Configured::with(cluster, &nobody);
        plugin::wait_for_config(cluster);
        let refused = Pod::new("refused", &namespace);
        namespace.create(&refused);
        namespace.wait_for_event("refused", "FailedMount", &["policy.denied"]); // the new policy holds
        wait_for_publishes(cluster, 2.0);
        assert_eq!(namespace.word("keeps"), "first");
        assert_eq!(cluster.mounts_of(&uid).len(), 1);
    }
    namespace.wait_running("refused"); // it is allowed again
    namespace.put("a", "second");
    namespace.wait_for_word("keeps", "second");
}

// The incumbent answers OK to the call after RESOURCE_EXHAUSTED, without a mount; its pod runs on an empty volume for good.
#[test]
fn a_first_mount_beyond_the_nodes_limit_is_tried_again_and_never_empty() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "limit");
    let small = plugin::CONFIG.replace(
        "bytesPerNode: 256Mi",
        "bytesPerNode: 8Ki, bytesPerNamespace: 8Ki, bytesPerVolume: 8Ki, bytesPerFile: 4Ki",
    );
    {
        let _configured = Configured::with(cluster, &small);
        plugin::wait_for_config(cluster);
        namespace.create(&Pod::new("limit", &namespace));
        namespace.wait_for_event("limit", "FailedMount", &["ResourceExhausted"]);
    }
    namespace.wait_running("limit");
    assert_eq!(namespace.word("limit"), "first");
}

#[test]
fn a_store_that_is_not_there_yet_is_tried_again_and_never_empty() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "store");
    {
        let _away = plugin::StoreAway::from(cluster);
        namespace.create(&Pod::new("store", &namespace));
        namespace.wait_for_event("store", "FailedMount", &["store."]);
    }
    namespace.wait_running("store");
}

#[test]
fn without_propagation_nothing_is_mounted_where_no_pod_would_see_it() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "private");
    {
        let _restored = plugin::Restored(cluster);
        let mount = r#"{"mountPath":"/var/lib/kubelet/pods","mountPropagation":"None"}"#;
        let container = format!(r#"{{"name":"secretfs","volumeMounts":[{mount}]}}"#);
        plugin::patch(
            cluster,
            &format!(r#"{{"spec":{{"template":{{"spec":{{"containers":[{container}]}}}}}}}}"#),
        );
        eventually(
            "it says so itself",
            || plugin::not_ready(cluster).filter(|why| why.contains("mount.no_propagation")),
            || plugin::told(cluster),
        );
        namespace.create(&Pod::new("private", &namespace));
        namespace.wait_for_event(
            "private",
            "FailedMount",
            &["mount.no_propagation", "Bidirectional"],
        );
    }
    namespace.wait_running("private");
}

/// What the kubelet fills in, or should; what a pod's author writes there, and the code of the refusal.
#[rustfmt::skip]
const KEYS: [(&str, &str, &str); 6] = [
    ("pod.name", "other", "policy.denied"),
    ("pod.namespace", "other", "policy.denied"),
    ("pod.uid", "other", "policy.denied"),
    ("serviceAccount.name", "default", "policy.denied"),
    ("serviceAccount.tokens", r#"{\"x\": {\"token\": \"a.b.c\"}}"#, "identity.forged"),
    ("ephemeral", "false", "policy.denied"),
];

#[test]
fn what_a_pod_plants_among_the_kubelets_words_gains_it_nothing() {
    let (cluster, _turn) = cluster::beside_others();
    let namespace = Namespace::new(cluster, "plants");
    namespace.kubectl(&["create", "serviceaccount", "stranger"]);
    for (key, value, code) in KEYS {
        let mut pod = Pod::new(&key.to_lowercase().replace('.', "-"), &namespace);
        pod.spec = "serviceAccountName: stranger\n".to_owned();
        pod.attributes = format!("csi.storage.k8s.io/{key}: \"{value}\"\n");
        namespace.create(&pod);
        namespace.wait_for_event(&pod.name, "FailedMount", &[code]);
    }
}

#[test]
fn under_a_driver_object_that_says_too_little_nobody_is_served() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "object");
    let good = cluster.kubectl(&["get", "csidriver", "csi.secretfs.dev", "-o", "json"]);
    let mut object: serde_json::Value = serde_json::from_str(&good).unwrap();
    let meta = object["metadata"].as_object_mut().unwrap();
    meta.retain(|key, _| ["name", "labels"].contains(&key.as_str()));
    let good = object.to_string();
    for (field, value) in [
        ("podInfoOnMount", serde_json::json!(false)),
        ("requiresRepublish", serde_json::json!(false)),
        (
            "volumeLifecycleModes",
            serde_json::json!(["Persistent", "Ephemeral"]),
        ),
    ] {
        let mut bad = object.clone();
        bad["spec"][field] = value;
        cluster.kubectl_with(&["replace", "--force", "-f", "-"], &bad.to_string());
        let name = field.to_lowercase();
        eventually(
            "it is not ready",
            || plugin::not_ready(cluster).filter(|why| why.contains(field)),
            || plugin::told(cluster),
        );
        let mut pod = Pod::new(&name, &namespace);
        pod.attributes = format!(
            "csi.storage.k8s.io/pod.name: {name}\ncsi.storage.k8s.io/pod.namespace: {0}\ncsi.storage.k8s.io/serviceAccount.name: default\ncsi.storage.k8s.io/ephemeral: \"true\"\n",
            namespace.name
        );
        namespace.create(&pod);
        namespace.wait_for_event(&name, "FailedMount", &["driver.object"]);
        cluster.kubectl_with(&["replace", "--force", "-f", "-"], &good);
        plugin::wait_until_ready(cluster);
    }
}
