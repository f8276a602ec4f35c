//! A publish as a kubelet sends it is read whole; one that was touched anywhere is refused, and the refusal shows nothing of it.

use std::path::Path;

use proptest::{prelude::*, test_runner::TestCaseError};
use secretfs::{
    caller::{Caller, Identity},
    clock::Wall,
    csi::{
        context::{Expect, TokensIn, read},
        proto::{
            NodePublishVolumeRequest,
            volume_capability::{AccessType, BlockVolume, MountVolume},
        },
    },
    error::Error,
    volume::AskedSpec,
};
use serde_json::{Value, json};

use crate::support::{
    canary::{CANARY, found_in},
    kubelet::{FakeKubelet, Pod, TOKENS, Volume, jwt, tokens, volume_id},
};

const SPEC: &str = "files: [{path: a, from: \"store:db\"}]";

/// A volume of the pod `shop/web` with tokens for `""` and `vault`, and what it is held against.
fn volume(tokens_in: TokensIn) -> (Volume, Expect) {
    let dir = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::new(dir.path());
    let mut volume = kubelet.volume(&Pod::of("web", "shop", "api"), "secrets", SPEC);
    volume.audiences = vec![String::new(), "vault".into()];
    volume.tokens_in = tokens_in;
    let expect = Expect {
        kubelet_dir: kubelet.dir,
        tokens_in,
    };
    (volume, expect)
}

/// The mount of the request's capability.
fn mount(request: &mut NodePublishVolumeRequest) -> &mut MountVolume {
    let capability = request.volume_capability.as_mut().unwrap();
    match capability.access_type.as_mut().unwrap() {
        AccessType::Mount(mount) => mount,
        AccessType::Block(_) => panic!("a mount is asked for"),
    }
}

fn set(request: &mut NodePublishVolumeRequest, key: &str, value: impl Into<String>) {
    let key = match key.starts_with("attribute ") {
        true => key["attribute ".len()..].to_owned(),
        false => format!("csi.storage.k8s.io/{key}"),
    };
    request.volume_context.insert(key, value.into());
}

fn code(result: &Result<impl Sized, Error>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.code().name,
    }
}

fn token_of(caller: &Caller, audience: &str) -> (i64, Value) {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let token = caller.1.token(audience, Wall::from_millis(0)).unwrap();
    let jwt = String::from_utf8(token.jwt.expose().to_vec()).unwrap();
    let payload = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap());
    let claims = serde_json::from_slice(&payload.unwrap()).unwrap();
    (token.expires_at.as_millis(), claims)
}

#[test]
fn a_kubelets_publish_is_read_whole() {
    for tokens_in in [TokensIn::Context, TokensIn::Secrets, TokensIn::Either] {
        let (mut volume, expect) = volume(tokens_in);
        volume.secrets.insert("user".into(), "u1".into());
        volume.tokens_expire = 1_800_000_000;
        volume.pod.fs_group = Some(4242);
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        volume.mount_flags = vec![format!("context=\"{label}\"")];
        let asked = read(volume.request(), &expect).unwrap();
        assert_eq!(asked.id.as_str(), volume.id);
        assert_eq!(asked.target.as_path(), volume.target);
        assert!(matches!(&asked.spec, AskedSpec::Raw(text) if **text == *SPEC));
        assert_eq!(asked.placing.group, Some(4242));
        assert_eq!(asked.placing.context.as_deref(), Some(label));
        assert!(asked.placing.make_target);
        let Identity::Pod(who) = &asked.caller.0 else {
            panic!("a pod")
        };
        let pod = &volume.pod;
        assert_eq!(
            (
                &*who.namespace,
                &*who.pod,
                &*who.pod_uid,
                &*who.service_account
            ),
            (&*pod.namespace, &*pod.name, &*pod.uid, &*pod.account)
        );
        assert_eq!(
            who.service_account_uid.as_deref(),
            Some(&*pod.account_uid),
            "{tokens_in:?}"
        );
        let (expires, claims) = token_of(&asked.caller, "vault");
        assert_eq!(
            (expires, &claims["aud"]),
            (1_800_000_000_000, &json!(["vault"]))
        );
        assert!(asked.caller.1.token("other", Wall::from_millis(0)).is_err());
        let secrets: Vec<_> = asked.caller.1.secrets.iter().collect();
        assert_eq!(secrets.len(), 1, "tokens are no secret of the author's");
        assert_eq!(
            (secrets[0].0.as_str(), secrets[0].1.expose()),
            ("user", &b"u1"[..])
        );
    }
}

