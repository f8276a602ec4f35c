//! Names as Kubernetes takes them, and what they must have to do with each other.

use std::{fmt::Write as _, path::Component};

use sha2::{Digest, Sha256};

use super::{Expect, forged};
use crate::{
    error::{Error, Result, codes},
    limits,
    path::{TargetPath, VolumeId},
};

/// A DNS label (RFC 1123): namespaces and volumes.
pub fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=limits::LABEL_BYTES).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
}

/// A DNS subdomain: pods and service accounts. Its labels may be longer than 63 (`IsDNS1123Subdomain`).
pub fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let trimmed = part.trim_matches('-');
        !part.is_empty()
            && trimmed.len() == part.len()
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= limits::SUBDOMAIN_BYTES && text.split('.').all(part)
}

/// A pod's uid: a UUID, or 32 hex digits for a static pod.
pub fn is_uid(text: &str) -> bool {
    (1..=limits::UID_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
}

/// A group id. The highest number means "leave it" to chown(2).
pub fn group(text: &str) -> Option<u32> {
    let digits = text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
    let group = digits.then(|| text.parse().ok()).flatten()?;
    (group != u32::MAX).then_some(group)
}

/// `user:role:type` and perhaps `:level`. No quote, and a comma only in a level: it goes to the kernel as one value.
pub fn is_selinux_label(text: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    let level = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b',' | b':'))
    };
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    text.len() <= limits::SELINUX_BYTES
        && match parts[..] {
            [user, role, kind] => word(user) && word(role) && word(kind),
            [user, role, kind, range] => word(user) && word(role) && word(kind) && level(range),
            _ => false,
        }
}

/// Whether a target is that of a volume of this pod, and the id is made of both (kubelet, `csi_mounter.go`: `getTargetPath`,
/// `makeVolumeHandle`).
///
/// The kubelet writes `/` in a volume's name as `~`; the name of a pod's volume is a label and has neither.
pub fn belongs(target: &TargetPath, id: &VolumeId, pod_uid: &str, expect: &Expect) -> Result<()> {
    let below = target.as_path().strip_prefix(&expect.kubelet_dir);
    let parts: Option<Vec<&str>> = below
        .unwrap_or(target.as_path())
        .components()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let Some(["pods", uid, "volumes", "kubernetes.io~csi", volume, _]) = parts.as_deref() else {
        return Err(bad_target());
    };
    if !is_label(volume) || !is_uid(uid) {
        return Err(bad_target());
    }
    if *uid != pod_uid {
        return Err(forged(
            "the pod uid of volume_context is not the one of target_path",
        ));
    }
    if id.as_str() != volume_id(pod_uid, volume) {
        return Err(forged(
            "volume_id is not made of the pod's uid and the volume's name",
        ));
    }
    Ok(())
}

fn bad_target() -> Error {
    Error::new(&codes::CSI_BAD_TARGET).detail(
        "target_path is not <kubeletDir>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount",
    )
}

/// The kubelet's id of a pod's inline volume.
fn volume_id(pod_uid: &str, volume: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(pod_uid);
    hash.update(volume);
    let mut id = String::from("csi-");
    for byte in hash.finalize() {
        let _ = write!(id, "{byte:02x}"); // a String takes everything
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        let long = |n: usize| "a".repeat(n);
        for (text, label, subdomain) in [
            ("a", true, true),
            ("web-1", true, true),
            ("0", true, true),
            ("a.b", false, true),
            ("a..b", false, false),
            (".a", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a-.b", false, false),
            ("A", false, false),
            ("a_b", false, false),
            ("ü", false, false),
            ("a/b", false, false),
            ("a\n", false, false),
            ("", false, false),
            (&long(63), true, true),
            (&long(64), false, true),
            (&long(253), false, true),
            (&long(254), false, false),
        ] {
            assert_eq!(
                (is_label(text), is_subdomain(text)),
                (label, subdomain),
                "{text:?}"
            );
        }
        for (text, good) in [
            ("0a1b2c3d-0000-4000-a000-000000000000", true),
            ("0123456789abcdef0123456789abcdef", true),
            ("", false),
            ("-", false),
            ("..", false),
            ("a/b", false),
            (&long(65), false),
        ] {
            assert_eq!(is_uid(text), good, "{text:?}");
        }
    }

    #[test]
    fn groups_and_labels_are_whole() {
        for (text, expect) in [
            ("0", Some(0)),
            ("4242", Some(4242)),
            ("4294967294", Some(u32::MAX - 1)),
            ("4294967295", None),
            ("99999999999", None),
            ("-1", None),
            ("+1", None),
            (" 1", None),
            ("", None),
        ] {
            assert_eq!(group(text), expect, "{text:?}");
        }
        for (text, good) in [
            ("system_u:object_r:container_file_t:s0:c1,c2", true),
            ("system_u:object_r:container_file_t:s0-s0:c0.c1023", true),
            ("u:r:t", true),
            ("u:r", false),
            ("u:r:t:", false),
            ("u::t:s0", false),
            ("u,x:r:t:s0", false),
            ("u:r:t:s0\"", false),
            ("u:r:t:s0 x", false),
            ("", false),
        ] {
            assert_eq!(is_selinux_label(text), good, "{text:?}");
        }
    }

    #[test]
    fn an_id_is_the_kubelets() {
        // makeVolumeHandle("uid", "name"): printf 'uidname' | sha256sum
        assert_eq!(
            volume_id("uid", "name"),
            "csi-9b6ace7c01cfc0bcedec231914715a7b807d857f9bacaeb09d392a9eea9a9766"
        );
    }
}
