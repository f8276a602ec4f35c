//! All benchmarks, each a function that gives rows. Used by the binary, and with a few rounds by a test.

mod kubelet;
mod latency;
mod ours;
mod row;
mod swap;
mod volume;

use std::{fs, path::Path};

pub use row::Row;

/// Any failure ends the run.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs all of them below the directory `at`, in mounts that the caller's namespace keeps to itself. `quick`: a few rounds of
/// each, which shows that they run and measures nothing.
pub fn run(at: &Path, quick: bool) -> Outcome<Vec<Row>> {
    let rounds = |full: u64| if quick { 5 } else { full };
    let memory = volume::memory(at, rounds(200) as usize)?; // first: later, freed memory would hide what it takes
    let mut rows = swap::run(at, "swap of 3 files", 3, rounds(3_000))?;
    rows.extend(swap::run(at, "swap of 100 files", 100, rounds(300))?);
    rows.extend(latency::from_swap(at, rounds(1_000))?);
    rows.extend(latency::from_store(at, rounds(200))?);
    rows.extend(volume::come_and_go(at, rounds(500))?);
    rows.extend(memory);
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
