//! How volumes are shown to whoever is on call: the worst first, each with why, since when and what to do, and a last line that counts.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::{
    cli::{
        client::{About, Objection},
        table::Table,
    },
    error::codes,
    mount::mountinfo::Mounts,
    path::VolumeId,
    volume::{StatusError, VolumeState, VolumeStatus},
};

/// States, the worst first: what readers notice and what needs a person, before what mends itself.
pub const WORST_FIRST: [VolumeState; 6] = [
    VolumeState::Lost,
    VolumeState::Denied,
    VolumeState::Stale,
    VolumeState::WaitingForToken,
    VolumeState::Adopted,
    VolumeState::Fresh,
];

/// How the id of a volume of `secretfs mount` begins.
const LOCAL: &str = "local-";

/// What is to be known of the plugin before its volumes.
pub fn heads(nodes: &[About]) -> String {
    let mut text = String::new();
    for node in nodes {
        let ready = if node.objections.is_empty() {
            "ready"
        } else {
            "not ready"
        };
        let _ = writeln!(text, "node {}, driver {}, {ready}", node.node, node.driver);
        for Objection { part, message, fix } in &node.objections {
            let _ = writeln!(text, "  {part}: {message}\n    {fix}");
        }
        if node.kubernetes == "off" {
            let _ = writeln!(
                text,
                "  kubernetes: off: identities are not held against our CSIDriver object"
            );
        }
        if let Some(error) = &node.config.error {
            let _ = writeln!(
                text,
                "  {} has changed and is not in force: {error}",
                node.config.file
            );
        }
    }
    text
}

/// The table.
pub fn table(volumes: &[&VolumeStatus]) -> String {
    if volumes.is_empty() {
        return "no volume is served by this user's secretfs\n".into();
    }
    let mut table = Table::new(&[
        "STATE",
        "VOLUME",
        "TARGET",
        "MOUNT",
        "GENERATION",
        "CHECKED",
        "NEXT",
    ]);
    let mut volumes = volumes.to_vec();
    volumes.sort_by_key(|volume| {
        let since = volume.error.as_ref().map(|error| &error.since);
        let rank = WORST_FIRST.iter().position(|state| *state == volume.state);
        (rank, since, &volume.owner, &volume.target)
    });
    for volume in &volumes {
        table.row([
            volume.state.name().to_owned(),
            clean(whose(volume)),
            clean(place(&volume.target)),
            mount(volume),
            volume.generation.to_string(),
            volume
                .checked_seconds_ago
                .map_or("never".into(), |seconds| format!("{} ago", span(seconds))),
            volume
                .next_in_seconds
                .map_or("on push".into(), |seconds| format!("in {}", span(seconds))),
        ]);
        for note in notes(volume) {
            table.note(format!("  {}", clean(&note)));
        }
    }
    table.to_string() + &totals(&volumes)
}

/// `3 volumes: 1 denied, 2 fresh`.
fn totals(volumes: &[&VolumeStatus]) -> String {
    let count = |state| volumes.iter().filter(|one| one.state == state).count();
    let counts = WORST_FIRST.map(|state| (count(state), state.name()));
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    let s = if volumes.len() == 1 { "" } else { "s" };
    format!("{} volume{s}: {}\n", volumes.len(), counts.join(", "))
}

/// Why it is not as it should be, and what to do.
fn notes(volume: &VolumeStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(error) = &volume.error {
        let since = error.since.as_ref();
        let since = since.map_or(String::new(), |since| format!("since {since}: "));
        notes.push(format!("{since}{}", reason(error)));
    }
    let code = |error: &StatusError| codes::ALL.iter().find(|code| code.name == error.code);
    let fix = volume.error.as_ref().and_then(code).map(|code| code.fix);
    match (volume.state, fix) {
        (VolumeState::Lost, None) => notes.push(
            "it was mounted anew, and a running container does not see that: restart the pod".into(),
        ),
        (VolumeState::Adopted, None) => notes.push(
            "as a former process left it, until its stores have answered or the kubelet calls again".into(),
        ),
        (_, Some(fix)) => notes.push(format!("fix: {fix}")),
        (_, None) => {}
    }
    let same = |error: &StatusError| {
        let told = volume.error.as_ref();
        told.is_some_and(|told| told.code == error.code && told.message == error.message)
    };
    for source in &volume.sources {
        if source.removed {
            let gone = "its files are removed, as `onDenied` says; they come back with it";
            notes.push(format!("{}: {gone}", source.reference));
        }
        if let Some(error) = source.error.as_ref().filter(|error| !same(error)) {
            notes.push(format!("{}: {}", source.reference, reason(error)));
        }
    }
    notes
}

