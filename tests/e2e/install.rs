//! Installed by the manifests of `deploy/`: who the plugin is, and what it may.

use std::fs;

use crate::cluster::{self, plugin};

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
