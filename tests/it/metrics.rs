//! Metrics: the page is the table, the table is the output, and each event moves what it should and nothing else.

pub mod events;

use secretfs::{
    observe::metrics::table::{self, Kind, Metric, Values},
    volume::VolumeState,
};

use crate::docs::compare;

const HEAD: &str = "# Metrics\n\n\
    What `GET /metrics` answers at the address that `http` of the configuration names, in Prometheus' text format (0.0.4); the admin \
    socket answers the same. Names, units and labels are stable. This page is written by a test from the table in \
    `src/observe/metrics/table.rs`.\n\n\
    A label's value is a name of this program, an error code, or a backend's name in the node's configuration. Nothing that a pod's \
    author or a store writes is one: no pod's name, no secret's name, no path. So the number of series does not grow with the pods of a \
    node. A backend that leaves the configuration keeps its series until the process ends.\n\n\
    What merely is (volumes, memory, leases) is looked at when somebody scrapes; that waits for no volume and no store, and takes well \
    under a millisecond with 500 volumes.\n\n";

#[test]
fn the_page_is_the_table() {
    let mut page = HEAD.to_owned();
    page += "| metric | type | unit | labels | meaning |\n|---|---|---|---|---|\n";
    for metric in table::ALL {
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|l| format!("`{}`", l.name))
            .collect();
        let note = if metric.note.is_empty() { "" } else { " " };
        let says = format!("{}{note}{}", metric.help, metric.note);
        page += &format!(
            "| `{}` | {} | {} | {} | {} |\n",
            metric.name,
            kind(metric),
            metric.unit,
            labels.join(", "),
            says.replace('|', "\\|"),
        );
    }
    page += "\n## Labels\n\n| metric | label | values |\n|---|---|---|\n";
    for metric in table::ALL {
        for label in metric.labels {
            let values = match label.values {
                Values::These(all) => {
                    let all: Vec<String> = all.iter().map(|value| format!("`{value}`")).collect();
                    all.join(" ")
                }
                Values::Code => "every code of [errors.md](errors.md)".to_owned(),
                Values::Outcome => {
                    "`ok`, `not_modified` (a fetch that brought nothing new), or a code of [errors.md](errors.md)".to_owned()
                }
                Values::Backend => {
                    "a name under [`backends`](config.md) of the node's configuration".to_owned()
                }
                Values::Build => "what `secretfs version` says".to_owned(),
            };
            page += &format!("| `{}` | `{}` | {values} |\n", metric.name, label.name);
        }
    }
    page += "\n## Buckets\n\nUpper ends, in seconds; each histogram has one without an end as well.\n\n| metric | buckets |\n|---|---|\n";
    for metric in table::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            let bounds: Vec<&str> = bounds.iter().map(|(_, text)| *text).collect();
            page += &format!("| `{}` | {} |\n", metric.name, bounds.join(" "));
        }
    }
    compare("reference/metrics.md", &page);
}

fn kind(metric: &Metric) -> &'static str {
    match metric.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

/// The contract's names (section 5), and one that was added.
#[test]
fn the_names_of_the_contract_are_all_there_is() {
    let contract = "secretfs_build_info secretfs_kubelet_registered secretfs_volumes{mount,state} \
        secretfs_oldest_content_timestamp_seconds secretfs_memory_bytes{kind} secretfs_rpc_duration_seconds{method,code} \
        secretfs_rotations_total{result} secretfs_rotation_duration_seconds secretfs_backend_requests_total{backend,operation,result} \
        secretfs_backend_request_duration_seconds{backend,operation} secretfs_cache_requests_total{backend,result} \
        secretfs_secrets_removed_total{backend,reason} secretfs_leases{backend} secretfs_errors_total{code} secretfs_panics_total secretfs_audit_records_dropped_total \
        secretfs_config_last_reload_successful secretfs_config_last_reload_success_timestamp_seconds";
    let ours = table::ALL.iter().map(|metric| {
        let labels: Vec<&str> = metric.labels.iter().map(|label| label.name).collect();
        match labels.join(",").as_str() {
            "" => metric.name.to_owned(),
            _ if metric.name == "secretfs_build_info" => metric.name.to_owned(),
            labels => format!("{}{{{labels}}}", metric.name),
        }
    });
    let ours: Vec<String> = ours.collect();
    assert_eq!(ours, contract.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn units_kinds_and_states_agree_with_the_names() {
    for metric in table::ALL {
        let counter = metric.kind == Kind::Counter;
        assert_eq!(metric.name.ends_with("_total"), counter, "{}", metric.name);
        let suffix = format!("_{}", metric.unit);
        assert!(metric.unit.is_empty() || metric.name.ends_with(&suffix));
        for text in [metric.help, metric.note] {
            assert!(!text.contains(['\n', '\\']), "{}", metric.name);
        }
        assert!(metric.help.ends_with('.') || metric.help.ends_with(')'));
    }
    let states: Vec<&str> = VolumeState::ALL.iter().map(|state| state.name()).collect();
    assert_eq!(states, table::STATES);
    for state in VolumeState::ALL {
        assert_eq!(serde_json::json!(state), state.name());
    }
    // gRPC's numbers are their places
    assert_eq!(table::GRPC_CODES.len(), 17);
    for (number, name) in table::GRPC_CODES.iter().enumerate() {
        let code = tonic::Code::from(i32::try_from(number).unwrap());
        let plain = |text: &str| text.replace('_', "").to_lowercase();
        assert_eq!(plain(name), plain(&format!("{code:?}")));
    }
}
