//! One swap of all files of a volume, ours against the kubelet's, taking turns.

use std::{fs, path::Path};

use secretfs::{
    clock::{Clock, SystemClock},
    mount::Mounter,
};

use super::{Outcome, kubelet::AtomicWriter, ours, row::Row};

/// Swaps of `files` files of 1 KiB, `rounds` of each.
pub fn run(at: &Path, name: &'static str, files: usize, rounds: u64) -> Outcome<Vec<Row>> {
    let [a, b] = ["a", "b"].map(|side| at.join(format!("swap-{files}-{side}")));
    fs::create_dir(&a)?;
    fs::create_dir(&b)?;
    let (mounter, target, clock) = (ours::mounter(), ours::target(&a)?, SystemClock);
    let first = ours::payload(files, 1024, 0);
    let mut mounted =
        mounter.publish(&target, &ours::snapshot(&first, 1)?, &ours::options(files)?)?;
    let mut writer = AtomicWriter::mount(&b)?;
    writer.write(&first)?;
    let mut later = ours::Later::new();
    let (mut by_us, mut swept, mut by_kubelet) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let payload = ours::payload(files, 1024, round);
        let next = ours::snapshot(&payload, round + 1)?;
        let begun = clock.now();
        mounted.replace(&next)?;
        by_us.push(clock.now().since(begun));
        swept.push(later.sweep(&mut *mounted));
        let begun = clock.now();
        writer.write(&payload)?;
        by_kubelet.push(clock.now().since(begun));
    }
    drop(mounted);
    mounter.unpublish(&target, true)?;
    writer.unmount()?;
    Ok(vec![
        Row::times(name, "A secretfs", &by_us),
        Row::times(name, "B kubelet AtomicWriter", &by_kubelet),
        Row::times(name, "A its sweep, 10 s later", &swept),
    ])
}
