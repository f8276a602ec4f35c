//! What inotify tells the watchers of a tmpfs volume.

use std::path::Path;

use inotify::{EventMask, Inotify, WatchMask};
use secretfs::{
    clock::Mono,
    limits,
    mount::{Mounter, layout, tmpfs::TmpfsMounter},
};

use crate::support::{
    sandbox::{Sandbox, everything},
    snapshots::{options, snapshot},
};

/// All events that are waiting, as `NAME EVENT`.
fn events(inotify: &mut Inotify) -> Vec<String> {
    let mut buffer = [0; 4096];
    let mut all = Vec::new();
    // Events are queued within the call that causes them.
    while let Ok(events) = inotify.read_events(&mut buffer) {
        for event in events {
            let name = event.name.map_or("-".into(), |name| name.to_string_lossy());
            let name = match layout::generation_of(&name) {
                Some(generation) => format!("..{}", generation.0),
                None => name.into_owned(),
            };
            all.push(format!("{name} {:?}", event.mask - EventMask::ISDIR));
        }
    }
    all.iter()
        .map(|e| e.replace("EventMask(", "").replace(')', ""))
        .collect()
}

fn watch(path: &Path, mask: WatchMask) -> Inotify {
    let inotify = Inotify::init().unwrap();
    inotify.watches().add(path, mask).unwrap();
    inotify
}

const CHANGES: WatchMask = WatchMask::ALL_EVENTS
    .difference(WatchMask::OPEN)
    .difference(WatchMask::ACCESS)
    .difference(WatchMask::CLOSE);

#[test]
fn watchers_are_told_at_once_and_of_nothing_else() {
    let sandbox = Sandbox::new();
    let target = sandbox.target("t");
    let first = snapshot(1, &[("a", "1"), ("b", "2"), ("d/x", "3"), ("gone", "4")]);
    let mut volume = TmpfsMounter::default()
        .publish(&target, &first, &options("v"))
        .unwrap();
    let path = |name: &str| target.as_path().join(name);
    let mut root = watch(target.as_path(), CHANGES);
    let mut generation = watch(&path("..data/."), CHANGES);
    let mut a = watch(&path("a"), CHANGES);
    let mut b = watch(&path("b"), CHANGES);

    // Nothing changed: nobody hears anything, and no generation is made.
    let before = everything(target.as_path());
    assert!(
        !volume
            .replace(&snapshot(
                2,
                &[("a", "1"), ("b", "2"), ("d/x", "3"), ("gone", "4")]
            ))
            .unwrap()
    );
    for watcher in [&mut root, &mut generation, &mut a, &mut b] {
        assert_eq!(events(watcher), [] as [&str; 0]);
    }
    assert_eq!(everything(target.as_path()), before);

    let next = snapshot(2, &[("a", "9"), ("b", "2"), ("d/x", "8"), ("new", "5")]);
    assert!(volume.replace(&next).unwrap());
    assert_eq!(
        events(&mut root),
        [
            "..2 CREATE",
            "..data_tmp CREATE",
            "..data_tmp MOVED_FROM",
            "..data MOVED_TO",
            "new CREATE",
            "gone DELETE",
            "a ATTRIB",
            "d ATTRIB",
        ]
    );
    // Watchers of a file hear that it died, also of one whose content is the same.
    for watcher in [&mut a, &mut b] {
        assert_eq!(events(watcher), ["- ATTRIB", "- DELETE_SELF", "- IGNORED"]);
    }
    assert_eq!(
        events(&mut generation),
        ["a MOVED_TO", "b MOVED_TO", "gone MOVED_TO"]
    );

    // The sweep is heard once, at the root.
    let start = Mono::from_nanos(1);
    volume.sweep(start);
    volume.sweep(start.after(limits::OLD_GENERATION));
    assert_eq!(events(&mut root), ["..1 DELETE"]);
}
