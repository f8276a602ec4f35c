//! The benchmarks run and measure something, so that they are there when they are needed.

use std::collections::BTreeSet;

use crate::support::sandbox::Sandbox;

#[path = "../../benches/suite/mod.rs"]
mod suite;

#[test]
fn each_benchmark_has_samples_of_ours_and_cleans_up() {
    let sandbox = Sandbox::new();
    let rows = suite::run(sandbox.path(), None, true).unwrap();
    let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
    assert!(names.len() >= 6, "{names:?}");
    for row in &rows {
        assert!(
            row.samples > 0 && row.p50 <= row.p99 && row.p99 <= row.max,
            "{}",
            row.name
        );
        let timed = row.unit == "us" && row.name != "CPU at rest";
        assert!(!timed || row.p50 > 0.0, "{} {}", row.name, row.variant);
    }
    // what has no other side to compare it with
    let alone = [
        "held",
        "CSI republish",
        "calls on the mount",
        "memory of",
        "requests in",
        "wake-ups",
        "CPU",
    ];
    let compared = |name: &&&str| !alone.iter().any(|one| name.starts_with(one));
    for name in names.iter().filter(compared) {
        let sides = |side| {
            rows.iter()
                .any(|row| row.name == *name && row.variant.starts_with(side))
        };
        assert!(sides("A ") && sides("B "), "{name}");
    }
}
