//! The fields of a publish and the tokens in it: at each limit they are taken, one step beyond they are refused, and the refusal names the
//! field and the limit.

use secretfs::{
    csi::{
        context::{Expect, TokensIn, place, read},
        proto::{NodePublishVolumeRequest, volume_capability::AccessType},
    },
    error::Result,
    limits,
};
use serde_json::{Value, json};

use crate::support::kubelet::{FakeKubelet, Pod, TOKENS, jwt, tokens, volume_id};

const SPEC: &str = "files: [{path: a, from: \"store:db\"}]";

fn pod() -> Pod {
    Pod::of("web", "shop", "api")
}

/// A publish of the pod's volume `name`, and what it is held against.
fn publish(pod: &Pod, name: &str) -> (NodePublishVolumeRequest, Expect) {
    let dir = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::new(dir.path());
    let mut request = kubelet.volume(&self::pod(), "secrets", SPEC).request();
    // names that are too long for a file system too: so the directory is not made
    request.volume_id = volume_id(&pod.uid, name);
    let below = format!("pods/{}/volumes/kubernetes.io~csi/{name}/mount", pod.uid);
    request.target_path = kubelet.dir.join(below).to_str().unwrap().to_owned();
    for (key, value) in [
        ("pod.name", &pod.name),
        ("pod.namespace", &pod.namespace),
        ("pod.uid", &pod.uid),
        ("serviceAccount.name", &pod.account),
    ] {
        set(&mut request, &format!("csi.storage.k8s.io/{key}"), value);
    }
    let expect = Expect {
        kubelet_dir: kubelet.dir,
        tokens_in: TokensIn::Either,
    };
    (request, expect)
}

fn set(request: &mut NodePublishVolumeRequest, key: &str, value: impl Into<String>) {
    request.volume_context.insert(key.to_owned(), value.into());
}

/// "ok", or the code and the sentence.
fn told(result: Result<impl Sized>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => format!("{} {error}", error.code().name),
    }
}

/// Changes a good publish by so much of something.
type Grow = fn(&mut NodePublishVolumeRequest, usize);

/// What, its limit, how to have so much of it, and what the refusal of one more says.
#[rustfmt::skip]
const ROWS: &[(&str, usize, Grow, &[&str])] = &[
    ("attributes", limits::CSI_ENTRIES, |r, n| {
        let more = n - r.volume_context.len();
        (0..more).for_each(|k| set(r, &format!("csi.storage.k8s.io/k{k}"), ""));
    }, &["csi.bad_request", "volume_context", "more than 128"]),
    ("an attribute's key", limits::CSI_KEY_BYTES, |r, n| {
        set(r, &format!("csi.storage.k8s.io/{}", "k".repeat(n - 19)), "");
    }, &["csi.bad_request", "volume_context", "317 bytes"]),
    ("an attribute's value", limits::CSI_VALUE_BYTES, |r, n| set(r, "csi.storage.k8s.io/k", "v".repeat(n)), &["csi.bad_request", "`csi.storage.k8s.io/k`", "4096 bytes"]),
    ("a spec", limits::SPEC_BYTES, |r, n| set(r, "spec", format!("{SPEC}\n{}", "#".repeat(n - SPEC.len() - 1))), &["spec.too_large", "262144 bytes"]),
    ("secrets", limits::CSI_ENTRIES, |r, n| (0..n).for_each(|k| drop(r.secrets.insert(format!("k{k}"), String::new()))), &["csi.bad_request", "secrets", "more than 128"]),
    ("a secret's key", limits::CSI_KEY_BYTES, |r, n| drop(r.secrets.insert("k".repeat(n), String::new())), &["csi.bad_request", "secrets", "317 bytes"]),
    ("a secret's value", limits::CSI_SECRET_BYTES, |r, n| drop(r.secrets.insert("k".into(), "v".repeat(n))), &["csi.bad_request", "`k`", "1048576 bytes"]),
    ("all secrets' values", limits::CSI_SECRET_BYTES, |r, n| {
        for (key, bytes) in [("a", n / 2), ("b", n - n / 2)] {
            r.secrets.insert(key.into(), "v".repeat(bytes));
        }
    }, &["csi.bad_request", "secrets", "1048576 bytes"]),
    ("all tokens", limits::TOKENS_BYTES, |r, n| set(r, TOKENS, format!("{{}}{}", " ".repeat(n - 2))), &["csi.bad_request", "serviceAccount.tokens", "262144 bytes"]),
    ("an SELinux label", limits::SELINUX_BYTES, |r, n| flag(r, &format!("context=\"u:r:t:{}\"", "s".repeat(n - 6))), &["csi.bad_request", "mount_flags"]),
    ("mount flags", 1, |r, n| (0..n).for_each(|_| flag(r, "context=u:r:t:s0")), &["csi.bad_request", "mount_flags", "twice"]),
    ("a group", 10, |r, n| group(r, &format!("{}1", "0".repeat(n - 1))), &["csi.bad_request", "volume_mount_group", "4294967294"]),
];