fn reason(error: &StatusError) -> String {
    format!("{} [{}]", error.message, error.code)
}

/// A volume on one line, without what changes by itself: what `--watch` compares.
pub fn line(volume: &VolumeStatus) -> String {
    let mut line = format!(
        "{} {} {} generation {}",
        volume.state.name(),
        whose(volume),
        place(&volume.target),
        volume.generation
    );
    if let Some(error) = &volume.error {
        let _ = write!(line, ": {}", reason(error));
    }
    clean(&line)
}

/// Mounts of `secretfs mount` that no process serves: what a killed one left.
pub fn leftovers(volumes: &[&VolumeStatus]) -> String {
    let line = |(_, target)| {
        format!(
            "{target} is mounted and nobody serves it: `secretfs mount SPEC {target}` takes it over, `umount {target}` ends it\n"
        )
    };
    not_among(volumes, true).map(line).collect()
}

/// How many volumes of a node plugin are mounted here that are not among these.
pub fn unserved(volumes: &[&VolumeStatus]) -> usize {
    let ids: BTreeSet<_> = not_among(volumes, false).map(|(id, _)| id).collect();
    ids.len()
}

/// Whether a volume of this id is mounted here.
pub fn is_mounted(id: &str) -> bool {
    mounted().iter().any(|(mounted, _)| mounted.as_str() == id)
}

/// Mounts that serve none of these volumes, of `secretfs mount` or of a node plugin.
fn not_among(
    volumes: &[&VolumeStatus],
    is_local: bool,
) -> impl Iterator<Item = (VolumeId, String)> {
    mounted().into_iter().filter(move |(id, _)| {
        id.as_str().starts_with(LOCAL) == is_local
            && volumes.iter().all(|volume| volume.id != id.as_str())
    })
}

/// Our mounts here, and where each is.
fn mounted() -> Vec<(VolumeId, String)> {
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    let mounts = Mounts::parse(&table);
    let ours = mounts
        .iter()
        .filter_map(|mount| Some((mount.volume()?, mount.mount_point.display().to_string())));
    ours.collect()
}

/// Its pod, or its id.
pub fn whose(volume: &VolumeStatus) -> &str {
    match volume.owner.contains('/') {
        true => &volume.owner,
        false => &volume.id,
    }
}

/// A target as it is shown: of one that a kubelet chose, what the pod's author calls the volume.
pub fn place(target: &str) -> &str {
    let named = target
        .strip_suffix("/mount")
        .and_then(|target| target.rsplit_once("/volumes/kubernetes.io~csi/"));
    named.map_or(target, |(_, name)| name)
}

fn mount(volume: &VolumeStatus) -> String {
    let swap = volume.usage.as_ref().is_some_and(|usage| usage.swappable);
    let swap = if swap { " (swappable)" } else { "" };
    format!("{:?}{swap}", volume.mount).to_lowercase()
}

/// Without what a terminal would obey: a pod's author has a say in names and messages.
fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).collect()
}

