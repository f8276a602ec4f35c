//! As much of PromQL as is needed to know what a query asks for: selectors with their matchers, and lists of labels.

use secretfs::{
    error::codes,
    observe::metrics::table::{self, Kind, Metric, Values},
};

/// Labels that Prometheus gives each sample.
const TARGET_LABELS: &[&str] = &["instance", "job"];
/// Words that are not metrics. A query that needs another one adds it here.
const WORDS: &[&str] = &[
    "absent",
    "and",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "or",
    "rate",
    "sum",
    "time",
    "vector",
];
/// Words before a list of labels.
const BEFORE_LABELS: &[&str] = &["by", "ignoring", "on"];
const SUFFIXES: &[&str] = &["_bucket", "_count", "_sum"];

pub struct Query {
    selectors: Vec<Selector>,
    /// The labels of `by`, `on` and `ignoring`.
    listed: Vec<String>,
    /// Of them, those of `by`: what is left in the result.
    kept: Vec<String>,
    unknown: Vec<String>,
}

struct Selector {
    name: String,
    matchers: Vec<Matcher>,
}

struct Matcher {
    label: String,
    operator: String,
    value: String,
}

impl Query {
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let mut query = Self {
            selectors: Vec::new(),
            listed: Vec::new(),
            kept: Vec::new(),
            unknown: Vec::new(),
        };
        let mut rest = Rest(text.trim());
        while !rest.0.is_empty() {
            if rest.eat("[") {
                rest.until(']').ok_or("a range without its end")?;
                continue;
            }
            let word = rest.word();
            if word.is_empty() {
                rest.skip();
            } else if BEFORE_LABELS.contains(&word) {
                let labels = rest.labels().ok_or("a list of labels without its end")?;
                if word == "by" {
                    query.kept.extend(labels.iter().cloned());
                }
                query.listed.extend(labels);
            } else if word.starts_with("secretfs_") || word == "up" {
                let name = word.to_owned();
                let matchers = rest.matchers().ok_or("a selector without its end")?;
                query.selectors.push(Selector { name, matchers });
            } else if !WORDS.contains(&word) && !word.starts_with(|c: char| c.is_ascii_digit()) {
                query.unknown.push(word.to_owned());
            }
        }
        Ok(query)
    }

    /// The metrics of the table that it asks for.
    pub fn metrics(&self) -> Vec<&'static str> {
        let found = self.selectors.iter().filter_map(Selector::metric);
        found.map(|(metric, _)| metric.name).collect()
    }

    /// Whether its result can have this label.
    pub fn has_label(&self, label: &str) -> bool {
        match &*self.kept {
            [] => self.knows(label),
            kept => kept.iter().any(|one| one == label),
        }
    }

    fn knows(&self, label: &str) -> bool {
        TARGET_LABELS.contains(&label) || self.selectors.iter().any(|one| one.has_label(label))
    }

    pub fn problems(&self) -> Vec<String> {
        let mut found: Vec<String> = self.selectors.iter().flat_map(Selector::problems).collect();
        let unknown = self.unknown.iter();
        found.extend(unknown.map(|word| format!("neither a metric of ours nor a word: {word}")));
        let missing = self.listed.iter().filter(|label| !self.knows(label));
        found.extend(missing.map(|label| format!("no label `{label}`")));
        found
    }
}

impl Selector {
    /// The row of the table, and the suffix of a histogram's series.
    fn metric(&self) -> Option<(&'static Metric, &'static str)> {
        table::ALL.iter().find_map(|metric| {
            let suffix = self.name.strip_prefix(metric.name)?;
            if suffix.is_empty() {
                return Some((*metric, ""));
            }
            let histogram = matches!(metric.kind, Kind::Histogram(_));
            let suffix = SUFFIXES.iter().find(|known| **known == suffix)?;
            histogram.then_some((*metric, *suffix))
        })
    }

    fn has_label(&self, label: &str) -> bool {
        self.metric().is_some_and(|(metric, suffix)| {
            metric.labels.iter().any(|one| one.name == label)
                || (suffix == "_bucket" && label == "le")
        })
    }

