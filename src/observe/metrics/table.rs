//! The table of all metrics. What `/metrics` answers and docs/reference/metrics.md both come from it.
//!
//! A label's values are of a closed set: names of this program, or of backends, which the node's configuration names. Nothing that a
//! pod's author or a store writes is ever one, so the number of series is bounded and none of them tells a secret's name.

use crate::error::codes;

/// What a metric counts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// What is now.
    Gauge,
    /// How many took at most so long.
    Histogram(&'static [Bound]),
}

/// The upper end of a bucket, in nanoseconds, and as it is written in seconds.
pub type Bound = (u64, &'static str);

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// As it is scraped; a histogram's samples add `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// "" for a number of things.
    pub unit: &'static str,
    /// In the order in which they are written.
    pub labels: &'static [Label],
    /// What it says, in one line.
    pub help: &'static str,
    /// When there is no sample, and what else the page says of it.
    pub note: &'static str,
}

/// One label.
#[derive(Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub values: Values,
}

/// What a label may be.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// One of these.
    These(&'static [&'static str]),
    /// A code of docs/reference/errors.md.
    Code,
    /// `ok`, `not_modified`, or such a code.
    Outcome,
    /// A name under `backends` of the node's configuration.
    Backend,
    /// What this program was built from.
    Build,
}

impl Values {
    /// Whether a label may have this value.
    pub fn have(self, value: &str) -> bool {
        let is_code = || codes::ALL.iter().any(|code| code.name == value);
        match self {
            Self::These(all) => all.contains(&value),
            Self::Code => is_code(),
            Self::Outcome => [OK, NOT_MODIFIED].contains(&value) || is_code(),
            Self::Backend => crate::spec::BackendName::parse(value).is_ok(),
            Self::Build => !value.is_empty(),
        }
    }
}

/// The outcome of a request that brought what was asked for.
pub const OK: &str = "ok";
/// The outcome of a fetch that brought nothing new.
pub const NOT_MODIFIED: &str = "not_modified";

/// Kinds of mounts that are served.
pub const MOUNTS: &[&str] = &["tmpfs"];
/// States of a volume (contract section 4).
pub const STATES: &[&str] = &[
    "fresh",
    "stale",
    "waiting_for_token",
    "denied",
    "lost",
    "adopted",
];
/// Kinds of memory.
pub const MEMORY: &[&str] = &[
    "tmpfs_used",
    "tmpfs_promised",
    "limit",
    "resident",
    "cgroup_used",
    "cgroup_limit",
];
/// CSI's methods that are served, and what else somebody calls.
pub const METHODS: &[&str] = &[
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeGetVolumeStats",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "GetPluginInfo",
    "GetPluginCapabilities",
    "Probe",
    OTHER,
];
/// A method that is not served.
pub const OTHER: &str = "other";
/// gRPC's codes by their numbers.
pub const GRPC_CODES: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Ends of rotations, by [`super::Rotation`].
pub const ROTATIONS: &[&str] = &["ok", "unchanged", "failed"];
/// Kinds of requests to a store, by [`super::Operation`].
pub const OPERATIONS: &[&str] = &["fetch", "renew", "revoke", "watch"];
/// Those that end by themselves, and so have a duration.
pub const TIMED: &[&str] = &["fetch", "renew", "revoke"];
/// Why a secret's files were removed, by [`super::Removal`].
pub const REMOVALS: &[&str] = &["denied", "deleted"];
/// How a source was found by a volume that wants it, by [`super::Lookup`].
pub const LOOKUPS: &[&str] = &["hit", "miss", "shared"];

const MS: u64 = 1_000_000;

/// A publish takes a millisecond when its secrets are known; else as long as its store, and a fetch is given 30 s at most.
pub const REQUESTS: &[Bound] = &[
    (MS / 2, "0.0005"),
    (MS, "0.001"),
    (5 * MS / 2, "0.0025"),
    (5 * MS, "0.005"),
    (10 * MS, "0.01"),
    (25 * MS, "0.025"),
    (50 * MS, "0.05"),
    (100 * MS, "0.1"),
    (250 * MS, "0.25"),
    (500 * MS, "0.5"),
    (1_000 * MS, "1"),
    (2_500 * MS, "2.5"),
    (5_000 * MS, "5"),
    (10_000 * MS, "10"),
    (30_000 * MS, "30"),
];
/// A swap takes a millisecond; one that waits for another source of the volume 200 ms; one that is tried again seconds. The same bounds, up to 5 s.
pub const SWAPS: &[Bound] = REQUESTS.split_at(REQUESTS.len() - 2).0;

const BACKEND: Label = Label {
    name: "backend",
    values: Values::Backend,
};

macro_rules! label {
    ($name:literal $values:expr) => {
        Label {
            name: $name,
            values: $values,
        }
    };
}

