//! `secretfs version`.

use std::io::Write;

use serde_json::json;

use crate::{
    backend::registry,
    error::{Error, Result},
    sys::process,
};

/// Shows the version and what this kernel offers.
#[derive(clap::Args, Debug)]
pub struct VersionArgs {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Something of a kernel that we use, or will.
struct Feature {
    name: &'static str,
    /// The first release that has it (design decision 4).
    since: (u32, u32),
    /// Also in a user namespace of a user's own.
    unprivileged: bool,
    what: &'static str,
}

const KERNEL: [Feature; 5] = [
    Feature {
        name: "mount_api",
        since: (5, 12),
        unprivileged: true,
        what: "mounts without a writable path; needed",
    },
    Feature {
        name: "tmpfs_idmap",
        since: (6, 3),
        unprivileged: true,
        what: "volumes in pods with user namespaces",
    },
    Feature {
        name: "tmpfs_noswap",
        since: (6, 4),
        unprivileged: false,
        what: "secrets are never swapped out",
    },
    Feature {
        name: "fuse_resend",
        since: (6, 9),
        unprivileged: true,
        what: "FUSE requests outlive a restart",
    },
    Feature {
        name: "fuse_idmap",
        since: (6, 12),
        unprivileged: true,
        what: "FUSE in pods with user namespaces",
    },
];

/// Kinds of mounts that this program has.
const MOUNTS: [&str; 1] = ["tmpfs"];

/// What this was built from: `SECRETFS_COMMIT` at build time.
pub const COMMIT: &str = match option_env!("SECRETFS_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// Runs `version`.
///
/// # Errors
/// `stdout.closed`, `node.io` when stdout cannot be written.
pub fn run(args: &VersionArgs, out: &mut dyn Write) -> Result<()> {
    let release = process::kernel_release();
    tracing::trace!(release, "the kernel");
    let text = text(args.json, &release, process::in_user_namespace());
    out.write_all(text.as_bytes()).map_err(Error::stdout)
}

fn text(json: bool, release: &str, in_namespace: bool) -> String {
    let backends = registry::BUILTINS.iter().map(|(kind, _)| *kind);
    let features: Vec<_> = backends.chain(MOUNTS).collect();
    let have = parse(release);
    let there =
        |feature: &Feature| have >= feature.since && (feature.unprivileged || !in_namespace);
    if json {
        let kernel: serde_json::Map<_, _> = KERNEL
            .iter()
            .map(|feature| (feature.name.to_owned(), json!(there(feature))))
            .collect();
        let version = json!({
            "version": env!("CARGO_PKG_VERSION"), "commit": COMMIT, "features": features,
            "kernel": { "release": release, "userNamespace": in_namespace, "features": kernel },
        });
        return format!("{version}\n");
    }
    let mut text = format!(
        "secretfs {} (commit {COMMIT})\nfeatures {}\nkernel {release}\n",
        env!("CARGO_PKG_VERSION"),
        features.join(", ")
    );
    for feature in &KERNEL {
        let (major, minor) = feature.since;
        let but = match (feature.unprivileged, in_namespace) {
            (true, _) => "",
            (false, false) => "; not in a user namespace",
            (false, true) => "; not in a user namespace, and this is one",
        };
        text += &format!(
            "  {}  {} (Linux {major}.{minor}): {}{but}\n",
            if there(feature) { "yes" } else { "no " },
            feature.name,
            feature.what,
        );
    }
    text
}

/// Major and minor of `6.18.44-abc`; zeros where there is no number.
fn parse(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(['.', '-', '+'])
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_major_and_a_minor() {
        for (text, expect) in [
            ("6.18.44-fc", (6, 18)),
            ("5.12", (5, 12)),
            ("6.1+x", (6, 1)),
            ("odd", (0, 0)),
        ] {
            assert_eq!(parse(text), expect);
        }
    }

    #[test]
    fn a_kernel_offers_by_its_release_and_noswap_not_in_a_user_namespace() {
        let offers = |release: &str, in_namespace: bool| {
            let text = text(true, release, in_namespace);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["features"], json!(["store", "vault", "tmpfs"]));
            let features = json["kernel"]["features"].as_object().unwrap().clone();
            let there = features.into_iter().filter(|(_, there)| there == true);
            there.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(offers("5.11.0", false), "");
        assert_eq!(offers("6.3.1", false), "mount_api tmpfs_idmap");
        assert_eq!(offers("6.4.0", true), "mount_api tmpfs_idmap");
        assert_eq!(
            offers("6.12", false),
            "fuse_idmap fuse_resend mount_api tmpfs_idmap tmpfs_noswap"
        );
        let text = text(false, "6.18.1", true);
        let says = "  no   tmpfs_noswap (Linux 6.4): secrets are never swapped out; not in a user namespace, and this is one\n";
        assert!(text.contains(says), "{text}");
    }
}
