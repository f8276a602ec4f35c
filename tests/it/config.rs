//! The node's configuration and the environment.

use std::path::{Path, PathBuf};

use secretfs::{
    backend::registry::problems,
    config::{self, Change, Config, Env, Listen, LogLevel, NodeLimits, StoreSettings},
    policy::Pattern,
};

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
    Config::parse(text, &Env::default(), &problems).unwrap_or_else(|p| panic!("{text}\n{p:?}"))
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
    assert_eq!(line.allow[0].0.as_str(), "store");
    assert_eq!(line.allow[0].1, Pattern::parse("payments/**").unwrap());
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
    let levels = ["error", "warn", "info", "debug", "trace"];
    let levels = levels.map(|level| good(&format!("logLevel: {level}\n")).log_level);
    let expect = [
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ];
    assert_eq!(levels, expect.map(Some));
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
    let text = "drver: x\nhttp: nowhere\nkubeletDir: ../x\naudit: {onFailure: explode}\nbackends:\n  S: {kind: store, path: /a, identity: /b}\n  v: {kind: vult}\n  s: {kind: store, path: rel, identty: /x}\npolicy:\n- {namespaces: [], serviceAccounts: [a], allow: [\"x:y\", z]}\nlimits: {bytesPerFile: 0, volumesPerPod: many}\nendpoint: /x\nlogLevel: verbose\n";
    let problems = Config::parse(text, &Env::default(), &problems).unwrap_err();
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
            (13, "logLevel"),
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

/// The contract's configuration with `from` written as `to`.
fn with(from: &str, to: &str) -> Config {
    assert_eq!(FULL.matches(from).count(), 1, "{from}");
    good(&FULL.replace(from, to))
}

#[test]
fn backends_policy_limits_and_log_level_may_change() {
    let old = good(FULL);
    let none = Change::default();
    let backends = Change {
        backends: true,
        ..none
    };
    let policy = Change {
        policy: true,
        ..none
    };
    let limits = Change {
        limits: true,
        ..none
    };
    let log_level = Change {
        log_level: true,
        ..none
    };
    for (from, to, expect) in [
        ("path: /etc/secretfs/store", "path: /s", backends),
        (
            "backends:\n",
            "backends:\n  b: {kind: store, path: /b, identity: /i}\n",
            backends,
        ),
        ("[payments]", "[payments, shop]", policy),
        ("payments/**", "payments/*", policy),
        ("bytesPerFile: 1Mi", "bytesPerFile: 2Mi", limits),
        ("bytesPerNode: 256Mi", "bytesPerNode: 1Gi", limits),
        ("driver:", "logLevel: debug\ndriver:", log_level),
        // the same, said in another way
        ("bytesPerFile: 1Mi", "bytesPerFile: 1024Ki # a MiB", none),
        (
            "{kind: store, path: /etc/secretfs/store, identity",
            "{path: \"/etc/secretfs/store\", kind: store, identity",
            none,
        ),
        ("node: \"\"\n", "\n\n", none),
        ("http: 127.0.0.1:9809\n", "", none),
        (
            "[payments], serviceAccounts: [api]",
            "[ \"payments\" ], serviceAccounts: [api]",
            none,
        ),
    ] {
        let seen = config::change(&old, &with(from, to)).unwrap_or_else(|p| panic!("{to}: {p:?}"));
        assert_eq!(seen, expect, "{to}");
        assert_eq!(seen.is_empty(), expect == none);
    }
}

/// What stands in `FULL`, and what instead; the key, its values as they are told, and their lines.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    (u32, u32),
);
const FIXED: &[Row] = &[
    (
        "driver: csi.secretfs.dev",
        "driver: a.b",
        "driver",
        "csi.secretfs.dev",
        "a.b",
        (2, 2),
    ),
    ("node: \"\"", "node: n", "node", "", "n", (3, 3)),
    (
        "plugins/csi.secretfs.dev/csi.sock",
        "p/csi.sock",
        "endpoint",
        "unix:///var/lib/kubelet/plugins/csi.secretfs.dev/csi.sock",
        "unix:///var/lib/kubelet/p/csi.sock",
        (4, 4),
    ),
    (
        "kubeletDir: /var/lib/kubelet",
        "kubeletDir: /k",
        "kubeletDir",
        "/var/lib/kubelet",
        "/k",
        (5, 5),
    ),
    (
        "requirePropagation: true",
        "\nrequirePropagation: false",
        "requirePropagation",
        "true",
        "false",
        (6, 7),
    ),
    (
        "registration: true",
        "registration: false",
        "registration",
        "true",
        "false",
        (7, 7),
    ),
    (
        "kubernetes: auto",
        "kubernetes: off",
        "kubernetes",
        "auto",
        "off",
        (8, 8),
    ),
    (
        "runtimeDir: /run/secretfs",
        "runtimeDir: /r",
        "runtimeDir",
        "/run/secretfs",
        "/r",
        (9, 9),
    ),
    (
        "127.0.0.1:9809",
        "\"\"",
        "http",
        "127.0.0.1:9809",
        "\"\"",
        (10, 10),
    ),
    (
        "deliveries: true",
        "deliveries: false",
        "audit.deliveries",
        "true",
        "false",
        (11, 11),
    ),
    ("file: \"-\"", "file: /a", "audit.file", "-", "/a", (11, 11)),
    (
        "onFailure: drop",
        "onFailure: deny",
        "audit.onFailure",
        "drop",
        "deny",
        (11, 11),
    ),
];

#[test]
fn every_fixed_key_is_refused_with_both_values_and_places_and_all_at_once() {
    let old = good(FULL);
    for (from, to, key, old_value, new_value, lines) in FIXED {
        let problems = config::change(&old, &with(from, to)).unwrap_err();
        let [problem] = &problems[..] else {
            panic!("{to}: {problems:?}");
        };
        assert_eq!((&*problem.field, problem.at.line), (*key, lines.1));
        assert_eq!(problem.code.name, "config.fixed_key");
        let said = format!(
            "`{key}` cannot change while the plugin runs: it is `{new_value}` here, and `{old_value}` in the running configuration (line {})",
            lines.0
        );
        assert_eq!(problem.message, said);
    }
    let text = "driver: a.b\npolicy: []\naudit: {onFailure: deny}\n";
    let problems = config::change(&old, &good(text)).unwrap_err();
    let fields: Vec<_> = problems.iter().map(|p| (p.at.line, &*p.field)).collect();
    assert_eq!(
        fields,
        [(0, "endpoint"), (1, "driver"), (3, "audit.onFailure")]
    );
    assert!(problems[0].message.contains("here, the default, and"));
    // The socket's default follows the driver's name: told once.
    let problems = config::change(&Config::default(), &good("driver: a.b\n")).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn every_key_is_either_fixed_or_reloaded() {
    let fixed = config::fixed_keys().map(|key| key.split('.').next().unwrap());
    let mut all: Vec<_> = fixed.chain(config::RELOADED.iter().copied()).collect();
    all.dedup(); // the parts of `audit`
    all.sort_unstable();
    let mut keys = config::KEYS.to_vec();
    keys.sort_unstable();
    assert_eq!(all, keys);
    let audit = config::fixed_keys().filter_map(|key| key.strip_prefix("audit."));
    assert!(audit.eq(config::AUDIT_KEYS.iter().copied()));
}
