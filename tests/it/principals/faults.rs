//! The rig itself: with each of these faults between the volumes and the world, the check that it offends must fail.

use super::world::World;

/// Something done wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// An account made again under its name is taken for the former one.
    LeavesTheUidOut,
    /// However old an answer is, a pod that comes is given it.
    ForgetsTheAge,
    /// A pod that comes is asked for by a proof from before.
    ShowsAnOldProof,
    /// A pod is asked for by the proof of another account.
    ShowsAnothersProof,
    /// A replica of the store lags behind now and then.
    GoesBack,
    /// Nothing is ever new.
    StaysBehind,
    /// All roles may read what one may.
    KnowsOneRole,
    /// A configuration that changes leaves the store as it was.
    KeepsTheStore,
}

/// The first complaint of some seeds, and how many it took.
async fn complaint(fault: Fault) -> (u64, String) {
    for seed in 0..100 {
        if let Err(why) = World::new(seed, Some(fault)).run().await {
            return (seed + 1, why);
        }
    }
    panic!("{fault:?} went unnoticed");
}

#[tokio::test(start_paused = true)]
async fn every_check_can_fail() {
    for (fault, check) in [
        (Fault::LeavesTheUidOut, "principal"),
        (Fault::ForgetsTheAge, "age"),
        (Fault::ShowsAnOldProof, "own"),
        (Fault::ShowsAnothersProof, "proof"),
        (Fault::GoesBack, "version"),
        (Fault::StaysBehind, "current"),
        (Fault::KnowsOneRole, "role"),
        (Fault::KeepsTheStore, "store"),
    ] {
        let (seeds, why) = complaint(fault).await;
        println!("{fault:?}: seed {seeds}");
        assert!(why.starts_with(check), "{fault:?}: {why}");
    }
}
