//! No secret and no token reaches a disk: a node whose every directory lies on an image has a session with all that can
//! happen, `kill -9` included; then every byte of the image is searched. Nothing else can be written meanwhile but tmpfs.
//!
//! docs/SECURITY.md says what these tests hold.

use std::{
    collections::BTreeSet,
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustix::mount::MountPropagationFlags as Propagation;
use secretfs::sys::process;

use crate::{
    node::bed::NodeBed,
    support::{
        disk::{Disk, Image},
        machine::kill,
        needles::{Found, Needles},
        program::{Bed, Running},
        sandbox::{Sandbox, everything},
        session::Session,
    },
};

/// linux/magic.h
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What `secretfs mount` serves.
const LOCAL: &str =
    "files: [{path: raw, from: store:raw}, {path: doc, from: store:doc, format: dotenv}]\n";

/// A disk, if there are loop devices. An ordinary user has none, in whichever namespace.
fn disk() -> Option<Disk> {
    match Disk::new() {
        Ok(disk) => Some(disk),
        Err(error) => {
            println!("NO DISK IMAGE IS SEARCHED: {error}");
            let is_excused = std::env::var_os("CI").is_none() || process::in_user_namespace();
            assert!(is_excused, "no loop device: {error}");
            None
        }
    }
}

/// Starts the plugin with its home and its temporary files on the disk as well.
fn start(session: &Session) -> Running {
    let bed = &session.node.bed;
    let mut command = bed.command(&NodeBed::ARGS);
    command.env("HOME", bed.path("home"));
    command.env("TMPDIR", bed.path("tmp"));
    let mut running = bed.spawn(command);
    running.first_line();
    assert!(running.ready.starts_with("ready: "), "{}", running.log());
    running
}

/// Everything that can happen to secrets and tokens.
fn live(session: &mut Session) {
    let mut running = start(session);
    let volumes = session.volumes();
    for volume in &volumes {
        session.publish(volume).unwrap();
    }
    session.settled(&volumes);
    assert_open_files(session, &running);
    session.failures();
    session.bad_rotation(&volumes[0]);
    for _ in 0..2 {
        session.put_all();
        kill(&mut running); // in the middle of what that begins
        running = start(session);
        session.put_all();
        session.settled(&volumes);
    }
    for volume in &volumes {
        session.publish(volume).unwrap();
    }
    session.put_all();
    session.unpublish(&volumes[0]);
    let volumes = session.volumes(); // the kubelet's directories again
    // in the middle of a publish, and with a volume that stays mounted until the next one unpublishes it
    let request = session.request(&volumes[0]);
    let kubelet = session.kubelet.clone();
    let call = session
        .node
        .runtime
        .spawn(async move { kubelet.send(request).await });
    kill(&mut running);
    let _ = session.node.runtime.block_on(call).unwrap();
    let mut running = start(session);
    volumes.iter().for_each(|volume| session.unpublish(volume));
    running.stop();

    let bed = &session.node.bed;
    let mut local = bed.mount(LOCAL, &[]);
    kill(&mut local);
    let mut local = bed.mount(LOCAL, &[]);
    local.stop();
}

/// On no disk is a file open for writing but these, and for a moment the record of a volume.
fn assert_open_files(session: &Session, running: &Running) {
    let on_tmpfs = rustix::fs::statfs(&session.node.bed.dir).unwrap().f_type == TMPFS_MAGIC;
    let dir = format!("/proc/{}", running.child.id());
    let mut open = BTreeSet::new();
    for entry in fs::read_dir(format!("{dir}/fd")).unwrap() {
        let fd = entry.unwrap();
        let name = fd.file_name().into_string().unwrap();
        let (info, metadata, path, system) = (
            fs::read_to_string(format!("{dir}/fdinfo/{name}")),
            fs::metadata(fd.path()),
            fs::read_link(fd.path()),
            rustix::fs::statfs(fd.path()),
        );
        let (Ok(info), Ok(metadata), Ok(path), Ok(system)) = (info, metadata, path, system) else {
            continue; // it was closed meanwhile
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        let can_write = flags & 0o3 != 0; // O_ACCMODE; O_RDONLY is 0
        if can_write && metadata.is_file() && system.f_type != TMPFS_MAGIC {
            let path = path.strip_prefix(&session.node.bed.dir).unwrap_or(&path);
            let path = path.to_str().unwrap();
            // stderr is a file of this test's
            open.insert(path.split_once("log-").map_or(path, |_| "log").to_owned());
        }
    }
    open.retain(|path| !path.starts_with("rt/volumes/"));
    let expected: &[&str] = match on_tmpfs {
        true => &[], // where temporary files are, and no image could be had
        false => &["audit.log", "log", "rt/lock"],
    };
    assert_eq!(open, expected.iter().map(|path| path.to_string()).collect());
}

fn bed_in(dir: PathBuf, keep: impl std::any::Any + Send) -> NodeBed {
    let node = NodeBed::on(Bed::at(dir.join("bed"), keep), Propagation::SHARED);
    for sub in ["home", "tmp"] {
        fs::create_dir(node.bed.path(sub)).unwrap();
    }
    node
}

/// All files below `dir` that are on the same file system as it.
fn search_files(dir: &Path, needles: &Needles) -> Vec<(String, Found)> {
    let device = fs::metadata(dir).unwrap().dev();
    let mut found = Vec::new();
    for name in everything(dir) {
        let path = dir.join(&name);
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_file() && metadata.dev() == device {
            let all = needles.find(&fs::read(&path).unwrap()).into_iter();
            found.extend(all.map(|one| (name.clone(), one)));
        }
    }
    found
}

#[test]
fn after_a_session_with_everything_no_secret_and_no_token_is_on_the_disk() {
    let (image, node) = match disk() {
        Some(disk) => (Some(disk.image()), bed_in(disk.dir.clone(), disk)),
        None => {
            let sandbox = Sandbox::new();
            (None, bed_in(sandbox.path().to_owned(), sandbox))
        }
    };
    let mut session = Session::new(node);
    live(&mut session);
    let (needles, dir) = (&session.needles, &session.node.bed.dir);
    let found = search_files(dir, needles);
    assert!(found.is_empty(), "{found:#?}");
    let names = everything(dir);
    for part in ["audit.log", "store/", "rt/volumes/", "log-"] {
        let is_there = names.iter().any(|name| name.starts_with(part));
        assert!(is_there, "nothing of {part} was on the disk: {names:?}");
    }
    if let Some(image) = image {
        let found = needles.find(&image.read());
        assert!(found.is_empty(), "{found:#?}");
    }
}

// --- is the search any good?

#[test]
fn what_is_written_to_the_disk_is_found_there_also_when_it_was_deleted() {
    let Some(disk) = disk() else {
        return;
    };
    let mut random = fastrand::Rng::new();
    let mut needles = Needles::default();
    let mut plant = |name: &str| {
        let canary: String = (0..48).map(|_| random.alphanumeric()).collect();
        needles.add(name, canary.as_bytes());
        canary
    };
    let path = |name: &str| disk.dir.join(name);
    fs::write(path("kept"), plant("kept")).unwrap();
    fs::write(path("deleted"), plant("deleted")).unwrap();
    fs::remove_file(path("deleted")).unwrap();
    fs::write(path("encoded"), STANDARD.encode(plant("encoded"))).unwrap();
    let mut cut = fs::File::create(path("cut")).unwrap();
    cut.write_all(plant("cut").as_bytes()).unwrap();
    cut.set_len(0).unwrap();
    cut.seek(SeekFrom::Start(0)).unwrap();
    drop(cut);
    plant("nowhere");
    let image: Image = disk.image();
    let found = needles.find(&image.read());
    let found: BTreeSet<_> = found.iter().map(|one| one.secret.as_str()).collect();
    assert_eq!(found, BTreeSet::from(["kept", "deleted", "encoded", "cut"]));
}
