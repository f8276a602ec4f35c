//! Reads an answer of `/metrics` as a scraper does, and holds it against the table of metrics.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use secretfs::observe::metrics::table::{self, Kind, Metric};

/// One answer.
#[derive(Clone, PartialEq, Debug)]
pub struct Scraped {
    /// Value by name and labels, these as written: `{a="1",b="2"}`, or "".
    pub samples: BTreeMap<(String, String), f64>,
    /// Type and help by name.
    pub families: BTreeMap<String, (String, String)>,
}

impl Scraped {
    /// Reads it; each line must be as the format has it, and each sample of the family that stands above it.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
        let (mut help, mut family) = (String::new(), String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, says) = rest.split_once(' ').unwrap();
                (family, help) = (name.to_owned(), says.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family, "{line}");
                let told = (kind.to_owned(), help.clone());
                assert!(families.insert(name.to_owned(), told).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let at = series.find('{').unwrap_or(series.len());
                let (name, labels) = series.split_at(at);
                assert!(name.starts_with(&family), "{line} below {family}");
                let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
                let key = (name.to_owned(), labels.to_owned());
                assert!(samples.insert(key, value).is_none(), "twice: {line}");
            }
        }
        Self { samples, families }
    }

    /// A sample that may not be there.
    pub fn find(&self, series: &str) -> Option<f64> {
        let at = series.find('{').unwrap_or(series.len());
        let (name, labels) = series.split_at(at);
        let key = (name.to_owned(), labels.to_owned());
        self.samples.get(&key).copied()
    }

    /// A sample, written as it stands in the text.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        self.find(series)
            .unwrap_or_else(|| panic!("no {series} in {:#?}", self.samples))
    }

    /// What is more than in `before`, of samples that only grow: `series +n`, sorted. Buckets and sums are left out.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let counted = |name: &str| name.ends_with("_total") || name.ends_with("_count");
        let more = self.samples.iter().filter_map(|((name, labels), value)| {
            let old = before.samples.get(&(name.clone(), labels.clone()));
            let more = value - old.unwrap_or(&0.0);
            let name = name.strip_prefix("secretfs_").unwrap_or(name);
            (counted(name) && more != 0.0).then(|| format!("{name}{labels} +{more}"))
        });
        more.collect()
    }

    /// Every metric of the table is there, with its type and help; every sample is of the table, with exactly its labels and values that
    /// they may have; and the buckets of each histogram add up.
    #[track_caller]
    pub fn is_of_the_table(&self) {
        for metric in table::ALL {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram(_) => "histogram",
            };
            let expect = (kind.to_owned(), metric.help.to_owned());
            assert_eq!(
                self.families.get(metric.name),
                Some(&expect),
                "{}",
                metric.name
            );
        }
        assert_eq!(self.families.len(), table::ALL.len());
        for (name, labels) in self.samples.keys() {
            let (metric, suffix) = metric_of(name);
            check_labels(metric, suffix, labels);
            if suffix == "_count" {
                self.adds_up(metric, labels);
            }
        }
    }

    #[track_caller]
    fn adds_up(&self, metric: &Metric, labels: &str) {
        let Kind::Histogram(bounds) = metric.kind else {
            panic!("{} is no histogram", metric.name);
        };
        let inner = labels.trim_matches(['{', '}']);
        let comma = if inner.is_empty() { "" } else { "," };
        let all = bounds.iter().map(|(_, text)| *text).chain(["+Inf"]);
        let buckets: Vec<f64> = all
            .map(|le| {
                self.value(&format!(
                    "{}_bucket{{{inner}{comma}le=\"{le}\"}}",
                    metric.name
                ))
            })
            .collect();
        assert!(buckets.is_sorted(), "{} {labels}", metric.name);
        let count = self.value(&format!("{}_count{labels}", metric.name));
        assert_eq!(buckets.last(), Some(&count));
        assert!(self.value(&format!("{}_sum{labels}", metric.name)) >= 0.0);
    }
}

fn metric_of(sample: &str) -> (&'static Metric, &'static str) {
    let of = |metric: &&'static Metric| match metric.kind {
        Kind::Histogram(_) => ["_bucket", "_sum", "_count"]
            .into_iter()
            .find(|suffix| sample.strip_suffix(suffix) == Some(metric.name))
            .map(|suffix| (*metric, suffix)),
        Kind::Counter | Kind::Gauge => (metric.name == sample).then_some((*metric, "")),
    };
    let found = table::ALL.iter().find_map(of);
    found.unwrap_or_else(|| panic!("{sample} is not in the table"))
}

#[track_caller]
fn check_labels(metric: &Metric, suffix: &str, labels: &str) {
    let mut expect: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
    expect.extend((suffix == "_bucket").then_some("le"));
    let pairs: Vec<(&str, &str)> = labels
        .trim_matches(['{', '}'])
        .split_terminator(',')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect();
    let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expect, "labels of {}", metric.name);
    for (label, (_, value)) in metric.labels.iter().zip(&pairs) {
        let good = label.values.have(value);
        assert!(good, "{}{{{}=\"{value}\"}}", metric.name, label.name);
    }
}

/// `promtool check metrics` must have nothing to say. It is in Debian's `prometheus`; without `CI` a machine may lack it.
#[track_caller]
pub fn passes_promtool(text: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match promtool {
        Ok(child) => child,
        Err(error) => {
            let ci = std::env::var_os("CI").is_some();
            assert!(!ci, "promtool (Debian: prometheus) cannot be run: {error}");
            eprintln!("SKIPPED: promtool (Debian: prometheus) cannot be run: {error}");
            return;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let says = [output.stdout, output.stderr].concat();
    let says = String::from_utf8_lossy(&says);
    assert!(output.status.success() && says.is_empty(), "{says}");
}
