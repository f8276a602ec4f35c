//! The node's configuration and the environment.

use std::path::{Path, PathBuf};

use secretfs::config::{Config, Env, Listen, NodeLimits, StoreSettings, check_store};

/// Contract section 4, word for word: all of it is the default but the backend and the policy.
const FULL: &str = r#"
driver: csi.secretfs.dev
node: ""
endpoint: unix:///var/lib/kubelet/plugins/csi.secretfs.dev/csi.sock
kubeletDir: /var/lib/kubelet
requirePropagation: true
registration: true
kubernetes: auto
runtimeDir: /run/secretfs
http: 127.0.0.1:9809
audit: {deliveries: true, file: "-", onFailure: drop}
backends:
  store: {kind: store, path: /etc/secretfs/store, identity: /etc/secretfs/identity.age}
policy:
  - {namespaces: [payments], serviceAccounts: [api], allow: ["store:payments/**"]}
limits:
  bytesPerFile: 1Mi
  bytesPerVolume: 4Mi
  filesPerVolume: 256
  volumesPerPod: 16
  bytesPerNamespace: 64Mi
  bytesPerNode: 256Mi
"#;

fn good(text: &str) -> Config {
    Config::parse(text, &Env::default(), &check_store).unwrap_or_else(|p| panic!("{text}\n{p:?}"))
}

#[test]
fn the_contracts_configuration_is_the_default() {
    let full = good(FULL);
    let settings = StoreSettings::read(&full.backends[0]).unwrap();
    assert_eq!(settings.path, Path::new("/etc/secretfs/store"));
    let line = &full.policy[0];
    assert_eq!(
        (&*line.namespaces[0], &*line.service_accounts[0]),
        ("payments", "api")
    );
    assert_eq!(
        (line.allow[0].0.as_str(), &*line.allow[0].1),
        ("store", "payments/**")
    );
    let mut bare = full.clone();
    bare.backends.clear();
    bare.policy.clear();
    assert_eq!(format!("{bare:?}"), format!("{:?}", Config::default()));
    assert_eq!(
        format!("{:?}", good("apiVersion: secretfs.dev/v1alpha1\n")),
        format!("{:?}", Config::default())
    );
}

#[test]
fn every_key_changes_what_it_names() {
    let config = good(
        "driver: a.b\nnode: n1\nkubeletDir: /k\nruntimeDir: /r/s/\nhttp: \":80\"\nkubernetes: off\nregistration: false\nrequirePropagation: false\naudit: {deliveries: false, file: /a, onFailure: deny}\nlimits: {bytesPerFile: 5, filesPerVolume: 6, volumesPerPod: 7, bytesPerNode: 2Gi}\n",
    );
    assert_eq!(
        config.endpoint,
        Path::new("/var/lib/kubelet/plugins/a.b/csi.sock")
    );
    assert_eq!(config.node.as_deref(), Some("n1"));
    assert_eq!(
        (config.kubelet_dir, config.runtime_dir),
        ("/k".into(), "/r/s".into())
    );
    assert_eq!(config.http, Some(Listen::Tcp("[::]:80".parse().unwrap())));
    assert!(!config.kubernetes && !config.registration && !config.require_propagation);
    assert!(!config.audit.deliveries && config.audit.deny_on_failure);
    assert_eq!(config.audit.file, Some(PathBuf::from("/a")));
    assert_eq!(
        (
            config.volume_limits.bytes_per_file,
            config.volume_limits.files_per_volume
        ),
        (5, 6)
    );
    let limits = NodeLimits {
        volumes_per_pod: 7,
        bytes_per_node: 2 << 30,
        ..NodeLimits::default()
    };
    assert_eq!(config.node_limits, limits);
    assert_eq!(good("http: \"\"\n").http, None);
    assert_eq!(
        good("http: unix:///x\n").http,
        Some(Listen::Unix("/x".into()))
    );
}

#[test]
fn all_mistakes_are_told_at_once_with_place_and_field() {
    let text = "drver: x\nhttp: nowhere\nkubeletDir: ../x\naudit: {onFailure: explode}\nbackends:\n  S: {kind: store, path: /a, identity: /b}\n  v: {kind: vault}\n  s: {kind: store, path: rel, identty: /x}\npolicy:\n- {namespaces: [], serviceAccounts: [a], allow: [\"x:y\", z]}\nlimits: {bytesPerFile: 0, volumesPerPod: many}\nendpoint: /x\n";
    let problems = Config::parse(text, &Env::default(), &check_store).unwrap_err();
    let seen: Vec<_> = problems.iter().map(|p| (p.at.line, &*p.field)).collect();
    assert_eq!(
        seen,
        [
            (1, "drver"),
            (2, "http"),
            (3, "kubeletDir"),
            (4, "audit.onFailure"),
            (6, "backends.S"),
            (7, "backends.v.kind"),
            (8, "backends.s.path"),
            (8, "backends.s.identty"),
            (10, "policy[0].namespaces"),
            (10, "policy[0].allow"),
            (10, "policy[0].allow"),
            (11, "limits.bytesPerFile"),
            (11, "limits.volumesPerPod"),
            (12, "endpoint"),
        ]
    );
    assert!(
        problems
            .iter()
            .all(|problem| problem.code.name == "config.invalid")
    );
    assert_eq!(problems[0].help.as_deref(), Some("did you mean `driver`?"));
}

#[test]
fn the_environment_has_defaults_and_ignores_what_is_empty_or_relative() {
    let env = |vars: &'static [(&str, &str)]| {
        Env::from(move |name| {
            let found = vars.iter().find(|(var, _)| *var == name);
            found.map(|(_, value)| (*value).into())
        })
    };
    let plain = env(&[
        ("HOME", "/home/u"),
        ("SECRETFS_STORE", ""),
        ("XDG_DATA_HOME", "rel"),
        ("NODE_NAME", "n"),
    ]);
    assert_eq!(
        plain.store_dir(None),
        Some("/home/u/.local/share/secretfs/store".into())
    );
    assert_eq!(
        plain.identity_file(None),
        Some("/home/u/.config/secretfs/identity.age".into())
    );
    assert_eq!(
        (plain.tmp, plain.node_name),
        ("/tmp".into(), Some("n".into()))
    );
    let set = env(&[
        ("SECRETFS_STORE", "s"),
        ("XDG_CONFIG_HOME", "/c"),
        ("TMPDIR", "/t"),
        ("NO_COLOR", "1"),
    ]);
    assert_eq!(set.store_dir(None), Some("s".into()));
    assert_eq!(set.store_dir(Some(Path::new("flag"))), Some("flag".into()));
    assert_eq!(
        set.identity_file(None),
        Some("/c/secretfs/identity.age".into())
    );
    assert!(set.no_color && set.tmp == Path::new("/t"));
    assert_eq!(env(&[]).store_dir(None), None);
}
