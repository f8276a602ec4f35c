//! What a namespace feels of its neighbours, in simulated time: the same run without and with them.

use std::time::Duration;

use super::{change, pod, publish};
use crate::support::{
    bed::{Bed, code, request_as, spec},
    scripted::Answer,
};

const STEP_MS: u64 = 5;
/// Volumes of one small file that fill a namespace. The healthy one has half as many.
const FILL: usize = 60;
/// What a namespace may have: that many tmpfs of 19 pages.
const ROOM: u64 = FILL as u64 * 19 * 4096;

/// What the healthy namespace waited for, in milliseconds.
#[derive(PartialEq, Debug)]
struct Felt {
    publishes: Vec<u64>,
    rotations: Vec<u64>,
}

async fn publish_ms(bed: &Bed, nth: usize) -> u64 {
    let path = format!("well{nth}");
    bed.a.put(&path, "one");
    bed.a.script(&path, |script| script.pushes = true);
    bed.a.answer(&path, Answer::Slow(Duration::from_millis(20)));
    let (id, line) = (format!("well{nth}"), format!("x < a:{path}"));
    let who = pod("well", &format!("p{nth}"));
    let began = bed.clock.now_ms();
    let task = bed.begin(request_as(who, &id, &spec(&[&line])));
    bed.clock.settle().await;
    while !task.is_finished() {
        bed.pass_ms(STEP_MS).await;
    }
    task.await.unwrap().unwrap();
    bed.clock.now_ms() - began
}

async fn rotation_ms(bed: &Bed, nth: usize, value: &str) -> u64 {
    let began = bed.clock.now_ms();
    bed.a.put(&format!("well{nth}"), value);
    while bed.read(&format!("well{nth}"), "x").unwrap() != value {
        bed.pass_ms(STEP_MS).await;
        assert!(bed.clock.now_ms() - began < 100_000, "never");
    }
    bed.clock.now_ms() - began
}

/// One namespace is at its byte limit, and stays there; another has forty volumes whose requests hang.
async fn trouble(bed: &Bed) {
    bed.a.put("full", "one");
    for nth in 0..FILL {
        assert_eq!(ask_for_more(bed, nth).await, "ok");
    }
    for nth in 0..40 {
        let (path, who) = (format!("hung{nth}"), pod("hung", &format!("p{nth}")));
        bed.a.answer(&path, Answer::Hang);
        let line = spec(&[&format!("x < a:{path}")]);
        drop(bed.begin(request_as(who, &path, &line)));
    }
    bed.clock.settle().await;
    assert_eq!(bed.a.running(), 8, "as many as one tenant may");
}

/// The full namespace wants another volume.
async fn ask_for_more(bed: &Bed, nth: usize) -> &'static str {
    let (who, id) = (pod("full", &format!("p{nth}")), format!("full{nth}"));
    code(&publish(bed, &who, &id, &spec(&["x < a:full"])).await)
}

async fn feel(with_trouble: bool) -> Felt {
    let bed = Bed::new();
    change(&bed, |settings| {
        settings.node_limits.bytes_per_namespace = ROOM;
    })
    .await;
    if with_trouble {
        trouble(&bed).await;
    }
    let more = async || {
        if with_trouble {
            assert_eq!(ask_for_more(&bed, FILL).await, "limit.exceeded");
        }
    };
    let mut felt = Felt {
        publishes: Vec::new(),
        rotations: Vec::new(),
    };
    for nth in 0..30 {
        more().await;
        felt.publishes.push(publish_ms(&bed, nth).await);
        bed.pass(3).await; // beyond the deadline of what hangs, and its probes
    }
    for round in 0..4 {
        for nth in 0..30 {
            let value = format!("round {round}");
            more().await;
            felt.rotations.push(rotation_ms(&bed, nth, &value).await);
        }
        bed.pass(30).await;
    }
    felt
}

#[tokio::test(start_paused = true)]
async fn a_full_and_a_hanging_neighbour_change_neither_publish_nor_rotation() {
    let (alone, among) = (feel(false).await, feel(true).await);
    let p99 = |times: &[u64]| {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        sorted[(sorted.len() - 1) * 99 / 100]
    };
    println!(
        "publish p99 {} -> {} ms, rotation p99 {} -> {} ms",
        p99(&alone.publishes),
        p99(&among.publishes),
        p99(&alone.rotations),
        p99(&among.rotations)
    );
    assert!(
        p99(&alone.publishes) <= 30 && p99(&alone.rotations) <= 300,
        "{alone:?}"
    );
    assert_eq!(alone, among);
}