#[test]
fn what_a_kubelet_may_leave_out_may_be_left_out() {
    let (mut volume, expect) = volume(TokensIn::Context);
    volume.audiences.clear();
    let asked = read(volume.request(), &expect).unwrap();
    let Identity::Pod(who) = &asked.caller.0 else {
        panic!("a pod")
    };
    assert_eq!(who.service_account_uid, None);
    assert_eq!((asked.placing.group, &asked.placing.context), (None, &None));
    for good in [
        |r: &mut NodePublishVolumeRequest| mount(r).fs_type = "tmpfs".into(),
        |r: &mut NodePublishVolumeRequest| mount(r).mount_flags = vec!["context=u:r:t:s0".into()],
        |r: &mut NodePublishVolumeRequest| set(r, "a.key.of.tomorrow", "x"),
        |r: &mut NodePublishVolumeRequest| r.target_path += "/", // names the same directory
        |r: &mut NodePublishVolumeRequest| r.target_path = r.target_path.replace("/mount", "/t"),
    ] {
        let mut request = volume.request();
        good(&mut request);
        assert_eq!(code(&read(request, &expect)), "ok");
    }
}

type Change = fn(&mut NodePublishVolumeRequest);

#[rustfmt::skip]
const WRONG: &[(&str, Change)] = &[
    // a field that is missing: what csi-sanity asks
    ("csi.bad_request", |r| r.volume_id.clear()),
    ("csi.bad_request", |r| r.target_path.clear()),
    ("csi.bad_request", |r| r.volume_capability = None),
    ("csi.bad_request", |r| r.volume_capability.as_mut().unwrap().access_type = None),
    ("csi.bad_request", |r| r.volume_capability.as_mut().unwrap().access_mode = None),
    ("csi.bad_request", |r| r.volume_capability.as_mut().unwrap().access_mode.as_mut().unwrap().mode = 0),
    ("csi.bad_request", |r| r.volume_capability.as_mut().unwrap().access_mode.as_mut().unwrap().mode = 99),
    // how
    ("csi.bad_request", |r| r.volume_capability.as_mut().unwrap().access_type = Some(AccessType::Block(BlockVolume {}))),
    ("csi.not_readonly", |r| r.readonly = false),
    ("csi.bad_request", |r| mount(r).fs_type = "ext4".into()),
    ("csi.bad_request", |r| mount(r).mount_flags = vec!["exec".into()]),
    ("csi.bad_request", |r| mount(r).mount_flags = vec!["context=\"u:r:t:s0,suid\"x".into()]),
    ("csi.bad_request", |r| mount(r).mount_flags = vec!["context=u:r:t".into(), "context=u:r:t".into()]),
    ("csi.bad_request", |r| mount(r).volume_mount_group = "root".into()),
    ("csi.bad_request", |r| mount(r).volume_mount_group = "4294967295".into()),
    // what
    ("spec.missing_key", |r| drop(r.volume_context.remove("spec"))),
    ("spec.unknown_key", |r| set(r, "attribute Spec", "x")),
    ("spec.unknown_key", |r| set(r, "attribute secretProviderClass", "x")),
    ("spec.too_large", |r| set(r, "attribute spec", "x".repeat(300 << 10))),
    // limits
    ("csi.bad_request", |r| (0..200).for_each(|n| set(r, &format!("k{n}"), ""))),
    ("csi.bad_request", |r| (0..200).for_each(|n| drop(r.secrets.insert(format!("k{n}"), String::new())))),
    ("csi.bad_request", |r| set(r, &"k".repeat(400), "")),
    ("csi.bad_request", |r| set(r, "k", "x".repeat(5 << 10))),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", " ".repeat(300 << 10))),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", "[".repeat(100 << 10))),
    // where
    ("csi.bad_target", |r| r.target_path = "/elsewhere/mount".into()),
    ("csi.bad_target", |r| r.target_path = "relative".into()),
    ("csi.bad_target", |r| r.target_path = r.target_path.replace("/mount", "/../mount")),
    ("csi.bad_target", |r| r.target_path = r.target_path.replace("/mount", "")),
    ("csi.bad_target", |r| r.target_path = r.target_path.replace("/mount", "/mount/deeper")),
    ("csi.bad_target", |r| r.target_path = r.target_path.replace("kubernetes.io~csi", "kubernetes.io~empty-dir")),
    ("csi.bad_target", |r| r.target_path = r.target_path.replace("/secrets/", "/a~b/")),
    // who
    ("csi.bad_request", |r| drop(r.volume_context.remove("csi.storage.k8s.io/ephemeral"))),
    ("csi.bad_request", |r| set(r, "ephemeral", "false")),
    ("csi.bad_request", |r| drop(r.volume_context.remove("csi.storage.k8s.io/pod.name"))),
    ("csi.bad_request", |r| drop(r.volume_context.remove("csi.storage.k8s.io/pod.namespace"))),
    ("csi.bad_request", |r| drop(r.volume_context.remove("csi.storage.k8s.io/pod.uid"))),
    ("csi.bad_request", |r| drop(r.volume_context.remove("csi.storage.k8s.io/serviceAccount.name"))),
    ("csi.bad_request", |r| set(r, "pod.namespace", "Shop")),
    ("csi.bad_request", |r| set(r, "pod.name", "../web")),
    ("csi.bad_request", |r| set(r, "serviceAccount.name", "")),
    ("csi.bad_request", |r| set(r, "pod.uid", "a/b")),
    ("identity.forged", |r| set(r, "pod.uid", "other")),
    ("identity.forged", |r| r.volume_id = volume_id("other", "secrets")),
    ("identity.forged", |r| r.volume_id.push('0')),
    ("identity.forged", |r| r.target_path = r.target_path.replace("/secrets/", "/others/")),
    ("identity.forged", |r| set(r, "pod.name", "other")),
    ("identity.forged", |r| set(r, "pod.namespace", "other")),
    ("identity.forged", |r| set(r, "serviceAccount.name", "other")),
    // tokens
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", "")),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", "[]")),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", r#"{"vault": "x"}"#)),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", r#"{"vault": {"token": "a.b"}}"#)),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", r#"{"vault": {"token": "a.e30.c"}}"#)),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", r#"{"vault": {"token": "a.====.c"}}"#)),
    ("csi.bad_request", |r| set(r, "serviceAccount.tokens", tokens(&[("vault", format!("a.{}.c", "x".repeat(20 << 10)))]))),
    ("identity.forged", |r| drop(r.secrets.insert(TOKENS.into(), r.volume_context[TOKENS].clone()))),
];