fn flag(request: &mut NodePublishVolumeRequest, flag: &str) {
    mount(request).mount_flags.push(flag.into());
}

fn group(request: &mut NodePublishVolumeRequest, group: &str) {
    mount(request).volume_mount_group = group.into();
}

fn mount(
    request: &mut NodePublishVolumeRequest,
) -> &mut secretfs::csi::proto::volume_capability::MountVolume {
    let capability = request.volume_capability.as_mut().unwrap();
    match capability.access_type.as_mut().unwrap() {
        AccessType::Mount(mount) => mount,
        AccessType::Block(_) => panic!("a mount is asked for"),
    }
}

#[test]
fn each_field_of_a_publish_has_its_limit_and_is_told_by_name_beyond() {
    for (what, most, grow, says) in ROWS {
        let with = |count| {
            let (mut request, expect) = publish(&pod(), "secrets");
            grow(&mut request, count);
            told(read(request, &expect))
        };
        assert_eq!(with(*most), "ok", "{what}: {most}");
        let refused = with(most + 1);
        for part in *says {
            assert!(refused.contains(part), "{what}: {refused}");
        }
    }
}

#[test]
fn names_and_paths_have_the_limits_of_kubernetes_and_of_the_kernel() {
    let long = |n: usize| "a".repeat(n);
    let asked = |pod: &Pod, name: &str| {
        let (request, expect) = publish(pod, name);
        told(read(request, &expect))
    };
    type Name = fn(&mut Pod, String);
    let names: [(usize, Name); 4] = [
        (limits::LABEL_BYTES, |pod, name| pod.namespace = name),
        (limits::SUBDOMAIN_BYTES, |pod, name| pod.name = name),
        (limits::SUBDOMAIN_BYTES, |pod, name| pod.account = name),
        (limits::UID_BYTES, |pod, name| pod.uid = name),
    ];
    for (most, name) in names {
        let with = |count| {
            let mut pod = pod();
            name(&mut pod, long(count));
            asked(&pod, "secrets")
        };
        assert_eq!(with(most), "ok", "{most}");
        let refused = with(most + 1);
        assert!(refused.starts_with("csi.bad_"), "{most}: {refused}");
    }
    assert_eq!(asked(&pod(), &long(limits::LABEL_BYTES)), "ok");
    let refused = asked(&pod(), &long(limits::LABEL_BYTES + 1));
    assert!(refused.starts_with("csi.bad_target"), "{refused}");

    let (_, expect) = publish(&pod(), "secrets");
    let below = |part: usize| format!("{}/{}", expect.kubelet_dir.display(), long(part));
    let at = |id: &str, target: &str| told(place(id, target, &expect));
    assert_eq!(at("v", &below(limits::FILE_NAME_BYTES)), "ok");
    let refused = at("v", &below(limits::FILE_NAME_BYTES + 1));
    assert!(refused.contains("segment longer than 255"), "{refused}");
    let exact = |bytes: usize| {
        let mut path = expect.kubelet_dir.to_str().unwrap().to_owned();
        while path.len() < bytes {
            let room = bytes - path.len() - 1;
            path += &format!("/{}", long(if room <= 250 { room } else { 200 }));
        }
        path
    };
    assert_eq!(exact(limits::TARGET_BYTES).len(), limits::TARGET_BYTES);
    assert_eq!(at("v", &exact(limits::TARGET_BYTES)), "ok");
    let refused = at("v", &exact(limits::TARGET_BYTES + 1));
    assert!(refused.contains("longer than 4095 bytes"), "{refused}");
    let target = below(5);
    assert_eq!(at(&long(limits::VOLUME_ID_BYTES), &target), "ok");
    let refused = at(&long(limits::VOLUME_ID_BYTES + 1), &target);
    assert!(refused.contains("volume_id is not 1 to 128"), "{refused}");
    for empty in [at("", &target), at("v", "")] {
        assert!(empty.contains("is missing"), "{empty}");
    }
}

/// A publish with these tokens.
fn with_tokens(text: String) -> String {
    let (mut request, expect) = publish(&pod(), "secrets");
    set(&mut request, TOKENS, text);
    told(read(request, &expect))
}

