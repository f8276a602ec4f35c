//! A publish as it comes over the socket, up to what is decided.

use std::{
    collections::HashMap,
    path::{Component, Path},
    sync::LazyLock,
};

use prost::Message as _;
use secretfs::{
    caller::{Identity, PodIdentity},
    csi::{
        context::{self, Expect, TokensIn},
        proto::{
            NodePublishVolumeRequest, VolumeCapability,
            volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
        },
    },
    error::{Error, Result},
    mount::Probe,
    path::{RelPath, VolumeId},
    policy::{Pattern, Policy, PolicyLine},
    spec::{BackendName, MountKind, Place, VolumeSpec},
    volume::{
        AskedSpec, PublishRequest,
        decide::{Call, Decision, Phase, Remembered, Seen, decide},
    },
};
use sha2::{Digest as _, Sha256};

use super::{PLANTED, Verdict, same_words, well_formed};

/// Where targets lie.
pub const KUBELET_DIR: &str = "/var/lib/kubelet";
/// The kubelet's key of tokens.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// `FLAGS STATE BODY`. Bits 0 and 1 of FLAGS: where the kubelet puts tokens; bit 2: the id is made to fit the target, as nobody can guess a
/// hash; bit 3: BODY is text (`written`), else protobuf. STATE: what is called, remembered and seen.
///
/// It is judged alike twice. What is accepted has names that lead nowhere else, an id that is the target's, a spec that is well formed,
/// objects that the policy names, and a decision that touches no mount of somebody else's. What is refused is told in one line without a
/// secret.
pub fn csi_publish(data: &[u8]) -> Verdict {
    let [flags, state, body @ ..] = data else {
        return Verdict::Refused;
    };
    let decoded = match flags >> 3 & 1 {
        0 => NodePublishVolumeRequest::decode(body).ok(),
        _ => std::str::from_utf8(body).ok().map(written),
    };
    let Some(mut request) = decoded else {
        return Verdict::Refused;
    };
    if flags >> 2 & 1 == 1 {
        fit(&mut request);
    }
    for map in [&mut request.volume_context, &mut request.secrets] {
        if let Some(tokens) = map.get_mut(TOKENS) {
            *tokens = plant(tokens);
        }
    }
    request.secrets.insert("planted".into(), PLANTED.into());
    let expect = Expect {
        kubelet_dir: KUBELET_DIR.into(),
        tokens_in: match flags & 3 {
            0 => TokensIn::Context,
            1 => TokensIn::Secrets,
            2 => TokensIn::Either,
            _ => TokensIn::Nowhere,
        },
    };
    let again = judge(shuffled(&request), &expect, *state);
    match (judge(request.clone(), &expect, *state), again) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one.spec.digest, other.spec.digest);
            assert_eq!(
                (one.asked.id.as_str(), one.decision),
                (other.asked.id.as_str(), other.decision)
            );
            names(&request, &one.asked);
            files(&one.spec);
            Verdict::Accepted
        }
        (Err(one), Err(other)) => {
            same_words(&one, &other);
            Verdict::Refused
        }
        (one, other) => panic!("judged in two ways: {:?} {:?}", one.err(), other.err()),
    }
}

/// The same request, with maps whose order is another: a clone has the order of what it was made of.
fn shuffled(request: &NodePublishVolumeRequest) -> NodePublishVolumeRequest {
    let anew = |map: &HashMap<String, String>| map.clone().into_iter().collect();
    NodePublishVolumeRequest {
        volume_context: anew(&request.volume_context),
        secrets: anew(&request.secrets),
        ..request.clone()
    }
}

/// As far as a publish comes without I/O.
struct Judged {
    asked: PublishRequest,
    spec: VolumeSpec,
    decision: Decision,
}

/// What `csi::node` and a volume's task do with it, in their order.
fn judge(request: NodePublishVolumeRequest, expect: &Expect, state: u8) -> Result<Judged> {
    let id = context::complete(&request, expect)?;
    let asked = context::read(request, expect)?;
    assert_eq!(asked.id, id);
    let (AskedSpec::Raw(text), Identity::Pod(pod)) = (&asked.spec, &asked.caller.0) else {
        panic!("a publish brings the text of a pod's author")
    };
    let place = Place::Kubernetes {
        fs_group: asked.placing.group,
    };
    let spec = super::parse(text, place).map_err(|problems| {
        super::told(text, &problems);
        let said: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
        Error::new(problems[0].code).detail(said.join("; "))
    })?;
    for object in &spec.objects {
        let allowed = POLICY.allows(pod, object);
        let named = match object.backend.as_str() {
            "store" => object.path.starts_with("payments/"),
            "plain" => !object.path.contains('/'),
            _ => false,
        };
        let expected = named && &*pod.namespace == "payments" && &*pod.service_account == "api";
        assert_eq!(allowed.is_ok(), expected, "{object} for {pod:?}");
        allowed?;
    }
    let decision = decided(&asked, state)?;
    Ok(Judged {
        asked,
        spec,
        decision,
    })
}

