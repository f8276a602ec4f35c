//! Whose secret a pod is shown: over volumes, runner and pool together, in any order of what can happen.
//!
//! A *world* is made from a seed: pods of two namespaces with two accounts each, accounts that are deleted and made again under their
//! names while pods of the former ones run, two stores (one shares by account, one by pod) whose values say for whom they were made, rights that come
//! and go, outages, answers that come late and in any order, configurations and processes that are replaced. Every set of files is checked at
//! the moment at which it is shown: `checks` says for what, `faults` that each check can fail. A failing seed is printed with its
//! steps; `SECRETFS_PRINCIPALS_SEED=n` runs it alone.

mod checks;
mod faults;
mod mounts;
mod named;
mod pods;
mod store;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use tokio::runtime::Builder;

use checks::Figures;
use world::World;

const SEEDS: u64 = 200;

/// The seed to run alone.
fn only() -> Option<u64> {
    let text = std::env::var("SECRETFS_PRINCIPALS_SEED").ok()?;
    let seed = text.parse();
    Some(seed.expect("SECRETFS_PRINCIPALS_SEED is a number"))
}

/// The runs of these seeds, of which each is taken once.
fn runs(next: &AtomicU64, end: u64) -> Figures {
    let mut total = Figures::default();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return total;
        }
        let run = async {
            let mut world = World::new(seed, None);
            world.run().await.unwrap_or_else(|why| panic!("{why}"));
            total.add(&world.figures);
        };
        runtime.block_on(run);
    }
}

#[test]
fn nobody_is_ever_shown_what_was_fetched_for_another() {
    let seeds = only().map_or(0..SEEDS, |seed| seed..seed + 1);
    let (next, mut total) = (AtomicU64::new(seeds.start), Figures::default());
    thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| runs(&next, seeds.end)));
        for one in threads {
            total.add(&one.join().expect("a run has failed"));
        }
    });
    println!("{total:?}");
    if only().is_none() {
        total.has_seen_everything();
    }
}
