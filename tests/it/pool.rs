//! The pool of sources over days: volumes, stores and time as they come, and what must hold at every moment.
//!
//! A *world* is made from a seed: sources, volumes of several principals, stores with their good and bad hours, suspends,
//! wall-clock steps. It is the runner's part: it does what the pool's effects say, in virtual time. `checks` looks on. A
//! failing seed is printed; `SECRETFS_POOL_SEED=n` runs it alone.

mod checks;
mod faults;
mod named;
mod store;
mod tenants;
mod world;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use world::{Size, World};

const DAY: u64 = 24 * 3600;

/// What a seed is made of in the long run.
fn small() -> Size {
    Size {
        sources: 20,
        volumes: 60,
        principals: 4,
        stores: 3,
        seconds: DAY,
    }
}

fn large() -> Size {
    Size {
        sources: 300,
        volumes: 1000,
        principals: 20,
        stores: 2,
        seconds: 30 * DAY,
    }
}

/// The seed to run alone.
fn only() -> Option<u64> {
    let text = std::env::var("SECRETFS_POOL_SEED").ok()?;
    Some(text.parse().expect("SECRETFS_POOL_SEED is a number"))
}

#[test]
fn a_thousand_seeds_of_a_day() {
    let seeds = only().map_or(0..1000, |seed| seed..seed + 1);
    let next = AtomicU64::new(seeds.start);
    let bad = Mutex::new(Vec::new());
    let total = Mutex::new(checks::Figures::default());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || bad.lock().unwrap().len() >= 5 {
                        return;
                    }
                    match World::new(seed, small()).run() {
                        Ok(figures) => total.lock().unwrap().add(&figures),
                        Err(why) => bad.lock().unwrap().push(format!("seed {seed}: {why}")),
                    }
                }
            });
        }
    });
    let bad = bad.into_inner().unwrap();
    assert!(
        bad.is_empty(),
        "run one alone with SECRETFS_POOL_SEED=n\n{}",
        bad.join("\n")
    );
    let total = total.into_inner().unwrap();
    println!("{total:?}");
    if only().is_none() {
        total.has_seen_everything();
    }
}

#[test]
fn thirty_days_of_a_full_node() {
    let seed = only().unwrap_or(7);
    let figures = World::new(seed, large())
        .run()
        .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    println!("{figures:?}");
    figures.has_seen_everything();
    assert!(
        figures.outage_asked * 100 < figures.outage_healthy as u64,
        "long outages of a full node: {} requests where {} are usual",
        figures.outage_asked,
        figures.outage_healthy
    );
}
