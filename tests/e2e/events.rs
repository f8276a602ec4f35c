//! What a pod's author is told of a volume that is mounted: Events on the pod.

use crate::cluster::{
    self, Cluster, Namespace, eventually,
    namespace::Pod,
    plugin::{self, Configured, Restored, StoreAway, wait_for_publishes},
};

/// Events by the plugin itself, of which the pod's are to be.
fn ours(namespace: &Namespace<'_>, pod: &str) -> Vec<(String, String)> {
    let events = namespace.events(pod).into_iter();
    events
        .filter(|(reason, _)| reason.starts_with("Secret"))
        .collect()
}

#[test]
fn a_running_pod_is_told_of_a_denial_of_an_outage_and_of_their_ends() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "told");
    namespace.run(&Pod::new("denied", &namespace));
    let secret = format!("store:{}/a", namespace.name);
    {
        let _configured = Configured::with(cluster, &plugin::nobody_may());
        let words = ["policy.denied", "kept as they were", &secret];
        namespace.wait_for_event("denied", "SecretAccessDenied", &words);
    }
    namespace.wait_for_event("denied", "SecretCurrent", &["current again"]);
    namespace.run(&Pod::new("stale", &namespace)); // knows nothing of the denial
    {
        let _away = StoreAway::from(cluster);
        namespace.wait_for_event("stale", "SecretStale", &["kept as they were", "store."]);
        assert_eq!(namespace.word("stale"), "first");
    }
    namespace.wait_for_event("stale", "SecretCurrent", &["current again"]);
    for name in ["denied", "stale"] {
        let events = ours(&namespace, name);
        for (reason, text) in &events {
            assert!(!text.contains("first"), "{text}");
            let same = events.iter().filter(|(other, _)| other == reason);
            assert_eq!(same.count(), 1, "{events:?}");
        }
    }
}

#[test]
fn a_running_pod_loses_what_is_denied_when_its_spec_says_so_and_gets_it_back() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "loses");
    let mut pod = Pod::new("loses", &namespace);
    pod.volume = "onDenied: {grace: 2s}\n".to_owned();
    namespace.run(&pod);
    let has_it = || {
        namespace
            .exec("loses", &["ls", "/secrets"])
            .contains("word")
    };
    assert!(has_it());
    let secret = format!("store:{}/a", namespace.name);
    {
        let _configured = Configured::with(cluster, &plugin::nobody_may());
        namespace.wait_for_event("loses", "SecretRemoved", &["policy.denied", &secret]);
        assert!(!has_it(), "as its container sees it");
    }
    let told = || plugin::told(cluster);
    eventually("its file is back", || has_it().then_some(()), told);
    assert_eq!(namespace.word("loses"), "first");
    namespace.wait_for_event("loses", "SecretCurrent", &["current again"]);
}

/// Its log has this line.
fn log_says(cluster: &Cluster, words: &str) {
    eventually(
        words,
        || plugin::logs(cluster).contains(words).then_some(()),
        || plugin::told(cluster),
    );
}

#[test]
fn without_the_right_to_write_events_nothing_else_changes() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "silent");
    namespace.run(&Pod::new("stays", &namespace));
    let _restored = Restored(cluster);
    let remove = r#"[{"op": "remove", "path": "/rules/1"}]"#;
    cluster.kubectl(&[
        "patch",
        "clusterrole",
        "secretfs",
        "--type=json",
        "-p",
        remove,
    ]);
    {
        let _configured = Configured::with(cluster, &plugin::nobody_may());
        log_says(cluster, "events cannot be written");
        wait_for_publishes(cluster, 2.0);
    }
    assert_eq!(ours(&namespace, "stays"), []);
    assert_eq!(namespace.word("stays"), "first");
    assert_eq!(plugin::http(cluster, "/readyz"), "ok\n");
    namespace.put("a", "second");
    namespace.wait_for_word("stays", "second");
    namespace.run(&Pod::new("new", &namespace));
}
