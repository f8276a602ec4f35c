//! What is told: logs, the audit log, Kubernetes Events, and whether we are ready.

pub mod audit;
pub mod events;
pub mod log;
pub mod ready;
