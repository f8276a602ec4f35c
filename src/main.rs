//! The `secretfs` program. Everything is in the library, so that tests and fuzzers reach it.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: secretfs::sys::alloc::Wiping = secretfs::sys::alloc::Wiping;

/// Not `#[tokio::main]`: what a process does to itself comes before its first thread (design decision 14).
fn main() -> ExitCode {
    secretfs::cli::main()
}