/// `4s`, `12m`, `3h`, `2d`: one unit is enough to see whether something is wrong.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.95 => format!("{:.0}ms", s * 1000.0),
        s if s < 90.0 => format!("{s:.0}s"),
        s if s < 5400.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spec::MountKind, volume::SourceStatus};

    fn volume(owner: &str, state: VolumeState, error: Option<(&str, &str, &str)>) -> VolumeStatus {
        VolumeStatus {
            id: "csi-1".into(),
            owner: owner.into(),
            target: "/k/pods/u/volumes/kubernetes.io~csi/db/mount".into(),
            mount: MountKind::Tmpfs,
            state,
            generation: 4,
            changed_at: None,
            checked_seconds_ago: Some(720.0),
            next_in_seconds: None,
            error: error.map(|(code, message, since)| StatusError {
                code: code.into(),
                message: message.into(),
                since: Some(since.into()),
            }),
            sources: Vec::new(),
            usage: None,
        }
    }

    #[test]
    fn the_worst_is_first_with_why_since_when_and_what_to_do_and_the_last_line_counts() {
        use VolumeState as V;
        let denied = (
            "policy.denied",
            "store:db: no line allows it",
            "2026-11-28T10:00:00.000Z",
        );
        let down = |since| Some(("backend.unavailable", "store:db: refused\u{1b}[2J", since));
        let mut unwatched = volume("shop/b", V::Fresh, None);
        unwatched.sources.push(SourceStatus {
            reference: "store:db".into(),
            version: None,
            removed: false,
            pushes: false,
            error: Some(StatusError {
                code: "store.io".into(),
                message: "no watch".into(),
                since: None,
            }),
        });
        let mut removed = volume("shop/e", V::Denied, Some(denied));
        removed.sources.push(SourceStatus {
            reference: "store:db".into(),
            version: None,
            removed: true,
            pushes: false,
            error: removed.error.clone(),
        });
        let volumes = [
            volume("shop/a", V::Fresh, None),
            unwatched,
            volume("shop/c", V::Stale, down("2026-11-28T11:00:00.000Z")),
            volume("shop/d", V::Stale, down("2026-11-28T09:00:00.000Z")),
            removed,
            volume("shop/f", V::Lost, None),
        ];
        let text = table(&volumes.iter().collect::<Vec<_>>());
        let expect = "\
STATE   VOLUME  TARGET  MOUNT  GENERATION  CHECKED  NEXT
lost    shop/f  db      tmpfs  4           12m ago  on push
  it was mounted anew, and a running container does not see that: restart the pod
denied  shop/e  db      tmpfs  4           12m ago  on push
  since 2026-11-28T10:00:00.000Z: store:db: no line allows it [policy.denied]
  fix: Add a line to the policy.
  store:db: its files are removed, as `onDenied` says; they come back with it
stale   shop/d  db      tmpfs  4           12m ago  on push
  since 2026-11-28T09:00:00.000Z: store:db: refused [2J [backend.unavailable]
  fix: Nothing: it is asked again.
stale   shop/c  db      tmpfs  4           12m ago  on push
  since 2026-11-28T11:00:00.000Z: store:db: refused [2J [backend.unavailable]
  fix: Nothing: it is asked again.
fresh   shop/a  db      tmpfs  4           12m ago  on push
fresh   shop/b  db      tmpfs  4           12m ago  on push
  store:db: no watch [store.io]
6 volumes: 1 lost, 1 denied, 2 stale, 2 fresh
";
        assert_eq!(text, expect, "{text}");
        let one = table(&[&volumes[0]]);
        assert!(one.ends_with("1 volume: 1 fresh\n"), "{one}");
    }

    #[test]
    fn a_line_has_nothing_that_changes_by_itself() {
        let mut one = volume("shop/a", VolumeState::Fresh, None);
        let before = line(&one);
        assert_eq!(before, "fresh shop/a db generation 4");
        one.checked_seconds_ago = Some(1.0);
        one.next_in_seconds = Some(1.0);
        assert_eq!(line(&one), before);
        one.error = Some(StatusError {
            code: "bug".into(),
            message: "x".into(),
            since: None,
        });
        assert_eq!(line(&one), "fresh shop/a db generation 4: x [bug]");
    }

    #[test]
    fn a_kubelets_target_is_shown_by_the_name_that_the_pod_has_for_it() {
        let uid = "d2a0cf6e-4a7c-4c1f-8f0a-5b0c8d7e6f50";
        let kubelets = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/db/mount");
        assert_eq!(place(&kubelets), "db");
        assert_eq!(place("/run/app/mount"), "/run/app/mount");
    }

    #[test]
    fn a_time_span_has_one_unit() {
        for (seconds, text) in [
            (0.2, "200ms"),
            (4.2, "4s"),
            (89.0, "89s"),
            (720.0, "12m"),
            (7200.0, "2h"),
            (864_000.0, "10d"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
