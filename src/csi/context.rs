//! Who asks: what the kubelet and the pod's author put into a publish, read and checked against each other.
//!
//! `volume_context` holds both hands' writing; the kubelet overwrites only the keys that our CSIDriver object makes it send
//! (`driver_object` sees to that). So nothing is believed that stands in one place only: pod uid, volume id, target and the claims of every
//! token must agree. Signatures are the stores' to check: here a token is only held against what the kubelet says.
//!
//! Pure: no file, no clock. No error holds a value of the request, only names of keys.

mod names;
mod token;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    caller::{Credentials, Identity, PodIdentity},
    csi::proto::{
        NodePublishVolumeRequest, VolumeCapability,
        volume_capability::{AccessType, MountVolume, access_mode::Mode},
    },
    error::{Error, Result, codes},
    limits,
    path::{TargetPath, VolumeId},
    secret::SecretBytes,
    spec::{read::shown, suggest::did_you_mean},
    volume::{AskedSpec, Placing, PublishRequest},
};

/// In which map the kubelet puts tokens: `spec.serviceAccountTokenInSecrets` of our CSIDriver object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokensIn {
    /// `volume_context`: Kubernetes up to 1.34, and where the field is false.
    Context,
    /// `secrets`; what stands in `volume_context` is the author's then.
    Secrets,
    /// Nowhere: it requests none, so the kubelet writes none, and what looks like tokens is the author's.
    Nowhere,
    /// Not known (`kubernetes: off`).
    Either,
}

/// What a publish is held against.
#[derive(Clone, Debug)]
pub struct Expect {
    /// Targets lie below it.
    pub kubelet_dir: PathBuf,
    /// Where tokens are.
    pub tokens_in: TokensIn,
}

/// What the kubelet writes into `volume_context`; all else there is the author's.
const KUBELETS: &str = "csi.storage.k8s.io/";
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const ACCOUNT: &str = "csi.storage.k8s.io/serviceAccount.name";
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// The author's attributes.
const SPEC: &str = "spec";
const ATTRIBUTES: [&str; 1] = [SPEC];

/// Which volume, and where: the fields that every call about a volume has.
///
/// # Errors
/// `csi.bad_request`: the field is missing; `csi.bad_target`: it can be no target of ours.
pub fn place(id: &str, target: &str, expect: &Expect) -> Result<(VolumeId, TargetPath)> {
    if target.is_empty() {
        return Err(missing("target_path"));
    }
    let id = volume_id(id)?;
    let bad = |why: &str| Error::new(&codes::CSI_BAD_TARGET).detail(format!("target_path {why}"));
    let target = TargetPath::parse(target.as_ref()).map_err(bad)?;
    if !target.as_path().starts_with(&expect.kubelet_dir) || target.as_path() == expect.kubelet_dir
    {
        return Err(bad("does not lie below `kubeletDir` of the configuration"));
    }
    Ok((id, target))
}

/// The id of a call.
///
/// # Errors
/// `csi.bad_request`.
pub fn volume_id(id: &str) -> Result<VolumeId> {
    if id.is_empty() {
        return Err(missing("volume_id"));
    }
    VolumeId::parse(id).ok_or_else(|| wrong("volume_id", "is not 1 to 128 of A-Z a-z 0-9 . _ -"))
}

/// Whether a publish has all its fields; what they say is not looked at. Also asked while nothing can be published.
///
/// # Errors
/// `csi.bad_request`, `csi.bad_target`.
pub fn complete(request: &NodePublishVolumeRequest, expect: &Expect) -> Result<VolumeId> {
    let (id, _) = place(&request.volume_id, &request.target_path, expect)?;
    mount(request.volume_capability.as_ref())?;
    Ok(id)
}

/// Reads a publish of a volume that is served: where only the author's attributes are wrong, it is a publish of no spec, which the volume refuses
/// and stays as it is. The kubelet would take the error for the end of the volume.
///
/// # Errors
/// As [`read`], but for the attributes.
pub fn read_again(request: NodePublishVolumeRequest, expect: &Expect) -> Result<PublishRequest> {
    read_as(request, expect, |attributes| {
        Ok(attributes.map_or_else(AskedSpec::Wrong, AskedSpec::Raw))
    })
}

/// Reads a publish.
///
/// 1. The fields are there, and none is larger than its limit.
/// 2. How it is to be mounted: read-only, with flags that we know.
/// 3. What: the author's attributes, of which there is one.
/// 4. Who, by the kubelet's keys, and where: the target is that pod's, and the id is made of both.
/// 5. The proof: the claims of every token are those of that pod.
///
/// # Errors
/// `csi.bad_request`, `csi.bad_target`, `csi.not_readonly`, `spec.missing_key`, `spec.unknown_key`, `spec.too_large`; `identity.forged` when what
/// is said of the pod in one place is not what is said in another.
pub fn read(request: NodePublishVolumeRequest, expect: &Expect) -> Result<PublishRequest> {
    read_as(request, expect, |attributes| attributes.map(AskedSpec::Raw))
}