macro_rules! table {
    ($($id:ident = $name:literal $kind:expr, $unit:literal [$($label:expr),*] $help:literal $note:literal;)*) => {
        $(#[doc = $help] pub static $id: Metric = Metric {
            name: $name, kind: $kind, unit: $unit, labels: &[$($label),*], help: $help, note: $note,
        };)*
        /// All metrics, in the order in which they are written.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

#[rustfmt::skip]
mod rows {
    use super::*;
    use Kind::{Counter, Gauge, Histogram};
    use Values::{Build, Code, Outcome, These};

    table! {
        BUILD_INFO = "secretfs_build_info" Gauge, "" [label!("version" Build), label!("commit" Build)]
            "Always 1; the labels say what runs." "";
        KUBELET_REGISTERED = "secretfs_kubelet_registered" Gauge, "" []
            "1 if the kubelet has registered the driver, 0 if it has not called or would not have us." "Absent with `registration: false`. A kubelet that forgets us does not say so.";
        VOLUMES = "secretfs_volumes" Gauge, "" [label!("mount" These(MOUNTS)), label!("state" These(STATES))]
            "Volumes that are served, by kind of mount and state." "Every combination is there, 0 included. [admin.md](admin.md) says what to do about each state.";
        OLDEST_CONTENT = "secretfs_oldest_content_timestamp_seconds" Gauge, "seconds" []
            "When the store last confirmed the content that was confirmed longest ago, over all volumes (Unix time)." "Absent where there is no such content. A secret that this process has not seen confirmed yet, after a restart, counts as confirmed when the process started: it may be older. Left out is what no clock asks for and no error hides (`refreshInterval: never`): its store tells of changes, or its version is fixed; and what was removed, because nobody reads it.";
        MEMORY_BYTES = "secretfs_memory_bytes" Gauge, "bytes" [label!("kind" These(MEMORY))]
            "Memory in use and its limits." "`tmpfs_used`: files of all volumes, as each last changed; `tmpfs_promised`: what their mounts may grow to, which is what counts against `limit`, the configuration's `limits.bytesPerNode`; `resident`: of this process; `cgroup_used` and `cgroup_limit`: of its control group, which pays for both. `cgroup_used` is absent without cgroup v2, `cgroup_limit` also where there is no limit.";
        RPC_DURATION = "secretfs_rpc_duration_seconds" Histogram(REQUESTS), "seconds" [label!("method" These(METHODS)), label!("code" These(GRPC_CODES))]
            "Calls to the CSI socket, by method and gRPC code: how long each took until its answer." "`CANCELLED`: the caller gave up. `OK` is there from the start for each method, another code from its first time on.";
        ROTATIONS_TOTAL = "secretfs_rotations_total" Counter, "" [label!("result" These(ROTATIONS))]
            "Mounted volumes that were rendered anew because a source or the configuration had changed, or this process had just started." "`ok`: readers see other files; `unchanged`: the files are the same as before; `failed`: readers keep what they had, and it is tried again; each try counts.";
        ROTATION_DURATION = "secretfs_rotation_duration_seconds" Histogram(SWAPS), "seconds" []
            "From the moment at which a change was known to the moment at which readers saw it." "Of rotations that end `ok`, tries that failed before included.";
        BACKEND_REQUESTS = "secretfs_backend_requests_total" Counter, "" [BACKEND, label!("operation" These(OPERATIONS)), label!("result" Outcome)]
            "Requests to stores that have ended, by outcome." "A failure is `result!~\"ok|not_modified\"`. A series is there from its first time on, `fetch` with `ok` from the start.";
        BACKEND_DURATION = "secretfs_backend_request_duration_seconds" Histogram(REQUESTS), "seconds" [BACKEND, label!("operation" These(TIMED))]
            "How long requests to stores took, whatever came of them." "A watch lasts until it is ended, and has no duration.";
        CACHE_REQUESTS = "secretfs_cache_requests_total" Counter, "" [BACKEND, label!("result" These(LOOKUPS))]
            "Secrets that a volume asked this node's cache for when it was mounted or its spec changed." "`hit`: known already; `shared`: another volume waited for the same; `miss`: the store had to be asked. A republish asks for nothing.";
        SECRETS_REMOVED = "secretfs_secrets_removed_total" Counter, "" [BACKEND, label!("reason" These(REMOVALS))]
            "Secrets whose files were removed from a mounted volume, because they had been refused or gone for longer than its `onDenied` lets them stay." "`denied`: the store or the node's policy refuses them; `deleted`: the store has them no more. Each volume counts.";
        LEASES = "secretfs_leases" Gauge, "" [BACKEND]
            "Leases that this node holds and will give back." "0 for a backend without leases.";
        ERRORS = "secretfs_errors_total" Counter, "" [label!("code" Code)]
            "Failures by code: CSI calls answered with an error, tries to keep a mounted volume current that failed, specs refused under a mounted volume, and records of volumes that could not be kept." "Every code of [errors.md](errors.md) is there, 0 included; codes that only commands give stay 0. A store that fails counts once for each volume that shows it.";
        PANICS = "secretfs_panics_total" Counter, "" []
            "Bugs: panics in any part of the process." "The log has the place of each.";
        AUDIT_DROPPED = "secretfs_audit_records_dropped_total" Counter, "" []
            "Audit records that are in no log." "";
        RELOAD_SUCCESSFUL = "secretfs_config_last_reload_successful" Gauge, "" []
            "1 if the configuration in force is what its file says, 0 if the file cannot be read or was refused." "";
        RELOAD_TIMESTAMP = "secretfs_config_last_reload_success_timestamp_seconds" Gauge, "seconds" []
            "When the configuration in force was last read (Unix time)." "The start counts.";
    }
}

pub use rows::*;
