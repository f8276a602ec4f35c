//! What a kubelet sends for pod number N of namespace `bench`, and the directories that it makes before.

use std::{
    fs,
    path::{Path, PathBuf},
};

use secretfs::csi::proto::{
    NodePublishVolumeRequest, NodeUnpublishVolumeRequest, VolumeCapability,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::Outcome;

/// The spec of every pod's volume: two objects, one file each.
pub const SPEC: &str = "files:\n  - {path: user, from: \"store:bench/user\"}\n  - {path: password, from: \"store:bench/password\"}\n";

/// A pod's uid.
pub fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// A service account's name.
pub fn account(number: usize) -> String {
    format!("account-{number}")
}

/// Its uid.
pub fn account_uid(number: usize) -> String {
    format!("00000000-0000-4000-9000-{number:012}")
}

/// A pod's volume's id.
pub fn volume_id(number: usize) -> String {
    let hash = Sha256::digest(format!("{}secrets", uid(number)));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// Where its volume goes.
pub fn target(kubelet_dir: &Path, number: usize) -> PathBuf {
    let volumes = kubelet_dir.join("pods").join(uid(number)).join("volumes");
    volumes.join("kubernetes.io~csi/secrets/mount")
}

/// What the kubelet makes: all but the target itself.
pub fn make_directories(kubelet_dir: &Path, number: usize) -> Outcome<()> {
    let target = target(kubelet_dir, number);
    Ok(fs::create_dir_all(target.parent().ok_or("no parent")?)?)
}

/// "Serve it."
pub fn publish(kubelet_dir: &Path, number: usize) -> NodePublishVolumeRequest {
    let key = |name: &str| format!("csi.storage.k8s.io/{name}");
    let context = [
        ("spec".to_owned(), SPEC.to_owned()),
        (key("ephemeral"), "true".to_owned()),
        (key("pod.name"), format!("pod-{number}")),
        (key("pod.namespace"), "bench".to_owned()),
        (key("pod.uid"), uid(number)),
        (key("serviceAccount.name"), "default".to_owned()),
    ];
    NodePublishVolumeRequest {
        volume_id: volume_id(number),
        target_path: target(kubelet_dir, number).display().to_string(),
        volume_capability: Some(VolumeCapability {
            access_mode: Some(AccessMode {
                mode: Mode::SingleNodeWriter.into(),
            }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }),
        readonly: true,
        volume_context: context.into(),
        ..NodePublishVolumeRequest::default()
    }
}

/// "Serve it", with another spec, for a pod of account number `account`, with its token for the audience `vault`.
pub fn publish_as(
    kubelet_dir: &Path,
    number: usize,
    spec: String,
    account_number: usize,
    jwt: &str,
) -> NodePublishVolumeRequest {
    let key = |name: &str| format!("csi.storage.k8s.io/serviceAccount.{name}");
    let token = json!({"token": jwt, "expirationTimestamp": "2100-01-01T00:00:00Z"});
    let mut request = publish(kubelet_dir, number);
    request.volume_context.extend([
        ("spec".to_owned(), spec),
        (key("name"), account(account_number)),
        (key("tokens"), json!({"vault": token}).to_string()),
    ]);
    request
}

/// "Take it down."
pub fn unpublish(kubelet_dir: &Path, number: usize) -> NodeUnpublishVolumeRequest {
    NodeUnpublishVolumeRequest {
        volume_id: volume_id(number),
        target_path: target(kubelet_dir, number).display().to_string(),
    }
}
