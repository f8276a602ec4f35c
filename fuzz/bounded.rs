//! Runs a property and counts what it allocates: an input never takes more memory than in proportion to itself, whatever it says of
//! its own size. Only in the fuzz targets, which have an allocator of their own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Once,
        atomic::{AtomicIsize, Ordering::Relaxed},
    },
};

use crate::properties::Verdict;

/// Bytes that an input may take at once, whatever it is: a chunk of age (64 KiB), buffers of HTTP, tables of Unicode.
const BASE: isize = 1 << 20;
/// And for each of its bytes: a YAML node for a byte is the most.
const EACH: isize = 4096;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every block comes from `System` and goes back to it with the layout it was made with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is `System`'s own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is `System`'s own.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: the caller's promise is `System`'s own.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: the caller's promise is `System`'s own.
        unsafe { System.dealloc(block, layout) }
    }
}

fn count(more: isize) {
    let live = LIVE.fetch_add(more, Relaxed) + more;
    if live > PEAK.load(Relaxed) {
        PEAK.store(live, Relaxed);
    }
}

/// The property, and its memory.
pub fn run(data: &[u8], property: fn(&[u8]) -> Verdict) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        property(data); // what is made once is nobody's
    });
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    property(data);
    let taken = PEAK.load(Relaxed) - before;
    let most = BASE + EACH * data.len() as isize;
    assert!(taken <= most, "{taken} bytes for {} bytes", data.len());
}
