//! `kind: vault` against a real OpenBao; what that cannot be made to do, against a server of our own.

mod answers;
pub mod bed;
mod crowd;
mod fake;
mod kv;
mod leases;
mod login;
mod meter;
mod node;
mod outage;
mod pressure;
mod program;
mod settings;
mod shared;
mod way;
