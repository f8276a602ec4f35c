//! Volumes that share one source: from the put that changes it to the moment at which the last one's files are swapped.

use std::{collections::BTreeSet, mem::MaybeUninit, time::Duration};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use secretfs::clock::{Clock, SystemClock};

use super::{Outcome, calls, csi::Bed, row::Row};

/// `rounds` rotations of the volumes `numbers`, which are mounted. Goal: 50 ms for 100.
pub fn shared(bed: &Bed, numbers: &[usize], rounds: usize) -> Outcome<Vec<Row>> {
    let queue = inotify::init(CreateFlags::CLOEXEC)?;
    let mut watched = BTreeSet::new();
    for number in numbers {
        let target = calls::target(&bed.kubelet, *number);
        watched.insert(inotify::add_watch(&queue, target, WatchFlags::MOVED_TO)?);
    }
    let mut buffer = [MaybeUninit::uninit(); 64 << 10];
    let mut events = inotify::Reader::new(&queue, &mut buffer);
    let (mut all, mut alone): (Vec<Duration>, Vec<Duration>) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let begun = SystemClock.now();
        bed.put("bench/password", round)?;
        alone.push(SystemClock.now().since(begun));
        let mut waiting = watched.clone();
        while !waiting.is_empty() {
            let event = events.next()?; // a run that hangs here is ended from outside
            if event
                .file_name()
                .is_some_and(|name| name.to_bytes() == b"..data")
            {
                waiting.remove(&event.wd());
            }
        }
        all.push(SystemClock.now().since(begun));
    }
    Ok(vec![
        Row::times(
            "rotation of 100 volumes, one source",
            "A put -> last swap",
            &all,
        ),
        Row::times(
            "rotation of 100 volumes, one source",
            "B the put alone",
            &alone,
        ),
    ])
}
