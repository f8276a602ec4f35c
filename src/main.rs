//! The `secretfs` program.

#[global_allocator]
static ALLOCATOR: secretfs::sys::alloc::Wiping = secretfs::sys::alloc::Wiping;

fn main() {}
