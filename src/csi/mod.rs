//! The Container Storage Interface: the only room that knows tonic's types.
//!
//! A call comes in at `server`, is decoded by `node` (or `plugin_info`), read by `context` (who asks) and answered with what `volume`
//! says, in the codes of `status`; `measured` counts it. `registration` tells the kubelet of us. `client` is the other side: the demo, the tests and the benchmark speak as a kubelet would.
//!
//! Does not: decide. Handlers parse, send, wait and encode; tonic drops them when the caller gives up, so nothing that must
//! finish runs in them.

mod authority;
pub mod client;
pub mod context;
pub mod driver_object;
mod inlet;
pub mod log;
mod measured;
pub mod node;
pub mod plugin_info;
pub mod registration;
pub mod server;
pub mod status;

/// What `build.rs` makes of `proto/`.
#[allow(missing_docs, clippy::all, clippy::too_many_lines)]
pub mod proto {
    tonic::include_proto!("csi.v1");

    /// The kubelet's plugin registration.
    pub mod registration {
        tonic::include_proto!("pluginregistration");
    }
}
