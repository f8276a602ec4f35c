//! The only unsafe code and the only raw system calls, each behind a safe function.
#![allow(unsafe_code)]

pub mod alloc;
pub mod child;
pub mod file;
pub mod fs;
pub mod inotify;
pub mod memory;
pub mod mmap;
pub mod namespace;
pub mod process;
mod real_fs;
pub mod seccomp;
pub mod socket;
pub mod stack;
mod statmount;
pub mod timer;
