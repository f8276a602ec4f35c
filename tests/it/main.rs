//! The integration tests: one binary, a module for each room.

mod support;

mod docs;
mod docs_pages;
mod tidy;

mod check;
mod config;
mod fuzz_corpus;
mod render;
mod spec;

mod store;

mod kube;
mod kube_events;
mod kube_judgement;
mod pool;
mod runner;
mod tenants;
mod volume;

mod csi;
mod csi_context;
mod fault;
mod model;
mod mount;
mod mount_events;
mod torn;

mod mount_cli;
mod mount_demo;
mod node;
mod node_crash;
mod node_hang;
mod node_records;
mod node_reload;
mod node_tenants;
mod process;
mod redaction;
mod reload;

mod bench;

mod audit;
mod policy;
