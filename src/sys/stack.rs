//! Overwrites what calls have left behind on a thread's stack.
//!
//! The allocator wipes the heap; a stack is wiped by nobody: what a call had in its variables lies there until another one, as deep,
//! happens to write over it, and an idle thread keeps it for hours. So a thread that has handled a secret, or its key, ends that
//! with a look back: all below the present frame is garbage by definition, and is zeroed to a depth that such calls do not exceed.

use std::{
    mem::MaybeUninit,
    pin::Pin,
    ptr,
    task::{Context, Poll},
};

/// How far down the stack is zeroed, in bytes. What a decryption leaves was found 6 KiB down; a thread's stack has 2 MiB. Zeroing takes
/// 4 microseconds.
const DEPTH: usize = 128 << 10;

/// Zeroes the stack below the caller's frame.
#[inline(never)]
pub fn scrub() {
    let mut below = [const { MaybeUninit::<u8>::uninit() }; DEPTH];
    let start = below.as_mut_ptr();
    // SAFETY: `below` is live, is ours alone, and has `DEPTH` bytes.
    unsafe { ptr::write_bytes(start, 0, DEPTH) };
    // SAFETY: an empty statement that may read all memory, for the compiler: the zeroes must be there before it.
    unsafe { std::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
}

/// Scrubs when it is dropped: also when a call ends in a panic.
struct Scrub;

impl Drop for Scrub {
    fn drop(&mut self) {
        scrub();
    }
}

/// Makes a call and zeroes what it has left on the stack.
pub fn clean<T>(call: impl FnOnce() -> T) -> T {
    let _scrub = Scrub;
    below(call)
}

/// A frame of its own for `call`, so that its variables lie below the caller's.
#[inline(never)]
fn below<T>(call: impl FnOnce() -> T) -> T {
    call()
}

/// A future that is polled by way of [`clean`].
pub struct Clean<F>(Pin<Box<F>>);

impl<F> Clean<F> {
    /// Of this one.
    pub fn new(future: F) -> Self {
        Self(Box::pin(future))
    }
}

impl<F: Future> Future for Clean<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        clean(|| self.0.as_mut().poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, hint::black_box, os::unix::fs::FileExt as _};

    use super::*;

    /// Fills a frame of 32 KiB: what looks for it does not reach so deep itself.
    #[inline(never)]
    fn plant(byte: u8) {
        black_box([byte; 32 << 10]);
    }

    /// How many bytes of the stack below here are this one.
    #[inline(never)]
    fn left(byte: u8) -> usize {
        let mut here = 0_u8;
        let top = black_box(&raw mut here) as u64;
        let mut below = vec![0; 64 << 10];
        let memory = File::open("/proc/self/mem").unwrap();
        let from = top - below.len() as u64;
        memory.read_exact_at(&mut below, from).unwrap();
        below.iter().filter(|one| **one == byte).count()
    }

    #[test]
    fn what_a_call_leaves_is_there_until_it_is_scrubbed() {
        scrub(); // the pages must be there to be read
        plant(0xa7);
        assert!(left(0xa7) > 16 << 10, "the test finds nothing at all");
        scrub();
        assert!(left(0xa7) < 64);
        clean(|| plant(0xa9));
        assert!(left(0xa9) < 64);
        let panics = std::panic::catch_unwind(|| {
            clean(|| {
                plant(0xab);
                std::panic::resume_unwind(Box::new(()));
            });
        });
        assert!(panics.is_err() && left(0xab) < 64);
    }

    #[test]
    fn a_future_is_scrubbed_after_each_poll() {
        let planting = async {
            plant(0xad);
            std::future::ready(()).await;
            7
        };
        let mut planting = std::pin::pin!(Clean::new(planting));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(planting.as_mut().poll(&mut cx), Poll::Ready(7));
        assert!(left(0xad) < 64);
    }
}
