//! What every kind of mount does: one suite, which each kind runs.

use secretfs::{
    error::Result,
    mount::{MountOptions, Mounted, Mounter, Probe},
    path::TargetPath,
    render::Generation,
    spec::MountKind,
};

use super::{
    sandbox::Seen,
    snapshots::{snapshot, snapshot_of},
};

/// What a reader of a target sees; `None` where there is no directory.
pub type View<'a> = &'a dyn Fn(&TargetPath) -> Option<Seen>;

/// The options of the volume of this id. Where they do not make the target, it is there.
pub type Options<'a> = &'a dyn Fn(&str) -> MountOptions;

/// Files by path, text and mode.
pub fn seen(rows: &[(&str, &str, u32)]) -> Seen {
    let rows = rows
        .iter()
        .map(|(path, text, mode)| ((*path).to_owned(), ((*text).to_owned(), *mode)));
    rows.collect()
}

/// The error's code, or `ok`.
pub fn code<T>(result: Result<T>) -> &'static str {
    result.err().map_or("ok", |error| error.code().name)
}

fn first() -> Seen {
    seen(&[("a", "1", 0o400), ("d/b", "2", 0o400)])
}

/// What every kind of mount does. `view` is what a reader of the target sees.
pub fn conformance(
    mounter: &dyn Mounter,
    target: &TargetPath,
    options: Options<'_>,
    view: View<'_>,
) {
    let id = options("v-1");
    assert_eq!(mounter.probe(target).unwrap(), Probe::Absent);
    assert_eq!(code(mounter.adopt(target, &id)), "mount.gone");
    mounter.unpublish(target, false).unwrap();

    let mut volume = mounter
        .publish(target, &snapshot(1, &[("a", "1"), ("d/b", "2")]), &id)
        .unwrap();
    assert_eq!(view(target), Some(first()));
    assert_eq!(volume.generation(), Generation(1));
    let ours = Probe::Ours {
        kind: MountKind::Tmpfs,
        volume: id.volume.clone(),
        layers: 1,
        altered: None,
    };
    assert_eq!(mounter.probe(target).unwrap(), ours);

    a_second_publish_is_refused(mounter, target, options, view);
    swaps(&mut *volume, target, view);
    too_much_is_refused(&mut *volume, target, view);
    drop(volume);
    a_restart_and_the_end(mounter, target, options, view);
}

fn a_second_publish_is_refused(
    mounter: &dyn Mounter,
    target: &TargetPath,
    options: Options<'_>,
    view: View<'_>,
) {
    let second = mounter.publish(target, &snapshot(9, &[("a", "9")]), &options("v-1"));
    assert_eq!(code(second), "mount.held");
    assert_eq!(view(target), Some(first()));
}

fn swaps(volume: &mut dyn Mounted, target: &TargetPath, view: View<'_>) {
    // Equal content is no change, whatever its number; kept files are equal.
    let same = [
        ("a", 0o400, None, Some("1")),
        ("d/b", 0o777, None, None),
        ("absent", 0o400, None, None),
    ];
    assert!(!volume.replace(&snapshot_of(7, &same)).unwrap());
    assert_eq!(volume.generation(), Generation(1));

    // Content, mode, added, removed, kept.
    let next = [
        ("a", 0o440, None, Some("1")),
        ("d/b", 0o400, None, None),
        ("d/c", 0o400, None, Some("")),
        ("e", 0o444, None, Some("5")),
    ];
    assert!(volume.replace(&snapshot_of(2, &next)).unwrap());
    let shown = seen(&[
        ("a", "1", 0o440),
        ("d/b", "2", 0o400),
        ("d/c", "", 0o400),
        ("e", "5", 0o444),
    ]);
    assert_eq!(view(target), Some(shown));
    assert!(volume.replace(&snapshot(3, &[("e", "6")])).unwrap());
    assert_eq!(view(target), Some(seen(&[("e", "6", 0o400)])));
    assert!(volume.usage().unwrap().bytes > 0);
}

fn too_much_is_refused(volume: &mut dyn Mounted, target: &TargetPath, view: View<'_>) {
    let big = "x".repeat(1 << 20);
    let too_large = snapshot(4, &[("a", &big), ("b", "1")]);
    assert_eq!(code(volume.replace(&too_large)), "mount.too_large");
    let paths: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), "")).collect();
    assert_eq!(code(volume.replace(&snapshot(4, &many))), "mount.too_large");
    assert_eq!(view(target), Some(seen(&[("e", "6", 0o400)])));
}

fn a_restart_and_the_end(
    mounter: &dyn Mounter,
    target: &TargetPath,
    options: Options<'_>,
    view: View<'_>,
) {
    let id = options("v-1");
    assert_eq!(
        code(mounter.adopt(target, &options("another"))),
        "mount.held"
    );
    let mut volume = mounter.adopt(target, &id).unwrap();
    assert_eq!(volume.generation(), Generation(3));
    assert!(!volume.replace(&snapshot(4, &[("e", "6")])).unwrap());
    assert!(volume.replace(&snapshot(4, &[])).unwrap());
    assert_eq!(view(target), Some(Seen::new()));
    assert!(volume.replace(&snapshot(5, &[("f", "7")])).unwrap());

    // Wiped, and again is no error; whoever changes their mind gets a whole set.
    volume.wipe().unwrap();
    volume.wipe().unwrap();
    assert_eq!(view(target), Some(Seen::new()));
    assert!(volume.replace(&snapshot(6, &[("f", "7")])).unwrap());
    assert_eq!(view(target), Some(seen(&[("f", "7", 0o400)])));
    assert_eq!(mounter.places(&id.volume).unwrap(), [target.as_path()]);
    assert_eq!(mounter.places(&options("another").volume).unwrap().len(), 0);

    // Gone means gone, and again is no error.
    mounter.unpublish(target, false).unwrap();
    assert_eq!(mounter.probe(target).unwrap(), Probe::Absent);
    assert_eq!(mounter.places(&id.volume).unwrap().len(), 0);
    assert_eq!(
        code(volume.replace(&snapshot(6, &[("f", "8")]))),
        "mount.gone"
    );
    mounter.unpublish(target, false).unwrap();
    let again = mounter
        .publish(target, &snapshot(1, &[("a", "1")]), &id)
        .unwrap();
    assert_eq!(again.generation(), Generation(1));
    // The handle of the former mount is not one of this.
    assert_eq!(
        code(volume.replace(&snapshot(6, &[("f", "8")]))),
        "mount.gone"
    );
    assert_eq!(view(target), Some(seen(&[("a", "1", 0o400)])));
    mounter.unpublish(target, true).unwrap();
    assert_eq!(view(target), None);
}
