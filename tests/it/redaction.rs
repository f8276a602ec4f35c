//! No secret gets out: canaries go through every path of the program at trace level, error branches included, and every sink is searched
//! for each of them in every form.
//!
//! A *sink* is a place where somebody reads what the program says or leaves: its log, stdout, `/metrics`, an Event ... Two places may hold a
//! canary and are not sinks: what `store get` prints, and the mounted files. `rig` proves that each sink is looked into: what is *echoed*
//! (a pod's name, a directory's) must be found there by the same search.

mod cli;
mod modules;
mod node;
mod rig;
mod sinks;
mod vault;
