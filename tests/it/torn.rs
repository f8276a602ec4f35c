//! Promise 2: a reader sees one generation, whole. Readers of nine kinds against a writer that never rests, on files that say
//! themselves whether they are whole; and the same readers against writers that are wrong on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use secretfs::{
    clock::{Clock, SystemClock},
    limits::{BYTES_PER_VOLUME, FILES_PER_VOLUME, OLD_GENERATION_MIN},
    mount::{MountOptions, Mounted, Mounter, VolumeId},
};

use crate::support::{
    broken::{Broken, How},
    content::{Fault, snapshot},
    kubelet_dir::KubeletDir,
    pace::{Pace, StopOnDrop},
    readers::{Kind, Reader},
};

/// What issue 3, point 4.7 asks for, of the kinds to which promise 2 applies.
const GENERATIONS: u64 = 2_000;
const READS_EACH: u64 = 20_000;
const READS: u64 = 200_000;
const DISTINCT: u64 = 100;
const SWAPS_PER_SECOND: f64 = 50.0;

/// How a run goes.
struct Plan<'a> {
    /// From one swap to the next; zero: as fast as the readers let it.
    period: Duration,
    /// One read in this many waits between two of its steps for the writer.
    straddle_one_in: u32,
    /// Whether the run is over, asked after each swap.
    enough: &'a dyn Fn(u64, &[Tally]) -> bool,
    /// By then it must be.
    at_most: Duration,
}

/// What one reader has seen.
#[derive(Clone, Default)]
struct Tally {
    reads: u64,
    /// Reads that waited in the middle.
    straddling: u64,
    /// Distinct generations, and the last of them.
    generations: u64,
    last: u64,
    faults: BTreeMap<Fault, u64>,
    /// Two files by two paths, of two generations.
    mismatches: u64,
    /// ENOENT after longer than the shortest life of an old generation, which is not promised.
    outlived: u64,
}

struct Report {
    tallies: Vec<Tally>,
    swaps: u64,
    took: Duration,
    /// Of each call of `replace`, sorted.
    replaced_in: Vec<Duration>,
}

impl Report {
    fn print(&self) {
        let at = |share: usize| self.replaced_in[(self.replaced_in.len() - 1) * share / 100];
        let per_second = self.swaps as f64 / self.took.as_secs_f64();
        println!(
            "{} swaps in {:.1?}, {per_second:.0}/s; each took {:.0?} (p50), {:.0?} (p99), {:.0?} (max)",
            self.swaps,
            self.took,
            at(50),
            at(99),
            at(100)
        );
        println!("reader      reads  straddling  generations  mismatches  outlived  faults");
        for (kind, tally) in Kind::ALL.iter().zip(&self.tallies) {
            println!(
                "{:<9} {:>7} {:>11} {:>12} {:>11} {:>9}  {:?}",
                format!("{kind:?}"),
                tally.reads,
                tally.straddling,
                tally.generations,
                tally.mismatches,
                tally.outlived,
                tally.faults
            );
        }
    }
}

/// Replaces the files of `mounted`, seen at `target`, until there is enough, with a reader of each kind beside.
fn run(mounted: &mut dyn Mounted, target: &Path, pace: &Pace, plan: &Plan<'_>) -> Report {
    let tallies: Vec<Mutex<Tally>> = Kind::ALL.iter().map(|_| Mutex::default()).collect();
    let one_in = plan.straddle_one_in;
    let (swaps, took, mut replaced_in) = thread::scope(|scope| {
        let _stop = StopOnDrop(pace);
        for (number, (kind, tally)) in Kind::ALL.into_iter().zip(&tallies).enumerate() {
            let reader = Reader::new(kind, target);
            scope.spawn(move || read_on(reader, number, tally, pace, one_in));
        }
        swap_on(mounted, pace, plan, &tallies)
    });
    replaced_in.sort_unstable();
    Report {
        tallies: copies(&tallies),
        swaps,
        took,
        replaced_in,
    }
}

fn swap_on(
    mounted: &mut dyn Mounted,
    pace: &Pace,
    plan: &Plan<'_>,
    tallies: &[Mutex<Tally>],
) -> (u64, Duration, Vec<Duration>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let clock = SystemClock;
    let (started, mut replaced_in) = (clock.now(), Vec::new());
    let first = mounted.generation().0;
    for swap in 1.. {
        let next = snapshot(first + swap, clock.wall());
        let due = started.after(plan.period * swap as u32);
        if due > clock.now() {
            runtime.block_on(clock.sleep_until(due));
        }
        pace.tick();
        let begun = clock.now();
        assert!(mounted.replace(&next).unwrap(), "generation {swap}");
        replaced_in.push(clock.now().since(begun));
        pace.tick();
        mounted.sweep(clock.now()); // as the volume's task does, on the machine's own time
        let took = clock.now().since(started);
        if (plan.enough)(swap, &copies(tallies)) {
            return (swap, took, replaced_in);
        }
        assert!(
            took < plan.at_most,
            "not enough after {took:?}, {swap} swaps"
        );
    }
    unreachable!()
}