fn read_as(
    mut request: NodePublishVolumeRequest,
    expect: &Expect,
    judge: impl FnOnce(Result<Arc<str>>) -> Result<AskedSpec>,
) -> Result<PublishRequest> {
    let (id, target) = place(&request.volume_id, &request.target_path, expect)?; // 1
    within_limits(&request)?;
    let placing = placing(mount(request.volume_capability.as_ref())?)?; // 2
    let spec = judge(read_only(&request).and_then(|()| spec(&request.volume_context)))?; // 3
    let mut pod = pod(&request.volume_context)?; // 4
    names::belongs(&target, &id, &pod.pod_uid, expect)?;
    let tokens = match tokens(&mut request, expect.tokens_in)? {
        Some(text) => token::read(&text, &mut pod)?, // 5
        None => Vec::new(),
    };
    let secrets = std::mem::take(&mut request.secrets)
        .into_iter()
        .map(|(name, value)| (name, SecretBytes::new(value.into_bytes())))
        .collect::<BTreeMap<_, _>>();
    Ok(PublishRequest {
        id,
        target,
        spec,
        caller: Arc::new((Identity::Pod(pod), Credentials::new(tokens, secrets))),
        placing,
    })
}

fn missing(field: &str) -> Error {
    Error::new(&codes::CSI_BAD_REQUEST).detail(format!("{field} is missing"))
}

fn wrong(field: &str, why: &str) -> Error {
    Error::new(&codes::CSI_BAD_REQUEST).detail(format!("{field} {why}"))
}

fn forged(why: &str) -> Error {
    Error::new(&codes::IDENTITY_FORGED).detail(why)
}

/// Before anything is parsed or copied.
fn within_limits(request: &NodePublishVolumeRequest) -> Result<()> {
    let maps = [
        ("volume_context", &request.volume_context),
        ("secrets", &request.secrets),
    ];
    for (field, map) in maps {
        if map.len() > limits::CSI_ENTRIES {
            let says = format!("has more than {} entries", limits::CSI_ENTRIES);
            return Err(wrong(field, &says));
        }
        let mut entries: Vec<_> = map.iter().collect();
        entries.sort_unstable(); // as in `spec`: of two that are too long the same one is told each time
        for (key, value) in entries {
            let most = match (field, key.as_str()) {
                (_, TOKENS) => limits::TOKENS_BYTES,
                ("secrets", _) => limits::CSI_SECRET_BYTES,
                (_, SPEC) => continue, // the spec's own error says it better
                _ => limits::CSI_VALUE_BYTES,
            };
            if key.len() > limits::CSI_KEY_BYTES {
                let says = format!("has a key longer than {} bytes", limits::CSI_KEY_BYTES);
                return Err(wrong(field, &says));
            }
            if value.len() > most {
                let says = format!("`{}` is longer than {most} bytes", shown(key));
                return Err(wrong(field, &says));
            }
        }
    }
    let secrets = request.secrets.iter().filter(|(key, _)| *key != TOKENS);
    if secrets.map(|(_, value)| value.len()).sum::<usize>() > limits::CSI_SECRET_BYTES {
        let says = format!("has values of more than {} bytes", limits::CSI_SECRET_BYTES);
        return Err(wrong("secrets", &says));
    }
    Ok(())
}

/// The capability: a mount, with an access mode.
fn mount(capability: Option<&VolumeCapability>) -> Result<&MountVolume> {
    let capability = capability.ok_or_else(|| missing("volume_capability"))?;
    let mode = capability
        .access_mode
        .as_ref()
        .map_or(Mode::Unknown, |access| access.mode());
    if mode == Mode::Unknown {
        return Err(missing("volume_capability.access_mode"));
    }
    match &capability.access_type {
        Some(AccessType::Mount(mount)) => Ok(mount),
        Some(AccessType::Block(_)) => Err(wrong(
            "volume_capability",
            "asks for a block device; only mounts are served",
        )),
        None => Err(missing("volume_capability.access_type")),
    }
}

