//! What is told: logs, the audit log, Kubernetes Events, metrics, and whether we are ready.

pub mod audit;
pub mod events;
mod limit;
pub mod log;
pub mod metrics;
pub mod patience;
pub mod ready;
