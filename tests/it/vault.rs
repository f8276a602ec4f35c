//! `kind: vault` against a real OpenBao; what that cannot be made to do, against a server of our own.

mod answers;
pub mod bed;
mod fake;
mod kv;
mod leases;
mod login;
mod node;
mod outage;
mod program;
mod settings;
mod way;
