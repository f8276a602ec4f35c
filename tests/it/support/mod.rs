//! Shared by all suites: what a test needs to stand on.

pub mod apiserver;
pub mod backend_conformance;
pub mod bao;
pub mod bed;
pub mod broken;
pub mod canary;
pub mod certs;
pub mod clock;
pub mod content;
pub mod disk;
pub mod faulty;
pub mod hearing;
pub mod kubelet;
pub mod kubelet_dir;
pub mod machine;
pub mod memory;
pub mod mount_conformance;
pub mod needles;
pub mod pace;
pub mod program;
pub mod readers;
pub mod sandbox;
pub mod scrape;
pub mod scripted;
pub mod session;
pub mod snapshots;

/// Whether files can be given to another user: not in a user namespace that has only our own id.
pub fn can_chown() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let all = map
        .split_whitespace()
        .nth(2)
        .and_then(|count| count.parse().ok());
    all.is_some_and(|count: u64| count > 60_000)
}
