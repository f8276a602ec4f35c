//! What counts: atomics that are added to without a lock, and read when somebody scrapes.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::table::{Bound, GRPC_CODES, METHODS};
use crate::error::{Code, codes};

/// A number that grows.
#[derive(Default, Debug)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub fn add(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How many took how long. Two additions for each; the number of all is the sum of the buckets, so that a scrape in between sees no
/// bucket above it.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [Bound],
    /// One for each bound, and one for what took longer.
    buckets: Box<[Count]>,
    nanos: AtomicU64,
}

impl Histogram {
    pub fn new(bounds: &'static [Bound]) -> Self {
        Self {
            bounds,
            buckets: counts(bounds.len() + 1),
            nanos: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let at = self.bounds.partition_point(|(bound, _)| *bound < nanos);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.add();
            self.nanos.fetch_add(nanos, Relaxed);
        }
    }

    /// How many took at most so long, for each bound and without one; and how long all took together.
    pub fn read(&self) -> (impl Iterator<Item = (&'static str, u64)>, Duration) {
        let bounds = self.bounds.iter().map(|(_, text)| *text);
        let mut so_far = 0;
        let cumulated = self.buckets.iter().map(move |bucket| {
            so_far += bucket.value();
            so_far
        });
        let nanos = Duration::from_nanos(self.nanos.load(Relaxed));
        (bounds.chain(["+Inf"]).zip(cumulated), nanos)
    }
}

pub(super) fn counts(len: usize) -> Box<[Count]> {
    (0..len).map(|_| Count::default()).collect()
}

/// One count for each code of errors.
#[derive(Debug)]
pub(super) struct Codes(Box<[Count]>);

impl Default for Codes {
    fn default() -> Self {
        Self(counts(codes::ALL.len()))
    }
}

impl Codes {
    pub fn of(&self, code: &Code) -> Option<&Count> {
        let at = codes::ALL.iter().position(|one| *one == code)?;
        self.0.get(at)
    }

    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = codes::ALL.iter().map(|code| code.name);
        names.zip(self.0.iter().map(Count::value))
    }
}

/// One histogram for each method and gRPC code, made at its first use: most are never needed.
#[derive(Debug)]
pub(super) struct Calls(Box<[OnceLock<Histogram>]>);

impl Calls {
    pub fn new() -> Self {
        let len = METHODS.len() * GRPC_CODES.len();
        Self((0..len).map(|_| OnceLock::new()).collect())
    }

    /// By the numbers of method and code.
    pub fn at(&self, method: usize, code: usize) -> Option<&OnceLock<Histogram>> {
        let code = Some(code).filter(|code| *code < GRPC_CODES.len())?;
        self.0.get(method * GRPC_CODES.len() + code)
    }
}
