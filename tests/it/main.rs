//! The integration tests: one binary, a module for each room.

mod support;

mod deploy;
mod docs;
mod docs_pages;
mod docs_threats;
mod docs_troubleshooting;
mod tidy;

mod check;
mod config;
mod fuzz_corpus;
mod input;
mod render;
mod spec;

mod backends;
mod store;
mod vault;

mod kube;
mod kube_events;
mod kube_judgement;
mod pool;
mod principals;
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

mod exec;
mod mount_cli;
mod mount_demo;
mod node;
mod node_audit;
mod node_crash;
mod node_disk;
mod node_hang;
mod node_input;
mod node_logs;
mod node_memory;
mod node_metrics;
mod node_records;
mod node_reload;
mod node_seal;
mod node_status;
mod node_tenants;
mod process;
mod redaction;
mod reload;

mod bench;

mod audit;
mod metrics;
mod monitoring;
mod policy;
