//! The alert rules and the dashboard of deploy/monitoring against the table of metrics: every name, label and value in a query exists.
//! That the rules are valid and fire when they should is `promtool`'s part: `tests/run monitoring`.

mod query;

use std::{collections::BTreeSet, fs, path::Path};

use secretfs::{
    observe::metrics::table,
    spec::Problems,
    yaml::{self, Node, Value},
};
use serde_json::Value as Json;

use query::Query;

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a key of a mapping.
fn key<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Mapping(entries) = &node.value else {
        panic!("{name}: not a mapping at {:?}", node.at);
    };
    let found = entries.iter().find(|(key, _)| key.text == name);
    found.map(|(_, value)| value)
}

fn text(node: &Node, name: &str) -> String {
    let value = key(node, name).and_then(Node::scalar);
    let value = value.unwrap_or_else(|| panic!("no text `{name}` at {:?}", node.at));
    value.text.clone()
}

fn list<'n>(node: &'n Node, name: &str) -> &'n [Node] {
    match key(node, name).map(|node| &node.value) {
        Some(Value::Sequence(items)) => items,
        None => &[],
        Some(_) => panic!("`{name}` is not a list"),
    }
}

fn parsed(name: &str) -> Node {
    let mut problems = Problems::default();
    let node = yaml::parse(&file(name), &mut problems);
    node.unwrap_or_else(|| panic!("{name}: {:?}", problems.sorted()))
}

struct Alert {
    name: String,
    query: String,
    severity: String,
    /// summary, description, runbook_url
    annotations: [String; 3],
}

fn alerts() -> Vec<Alert> {
    let rules = parsed("deploy/monitoring/alerts.yaml");
    let rules = list(&rules, "groups")
        .iter()
        .flat_map(|group| list(group, "rules"));
    let alert = |rule: &Node| {
        let annotations = key(rule, "annotations").expect("annotations");
        Alert {
            name: text(rule, "alert"),
            query: text(rule, "expr"),
            severity: text(key(rule, "labels").expect("labels"), "severity"),
            annotations: ["summary", "description", "runbook_url"]
                .map(|name| text(annotations, name)),
        }
    };
    rules.map(alert).collect()
}

fn dashboard() -> Json {
    serde_json::from_str(&file("deploy/monitoring/dashboard.json")).unwrap()
}

/// (Where, query, legend) of each query of the dashboard.
fn dashboard_queries() -> Vec<(String, String, String)> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}: no query");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let part = |key: &str| target[key].as_str().unwrap().to_owned();
            found.push((title.to_owned(), part("expr"), part("legendFormat")));
        }
    }
    found
}

/// What stands between `open` and the next `close`, each time.
fn between<'t>(text: &'t str, open: &str, close: &str) -> Vec<&'t str> {
    let parts = text.split(open).skip(1);
    parts
        .map(|part| part.split(close).next().unwrap_or(part).trim())
        .collect()
}

#[test]
fn every_query_of_an_alert_asks_for_what_exists() {
    for alert in alerts() {
        let query = Query::read(&alert.query).unwrap();
        assert_eq!(query.problems(), [""; 0], "{}: {}", alert.name, alert.query);
        for text in &alert.annotations {
            for part in between(text, "$labels.", " ") {
                let label = part.trim_end_matches(['}', ',', '.', ')']);
                assert!(query.has_label(label), "{}: {label}", alert.name);
            }
        }
    }
}

