//! What the plugin remembers of its forerunner, when that is lost, damaged or wrong; and mounts that went away under it.

use std::{fs, path::Path};

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    kubelet::Volume,
    machine::{Machine, Reader, assert_complete, kill, mounts_at, numbers, shown, until_shows},
};

/// What happens to a record's file.
type Damage = (&'static str, fn(&Path));

fn cut(file: &Path, to: fn(usize) -> usize) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..to(bytes.len())]).unwrap();
}

fn with(file: &Path, key: &str, value: Value) {
    let mut record: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert!(record[key] != Value::Null, "{record}");
    record[key] = value;
    fs::write(file, record.to_string()).unwrap();
}

const DAMAGES: [Damage; 11] = [
    ("deleted", |file| fs::remove_file(file).unwrap()),
    ("empty", |file| cut(file, |_| 0)),
    ("one byte", |file| cut(file, |_| 1)),
    ("half", |file| cut(file, |all| all / 2)),
    ("all but a byte", |file| cut(file, |all| all - 1)),
    ("garbage", |file| fs::write(file, [0xff; 4096]).unwrap()),
    ("too large", |file| {
        fs::write(file, vec![b' '; 3 << 20]).unwrap()
    }),
    ("of another boot", |file| {
        with(file, "boot", json!("d2a0cf6e-4a7c-4c1f-8f0a-5b0c8d7e6f50"))
    }),
    ("of a newer program", |file| {
        with(file, "version", json!(99))
    }),
    ("of another volume", |file| {
        with(file, "id", json!("csi-another"))
    }),
    ("a directory", |file| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    }),
];

#[test]
fn a_mount_without_its_record_is_kept_until_it_is_asked_for() {
    let machine = Machine::new();
    let volumes = machine.volumes(DAMAGES.len() + 1);
    let (good, bad) = volumes.split_last().unwrap();
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    let readers: Vec<_> = volumes.iter().map(|one| machine.reader(one)).collect();
    let before: Vec<_> = volumes.iter().map(shown).collect();
    kill(&mut running);
    for (volume, (_, damage)) in bad.iter().zip(DAMAGES) {
        damage(&machine.record(volume));
    }
    machine.put_all(2);
    let mut running = machine.start(volumes.len());
    until_shows(good, 2);
    for (volume, (name, _)) in bad.iter().zip(DAMAGES) {
        assert_eq!(machine.state(volume), "adopted", "{name}");
        assert_eq!(numbers(volume), [Some(1); 3], "{name}");
    }
    let after = bad.iter().map(shown);
    assert!(after.eq(before[..bad.len()].iter().cloned()));

    for (volume, (name, _)) in bad.iter().zip(DAMAGES) {
        let answer = machine.publish(volume);
        assert!(answer.is_ok(), "{name}: {answer:?}");
    }
    for ((volume, before), reader) in volumes.iter().zip(&before).zip(&readers) {
        until_shows(volume, 2);
        reader.until(2);
        machine.until(volume, "fresh");
        assert_eq!(mounts_at(volume), before.mounts);
    }
    machine.put_all(3);
    volumes.iter().for_each(|one| until_shows(one, 3));

    // what the publish wrote serves the next start; but a directory cannot be replaced
    kill(&mut running);
    let mut running = machine.start(volumes.len());
    machine.put_all(4);
    for (volume, (name, _)) in bad.iter().zip(DAMAGES) {
        if name != "a directory" {
            until_shows(volume, 4);
        }
    }
    readers.into_iter().for_each(Reader::end);
    fs::remove_dir(machine.record(bad.last().unwrap())).unwrap();
    machine.unpublish_all(&volumes);
    running.stop();
}

#[test]
fn a_mount_without_its_record_can_be_unpublished_at_once() {
    let machine = Machine::new();
    let volumes = machine.volumes(DAMAGES.len());
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    kill(&mut running);
    for (volume, (_, damage)) in volumes.iter().zip(DAMAGES) {
        damage(&machine.record(volume));
    }
    let mut running = machine.start(volumes.len());
    for (volume, (name, _)) in volumes.iter().zip(DAMAGES) {
        let answer = machine.unpublish(volume);
        assert!(answer.is_ok(), "{name}: {answer:?}");
        assert_eq!(mounts_at(volume), [0; 0], "{name}");
        if name == "a directory" {
            fs::remove_dir(machine.record(volume)).unwrap();
        }
    }
    machine.nothing_is_left(&volumes);
    assert_eq!(machine.all_status().len(), 0);
    running.stop();
}

