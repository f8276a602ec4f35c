//! Every promise about Kubernetes, on a real kubelet, API server and containerd. `tests/e2e/run` starts them, and this.
//!
//! A test has a namespace of its own. Most run beside each other; one that stops a server or changes what all use has the cluster to
//! itself ([`cluster::alone`]). A pod of a test looks at its volume before anything else and fails if a file is missing: nothing may start
//! on an empty one.

mod cluster;
mod events;
mod install;
mod lifecycle;
mod pods;
mod promises;
mod vault;
