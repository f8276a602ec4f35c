//! How others see what happens: logs.

pub mod log;
