//! Time as machines know it: they sleep, and their wall clock is set.

use std::time::Duration;

use super::{small, world::World};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_suspend_of_eight_hours_is_followed_by_a_look_at_everything() {
    let mut due = 0;
    for seed in 0..10 {
        let mut world = World::new(seed, small());
        world.heal();
        let from = world.now.after(HOUR * 10);
        let until = from.after(HOUR * 8);
        world.suspends = vec![(from, until)];
        let slept = world.until(until.after(Duration::from_secs(30))).unwrap();
        assert_eq!(slept.figures.suspends, 1, "seed {seed}");
        for source in &slept.sources {
            // intervals are an hour at most, doubled for some volumes: all have passed, and all are current half a minute on
            // but for whose token had gone stale in the sleep: they wait for a fresh one
            let excused = source.seen.excused_until > Some(until);
            let wanted = source.seen.wanted_since < Some(from);
            if source.seen.interval.is_some() && wanted && !excused {
                due += 1;
                assert!(
                    source.seen.ok_at > Some(until),
                    "seed {seed}: {} was last current at {:?}",
                    source.key.object,
                    source.seen.ok_at
                );
            }
        }
    }
    assert!(due > 60, "only {due} sources in ten worlds");
}

#[test]
fn the_wall_clock_set_an_hour_forward_or_back_changes_nothing() {
    for seed in 0..10 {
        let run = |step: i64| {
            let mut world = World::new(seed, small());
            let end = world.now.after(HOUR * 24);
            for one in &mut world.wall_steps {
                one.1 = step;
            }
            let ended = world.until(end).unwrap();
            (ended.trace, ended.wall)
        };
        let (quiet, wall) = run(0);
        for step in [3_600_000, -3_600_000] {
            let (trace, stepped) = run(step);
            assert_eq!(stepped.as_millis() - wall.as_millis(), step, "it was set");
            assert_eq!(trace, quiet, "seed {seed}, step {step}");
        }
        let mut slept = World::new(seed, small());
        let end = slept.now.after(HOUR * 24);
        slept.suspends = vec![(slept.now, slept.now.after(HOUR))];
        let slept = slept.until(end).unwrap();
        assert_ne!(slept.trace, quiet, "the trace does notice a sleep");
    }
}