/// What the node's policy says, of which `judge` has another reading.
static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let allow = [("store", "payments/**"), ("plain", "*")];
    let allow = allow.map(|(backend, pattern)| {
        let backend = BackendName::parse(backend).expect("a name");
        (backend, Pattern::parse(pattern).expect("a pattern"))
    });
    Policy::new(vec![PolicyLine {
        namespaces: vec!["payments".into()],
        service_accounts: vec!["api".into()],
        allow: allow.into(),
    }])
});

/// The decision, which is never one that a call of its kind must not have.
fn decided(asked: &PublishRequest, state: u8) -> Result<Decision> {
    use {Call as C, Decision as D, Phase as P, Remembered as R, Seen as S};
    let call = [C::Publish, C::PublishElsewhere, C::Unpublish, C::Restore][usize::from(state & 3)];
    let phase = [P::New, P::Publishing, P::Serving, P::Closing][usize::from(state >> 2 & 3)];
    let record = [R::Nothing, R::Begun, R::Same, R::Other][usize::from(state >> 4 & 3)];
    let ours = |volume| Probe::Ours {
        kind: MountKind::Tmpfs,
        volume,
        layers: 1,
        altered: None,
    };
    let another = VolumeId::parse("csi-another").expect("an id");
    let probe = match state >> 6 {
        0 => Probe::Absent,
        1 => ours(asked.id.clone()),
        2 => ours(another),
        _ => Probe::Foreign,
    };
    let seen = Seen::of(&probe, &asked.id);
    let decision = decide(call, phase, record, seen);
    assert!(decision == decide(call, phase, record, seen));
    let mine = matches!(seen, S::Ours | S::Absent);
    let good = match decision {
        D::Mount => call == C::Publish && phase == P::New && seen == S::Absent,
        D::Keep if call == C::Publish => {
            phase == P::Serving && record == R::Same && seen == S::Ours
        }
        D::Keep => call == C::Restore && phase != P::New,
        D::Update => call == C::Publish && phase == P::Serving && seen == S::Ours,
        D::Reattach => call == C::Publish && phase == P::Serving && seen == S::Absent,
        D::Adopt => call != C::Unpublish && phase == P::New && seen == S::Ours,
        D::Hold => call == C::Restore && seen == S::Ours,
        D::Lose => call == C::Restore && seen != S::Ours,
        D::Unmount => call == C::Unpublish && mine,
        D::Forget => !matches!(call, C::Publish | C::PublishElsewhere),
        D::Refuse(_) => matches!(call, C::Publish | C::PublishElsewhere),
    };
    assert!(good, "{call:?} {phase:?} {record:?} {seen:?}: {decision:?}");
    match decision {
        D::Refuse(code) => Err(Error::new(code).object(&asked.target)),
        decision => Ok(decision),
    }
}

/// Names that were accepted lead nowhere but to this pod's volume.
fn names(request: &NodePublishVolumeRequest, asked: &PublishRequest) {
    let Identity::Pod(PodIdentity {
        namespace,
        pod,
        pod_uid,
        service_account,
        ..
    }) = &asked.caller.0
    else {
        panic!("a publish is a pod's")
    };
    assert!(request.readonly);
    let target = asked.target.as_path();
    let below = target.strip_prefix(KUBELET_DIR).expect("below kubeletDir");
    let parts: Vec<_> = below.components().collect();
    let all_normal = parts
        .iter()
        .all(|part| matches!(part, Component::Normal(_)));
    assert!(all_normal && parts.len() == 6, "{target:?}");
    assert_eq!(parts[1].as_os_str(), &**pod_uid);
    let volume = parts[4].as_os_str().to_str().expect("text");
    assert_eq!(asked.id.as_str(), volume_id(pod_uid, volume));
    for (name, dots) in [
        (&**namespace, false),
        (volume, false),
        (&**pod, true),
        (&**service_account, true),
    ] {
        let good = |byte: u8| match byte {
            b'.' => dots,
            byte => byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-',
        };
        assert!(
            !name.is_empty() && name.len() <= 253 && name.bytes().all(good),
            "{name:?}"
        );
    }
    if let Some(label) = &asked.placing.context {
        let quotes = ['"', ' ', '\\', '\n', '\0'];
        assert!(!label.contains(quotes), "{label:?}");
        let (start, _) = label.split_once(',').unwrap_or((label, ""));
        assert!(start.split(':').count() >= 3, "{label:?}");
    }
    assert_ne!(asked.placing.group, Some(u32::MAX));
    assert!(!format!("{:?} {:?}", asked.caller, asked.placing).contains(PLANTED));
}

