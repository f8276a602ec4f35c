//! A clock that only the test moves, and a way to know that all work of the moment is done.
//!
//! A test runs on tokio's single-threaded runtime with its own time paused (`start_paused = true`). There tokio lets a sleep
//! end only when no task can run and no blocking call is under way: [`ManualClock::settle`] is that, and takes no real
//! time. Between two settled moments the clock goes from one sleeper to the next, as a simulation does.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use secretfs::clock::{Clock, Mono, Wall};
use tokio::sync::watch;

/// A clock at a standstill.
pub struct ManualClock {
    now: watch::Sender<Mono>,
    wall: Mutex<i64>,
    sleepers: Mutex<BTreeSet<(Mono, u64)>>,
    slept: AtomicU64,
}

impl ManualClock {
    /// A thousand seconds after the boot, on 2026-11-24.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            now: watch::Sender::new(Mono::from_nanos(1_000_000_000_000)),
            wall: Mutex::new(1_795_500_000_000),
            sleepers: Mutex::default(),
            slept: AtomicU64::new(0),
        })
    }

    /// Milliseconds on it.
    pub fn now_ms(&self) -> u64 {
        self.now().as_nanos() / 1_000_000
    }

    /// Jumps: all at once, as after a suspend. Who slept beyond it wakes late.
    pub fn jump(&self, by: Duration) {
        *self.wall.lock().unwrap() += by.as_millis() as i64;
        self.now.send_modify(|now| *now = now.after(by));
    }

    /// Somebody sets the wall clock.
    pub fn step_wall(&self, by_s: i64) {
        *self.wall.lock().unwrap() += by_s * 1000;
    }

    /// The earliest moment that somebody sleeps until.
    pub fn next_sleeper(&self) -> Option<Mono> {
        self.sleepers.lock().unwrap().first().map(|(at, _)| *at)
    }

    /// Until nothing can run any more without the clock moving.
    pub async fn settle(&self) {
        tokio::time::advance(Duration::ZERO).await; // panics where tokio's time is not paused
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Lets `by` pass, stopping at each moment that somebody sleeps until.
    pub async fn pass(&self, by: Duration) {
        let end = self.now().after(by);
        self.settle().await;
        while let Some(next) = self.next_sleeper().filter(|next| *next <= end) {
            assert!(
                next > self.now(),
                "somebody sleeps until a moment that has passed"
            );
            self.jump(next.since(self.now()));
            self.settle().await;
        }
        self.jump(end.since(self.now()));
        self.settle().await;
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn now(&self) -> Mono {
        *self.now.borrow()
    }

    fn wall(&self) -> Wall {
        Wall::from_millis(*self.wall.lock().unwrap())
    }

    async fn sleep_until(&self, at: Mono) {
        let me = (at, self.slept.fetch_add(1, Ordering::Relaxed));
        self.sleepers.lock().unwrap().insert(me);
        let _asleep = Asleep(self, me);
        let mut now = self.now.subscribe();
        let _ = now.wait_for(|now| *now >= at).await;
    }
}

/// Takes a sleeper off the list, also when it is woken by something else.
struct Asleep<'a>(&'a ManualClock, (Mono, u64));

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.sleepers.lock().unwrap().remove(&self.1);
    }
}

#[tokio::test(start_paused = true)]
async fn sleepers_wake_in_order_and_no_sooner() {
    let clock = ManualClock::new();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    for seconds in [3_u64, 1, 2] {
        let (clock, told) = (clock.clone(), told.clone());
        tokio::spawn(async move {
            clock
                .sleep_until(clock.now().after(Duration::from_secs(seconds)))
                .await;
            told.send((seconds, clock.now())).unwrap();
        });
    }
    let start = clock.now();
    clock.pass(Duration::from_millis(2_500)).await;
    let at = |seconds| (seconds, start.after(Duration::from_secs(seconds)));
    assert_eq!(
        (heard.recv().await, heard.recv().await),
        (Some(at(1)), Some(at(2)))
    );
    assert!(heard.try_recv().is_err());
    assert_eq!(
        clock.next_sleeper(),
        Some(start.after(Duration::from_secs(3)))
    );
    clock.step_wall(3600); // is no time passing
    clock.settle().await;
    assert!(heard.try_recv().is_err());
    clock.jump(Duration::from_secs(3600));
    clock.settle().await;
    assert_eq!(heard.try_recv().unwrap().0, 3);
    assert_eq!(clock.next_sleeper(), None);
}
