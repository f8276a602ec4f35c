//! The digest of a spec: of its meaning, not of its text. Comments, order of keys and names of sources do not count.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::spec::{Digest, FileRule, OnDenied, Origin, Refresh, Select, VolumeSpec};

/// SHA-256 of the spec as JSON with sorted keys, each object written out where it is used.
pub(super) fn digest(spec: &VolumeSpec) -> Digest {
    let files: Vec<_> = spec.files.iter().map(|rule| file(spec, rule)).collect();
    let canonical = json!({
        "mount": spec.mount,
        "refresh": match spec.refresh {
            Refresh::Every(every) => json!(every.as_secs()),
            Refresh::Never => json!("never"),
        },
        "stale": spec.serve_stale_for.as_secs(),
        "denied": match spec.on_denied {
            OnDenied::Keep => json!("keep"),
            OnDenied::RemoveAfter(grace) => json!(grace.as_secs()),
        },
        "mode": spec.default_mode.bits(),
        "uid": spec.owner.uid,
        "gid": spec.owner.gid,
        "limits": [
            spec.limits.bytes_per_file,
            spec.limits.bytes_per_volume,
            u64::from(spec.limits.files_per_volume),
        ],
        "files": files,
    });
    Digest(Sha256::digest(canonical.to_string()).into())
}

fn file(spec: &VolumeSpec, rule: &FileRule) -> Value {
    let object = |index: &usize| {
        spec.objects.get(*index).map(|object| {
            json!({
                "backend": object.backend.as_str(),
                "path": object.path,
                "version": object.version,
                "params": object.params,
                "share": format!("{:?}", object.share),
            })
        })
    };
    let origin = match &rule.origin {
        Origin::Value {
            object: index,
            select,
            decode,
        } => json!({
            "value": object(index),
            "select": match select {
                Select::Whole => json!(null),
                Select::Field(name) => json!(["field", name]),
                Select::Pointer(pointer) => json!(["pointer", pointer]),
            },
            "decode": decode.map(|decode| format!("{decode:?}")),
        }),
        Origin::AllFields {
            object: index,
            decode,
        } => json!({"all": object(index), "decode": decode.map(|decode| format!("{decode:?}"))}),
        Origin::Formatted {
            object: index,
            format,
        } => json!({"whole": object(index), "format": format!("{format:?}")}),
        Origin::Template { text, uses } => {
            let uses: Vec<_> = uses
                .iter()
                .map(|(name, index)| json!([name, object(index)]))
                .collect();
            json!({"template": &**text, "uses": uses})
        }
    };
    json!({
        "path": rule.path.as_ref().map(|path| path.as_str()),
        "origin": origin,
        "mode": rule.mode.map(|mode| mode.bits()),
        "optional": rule.optional,
    })
}