/// Files that were accepted stay in the volume.
fn files(spec: &VolumeSpec) {
    well_formed(spec);
    for path in spec.files.iter().filter_map(|rule| rule.path.as_ref()) {
        assert_eq!(RelPath::parse(path.as_str()).as_ref(), Ok(path));
        assert!(Path::new("/v").join(path.as_str()).starts_with("/v"));
        assert!(path.segments().all(|segment| !segment.starts_with("..")));
    }
}

/// The kubelet's id of a pod's volume.
fn volume_id(pod_uid: &str, volume: &str) -> String {
    let hash = Sha256::digest(format!("{pod_uid}{volume}"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// Gives the request the id of its target, if that is one of a volume.
fn fit(request: &mut NodePublishVolumeRequest) {
    let parts: Vec<&str> = request.target_path.split('/').collect();
    if let [.., uid, "volumes", _, volume, _] = parts[..] {
        request.volume_id = volume_id(uid, volume);
    }
}

/// Puts a word into the head of the first token, of which nothing is read.
pub fn plant(tokens: &str) -> String {
    tokens.replacen(r#""token":""#, &format!(r#""token":"{PLANTED}"#), 1)
}

/// A request of text: `tTARGET`, `gGROUP`, `yFSTYPE`, `fFLAG`, `w` (writable), `b` (no capability), `cKEY=VALUE` of the context (`c.` for the
/// kubelet's prefix), `sKEY=VALUE` of the secrets, between NUL bytes; and what a kubelet would say besides.
fn written(text: &str) -> NodePublishVolumeRequest {
    let mut request = request();
    for part in text.split('\0') {
        let mut chars = part.chars();
        let (kind, rest) = (chars.next(), chars.as_str());
        let pair = || {
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            let key = match key.strip_prefix('.') {
                Some(own) => format!("csi.storage.k8s.io/{own}"),
                None => key.to_owned(),
            };
            (key, value.to_owned())
        };
        match kind {
            Some('t') => request.target_path = rest.to_owned(),
            Some('w') => request.readonly = false,
            Some('b') => request.volume_capability = None,
            Some('c') => request.volume_context.extend([pair()]),
            Some('s') => request.secrets.extend([pair()]),
            Some(kind) => {
                if let Some(mount) = mount(&mut request) {
                    match kind {
                        'g' => mount.volume_mount_group = rest.to_owned(),
                        'y' => mount.fs_type = rest.to_owned(),
                        'f' => mount.mount_flags.push(rest.to_owned()),
                        _ => {}
                    }
                }
            }
            None => {}
        }
    }
    request
}

fn mount(request: &mut NodePublishVolumeRequest) -> Option<&mut MountVolume> {
    match request.volume_capability.as_mut()?.access_type.as_mut()? {
        AccessType::Mount(mount) => Some(mount),
        AccessType::Block(_) => None,
    }
}

/// A publish as a kubelet sends it, for the pod `payments/web`.
pub fn request() -> NodePublishVolumeRequest {
    let uid = "0a1b2c3d-0000-4000-a000-000000000000";
    let context = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "web"),
        ("csi.storage.k8s.io/pod.namespace", "payments"),
        ("csi.storage.k8s.io/pod.uid", uid),
        ("csi.storage.k8s.io/serviceAccount.name", "api"),
        ("spec", "files: [{path: a, from: \"store:payments/db\"}]"),
    ];
    let context: HashMap<String, String> = context
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    NodePublishVolumeRequest {
        volume_id: ID.clone(),
        target_path: format!("{KUBELET_DIR}/pods/{uid}/volumes/kubernetes.io~csi/secrets/mount"),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::SingleNodeWriter.into(),
            }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }),
        readonly: true,
        volume_context: context,
        ..NodePublishVolumeRequest::default()
    }
}

/// The id of that pod's volume `secrets`.
static ID: LazyLock<String> =
    LazyLock::new(|| volume_id("0a1b2c3d-0000-4000-a000-000000000000", "secrets"));
