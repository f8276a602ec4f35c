//! The manifests of `deploy/`: what the plugin itself would say of them, and that they ask for no more than is meant.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::DaemonSet, core::v1::Pod, rbac::v1::PolicyRule, storage::v1::CSIDriver,
};
use secretfs::{
    backend::registry,
    config::{Config, Env},
    csi::driver_object,
    spec::{self, Facts, Problems, Setting},
    yaml::{self, Node, Style},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// MiB that the plugin may take beside its volumes' pages: what the worst calls took was 174 (docs/input-limits.md).
const WORKING_SET_MIB: u64 = 192;

fn file(name: &str) -> String {
    let path = format!("{}/deploy/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The objects of a file.
fn objects(name: &str) -> Vec<Value> {
    let text = file(name);
    let documents = text.split("\n---\n").map(|text| {
        let mut problems = Problems::default();
        let node = yaml::parse(text, &mut problems);
        json_of(&node.unwrap_or_else(|| panic!("{name}: {:?}", problems.sorted())))
    });
    documents.collect()
}

/// The only object of a file, as Kubernetes reads it.
fn object<T: DeserializeOwned>(name: &str) -> T {
    let [object] = <[Value; 1]>::try_from(objects(name)).unwrap();
    serde_json::from_value(object).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn json_of(node: &Node) -> Value {
    match &node.value {
        yaml::Value::Sequence(nodes) => nodes.iter().map(json_of).collect(),
        yaml::Value::Mapping(entries) => {
            let entries = entries.iter();
            entries
                .map(|(key, node)| (key.text.clone(), json_of(node)))
                .collect()
        }
        yaml::Value::Scalar(scalar) => match (scalar.style, scalar.text.as_str()) {
            (Style::Plain, "true") => json!(true),
            (Style::Plain, "false") => json!(false),
            (Style::Plain, number) if number.parse::<i64>().is_ok() => {
                json!(number.parse::<i64>().unwrap())
            }
            (_, text) => json!(text),
        },
    }
}

fn config() -> Config {
    let map = objects("config.yaml").remove(0);
    let text = map["data"]["config.yaml"].as_str().unwrap();
    Config::parse(text, &Env::default(), &registry::problems)
        .unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn daemon_set() -> DaemonSet {
    object("daemonset.yaml")
}

#[test]
fn the_memory_limit_has_room_for_all_volumes_and_the_plugin() {
    let pod = daemon_set().spec.unwrap().template.spec.unwrap();
    let limits = pod.containers[0]
        .resources
        .as_ref()
        .unwrap()
        .limits
        .as_ref()
        .unwrap();
    let limit: u64 = limits["memory"]
        .0
        .strip_suffix("Mi")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(
        limit,
        (config().node_limits.bytes_per_node >> 20) + WORKING_SET_MIB
    );
}

#[test]
fn the_driver_object_is_as_the_plugin_demands_and_nothing_is_left_to_advise() {
    let audiences = BTreeSet::new();
    let object: CSIDriver = object("csidriver.yaml");
    driver_object::judge(&object, &audiences).unwrap();
    assert!(driver_object::advice(&object, &audiences).is_empty());
    assert_eq!(object.metadata.name.as_deref(), Some("csi.secretfs.dev"));
}

#[test]
fn it_asks_the_api_server_for_its_own_object_and_for_events() {
    let roles: Vec<Value> = objects("rbac.yaml");
    let role = roles
        .iter()
        .find(|object| object["kind"] == "ClusterRole")
        .unwrap();
    let rules: Vec<PolicyRule> = serde_json::from_value(role["rules"].clone()).unwrap();
    let said: Vec<_> = rules
        .into_iter()
        .map(|rule| {
            (
                rule.resources.unwrap_or_default(),
                rule.resource_names.unwrap_or_default(),
                rule.verbs,
            )
        })
        .collect();
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        said,
        [
            (
                words(&["csidrivers"]),
                words(&["csi.secretfs.dev"]),
                words(&["get", "list", "watch"])
            ),
            (words(&["events"]), vec![], words(&["create"])),
        ]
    );
}

#[test]
fn one_container_has_no_more_of_the_node_than_its_four_directories() {
    let set = daemon_set().spec.unwrap();
    let pod = set.template.spec.unwrap();
    let [container] = <[_; 1]>::try_from(pod.containers).unwrap();
    let context = container.security_context.unwrap();
    assert_eq!(
        (context.privileged, context.read_only_root_filesystem),
        (Some(true), Some(true))
    );
    assert_eq!(
        (pod.host_network, pod.host_pid, pod.host_ipc),
        (None, None, None)
    );
    let volumes = pod.volumes.unwrap();
    let paths: Vec<_> = volumes
        .iter()
        .filter_map(|volume| Some(volume.host_path.as_ref()?.path.as_str()))
        .collect();
    assert_eq!(
        paths,
        [
            "/var/lib/secretfs",
            "/run/secretfs",
            "/var/lib/kubelet/pods",
            "/var/lib/kubelet/plugins/csi.secretfs.dev",
            "/var/lib/kubelet/plugins_registry",
        ]
    );
    // what the configuration's defaults say
    let config = config();
    let mounts: Vec<_> = container
        .volume_mounts
        .unwrap()
        .into_iter()
        .map(|mount| mount.mount_path)
        .collect();
    for path in [
        &config.runtime_dir,
        &config.kubelet_dir.join("pods"),
        config.endpoint.parent().unwrap(),
        config.registration_socket().parent().unwrap(),
    ] {
        assert!(
            mounts
                .iter()
                .any(|mount| std::path::Path::new(mount) == path),
            "{}",
            path.display()
        );
    }
    let rolling = set.update_strategy.unwrap().rolling_update.unwrap();
    assert_eq!(
        serde_json::to_value(rolling).unwrap(),
        json!({"maxSurge": 0, "maxUnavailable": 1})
    );
}

/// The specs of a pod's volumes are read by the parser.
fn check_specs(pod: Pod) {
    for volume in pod.spec.unwrap().volumes.unwrap() {
        let text = &volume.csi.unwrap().volume_attributes.unwrap()["spec"];
        let facts = Facts {
            pushes: true,
            versions: true,
        };
        spec::parse(text, &Setting::local(), &|_| Ok(facts))
            .unwrap_or_else(|problems| panic!("{problems:?}"));
    }
}

#[test]
fn the_examples_are_specs() {
    for name in ["examples/pod.yaml", "examples/vault.yaml"] {
        let pod = objects(name).pop().unwrap();
        check_specs(serde_json::from_value(pod).unwrap());
    }
}

#[test]
fn the_example_of_vault_is_the_one_in_the_docs() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let example = read("deploy/examples/vault.yaml");
    assert!(read("docs/backends/vault.md").contains(&format!("```yaml\n{example}```\n")));
}
