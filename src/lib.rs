//! Secrets as files that rotate.
//!
//! The path of data, and the order in which to read:
//!
//! ```text
//! VolumeSpec -> subscribe to sources -> render -> Snapshot -> Mounter::publish
//!                        ^                           |
//!       Pool of sources: fetch, renew, revoke,       +-> followers (hooks, status)
//!       watch
//! ```
//!
//! `spec` parses what a volume's author writes; `source` keeps each object current, asking through `backend`; `volume` owns one
//! volume, gives its objects to `render` and the files to `mount`. `store` is the embedded store's format. `cli` is what a
//! person sees.

pub mod caller;
pub mod clock;
pub mod error;
pub mod limits;
pub mod path;
pub mod secret;
pub mod sys;
pub mod yaml;

pub mod config;
pub mod policy;
pub mod spec;

pub mod backend;
pub mod source;
pub mod store;

pub mod render;

pub mod mount;

pub mod volume;

pub mod admin;
pub mod cli;
pub mod csi;
pub mod kube;
pub mod observe;
