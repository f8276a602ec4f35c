//! What the kubelet is told when something is wrong, and what a pod then has: all of its files, or no start.

use serde_json::json;

use crate::cluster::{
    self, Cluster, Namespace, eventually,
    namespace::Pod,
    plugin::{self, Configured, DriverObject, StoreAway, StoreHangs, wait_for_publishes},
    watch::Watch,
};

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
        let _away = StoreAway::from(cluster);
        wait_for_publishes(cluster, 2.0);
    }
    assert_eq!(namespace.word("keeps"), "first");
    {
        let _configured = Configured::with(cluster, &plugin::nobody_may());
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

// A newer version, or another configuration, may refuse a spec that an older one took; also after its restart, when all is read anew.
#[test]
fn a_pod_keeps_its_files_when_its_spec_is_no_longer_accepted() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "refuses");
    namespace.run(&Pod::new("stays", &namespace));
    let uid = namespace.uid("stays");
    {
        let other = plugin::CONFIG
            .replace("store:", "vault:")
            .replace("kind: vault:", "kind: store");
        let _configured = Configured::with(cluster, &other);
        namespace.create(&Pod::new("new", &namespace));
        namespace.wait_for_event(
            "new",
            "FailedMount",
            &[
                "InvalidArgument",
                "spec.unknown_backend",
                "there are: vault",
            ],
        );
        let before = plugin::kill(cluster);
        plugin::wait_for_another(cluster, before);
        wait_for_publishes(cluster, 4.0);
        assert_eq!(namespace.word("stays"), "first");
        assert_eq!(cluster.mounts_of(&uid).len(), 1);
    }
    namespace.wait_running("new");
    namespace.put("a", "second");
    namespace.wait_for_word("stays", "second");
}

#[test]
fn a_first_mount_that_takes_too_long_is_tried_again_and_never_empty() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "slow");
    {
        let _hangs = StoreHangs::from(cluster);
        namespace.create(&Pod::new("slow", &namespace));
        namespace.wait_for_event(
            "slow",
            "FailedMount",
            &["DeadlineExceeded", "backend.timeout"],
        );
    }
    namespace.wait_running("slow");
    assert_eq!(namespace.word("slow"), "first");
}

#[test]
fn a_plugin_that_dies_while_it_fetches_leaves_no_pod_on_an_empty_volume() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "fetching");
    let before = {
        let hangs = StoreHangs::from(cluster);
        namespace.create(&Pod::new("fetching", &namespace));
        eventually(
            "it fetches",
            || hangs.is_asked().then_some(()),
            || namespace.told("fetching"),
        );
        plugin::kill(cluster)
    };
    plugin::wait_for_another(cluster, before);
    namespace.wait_running("fetching");
    assert_eq!(namespace.word("fetching"), "first");
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
        let _away = StoreAway::from(cluster);
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
    for (field, value) in [
        ("podInfoOnMount", json!(false)),
        ("requiresRepublish", json!(false)),
        ("volumeLifecycleModes", json!(["Persistent", "Ephemeral"])),
    ] {
        let object = DriverObject::of(cluster);
        object.with(&json!({field: value}));
        eventually(
            "it is not ready",
            || plugin::not_ready(cluster).filter(|why| why.contains(field)),
            || plugin::told(cluster),
        );
        // one that plants each key, and one that plants all
        let planted = |(key, value, _): &(&str, &str, &str)| {
            format!("csi.storage.k8s.io/{key}: \"{value}\"\n")
        };
        let each = KEYS.iter().map(planted);
        let all: String = KEYS.iter().map(planted).collect();
        for (n, attributes) in each.chain([all]).enumerate() {
            let mut pod = Pod::new(&format!("{}-{n}", field.to_lowercase()), &namespace);
            pod.attributes = attributes;
            namespace.create(&pod);
            namespace.wait_for_event(&pod.name, "FailedMount", &["driver.object"]);
        }
    }
}

// Where the kubelet sends tokens it overwrites a planted one, or (1.35 on, if so told) sends its own elsewhere.
#[test]
fn a_planted_token_is_never_taken_for_the_kubelets() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "tokens");
    let object = DriverObject::of(cluster);
    let planted = |name: &str| {
        let mut pod = Pod::new(name, &namespace);
        pod.attributes =
            "csi.storage.k8s.io/serviceAccount.tokens: '{\"x\": {\"token\": \"a.b.c\"}}'\n"
                .to_owned();
        pod
    };
    namespace.create(&planted("nowhere"));
    namespace.wait_for_event("nowhere", "FailedMount", &["identity.forged"]);
    object.with(&json!({"tokenRequests": [{"audience": "x", "expirationSeconds": 600}]}));
    namespace.run(&Pod::new("true-context", &namespace)); // its claims agree
    namespace.run(&planted("context"));
    namespace.wait_running("nowhere");
    let version = cluster.kubectl(&["get", "--raw", "/version"]);
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    if version["minor"].as_str().unwrap().parse::<u32>().unwrap() < 35 {
        return;
    }
    object.with(&json!({
        "tokenRequests": [{"audience": "x", "expirationSeconds": 600}], "serviceAccountTokenInSecrets": true
    }));
    namespace.run(&Pod::new("true-secrets", &namespace));
    namespace.create(&planted("secrets"));
    namespace.wait_for_event("secrets", "FailedMount", &["identity.forged"]);
}