fn placing(mount: &MountVolume) -> Result<Placing> {
    if !matches!(mount.fs_type.as_str(), "" | "tmpfs") {
        return Err(wrong(
            "fsType",
            "is not tmpfs; leave `fsType` of the pod's volume away",
        ));
    }
    let mut context = None;
    for flag in &mount.mount_flags {
        let value = flag.strip_prefix("context=").ok_or_else(|| {
            wrong(
                "mount_flags",
                "hold a flag other than `context=\"...\"`, which the kubelet sets for SELinux",
            )
        })?;
        if context.is_some() {
            return Err(wrong("mount_flags", "hold `context=` twice"));
        }
        let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        let label = quoted.unwrap_or(value);
        if !names::is_selinux_label(label) {
            return Err(wrong(
                "mount_flags",
                "hold a `context=` that is no SELinux label (user:role:type:level)",
            ));
        }
        context = Some(label.to_owned());
    }
    let group = match mount.volume_mount_group.as_str() {
        "" => None,
        text => Some(names::group(text).ok_or_else(|| {
            wrong(
                "volume_mount_group",
                "is no group id, a number from 0 to 4294967294",
            )
        })?),
    };
    Ok(Placing {
        context,
        group,
        make_target: true, // CSI v1: the plugin makes the target, below a parent that is there
    })
}

fn read_only(request: &NodePublishVolumeRequest) -> Result<()> {
    if request.readonly {
        return Ok(());
    }
    let says = "secrets are served read-only: the pod's volume needs the line `readOnly: true` under `csi:`";
    Err(Error::new(&codes::CSI_NOT_READONLY).detail(says))
}

/// The author's attributes: all known, and the spec among them.
fn spec(context: &HashMap<String, String>) -> Result<Arc<str>> {
    let mut unknown: Vec<&String> = context
        .keys()
        .filter(|key| !key.starts_with(KUBELETS) && !ATTRIBUTES.contains(&key.as_str()))
        .collect();
    unknown.sort(); // a HashMap has another order each time; the message must not
    if let Some(key) = unknown.first() {
        let help =
            did_you_mean(key, ATTRIBUTES).unwrap_or_else(|| format!("the only one is `{SPEC}`"));
        let says = format!("unknown attribute `{}`; {help}", shown(key));
        return Err(Error::new(&codes::SPEC_UNKNOWN_KEY)
            .object("volumeAttributes")
            .detail(says));
    }
    let Some(spec) = context.get(SPEC) else {
        let says = "the attribute `spec` is missing; for example: `spec: 'files: [{path: password, from: \"store:payments/db#password\"}]'`";
        return Err(Error::new(&codes::SPEC_MISSING_KEY)
            .object("volumeAttributes")
            .detail(says));
    };
    if spec.len() > limits::SPEC_BYTES {
        let says = format!("the spec is longer than {} bytes", limits::SPEC_BYTES);
        return Err(Error::new(&codes::SPEC_TOO_LARGE)
            .object("volumeAttributes.spec")
            .detail(says));
    }
    Ok(spec.as_str().into())
}

/// The pod, by the kubelet's keys.
fn pod(context: &HashMap<String, String>) -> Result<PodIdentity> {
    let value = |key: &str| {
        let found = context.get(key).map(String::as_str);
        found.ok_or_else(|| {
            wrong(key, "is missing in volume_context: the CSIDriver object needs `podInfoOnMount: true` and the volume must be inline in the pod")
        })
    };
    if value(EPHEMERAL)? != "true" {
        return Err(wrong(
            EPHEMERAL,
            "is not \"true\": only volumes that are written inline in a pod are served",
        ));
    }
    let named = |key: &str, good: fn(&str) -> bool| {
        let value = value(key)?;
        let bad = || wrong(key, "is not what Kubernetes takes for one");
        good(value).then(|| value.into()).ok_or_else(bad)
    };
    Ok(PodIdentity {
        namespace: named(POD_NAMESPACE, names::is_label)?,
        pod: named(POD_NAME, names::is_subdomain)?,
        pod_uid: named(POD_UID, names::is_uid)?,
        service_account: named(ACCOUNT, names::is_subdomain)?,
        service_account_uid: None,
    })
}

/// The tokens' text, from where the kubelet puts it. In the other place it is somebody else's.
fn tokens(request: &mut NodePublishVolumeRequest, from: TokensIn) -> Result<Option<String>> {
    let in_context = request.volume_context.remove(TOKENS);
    let in_secrets = request.secrets.remove(TOKENS);
    match (from, in_context, in_secrets) {
        (TokensIn::Nowhere, None, None) => Ok(None),
        (TokensIn::Nowhere, ..) => Err(forged(
            "there are tokens, but the CSIDriver object requests none",
        )),
        (TokensIn::Context | TokensIn::Either, text, None) => Ok(text),
        (TokensIn::Secrets | TokensIn::Either, None, text) => Ok(text),
        (TokensIn::Context, _, Some(_)) => Err(forged(
            "secrets hold tokens, but the CSIDriver object has the kubelet write them into volume_context",
        )),
        (TokensIn::Secrets, Some(_), _) => Err(forged(
            "volume_context holds tokens, but the CSIDriver object has the kubelet write them into secrets",
        )),
        (TokensIn::Either, Some(_), Some(_)) => Err(forged(
            "tokens stand in volume_context and in secrets, and a kubelet writes one of the two",
        )),
    }
}
