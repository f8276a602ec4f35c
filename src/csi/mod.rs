//! The Container Storage Interface: the only room that knows tonic's types.
//!
//! So far the Identity service. The Node service comes with the node plugin.

pub mod plugin_info;

/// What `build.rs` makes of `proto/`.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod proto {
    tonic::include_proto!("csi.v1");
}
