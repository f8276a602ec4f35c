//! `kill -9` of the plugin at every moment that matters, and the next one on what it left.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use tonic::Status;

use crate::support::{
    kubelet::Volume,
    machine::{
        FILES, Machine, Reader, Shown, assert_complete, kill, mounts_at, put, shown, until_shows,
    },
    program::{Running, eventually},
};

/// Calls for all volumes at once; they end by themselves when the plugin dies.
fn at_once(
    machine: &Machine,
    volumes: &[Volume],
    is_publish: impl Fn(usize) -> bool,
    meanwhile: impl FnOnce(),
) -> Vec<Result<(), Status>> {
    let calls: Vec<_> = volumes
        .iter()
        .enumerate()
        .map(|(i, volume)| {
            let (kubelet, volume, publish) =
                (machine.kubelet.clone(), volume.clone(), is_publish(i));
            machine.node.runtime.spawn(async move {
                match publish {
                    true => kubelet.publish(&volume).await,
                    false => kubelet.unpublish(&volume).await,
                }
            })
        })
        .collect();
    meanwhile();
    let calls = calls.into_iter();
    calls
        .map(|call| machine.node.runtime.block_on(call).unwrap())
        .collect()
}

#[test]
fn killed_at_rest_the_next_one_goes_on_with_every_volume() {
    let machine = Machine::new();
    let volumes = machine.volumes(5);
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    let readers: Vec<_> = volumes.iter().map(|one| machine.reader(one)).collect();
    for number in 2..=4 {
        let before: Vec<_> = volumes.iter().map(|one| seen(&machine, one)).collect();
        match number {
            3 => running.stop(), // as an upgrade does
            _ => kill(&mut running),
        }
        running = machine.start(volumes.len());
        for volume in &volumes {
            machine.until(volume, "fresh");
        }
        let after: Vec<_> = volumes.iter().map(|one| seen(&machine, one)).collect();
        assert_eq!(after, before, "a volume that is current was touched");

        // nobody has called
        let put_at = Instant::now();
        machine.put_all(number);
        for (volume, reader) in volumes.iter().zip(&readers) {
            until_shows(volume, number);
            reader.until(number);
        }
        let took = put_at.elapsed();
        println!("all show {number} {took:?} after the first put");
        assert!(
            took < Duration::from_secs(10),
            "not before the next interval"
        );
        for (volume, before) in volumes.iter().zip(&before) {
            assert_eq!(shown(volume).mounts, before.0.mounts);
        }

        machine.settled(&volumes);
        let before: Vec<_> = volumes.iter().map(|one| seen(&machine, one)).collect();
        machine.publish_all(&volumes);
        let after: Vec<_> = volumes.iter().map(|one| seen(&machine, one)).collect();
        assert_eq!(after, before, "a republish has touched something");
    }
    readers.into_iter().for_each(Reader::end);
    machine.unpublish_all(&volumes);
    assert_eq!(machine.all_status().len(), 0);
    running.stop();
}

/// What must stay while nothing changes, and the generation that the plugin tells.
fn seen(machine: &Machine, volume: &Volume) -> (Shown, u64) {
    (shown(volume), machine.status(volume).unwrap().generation)
}

#[test]
fn one_that_waits_goes_on_where_a_killed_one_ended() {
    let machine = Machine::new();
    let volumes = machine.volumes(3);
    let mut first = machine.start(0);
    machine.publish_all(&volumes);
    let readers: Vec<_> = volumes.iter().map(|one| machine.reader(one)).collect();
    let mounts: Vec<_> = volumes.iter().map(mounts_at).collect();
    for number in 2..=3 {
        let mut second = machine.node.spawn();
        eventually("it waits", || {
            second.log().contains("waiting: another instance")
        });
        kill(&mut first);
        machine.put_all(number);
        second.first_line();
        let ready = &second.ready;
        assert!(
            ready.contains("3 volumes restored"),
            "{ready} {}",
            second.log()
        );
        for (volume, reader) in volumes.iter().zip(&readers) {
            until_shows(volume, number);
            reader.until(number);
        }
        first = second;
    }
    assert_eq!(volumes.iter().map(mounts_at).collect::<Vec<_>>(), mounts);
    readers.into_iter().for_each(Reader::end);
    machine.unpublish_all(&volumes);
    first.stop();
}

