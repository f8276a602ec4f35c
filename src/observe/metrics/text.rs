//! Prometheus' text format, version 0.0.4.
//!
//! Written by hand: the maintained library (prometheus-client) writes OpenMetrics, whose names of counters and whose type `info` a
//! reader of this format takes for mistakes (`promtool check metrics` refuses both).

use std::fmt::{Display, Write as _};

use super::{
    cells::Histogram,
    table::{Kind, Metric},
};

/// What `Content-Type` says of it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// An answer that is being written.
#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a metric; its samples follow.
    pub fn family(&mut self, metric: &'static Metric) -> Family<'_> {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let (name, help) = (metric.name, metric.help);
        // nothing that is written to a String fails
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: self, metric }
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

/// One metric of it.
pub(super) struct Family<'t> {
    text: &'t mut Text,
    metric: &'static Metric,
}

impl Family<'_> {
    /// One sample. `labels` are the values of the metric's labels, in their order.
    pub fn sample(&mut self, labels: &[&str], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// All samples of a histogram.
    pub fn histogram(&mut self, labels: &[&str], histogram: &Histogram) {
        let (buckets, sum) = histogram.read();
        let mut count = 0;
        for (bound, so_far) in buckets {
            self.line("_bucket", labels, Some(bound), so_far);
            count = so_far;
        }
        self.line("_sum", labels, None, sum.as_secs_f64());
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: impl Display) {
        debug_assert_eq!(labels.len(), self.metric.labels.len());
        let out = &mut self.text.0;
        let _ = write!(out, "{}{suffix}", self.metric.name);
        let names = self.metric.labels.iter().map(|label| label.name);
        let pairs = names.zip(labels.iter().copied());
        let pairs = pairs.chain(bound.map(|bound| ("le", bound)));
        for (nth, (name, value)) in pairs.enumerate() {
            out.push_str(if nth == 0 { "{" } else { "," });
            let _ = write!(out, "{name}=\"");
            value.chars().for_each(|c| escape(out, c));
            out.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            out.push('}');
        }
        let _ = writeln!(out, " {value}");
    }
}

fn escape(out: &mut String, c: char) {
    match c {
        '\\' => out.push_str("\\\\"),
        '"' => out.push_str("\\\""),
        '\n' => out.push_str("\\n"),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::table, *};

    #[test]
    fn a_labels_value_cannot_end_its_line() {
        let mut text = Text::default();
        let hostile = "a\"} 1\nx{y=\"\\";
        text.family(&table::BUILD_INFO).sample(&[hostile, "c"], 1);
        let text = text.into_string();
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            r#"secretfs_build_info{version="a\"} 1\nx{y=\"\\",commit="c"} 1"#
        );
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket_and_buckets_add_up() {
        let histogram = Histogram::new(table::SWAPS);
        for nanos in [0, 500_000, 500_001, 1_000_000, 5_000_000_000, 5_000_000_001] {
            histogram.observe(Duration::from_nanos(nanos));
        }
        let mut text = Text::default();
        let mut family = text.family(&table::ROTATION_DURATION);
        family.histogram(&[], &histogram);
        let text = text.into_string();
        let name = table::ROTATION_DURATION.name;
        for (sample, value) in [
            ("_bucket{le=\"0.0005\"}", "2"),
            ("_bucket{le=\"0.001\"}", "4"),
            ("_bucket{le=\"2.5\"}", "4"),
            ("_bucket{le=\"5\"}", "5"),
            ("_bucket{le=\"+Inf\"}", "6"),
            ("_count", "6"),
            ("_sum", "10.002000002"),
        ] {
            let line = format!("\n{name}{sample} {value}\n");
            assert!(text.contains(&line), "no {line:?} in {text}");
        }
    }

    #[test]
    fn bounds_rise_and_are_written_as_they_are() {
        for bounds in [table::REQUESTS, table::SWAPS] {
            assert!(bounds.is_sorted_by(|one, next| one.0 < next.0));
            for (nanos, text) in bounds {
                let seconds: f64 = text.parse().unwrap();
                assert_eq!(
                    Duration::from_secs_f64(seconds).as_nanos(),
                    u128::from(*nanos)
                );
            }
        }
    }
}
