//! The integration tests: one binary, a module for each room.

mod support;

mod fault;
mod model;
mod mount;
mod mount_events;
mod torn;