    fn problems(&self) -> Vec<String> {
        let name = &self.name;
        if name == "up" {
            let ours = self
                .matchers
                .iter()
                .any(|one| one.label == "job" && one.operator == "=" && one.value == "secretfs");
            return if ours {
                vec![]
            } else {
                vec!["`up` without our job".to_owned()]
            };
        }
        let Some((metric, suffix)) = self.metric() else {
            return vec![format!("no metric `{name}`")];
        };
        let mut found = Vec::new();
        if matches!(metric.kind, Kind::Histogram(_)) && suffix.is_empty() {
            found.push(format!("`{name}` is a histogram"));
        }
        for matcher in &self.matchers {
            let label = &matcher.label;
            if TARGET_LABELS.contains(&&**label) {
                continue;
            }
            let Some(known) = metric.labels.iter().find(|one| one.name == label) else {
                if !self.has_label(label) {
                    found.push(format!("`{name}` has no label `{label}`"));
                }
                continue;
            };
            let never = matcher.values().into_iter();
            let never = never.filter(|value| !can_be(known.values, value));
            found.extend(never.map(|value| format!("`{label}` is never `{value}`")));
        }
        found
    }
}

/// Whether the label can have this value; one that ends in `*` stands for all that begin so.
fn can_be(values: Values, value: &str) -> bool {
    let Some(start) = value.strip_suffix('*') else {
        return values.have(value);
    };
    match values {
        Values::These(all) => all.iter().any(|one| one.starts_with(start)),
        _ => codes::ALL.iter().any(|code| code.name.starts_with(start)),
    }
}

impl Matcher {
    /// The values that it names: of a regular expression all alternatives, with `.*` at an end as `*`.
    fn values(&self) -> Vec<String> {
        if !self.operator.ends_with('~') {
            return vec![self.value.clone()];
        }
        let plain = self.value.replace("\\\\.", "\0").replace(".*", "*");
        let expanded = alternatives(&plain);
        expanded
            .into_iter()
            .map(|one| one.replace('\0', "."))
            .collect()
    }
}

/// `a(b|c)d|e` as `abd`, `acd`, `e`.
fn alternatives(pattern: &str) -> Vec<String> {
    let mut depth = 0;
    let parts = pattern.split(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == '|' && depth == 0
    });
    let mut all = Vec::new();
    for part in parts {
        match part
            .split_once('(')
            .and_then(|(head, rest)| Some((head, rest.split_once(')')?)))
        {
            None => all.push(part.to_owned()),
            Some((head, (inner, tail))) => {
                for middle in alternatives(inner) {
                    all.extend(alternatives(&format!("{head}{middle}{tail}")));
                }
            }
        }
    }
    all
}

/// What is left to read.
struct Rest<'t>(&'t str);

impl<'t> Rest<'t> {
    /// Takes `what` and the space after it, if it comes next.
    fn eat(&mut self, what: &str) -> bool {
        let found = self.0.strip_prefix(what);
        self.0 = found.unwrap_or(self.0).trim_start();
        found.is_some()
    }

    /// One character.
    fn skip(&mut self) {
        let mut rest = self.0.chars();
        rest.next();
        self.0 = rest.as_str().trim_start();
    }

    fn word(&mut self) -> &'t str {
        let ends = |c: char| !(c.is_ascii_alphanumeric() || "_:.".contains(c));
        let end = self.0.find(ends).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest.trim_start();
        word
    }

    fn until(&mut self, end: char) -> Option<&'t str> {
        let (found, rest) = self.0.split_once(end)?;
        self.0 = rest.trim_start();
        Some(found)
    }

    /// `(a, b)`.
    fn labels(&mut self) -> Option<Vec<String>> {
        let inside = self.eat("(").then(|| self.until(')'))??;
        let labels = inside
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty());
        Some(labels.map(str::to_owned).collect())
    }

    /// `{a="b", c=~"d"}`, or nothing.
    fn matchers(&mut self) -> Option<Vec<Matcher>> {
        let mut all = Vec::new();
        if !self.eat("{") {
            return Some(all);
        }
        while !self.eat("}") {
            let label = self.word().to_owned();
            let operator = ["=~", "!~", "!=", "="]
                .into_iter()
                .find(|one| self.eat(one))?;
            let value = self.eat("\"").then(|| self.until('"'))??;
            self.eat(",");
            all.push(Matcher {
                label,
                operator: operator.to_owned(),
                value: value.to_owned(),
            });
        }
        Some(all)
    }
}
