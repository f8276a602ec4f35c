//! Samples become rows.

use std::time::Duration;

/// What one measurement of one variant gave.
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// Which way of doing it: ours first.
    pub variant: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// How many samples.
    pub samples: usize,
    /// Half of the samples are at most this.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// All are.
    pub max: f64,
}

impl Row {
    /// Of durations, in microseconds.
    pub fn times(name: &'static str, variant: &'static str, samples: &[Duration]) -> Self {
        let micros = samples.iter().map(|time| time.as_secs_f64() * 1e6);
        Self::of(name, variant, "us", micros.collect())
    }

    /// Of any numbers; none is an error of the benchmark, and shows as NaN.
    pub fn of(
        name: &'static str,
        variant: &'static str,
        unit: &'static str,
        mut samples: Vec<f64>,
    ) -> Self {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let last = samples.len().saturating_sub(1) as f64;
            let rank = (last * share).round() as usize;
            samples.get(rank).copied().unwrap_or(f64::NAN)
        };
        Self {
            name,
            variant,
            unit,
            samples: samples.len(),
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}
