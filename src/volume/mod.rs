//! One task owns one volume: its spec, its subscriptions to sources, and its mount.
//!
//! The task's mailbox serialises publish, refresh and unpublish; unpublish overtakes. `status` is read without asking the
//! task: a hung fetch hides nothing.
//!
//! [`Volumes`] is the way in. `decide` is the idempotency table and `complaint` the log's patience, both pure; `task` is the loop,
//! `publish` its longest command, `shortcut` the common first one, `read` where its spec comes from, `specs` those that were read, `unpublish` the last command, `restore` the first after a restart, with the
//! help of `record`; `look` is what the kernel shows, `attempt` a publish that waits, `served` the mount with what it shows, `followed` one of its sources; `withdraw` is what it may show no longer; `status` is what is told, `gauges` the sum of it, `trail` what goes on record.
//!
//! Does not: ask a store, know when to ask one, or know how a mount is made.

pub mod budget;
pub mod complaint;
pub mod decide;
pub mod record;

mod attempt;
mod followed;
mod gauges;
mod ledger;
mod look;
mod publish;
mod read;
mod resettle;
mod restore;
mod served;
mod shortcut;
mod specs;
mod status;
mod task;
mod trail;
mod unpublish;
mod volumes;
mod wanted;
mod withdraw;
mod word;

pub use gauges::Gauges;
pub use restore::Restored;
pub use volumes::{
    AskedSpec, Mounters, Parts, Placing, PublishRequest, Published, Refused, Settings, Volumes,
};

pub(crate) use crate::source::caught;
use crate::{clock::Wall, mount::Usage, spec::MountKind};

/// A volume's state, as the contract (section 4) names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// All sources answered within their interval.
    Fresh,
    /// A source has been failing; files keep the last good value.
    Stale,
    /// A source needs a fresh token, which the kubelet will bring.
    WaitingForToken,
    /// The store, or the policy, refuses a source.
    Denied,
    /// The mount went away under a running pod.
    Lost,
    /// Served as a former process left it; not yet completed.
    Adopted,
}

impl VolumeState {
    /// All of them, in the order of the contract.
    pub const ALL: [Self; 6] = [
        Self::Fresh,
        Self::Stale,
        Self::WaitingForToken,
        Self::Denied,
        Self::Lost,
        Self::Adopted,
    ];

    /// As the contract writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::WaitingForToken => "waiting_for_token",
            Self::Denied => "denied",
            Self::Lost => "lost",
            Self::Adopted => "adopted",
        }
    }
}

/// What `secretfs status` shows of a volume. No secret, no hash or length of one.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStatus {
    /// Its id.
    pub id: String,
    /// Whose it is: `namespace/pod`, or `uid N`.
    pub owner: String,
    /// Where it is mounted.
    pub target: String,
    /// How it is served.
    pub mount: MountKind,
    /// How it is.
    pub state: VolumeState,
    /// What readers see.
    pub generation: u64,
    /// When readers last got another generation (RFC 3339).
    pub changed_at: Option<String>,
    /// Seconds since every source was last confirmed by its store: the age of the oldest.
    pub checked_seconds_ago: Option<f64>,
    /// Seconds until the next source is due; `None`: only by push and on demand.
    pub next_in_seconds: Option<f64>,
    /// The error that makes it other than fresh.
    pub error: Option<StatusError>,
    /// Files and versions as mounted.
    pub sources: Vec<SourceStatus>,
    /// What it takes of the machine.
    pub usage: Option<UsageStatus>,
}

/// Why a volume is not fresh.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusError {
    /// Code of docs/reference/errors.md.
    pub code: String,
    /// The message.
    pub message: String,
    /// Since when (RFC 3339).
    pub since: Option<String>,
}

/// One source of a volume.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// `backend:path[@version]`.
    pub reference: String,
    /// The version that is mounted.
    pub version: Option<String>,
    /// Whether its files are gone, because it has been refused or deleted for longer than the spec lets them stay.
    #[serde(default)]
    pub removed: bool,
    /// Whether the store tells of changes; not while its watch is down.
    pub pushes: bool,
    /// Its own error, or why its watch is down.
    pub error: Option<StatusError>,
}

/// See [`Usage`].
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageStatus {
    /// Bytes in use.
    pub bytes: u64,
    /// Bytes that it may grow to without a reconfigure.
    pub bytes_capacity: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that it may hold.
    pub inodes_capacity: u64,
    /// Whether the kernel could write it to swap.
    pub swappable: bool,
}

impl From<Usage> for UsageStatus {
    fn from(usage: Usage) -> Self {
        Self {
            bytes: usage.bytes,
            bytes_capacity: usage.bytes_capacity,
            inodes: usage.inodes,
            inodes_capacity: usage.inodes_capacity,
            swappable: usage.swappable,
        }
    }
}

/// RFC 3339, for the status.
pub fn shown(time: Wall) -> String {
    time.to_rfc3339()
}