#[test]
fn of_two_records_for_one_target_the_kernel_knows_the_right_one() {
    let machine = Machine::new();
    let volumes = machine.volumes(2);
    let (real, other) = (&volumes[0], &volumes[1]);
    let mut running = machine.start(0);
    machine.publish(real).unwrap();
    let before = shown(real);
    kill(&mut running);
    fs::copy(machine.record(real), machine.record(other)).unwrap();
    with(&machine.record(other), "id", json!(other.id));
    let mut running = machine.start(1);
    assert_eq!(
        machine.until(real, "fresh").target,
        real.target.to_str().unwrap()
    );
    assert_eq!(shown(real), before);
    machine.put_all(2);
    until_shows(real, 2);
    machine.publish(real).unwrap();
    // and the other volume is where its kubelet wants it
    let _ = machine.unpublish(&Volume {
        target: real.target.clone(),
        ..other.clone()
    });
    assert_complete(real);
    machine.publish(other).unwrap();
    assert_complete(other);
    machine.unpublish_all(&volumes);
    running.stop();
}

// --- where records cannot be kept

#[test]
fn where_no_record_can_be_written_publishes_work_and_the_mounts_are_taken_over() {
    for read_only in [false, true] {
        let machine = Machine::new();
        let dir = machine.node.bed.path("rt/volumes");
        let mut running = machine.start(0);
        fs::create_dir_all(&dir).unwrap();
        let flags = MountFlags::empty();
        rustix::mount::mount("full", &dir, "tmpfs", flags, Some(c"mode=0700,size=64k")).unwrap();
        match read_only {
            true => rustix::mount::mount_remount(&dir, MountFlags::RDONLY, c"").unwrap(),
            false => {
                let full = fs::write(dir.join("filler"), vec![0; 1 << 20]);
                assert_eq!(full.unwrap_err().raw_os_error(), Some(28), "ENOSPC");
            }
        }
        let volumes = machine.volumes(4);
        machine.publish_all(&volumes);
        let before: Vec<_> = volumes.iter().map(shown).collect();
        let log = running.log();
        assert!(log.contains("a volume's record cannot be kept"), "{log}");
        kill(&mut running);
        let mut running = machine.start(4);
        assert!(volumes.iter().map(shown).eq(before));
        machine.put_all(2);
        for volume in &volumes[..2] {
            assert_eq!(machine.state(volume), "adopted");
            machine.publish(volume).unwrap();
            until_shows(volume, 2);
            machine.until(volume, "fresh");
        }
        for volume in &volumes {
            machine.unpublish(volume).unwrap();
            assert!(!volume.target.exists());
        }
        running.stop();
        rustix::mount::unmount(&dir, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_runtime_directory_that_fills_up_stops_neither_publishes_nor_the_next_start() {
    let machine = Machine::new();
    let dir = machine.node.bed.path("rt");
    fs::create_dir_all(&dir).unwrap();
    let flags = MountFlags::empty();
    rustix::mount::mount("rt", &dir, "tmpfs", flags, Some(c"mode=0700,size=128k")).unwrap();
    let volumes = machine.volumes(4);
    let mut running = machine.start(0);
    machine.publish_all(&volumes[..2]);
    let filler = dir.join("filler");
    fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    machine.publish_all(&volumes[2..]);
    kill(&mut running);
    running = machine.start(4);
    machine.put_all(2);
    volumes[..2].iter().for_each(|one| until_shows(one, 2));
    assert_eq!(machine.state(&volumes[3]), "adopted");
    fs::remove_file(&filler).unwrap();
    machine.publish_all(&volumes);
    volumes.iter().for_each(|one| until_shows(one, 2));
    machine.unpublish_all(&volumes);
    running.stop();
}

#[test]
fn a_runtime_directory_that_is_read_only_stops_neither_a_start_nor_a_publish() {
    let machine = Machine::new();
    let dir = machine.node.bed.path("rt");
    fs::create_dir_all(&dir).unwrap();
    let (flags, data) = (MountFlags::RDONLY, Some(c"mode=0700"));
    rustix::mount::mount("rt", &dir, "tmpfs", flags, data).unwrap();
    let volumes = machine.volumes(2);
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    let before: Vec<_> = volumes.iter().map(shown).collect();
    kill(&mut running);
    let mut running = machine.start(2);
    assert!(volumes.iter().map(shown).eq(before));
    machine.publish_all(&volumes);
    machine.put_all(2);
    volumes.iter().for_each(|one| until_shows(one, 2));
    machine.unpublish_all(&volumes);
    running.stop();
    let left: Vec<_> = fs::read_dir(&dir).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

// --- a mount that goes away

/// Somebody unmounts it on the node; a container keeps its own.
fn unmount(volume: &Volume) {
    rustix::mount::unmount(&volume.target, UnmountFlags::DETACH).unwrap();
    assert_eq!(mounts_at(volume), [0; 0]);
}

#[test]
fn a_volume_that_was_unmounted_under_its_pod_comes_back_with_the_next_republish() {
    let machine = Machine::new();
    let volume = &machine.volumes(1)[0];
    let mut running = machine.start(0);
    machine.publish(volume).unwrap();
    for number in 2..=3 {
        let reader = machine.reader(volume);
        unmount(volume);
        machine.publish(volume).unwrap();
        assert_complete(volume);
        machine.put_all(number);
        until_shows(volume, number);
        match machine.state(volume).as_str() {
            "fresh" => reader.until(number), // the same superblock: the pod sees it as well
            "lost" => assert_eq!(reader.newest(), number - 1), // Linux before 6.15
            state => panic!("{state}"),
        }
        reader.end();
    }
    machine.unpublish_all(std::slice::from_ref(volume));
    running.stop();
}

#[test]
fn a_volume_that_was_unmounted_while_nobody_served_it_is_lost_and_mounted_anew() {
    let machine = Machine::new();
    let volumes = machine.volumes(2);
    let (volume, other) = (&volumes[0], &volumes[1]);
    let mut running = machine.start(0);
    machine.publish_all(&volumes);
    let reader = machine.reader(volume);
    kill(&mut running);
    unmount(volume);
    unmount(other);
    let mut running = machine.start(0);
    let status = machine.until(volume, "lost");
    assert_eq!(status.error.unwrap().code, "mount.gone");
    machine.put_all(2);
    machine.publish(volume).unwrap();
    assert_complete(volume);
    until_shows(volume, 2);
    assert_eq!(
        machine.state(volume),
        "lost",
        "the pod does not see the new mount"
    );
    assert_eq!(reader.newest(), 1);
    machine.publish(volume).unwrap();
    assert_eq!(machine.state(volume), "lost");
    reader.end();
    machine.unpublish_all(&volumes); // the other one without a publish
    running.stop();
}

#[test]
fn what_somebody_mounts_over_a_volume_ends_nothing_and_is_not_ours_to_undo() {
    let machine = Machine::new();
    let volumes = machine.volumes(1);
    let volume = &volumes[0];
    let mut running = machine.start(0);
    machine.publish(volume).unwrap();
    let before = shown(volume);
    let reader = machine.reader(volume);
    let cover = || {
        let flags = MountFlags::empty();
        rustix::mount::mount("foreign", &volume.target, "tmpfs", flags, None).unwrap();
    };
    let uncover = || rustix::mount::unmount(&volume.target, UnmountFlags::DETACH).unwrap();
    let refused = |answer: Result<(), tonic::Status>, code| {
        assert_eq!(answer.unwrap_err().code(), code);
        assert_eq!(mounts_at(volume).len(), 2);
    };
    cover();
    refused(machine.publish(volume), Code::Unavailable); // not final: it may go again
    uncover();
    machine.publish(volume).unwrap();
    assert_eq!(shown(volume), before);

    cover();
    kill(&mut running);
    let mut running = machine.start(1);
    refused(machine.publish(volume), Code::Unavailable);
    uncover();
    machine.publish(volume).unwrap();
    machine.until(volume, "fresh");
    assert_eq!(shown(volume), before);
    machine.put_all(2);
    until_shows(volume, 2);
    reader.until(2);
    reader.end();

    cover();
    let answer = machine.unpublish(volume);
    assert!(
        answer.is_err(),
        "what lies above was taken down, or ours was left and nobody told"
    );
    uncover();
    machine.unpublish_all(&volumes);
    running.stop();
}