#[test]
fn a_publish_that_is_wrong_is_refused() {
    let (volume, expect) = volume(TokensIn::Context);
    for (nth, (expected, change)) in WRONG.iter().enumerate() {
        let mut request = volume.request();
        change(&mut request);
        assert_eq!(code(&read(request, &expect)), *expected, "row {nth}");
    }
}

#[test]
fn a_refusal_names_the_line_to_write() {
    let (volume, expect) = volume(TokensIn::Context);
    let says = |change: Change| {
        let mut request = volume.request();
        change(&mut request);
        read(request, &expect).err().unwrap().to_string()
    };
    assert!(says(|r| r.readonly = false).contains("the line `readOnly: true` under `csi:`"));
    let missing = says(|r| drop(r.volume_context.remove("spec")));
    assert!(missing.contains("`spec: 'files: ["), "{missing}");
    assert!(says(|r| set(r, "attribute Spec", "x")).contains("did you mean `spec`?"));
    assert!(says(|r| set(r, "attribute x", "x")).contains("the only one is `spec`"));
}

#[test]
fn tokens_in_the_other_place_are_somebody_elses() {
    for (expected, written) in [
        (TokensIn::Context, TokensIn::Secrets),
        (TokensIn::Secrets, TokensIn::Context),
        (TokensIn::Nowhere, TokensIn::Context),
        (TokensIn::Nowhere, TokensIn::Secrets),
    ] {
        let (mut volume, expect) = volume(expected);
        volume.tokens_in = written;
        assert_eq!(code(&read(volume.request(), &expect)), "identity.forged");
    }
    let (volume, expect) = volume(TokensIn::Either);
    let mut request = volume.request();
    request.secrets.insert(TOKENS.into(), volume.tokens());
    assert_eq!(code(&read(request, &expect)), "identity.forged");
}

