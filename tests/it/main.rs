//! The integration tests: one binary, a module for each room.

mod support;

mod pool;
mod runner;
mod volume;

mod fault;
mod model;
mod mount;
mod mount_events;
mod torn;