#[test]
fn killed_in_a_burst_of_changes_the_next_one_shows_the_last_of_them() {
    let machine = Machine::new();
    let volumes = machine.volumes(3);
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    let mounts: Vec<_> = volumes.iter().map(mounts_at).collect();
    let readers: Vec<_> = volumes.iter().map(|one| machine.reader(one)).collect();
    let (stop, last) = (AtomicBool::new(false), AtomicU64::new(1));
    let store = machine.store();
    thread::scope(|scope| {
        let putting = scope.spawn(|| {
            while !stop.load(SeqCst) {
                let number = last.fetch_add(1, SeqCst) + 1;
                FILES.iter().for_each(|name| put(&store, name, number));
            }
        });
        let stop = StopOnDrop(&stop);
        for _ in 0..5 {
            let seen = readers[0].newest();
            eventually("changes are shown", || readers[0].newest() > seen + 2);
            kill(&mut running);
            running = machine.start(volumes.len());
        }
        drop(stop);
        putting.join().unwrap();
    });
    let last = last.load(SeqCst);
    for (volume, reader) in volumes.iter().zip(&readers) {
        until_shows(volume, last);
        reader.until(last);
    }
    assert_eq!(volumes.iter().map(mounts_at).collect::<Vec<_>>(), mounts);
    readers.into_iter().for_each(Reader::end);
    machine.publish_all(&volumes);
    machine.unpublish_all(&volumes);
    running.stop();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// How many of them are mounted.
fn mounted(volumes: &[Volume]) -> usize {
    let is_mounted = |one: &&Volume| !mounts_at(one).is_empty();
    volumes.iter().filter(is_mounted).count()
}

#[test]
fn killed_in_sixteen_publishes_each_volume_is_whole_or_absent() {
    for at in [0, 1, 5, 11, 15, 16] {
        let machine = Machine::new();
        let volumes = machine.volumes(16);
        let mut running = machine.start(0);
        let mounted = || mounted(&volumes);
        let answers = at_once(
            &machine,
            &volumes,
            |_| true,
            || {
                eventually("so many mounts are there", || mounted() >= at);
                kill(&mut running);
            },
        );
        let before: Vec<_> = volumes.iter().map(mounts_at).collect();
        for ((volume, mounts), answer) in volumes.iter().zip(&before).zip(&answers) {
            if answer.is_ok() || !mounts.is_empty() {
                assert_complete(volume);
            }
        }
        let there = mounted();
        println!("killed at {at}: {there} mounted");
        let mut running = machine.start(there);
        assert_eq!(volumes.iter().map(mounts_at).collect::<Vec<_>>(), before);
        assert_eq!(machine.all_status().len(), there);
        machine.put_all(2);
        for (volume, _) in volumes
            .iter()
            .zip(&before)
            .filter(|(_, ids)| !ids.is_empty())
        {
            until_shows(volume, 2);
        }
        machine.publish_all(&volumes);
        for (volume, before) in volumes.iter().zip(&before) {
            assert_complete(volume);
            assert!(
                before.is_empty() || *before == mounts_at(volume),
                "mounted anew"
            );
        }
        machine.unpublish_all(&volumes);
        running.stop();
    }
}

#[test]
fn killed_in_unpublishes_the_next_one_ends_them() {
    for left in [16, 12, 5, 0] {
        let machine = Machine::new();
        let volumes = machine.volumes(16);
        let mut running = machine.start(0);
        machine.publish_all(&volumes);
        let mounted = || mounted(&volumes);
        let answers = at_once(
            &machine,
            &volumes,
            |_| false,
            || {
                eventually("so many mounts are left", || mounted() <= left);
                kill(&mut running);
            },
        );
        for (volume, answer) in volumes.iter().zip(&answers) {
            assert!(
                answer.is_err() || !volume.target.exists(),
                "answered, and there"
            );
        }
        let before: Vec<_> = volumes.iter().map(mounts_at).collect();
        println!("killed when {left} were left: {} are", mounted());
        let mut running = machine.start(mounted());
        assert_eq!(volumes.iter().map(mounts_at).collect::<Vec<_>>(), before);
        machine.unpublish_all(&volumes);
        running.stop();
    }
}

// --- at random

/// What the kubelet wants of a volume in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    Nothing,
    There,
    Gone,
}

#[test]
fn killed_anywhere_every_volume_is_whole_or_absent_and_a_republish_completes_it() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let machine = Machine::new();
    let volumes = machine.volumes(6);
    let mut running = machine.start(0);
    let mut number = 1;
    for round in 0..30 {
        machine.volumes(volumes.len()); // the kubelet's directories of those that went
        let wants: Vec<_> = volumes
            .iter()
            .map(|_| {
                *random
                    .choice(&[Want::Nothing, Want::There, Want::Gone])
                    .unwrap()
            })
            .collect();
        let before: Vec<_> = volumes.iter().map(mounts_at).collect();
        let after = Duration::from_micros(random.u64(0..25_000));
        println!("round {round}: {wants:?} killed after {after:?}");
        let asked: Vec<_> = (0..6).filter(|i| wants[*i] != Want::Nothing).collect();
        let called: Vec<_> = asked.iter().map(|i| volumes[*i].clone()).collect();
        let answers = at_once(
            &machine,
            &called,
            |i| wants[asked[i]] == Want::There,
            || {
                let from = Instant::now();
                while from.elapsed() < after {
                    number += 1;
                    machine.put(random.choice(FILES).unwrap(), number);
                }
                kill(&mut running);
            },
        );
        let mut answers = answers.into_iter();
        for ((volume, want), before) in volumes.iter().zip(&wants).zip(&before) {
            let answered = *want != Want::Nothing && answers.next().unwrap().is_ok();
            match want {
                Want::Nothing => assert_eq!(mounts_at(volume), *before),
                Want::There if answered || !mounts_at(volume).is_empty() => assert_complete(volume),
                Want::Gone if answered => assert!(!volume.target.exists()),
                Want::There | Want::Gone => {}
            }
        }
        running = after_a_kill(&machine, &volumes, &wants, &mut number);
    }
    machine.unpublish_all(&volumes);
    running.stop();
}

/// The next one goes on with what is there, and the kubelet gets what it wanted.
fn after_a_kill(
    machine: &Machine,
    volumes: &[Volume],
    wants: &[Want],
    number: &mut u64,
) -> Running {
    let before: Vec<_> = volumes.iter().map(mounts_at).collect();
    let there = before.iter().filter(|ids| !ids.is_empty()).count();
    let running = machine.start(there);
    *number += 1;
    machine.put_all(*number);
    for ((volume, want), before) in volumes.iter().zip(wants).zip(&before) {
        assert_eq!(mounts_at(volume), *before, "by a restart alone");
        if !before.is_empty() && *want != Want::Gone {
            until_shows(volume, *number);
        }
        match want {
            Want::Nothing => {}
            Want::There => {
                machine.publish(volume).unwrap();
                assert_complete(volume);
                assert!(
                    before.is_empty() || mounts_at(volume) == *before,
                    "mounted anew"
                );
            }
            Want::Gone => {
                machine.unpublish(volume).unwrap();
                assert!(!volume.target.exists());
            }
        }
    }
    running
}