fn read_on(mut reader: Reader<'_>, number: usize, tally: &Mutex<Tally>, pace: &Pace, one_in: u32) {
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut reads = 0;
    while let Some(began) = pace.turn(reads) {
        // Of two opens by two paths, how often chance alone puts a swap between them is the question.
        let straddle = reader.kind() != Kind::Separate && random.u32(..one_in) == 0;
        let begun = SystemClock.now();
        let result = reader.read(&mut || {
            if straddle {
                pace.straddle(number, began);
            }
        });
        let took = SystemClock.now().since(begun);
        reads += 1;
        {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.reads += 1;
            tally.straddling += u64::from(straddle);
            match result {
                Ok(seen) => {
                    tally.generations += u64::from(seen.generation > tally.last);
                    tally.last = seen.generation;
                    tally.mismatches += u64::from(seen.straddled);
                }
                Err(Fault::Missing) if took >= OLD_GENERATION_MIN => tally.outlived += 1,
                Err(fault) => *tally.faults.entry(fault).or_default() += 1,
            }
        }
        pace.pass(number, began);
    }
}

fn copies(tallies: &[Mutex<Tally>]) -> Vec<Tally> {
    tallies
        .iter()
        .map(|tally| tally.lock().unwrap_or_else(PoisonError::into_inner).clone())
        .collect()
}

/// The kinds to which promise 2 applies.
fn promised(tallies: &[Tally]) -> impl Iterator<Item = (Kind, &Tally)> {
    let all = Kind::ALL.into_iter().zip(tallies);
    all.filter(|(kind, _)| *kind != Kind::Separate)
}

fn enough(swaps: u64, tallies: &[Tally]) -> bool {
    let each = |tally: &Tally| tally.reads >= READS_EACH && tally.generations >= DISTINCT;
    swaps >= GENERATIONS
        && promised(tallies).all(|(_, tally)| each(tally))
        && promised(tallies).map(|(_, tally)| tally.reads).sum::<u64>() >= READS
}

// Goal: promise 2 on a real mount below a kubelet's directory, with the limits that a volume has by default: so the tmpfs grows, fills, and superseded
// generations have to go before their ten seconds, as they may.
// Method: more than 50 swaps a second, swept on the machine's own time; each tick of the writer lets every reader read.
#[test]
fn no_reader_sees_a_torn_missing_or_mixed_file() {
    let kubelet = KubeletDir::shared();
    let target = kubelet.target("torn");
    let options = MountOptions {
        volume: VolumeId::parse("torn").unwrap(),
        bytes_limit: BYTES_PER_VOLUME,
        files_limit: FILES_PER_VOLUME,
        context: None,
        make_target: true,
        grant: secretfs::mount::Grant::default(),
    };
    let mounter = kubelet.mounter(true);
    let first = snapshot(1, SystemClock.wall());
    let mut mounted = mounter.publish(&target, &first, &options).unwrap();
    let plan = Plan {
        period: Duration::from_millis(8),
        straddle_one_in: 16,
        enough: &enough,
        at_most: Duration::from_secs(120),
    };
    let pace = Pace::new(Kind::ALL.len());
    let report = run(&mut *mounted, target.as_path(), &pace, &plan);
    report.print();
    for (kind, tally) in promised(&report.tallies) {
        assert_eq!(tally.faults, BTreeMap::new(), "{kind:?}");
        assert!(tally.outlived * 1_000 < tally.reads, "{kind:?}");
    }
    let separate = &report.tallies[Kind::Separate as usize];
    assert_eq!(
        separate.faults,
        BTreeMap::new(),
        "each file by itself is whole"
    );
    let per_second = report.swaps as f64 / report.took.as_secs_f64();
    assert!(
        per_second >= SWAPS_PER_SECOND,
        "{per_second} swaps a second"
    );
    drop(mounted);
    mounter.unpublish(&target, true).unwrap();
}

// Goal: each reader kind can see what it is there for, or its zero in the test above says nothing.
// Method: each wrong way stops where it is half done until all readers were there. `must` see a fault; `cannot` see one,
// because what they read is whole; the others may, by chance.
#[test]
fn each_reader_sees_what_is_wrong_with_a_wrong_swap() {
    use Kind::*;
    let all = [ToEnd, Exact, Small, Mapped, Held, Listing, Pair, Walk];
    let by_path = [ToEnd, Exact, Small, Mapped, Listing, Pair, Walk];
    let whole = [ToEnd, Exact, Small, Mapped, Held, Walk];
    let mut caught = BTreeSet::new();
    for how in How::ALL {
        let (must, cannot): (&[Kind], &[Kind]) = match how {
            How::InPlace | How::Truncate => (&all, &[]),
            How::Recreate | How::HalfFilled => (&by_path, &[]),
            How::RemoveAtOnce => (&[Listing, Pair, Walk], &[]),
            How::FileByFile | How::CopyNew => (&[Listing, Pair], &whole),
        };
        let directory = tempfile::tempdir().unwrap();
        let pace = Pace::new(Kind::ALL.len());
        let first = snapshot(1, SystemClock.wall());
        let mut broken = Broken::publish(how, directory.path(), &first, &pace).unwrap();
        let seen_by = |kind: Kind, tallies: &[Tally]| !tallies[kind as usize].faults.is_empty();
        let plan = Plan {
            period: Duration::ZERO,
            straddle_one_in: 4,
            enough: &|swaps, tallies| {
                swaps >= 20 && must.iter().all(|kind| seen_by(*kind, tallies))
            },
            at_most: Duration::from_secs(60),
        };
        let report = run(&mut broken, directory.path(), &pace, &plan);
        for kind in all {
            let faults = &report.tallies[kind as usize].faults;
            println!("{how:?} {kind:?}: {faults:?} in {} swaps", report.swaps);
            assert!(
                !cannot.contains(&kind) || faults.is_empty(),
                "{how:?} {kind:?}: {faults:?}"
            );
        }
        caught.extend(must);
    }
    assert_eq!(
        caught,
        BTreeSet::from(all),
        "a reader that no wrong swap needs"
    );
}
