//! What a whole volume costs: time to publish and unpublish one, memory to hold many.

use std::{fs, path::Path};

use secretfs::{
    clock::{Clock, SystemClock},
    mount::Mounter,
};

use super::{Outcome, kubelet::AtomicWriter, ours, row::Row};

/// Publish and unpublish of a volume of two files of 1 KiB. B mounts a tmpfs, writes, and unmounts.
pub fn come_and_go(at: &Path, rounds: u64) -> Outcome<Vec<Row>> {
    let [a, b] = ["a", "b"].map(|side| at.join(format!("volume-{side}")));
    let (mounter, target, clock) = (ours::mounter(), ours::target(&a)?, SystemClock);
    let payload = ours::payload(2, 1024, 1);
    let (set, options) = (ours::snapshot(&payload, 1)?, ours::options(0)?);
    let (mut come, mut go, mut come_b, mut go_b) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        fs::create_dir(&a)?;
        let begun = clock.now();
        let mounted = mounter.publish(&target, &set, &options)?;
        come.push(clock.now().since(begun));
        drop(mounted);
        let begun = clock.now();
        mounter.unpublish(&target, true)?;
        go.push(clock.now().since(begun));

        fs::create_dir(&b)?;
        let begun = clock.now();
        let mut writer = AtomicWriter::mount(&b)?;
        writer.write(&payload)?;
        come_b.push(clock.now().since(begun));
        let begun = clock.now();
        writer.unmount()?;
        fs::remove_dir(&b)?;
        go_b.push(clock.now().since(begun));
    }
    let b = "B tmpfs + AtomicWriter";
    Ok(vec![
        Row::times("publish, 2 files", "A secretfs", &come),
        Row::times("publish, 2 files", b, &come_b),
        Row::times("unpublish, 2 files", "A secretfs (wipes)", &go),
        Row::times("unpublish, 2 files", b, &go_b),
    ])
}

/// What each of `volumes` volumes of two files takes: of our process, and of the kernel for its files.
pub fn memory(at: &Path, volumes: usize) -> Outcome<Vec<Row>> {
    let mounter = ours::mounter();
    let before = [resident()?, kernel()?, open_descriptors()?];
    let mut held = Vec::new();
    for number in 0..volumes {
        let path = at.join(format!("memory-{number}"));
        fs::create_dir(&path)?;
        let target = ours::target(&path)?;
        let set = ours::snapshot(&ours::payload(2, 1024, number as u64), 1)?;
        held.push((
            mounter.publish(&target, &set, &ours::options(number)?)?,
            target,
        ));
    }
    let now = [resident()?, kernel()?, open_descriptors()?];
    let each = |what: usize| vec![(now[what] as f64 - before[what] as f64) / volumes as f64];
    let mut files = Vec::new();
    for (mounted, _) in &held {
        files.push(mounted.usage()?.bytes as f64);
    }
    for (mounted, target) in held {
        drop(mounted);
        mounter.unpublish(&target, true)?;
    }
    let name = "held, for each volume of 2 files";
    Ok(vec![
        Row::of(name, "our process", "B", each(0)),
        Row::of(name, "its tmpfs", "B", files),
        Row::of(name, "kernel (whole machine)", "B", each(1)),
        Row::of(name, "descriptors", "", each(2)),
    ])
}

/// Bytes of memory of this process.
fn resident() -> Outcome<u64> {
    bytes_of(&fs::read_to_string("/proc/self/status")?, "VmRSS:")
}

/// Bytes that the kernel uses for its own structures: superblocks, inodes, mounts, but also those of everybody else.
fn kernel() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(bytes_of(&text, "Slab:")? + bytes_of(&text, "Percpu:")?)
}

/// The line of `text` that begins with `name`, in kB.
pub fn bytes_of(text: &str, name: &str) -> Outcome<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = number.ok_or_else(|| format!("no {name}"))?.parse()?;
    Ok(kib * 1024)
}

fn open_descriptors() -> Outcome<u64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64)
}