#[test]
fn a_token_of_another_or_of_no_pod_is_refused() {
    let (volume, expect) = volume(TokensIn::Context);
    let with = |pairs: &[(&str, Value)]| {
        let pairs: Vec<_> = pairs.iter().map(|(a, claims)| (*a, jwt(claims))).collect();
        let mut request = volume.request();
        set(&mut request, "serviceAccount.tokens", tokens(&pairs));
        code(&read(request, &expect))
    };
    let changed = |pointer: &str, value: Value| {
        let mut claims = volume.pod.claims("vault", 5);
        *claims.pointer_mut(pointer).unwrap() = value;
        claims
    };
    let k8s = "/kubernetes.io";
    for pointer in ["namespace", "serviceaccount/name", "pod/name", "pod/uid"] {
        let claims = changed(&format!("{k8s}/{pointer}"), json!("other"));
        assert_eq!(with(&[("vault", claims)]), "identity.forged", "{pointer}");
    }
    for (aud, expected) in [
        (json!("vault"), "ok"),
        (json!(["x", "vault"]), "ok"),
        (json!("other"), "identity.forged"),
        (json!([]), "identity.forged"),
        (json!(1), "csi.bad_request"),
    ] {
        assert_eq!(
            with(&[("vault", changed("/aud", aud.clone()))]),
            expected,
            "{aud}"
        );
    }
    assert_eq!(with(&[("", changed("/aud", json!("any")))]), "ok");
    assert_eq!(
        with(&[("vault", changed("/exp", json!("soon")))]),
        "csi.bad_request"
    );
    let mut unbound = volume.pod.claims("vault", 5);
    unbound[&k8s[1..]].as_object_mut().unwrap().remove("pod");
    assert_eq!(with(&[("vault", unbound)]), "identity.forged", "no pod");
    let other = changed(&format!("{k8s}/serviceaccount/uid"), json!("another"));
    let both = [("vault", other), ("", volume.pod.claims("", 5))];
    assert_eq!(with(&both), "identity.forged", "accounts of two uids");
    let many: Vec<String> = (0..40).map(|n| format!("a{n}")).collect();
    let many: Vec<_> = many
        .iter()
        .map(|a| (a.as_str(), volume.pod.claims(a, 5)))
        .collect();
    assert_eq!(with(&many), "csi.bad_request");
    let twice = format!(
        r#"{{"vault": {{"token": {0:?}}}, "vault": {{"token": {0:?}}}}}"#,
        jwt(&volume.pod.claims("vault", 5))
    );
    let mut request = volume.request();
    set(&mut request, "serviceAccount.tokens", twice);
    assert_eq!(code(&read(request, &expect)), "csi.bad_request");
}

#[test]
fn no_refusal_shows_a_value() {
    let (volume, expect) = volume(TokensIn::Context);
    let tainted: &[Change] = &[
        |r| r.volume_id = CANARY.into(),
        |r| r.target_path = format!("/{CANARY}"),
        |r| mount(r).fs_type = CANARY.into(),
        |r| mount(r).mount_flags = vec![CANARY.into()],
        |r| mount(r).mount_flags = vec![format!("context={CANARY}")],
        |r| mount(r).volume_mount_group = CANARY.into(),
        |r| set(r, "ephemeral", CANARY),
        |r| set(r, "pod.name", CANARY),
        |r| set(r, "pod.namespace", CANARY),
        |r| set(r, "pod.uid", CANARY),
        |r| set(r, "serviceAccount.name", CANARY),
        |r| set(r, "attribute unknown", CANARY),
        |r| set(r, "serviceAccount.tokens", CANARY),
        |r| {
            set(
                r,
                "serviceAccount.tokens",
                format!("{{\"vault\": {CANARY:?}}}"),
            )
        },
        |r| {
            set(
                r,
                "serviceAccount.tokens",
                tokens(&[("vault", CANARY.into())]),
            )
        },
        |r| {
            set(
                r,
                "serviceAccount.tokens",
                tokens(&[(CANARY, "a.e30.c".into())]),
            )
        },
        |r| {
            set(
                r,
                "serviceAccount.tokens",
                tokens(&[("vault", jwt(&json!(CANARY)))]),
            )
        },
        |r| {
            set(
                r,
                "serviceAccount.tokens",
                tokens(&[("vault", jwt(&json!({"aud": CANARY, "exp": CANARY})))]),
            )
        },
    ];
    for (nth, change) in tainted.iter().enumerate() {
        let mut request = volume.request();
        change(&mut request);
        let Err(error) = read(request, &expect) else {
            panic!("row {nth} is accepted")
        };
        let shown = format!("{error} {error:?}");
        assert_eq!(found_in(shown.as_bytes()), [""; 0], "row {nth}: {shown}");
    }
}