#[test]
fn tokens_have_a_number_a_length_and_a_form() {
    let audiences = |n: usize| -> String {
        let names: Vec<String> = (0..n).map(|k| format!("a{k}")).collect();
        let pairs: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), jwt(&pod().claims(name, 5))))
            .collect();
        tokens(&pairs)
    };
    assert_eq!(with_tokens(audiences(limits::TOKENS)), "ok");
    let refused = with_tokens(audiences(limits::TOKENS + 1));
    assert!(refused.starts_with("csi.bad_request"), "{refused}");

    // a signature that fills it up
    let sized = |bytes: usize| {
        let token = jwt(&pod().claims("vault", 5));
        let token = format!("{token}{}", "x".repeat(bytes - token.len()));
        tokens(&[("vault", token)])
    };
    assert_eq!(with_tokens(sized(limits::TOKEN_BYTES)), "ok");
    let refused = with_tokens(sized(limits::TOKEN_BYTES + 1));
    assert!(refused.contains("longer than 16384 bytes"), "{refused}");
}

#[test]
fn tokens_that_are_built_to_hurt_are_refused_or_change_nothing() {
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = pod().claims("vault", 5);
        change(&mut claims);
        with_tokens(tokens(&[("vault", jwt(&claims))]))
    };
    let deep = |n: usize| (0..n).fold(json!(1), |inner, _| json!([inner]));
    let many: Vec<String> = (0..1_000).map(|n| format!("a{n}")).collect();
    let huge: Vec<String> = (0..10_000).map(|n| format!("a{n}")).collect();
    // in a claim that nobody reads the depth is nobody's stack
    let good = pod().claims("vault", 5).to_string();
    let nested = format!("{}{}", "[".repeat(4_000), "]".repeat(4_000));
    let claimed = format!("{{\"x\":{nested},{}", &good[1..]);
    assert_eq!(with_tokens(with_raw(&claimed)), "ok");
    for (what, refused) in [
        ("too deep", claims(&|c| c["aud"] = deep(200))),
        (
            "an audience among many",
            claims(&|c| c["aud"] = json!(many)),
        ),
        ("an audience too long", claims(&|c| c["aud"] = json!(huge))),
        (
            "no number",
            claims(&|c| c["exp"] = json!("2100-01-01T00:00:00Z")),
        ),
        ("no whole number", claims(&|c| c["exp"] = json!(1.5))),
        ("too large", claims(&|c| c["exp"] = json!(u64::MAX))),
        ("none", claims(&|c| c["exp"] = Value::Null)),
        (
            "a long uid",
            claims(&|c| c["kubernetes.io"]["serviceaccount"]["uid"] = json!("u".repeat(65))),
        ),
        (
            "an uid that is a path",
            claims(&|c| c["kubernetes.io"]["serviceaccount"]["uid"] = json!("../x")),
        ),
    ] {
        let by = refused.split(' ').next().unwrap();
        assert!(
            ["csi.bad_request", "identity.forged"].contains(&by),
            "{what}: {refused}"
        );
    }
    // numbers at the end of what there is do not overflow
    for exp in [i64::MAX, i64::MIN, 0, -1] {
        assert_eq!(claims(&|c| c["exp"] = json!(exp)), "ok", "{exp}");
    }
    for text in [
        String::new(),
        "null".into(),
        "[]".into(),
        "{".repeat(200 << 10),
        "[".repeat(200 << 10),
        format!("{{\"a\":{}", "{\"a\":".repeat(40 << 10)),
        "{\"\\ud800\": {\"token\": \"x\"}}".into(),
        "{\"a\": {\"token\": 1}}".into(),
        "{\"a\": {}}".into(),
        "{\"a\": {\"token\": \"a.b\"}}".into(),
        "{\"a\": {\"token\": \"a.b.c.d\"}}".into(),
        "{\"a\": {\"token\": \"a.!!.c\"}}".into(),
        "{\"a\": {\"token\": \"a.e30.c\"}} trailing".into(),
        format!("{{\"a\": {{\"token\": \"{}\"}}}}", ".".repeat(16 << 10)),
        // the same claim twice: which of the two would count?
        with_raw(r#"{"aud":"a","aud":"b","exp":5,"kubernetes.io":{}}"#),
    ] {
        let refused = with_tokens(text);
        assert!(refused.starts_with("csi.bad_request"), "{refused}");
    }
}

/// A token with this text as its claims.
fn with_raw(claims: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let payload = URL_SAFE_NO_PAD.encode(claims);
    tokens(&[("vault", format!("e30.{payload}.x"))])
}
