//! Runs that the random ones have found, by name.

use std::time::Duration;

use super::{pods::Wants, store::Mood, world::World};

/// Its account is made again while the pod runs, and the store cannot be asked as whom it is now: it stays who it was. When the
/// configuration changes then, it is not asked for by the proof of who it is to be.
#[tokio::test(start_paused = true)]
async fn who_could_not_become_another_does_not_ask_as_him() {
    let mut world = World::new(0, None);
    let wants = Wants {
        files: [("a", "o0", "r0"), ("b", "o0", "r0")].into(),
        interval: Duration::from_secs(300),
    };
    let pod = world.come_as((0, 0), wants.clone());
    world.settle().await.unwrap();
    world.account_is_made_again((0, 0));
    world.be(Mood::Down);
    let who = world.who_now(pod);
    world.call(pod, who, wants);
    world.settle().await.unwrap();
    world.be(Mood::Up);
    world.reload(0);
    world.settle().await.unwrap();
    world.pass(Duration::from_secs(600)).await.unwrap();
    assert!(world.figures.reloaded > 0 && world.figures.moved == 0);
}
