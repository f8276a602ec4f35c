//! Writer and readers in step, without a sleep.
//!
//! The writer *ticks* when something begins, is half done, or is done. Each tick gives every reader a few more reads, so that
//! they read while it happens and rest while nothing does. A read may *straddle*: it waits between two of its steps
//! until the next tick. A writer that is broken on purpose waits at its half-done tick until every reader has been there.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Reads that each tick gives to each reader.
const READS_PER_TICK: u64 = 8;
/// Longest that a straddling read waits. Far below the life of an old generation.
const STRADDLE: Duration = Duration::from_millis(100);
/// Longest that a broken writer waits for the readers; then it goes on, and the test may fail for want of faults.
const HALF_DONE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Pace {
    state: Mutex<State>,
    moved: Condvar,
}

struct State {
    tick: u64,
    stopped: bool,
    /// By reader: the tick in which it last made a read from begin to end, or began to straddle.
    passed: Vec<u64>,
}

impl Pace {
    /// For this many readers.
    pub fn new(readers: usize) -> Self {
        let state = State {
            tick: 0,
            stopped: false,
            passed: vec![0; readers],
        };
        Self {
            state: Mutex::new(state),
            moved: Condvar::new(),
        }
    }

    /// Writer: a step has been taken.
    pub fn tick(&self) {
        self.lock().tick += 1;
        self.moved.notify_all();
    }

    /// Broken writer: as `tick`, and waits until every reader has read once since, or waits in the middle of a read.
    pub fn tick_half_done(&self) {
        let mut state = self.lock();
        state.tick += 1;
        let tick = state.tick;
        self.moved.notify_all();
        let waiting =
            |state: &mut State| !state.stopped && state.passed.iter().any(|at| *at < tick);
        drop(self.moved.wait_timeout_while(state, HALF_DONE, waiting));
    }

    /// No further read begins.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }

    /// Reader: waits for its turn to make a read after `reads` others. The tick in which it begins; `None`: stop.
    pub fn turn(&self, reads: u64) -> Option<u64> {
        let waiting = |state: &mut State| !state.stopped && reads >= state.tick * READS_PER_TICK;
        let state = self
            .moved
            .wait_while(self.lock(), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        (!state.stopped).then_some(state.tick)
    }

    /// Reader: in the middle of a read that began in tick `began`; returns when the writer has moved on.
    pub fn straddle(&self, reader: usize, began: u64) {
        self.pass(reader, began);
        let waiting = |state: &mut State| !state.stopped && state.tick == began;
        drop(
            self.moved
                .wait_timeout_while(self.lock(), STRADDLE, waiting),
        );
    }

    /// Reader: has made a read that began in tick `began`.
    pub fn pass(&self, reader: usize, began: u64) {
        let mut state = self.lock();
        if state.passed[reader] < began {
            state.passed[reader] = began;
            drop(state);
            self.moved.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the readers also when the writer panics: a scope of threads would wait for them for ever.
pub struct StopOnDrop<'a>(pub &'a Pace);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
