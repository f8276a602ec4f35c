//! The tokens of a publish.
#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code, unused_imports)]
mod properties;

#[path = "../bounded.rs"]
mod bounded;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded::run(data, properties::token));