#[test]
fn every_query_of_the_dashboard_asks_for_what_exists() {
    for (title, text, legend) in dashboard_queries() {
        let query = Query::read(&text).unwrap_or_else(|why| panic!("{title}: {why}: {text}"));
        assert_eq!(query.problems(), [""; 0], "{title}: {text}");
        assert!(
            text.contains(r#"instance=~"$node""#),
            "{title}: not of the chosen nodes"
        );
        for label in between(&legend, "{{", "}}") {
            assert!(query.has_label(label), "{title}: legend {label}");
        }
    }
    let variables = &dashboard()["templating"]["list"];
    let node = variables.as_array().unwrap();
    let node = node.iter().find(|one| one["name"] == "node").unwrap();
    let definition = node["definition"].as_str().unwrap();
    assert_eq!(
        definition,
        format!("label_values({}, instance)", table::BUILD_INFO.name)
    );
}

#[test]
fn every_metric_is_looked_at() {
    let queries = alerts().into_iter().map(|alert| alert.query);
    let queries = queries.chain(dashboard_queries().into_iter().map(|(_, query, _)| query));
    let asked: BTreeSet<&str> = queries
        .flat_map(|text| Query::read(&text).unwrap().metrics())
        .collect();
    let all: BTreeSet<&str> = table::ALL.iter().map(|metric| metric.name).collect();
    assert_eq!(asked, all);
}

#[test]
fn every_alert_says_what_to_do_and_has_a_unit_test() {
    let page = file("docs/monitoring.md");
    let sections: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### Secretfs"))
        .collect();
    let tests = parsed("deploy/monitoring/alerts_test.yaml");
    let alerts = alerts();
    for alert in &alerts {
        let name = &alert.name;
        assert!(
            ["critical", "warning"].contains(&&*alert.severity),
            "{name}"
        );
        let [summary, description, runbook] = &alert.annotations;
        assert!(
            summary.len() < 100 && description.len() > summary.len(),
            "{name}"
        );
        assert_eq!(
            *runbook,
            format!("docs/monitoring.md#{}", name.to_lowercase())
        );
        let short = name.strip_prefix("Secretfs").unwrap();
        assert!(
            sections.contains(&short),
            "docs/monitoring.md has no section {name}"
        );

        // promtool runs it; here it is counted: once it must fire, once it must not
        let samples = list(&tests, "tests")
            .iter()
            .filter(|test| text(test, "name") == *name)
            .flat_map(|test| list(test, "promql_expr_test"))
            .map(|expected| list(expected, "exp_samples").len());
        let samples: BTreeSet<bool> = samples.map(|count| count > 0).collect();
        assert_eq!(samples.len(), 2, "{name}: not tested both ways");
    }
    assert_eq!(
        sections.len(),
        alerts.len(),
        "sections of alerts that are gone"
    );
}

/// Shows the checks above what they must find.
#[test]
fn what_does_not_exist_is_found() {
    #[rustfmt::skip]
    let rows = [
        ("secretfs_volume{state=\"stale\"} > 0", "no metric"),
        ("secretfs_volumes{status=\"stale\"} > 0", "no label `status`"),
        ("secretfs_volumes{state=\"rotten\"} > 0", "never `rotten`"),
        ("secretfs_volumes{state=~\"stale|rotten\"} > 0", "never `rotten`"),
        ("secretfs_errors_total{code=~\"store\\\\.(io|oi)\"} > 0", "never `store.oi`"),
        ("secretfs_errors_total{code=~\"storage\\\\..*\"} > 0", "never `storage.*`"),
        ("sum by (node) (secretfs_volumes) > 0", "no label `node`"),
        ("secretfs_memory_bytes{kind=\"a\"} / ignoring (sort) secretfs_memory_bytes", "no label `sort`"),
        ("rate(secretfs_rpc_duration_seconds[5m])", "a histogram"),
        ("rate(secretfs_panics_total_count[5m])", "no metric"),
        ("secretfs_rpc_duration_seconds_count{le=\"1\"}", "no label `le`"),
        ("up{job=\"other\"}", "job"),
        ("sum(kube_pod_info)", "kube_pod_info"),
    ];
    for (text, expect) in rows {
        let found = Query::read(text).unwrap().problems().join("; ");
        assert!(found.contains(expect), "{text}: {found}");
    }
    for text in ["secretfs_volumes{", "sum by (a", "secretfs_volumes{state=}"] {
        assert!(Query::read(text).is_err(), "{text}");
    }
    let fine = "histogram_quantile(0.99, sum by (le, method) (rate(secretfs_rpc_duration_seconds_bucket{code!~\"OK|ABORTED\"}[5m])))";
    assert_eq!(Query::read(fine).unwrap().problems(), [""; 0]);
}