/// Replaces one character by another one of those that ids, names and uids have.
fn touched(text: &str, at: usize, by: u8) -> Result<String, TestCaseError> {
    let mut bytes = text.as_bytes().to_vec();
    let at = at % bytes.len();
    prop_assume!(bytes[at] != by);
    bytes[at] = by;
    Ok(String::from_utf8(bytes).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// One character changed in any place that says who it is, and it is not believed.
    #[test]
    fn one_character_is_enough(place in 0..12_usize, at in any::<usize>(), by in prop::sample::select(b"abcdef0123456789-".to_vec())) {
        let (volume, expect) = volume(TokensIn::Context);
        let mut request = volume.request();
        let claim = |pointer: &str| -> Result<String, TestCaseError> {
            let mut claims = volume.pod.claims("vault", 5);
            let value = claims.pointer_mut(pointer).unwrap();
            *value = json!(touched(value.as_str().unwrap(), at, by)?);
            Ok(tokens(&[("vault", jwt(&claims)), ("", jwt(&volume.pod.claims("", 5)))]))
        };
        let keys = ["pod.name", "pod.namespace", "pod.uid", "serviceAccount.name"];
        let claims = ["/aud/0", "/kubernetes.io/namespace", "/kubernetes.io/pod/name", "/kubernetes.io/pod/uid",
            "/kubernetes.io/serviceaccount/name", "/kubernetes.io/serviceaccount/uid"];
        match place {
            0..4 => {
                let old = request.volume_context[&format!("csi.storage.k8s.io/{}", keys[place])].clone();
                set(&mut request, keys[place], touched(&old, at, by)?);
            }
            4..10 => {
                let changed = claim(claims[place - 4])?;
                set(&mut request, "serviceAccount.tokens", changed);
            }
            10 => request.volume_id = touched(&request.volume_id, at, by)?,
            _ => {
                // all of the target but its last segment, which the kubelet chooses
                let (parent, last) = request.target_path.rsplit_once('/').unwrap();
                request.target_path = format!("{}/{last}", touched(parent, at, by)?);
            }
        }
        prop_assert!(read(request, &expect).is_err());
    }

    /// Whatever the bytes, it is an answer and not a panic.
    #[test]
    fn nonsense_is_refused(tokens in ".{0,200}", target in ".{0,100}", id in ".{0,100}") {
        let (volume, expect) = volume(TokensIn::Either);
        let mut request = volume.request();
        set(&mut request, "serviceAccount.tokens", &tokens);
        prop_assert!(read(request.clone(), &expect).is_err());
        request = volume.request();
        request.target_path = target;
        prop_assert!(read(request, &expect).is_err());
        request = volume.request();
        request.volume_id = id;
        prop_assert!(read(request, &expect).is_err());
    }
}

#[test]
fn a_kubelets_directory_is_a_directory_and_not_a_prefix() {
    let (volume, mut expect) = volume(TokensIn::Context);
    let name = expect.kubelet_dir.to_str().unwrap().to_owned();
    expect.kubelet_dir = Path::new(&name[..name.len() - 1]).to_owned();
    assert_eq!(code(&read(volume.request(), &expect)), "csi.bad_target");
}
