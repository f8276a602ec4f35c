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

mod pool;
mod runner;
mod volume;

mod fault;
mod model;
mod mount;
mod mount_events;
mod torn;

mod mount_cli;
mod mount_demo;
mod process;
mod redaction;

mod bench;
