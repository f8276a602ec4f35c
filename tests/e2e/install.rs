//! Installed by the manifests of `deploy/`: who the plugin is, and what it may.

use std::fs;

use crate::cluster::{
    self, Namespace, eventually,
    namespace::Pod,
    plugin::{self, Restored},
};

/// The fields of a process's status that a seal shows in.
fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[test]
fn the_kubelet_has_confirmed_it_and_it_says_so() {
    let (cluster, _turn) = cluster::beside_others();
    let node = cluster.get_json(&["csinode", "n1"]).unwrap();
    let drivers = node["spec"]["drivers"].as_array().unwrap();
    assert!(
        drivers
            .iter()
            .any(|driver| driver["name"] == "csi.secretfs.dev"),
        "{node}"
    );
    let log = cluster.kubectl(&["-n", "secretfs", "logs", "daemonset/secretfs"]);
    assert!(log.contains("ready: csi.secretfs.dev on n1, "), "{log}");
    assert!(!log.contains("not ready"), "{log}");
    assert_eq!(plugin::http(cluster, "/readyz"), "ok\n");
    assert_eq!(plugin::http(cluster, "/healthz"), "ok\n");
    let metrics = plugin::http(cluster, "/metrics");
    assert!(
        metrics.contains("\nsecretfs_kubelet_registered 1\n"),
        "{metrics}"
    );
}

#[test]
fn the_running_process_has_three_capabilities_and_a_filter() {
    let (cluster, _turn) = cluster::beside_others();
    let pid = plugin::pid(cluster).unwrap();
    // SYS_ADMIN (21), CHOWN (0), DAC_OVERRIDE (1)
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(pid, set), "0000000000200003", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
}

/// How it shows that something of the manifests is missing.
enum Symptom {
    /// The API server refuses the manifest, in these words.
    Refused(&'static str),
    /// The plugin's log.
    Told(&'static str),
    /// `/readyz`.
    NotReady(&'static str),
    /// What the kubelet says of a pod that waits.
    Waits(&'static str),
}

/// A part of the DaemonSet or of the role, and what is seen when it is not there.
#[rustfmt::skip]
const PARTS: &[(&str, &str, Symptom)] = &[
    ("daemonset", "/spec/template/spec/containers/0/securityContext/privileged", Symptom::Refused("Bidirectional")),
    ("daemonset", "/spec/template/spec/containers/0/volumeMounts/0", Symptom::Told("/config/config.yaml")),
    ("daemonset", "/spec/template/spec/containers/0/volumeMounts/1", Symptom::Waits("store.missing")),
    ("daemonset", "/spec/template/spec/containers/0/volumeMounts/2", Symptom::Told("/run/secretfs")),
    ("daemonset", "/spec/template/spec/containers/0/volumeMounts/3", Symptom::NotReady("mount.no_propagation")),
    ("daemonset", "/spec/template/spec/containers/0/volumeMounts/4", Symptom::Told("/var/lib/kubelet/plugins")),
    ("daemonset", "/spec/template/spec/containers/0/volumeMounts/5", Symptom::Told("/var/lib/kubelet/plugins_registry")),
    ("daemonset", "/spec/template/spec/containers/0/env/0", Symptom::Told("csi.secretfs.dev on secretfs-")),
    ("clusterrole", "/rules/0", Symptom::NotReady("csidriver")),
];

#[test]
fn no_part_of_the_manifests_is_there_for_nothing() {
    let (cluster, _turn) = cluster::alone();
    let namespace = Namespace::new(cluster, "parts");
    for (kind, path, symptom) in PARTS {
        let restored = Restored(cluster);
        let patch = format!(r#"[{{"op": "remove", "path": "{path}"}}]"#);
        let patched = cluster.try_kubectl(
            &[
                "-n",
                "secretfs",
                "patch",
                kind,
                "secretfs",
                "--type=json",
                "-p",
                &patch,
            ],
            "",
        );
        let said = String::from_utf8_lossy(&patched.stderr).into_owned();
        if let Symptom::Refused(words) = symptom {
            assert!(
                !patched.status.success() && said.contains(words),
                "{path}: {said}"
            );
            std::mem::forget(restored); // nothing has changed
            continue;
        }
        assert!(patched.status.success(), "{said}");
        if let Symptom::Waits(_) = symptom {
            // not beside the instance that goes
            plugin::wait_until_ready(cluster);
            namespace.create(&Pod::new("waits", &namespace));
        }
        if *kind == "clusterrole" {
            cluster.kubectl(&["-n", "secretfs", "delete", "pod", &plugin::pod(cluster)]);
        }
        eventually(
            &format!("without {path} it shows"),
            || match symptom {
                Symptom::Waits(words) => {
                    let events = namespace.events("waits");
                    events
                        .iter()
                        .any(|(_, text)| text.contains(words))
                        .then_some(())
                }
                Symptom::Told(words) => plugin::logs(cluster).contains(words).then_some(()),
                Symptom::NotReady(words) => {
                    plugin::not_ready(cluster)?.contains(words).then_some(())
                }
                Symptom::Refused(_) => None,
            },
            || plugin::told(cluster),
        );
    }
}
