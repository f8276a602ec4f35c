//! All benchmarks, each a function that gives rows. Used by the binary, and with a few rounds by a test.

mod calls;
mod csi;
mod floor;
mod kubelet;
mod latency;
mod openbao;
mod ours;
mod rest;
mod rotation;
mod row;
mod swap;
mod vault;
mod volume;

use std::{fs, path::Path, time::Duration};

pub use row::Row;

/// Any failure ends the run.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs all of them, or the suite `only`, below the directory `at`, in mounts that the caller's namespace keeps to itself.
/// `quick`: a few rounds of each, which shows that they run and measures nothing.
pub fn run(at: &Path, only: Option<&str>, quick: bool) -> Outcome<Vec<Row>> {
    let rounds = |full: u64| if quick { 5 } else { full };
    let asked = |suite: &str| only.is_none_or(|only| only == suite);
    let (mut rows, mut memory) = (Vec::new(), Vec::new());
    if asked("volume") {
        memory = volume::memory(at, rounds(200) as usize)?; // first: later, freed memory would hide what it takes
    }
    if asked("swap") {
        rows.extend(swap::run(at, "swap of 3 files", 3, rounds(3_000))?);
        rows.extend(swap::run(at, "swap of 100 files", 100, rounds(300))?);
    }
    if asked("latency") {
        rows.extend(latency::from_swap(at, rounds(1_000))?);
        rows.extend(latency::from_store(at, rounds(200))?);
    }
    if asked("volume") {
        rows.extend(volume::come_and_go(at, rounds(500))?);
        rows.extend(memory);
    }
    if asked("csi") {
        rows.extend(csi::run(at, rounds(200) as usize, rounds(50) as usize)?);
    }
    if asked("rest") {
        let rest = Duration::from_millis(if quick { 100 } else { 20_000 });
        rows.extend(rest::run(at, rounds(500) as usize, rest)?);
    }
    if asked("vault") && openbao::is_there(only.is_some())? {
        rows.extend(vault::run(at, quick)?);
    }
    if rows.is_empty() {
        return Err("--only: there is no such suite".into());
    }
    left_behind(at)?;
    match rows.iter().find(|row| !row.p50.is_finite()) {
        Some(row) => Err(format!("{} {}: no samples", row.name, row.variant).into()),
        None => Ok(rows),
    }
}

/// Everything that was mounted must be gone.
fn left_behind(at: &Path) -> Outcome<()> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let at = at
        .to_str()
        .ok_or("the temporary directory's name is not text")?;
    match mounts.lines().find(|line| line.contains(at)) {
        Some(line) => Err(format!("left behind: {line}").into()),
        None => Ok(()),
    }
}
