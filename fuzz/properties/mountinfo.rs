//! The kernel's list of mounts, in which others' strings stand beside ours.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, str::FromStr};

use secretfs::{
    mount::mountinfo::{Mount, Mounts, source_of},
    path::VolumeId,
};

use super::Verdict;

/// A line that the list is read with besides.
const GOOD: &[u8] = b"\n4294967295 1 8:1 / /x ro - tmpfs secretfs:planted rw,noswap\n";

/// Any bytes as mountinfo.
///
/// Any bytes as a path and a source come back as they were written. Each line says what it says in a reader of our own, or is skipped by
/// both. What is read, written as the kernel writes it and read again is the same. A mount is ours for no other reason than the source
/// string of a whole tmpfs. Layers are mounts at one place, each once. A good line is always found.
pub fn mountinfo(data: &[u8]) -> Verdict {
    come_back(data);
    let mounts = Mounts::parse(data);
    let mut others = data.split(|byte| *byte == b'\n').filter_map(read_line);
    for mount in mounts.iter() {
        assert_eq!(others.next().as_ref(), Some(mount));
    }
    assert_eq!(others.next(), None);
    let mut printed = Vec::with_capacity(data.len());
    for mount in mounts.iter() {
        print(mount, &mut printed);
        owned(mount);
        let layers = mounts.layers(mount.id);
        let first = layers.first().expect("a mount is its own first layer");
        assert_eq!(first.id, mount.id);
        for (index, layer) in layers.iter().enumerate() {
            assert_eq!(layer.mount_point, first.mount_point);
            assert!(layers[..index].iter().all(|one| one.id != layer.id));
        }
    }
    assert!(
        Mounts::parse(&printed) == mounts,
        "written and read again they are others: {mounts:?}"
    );
    let with_good = Mounts::parse(&[data, GOOD].concat());
    let good = with_good
        .by_id(u32::MAX.into())
        .expect("a good line is found");
    let count = mounts.iter().count();
    assert!(count == 0 || with_good.iter().count() > count);
    if mounts.by_id(u32::MAX.into()).is_none() {
        let volume = good.volume();
        assert_eq!(volume.as_ref().map(VolumeId::as_str), Some("planted"));
        assert!(good.read_only && good.has_option("noswap") && !good.has_option("swap"));
    }
    Verdict::of(mounts.iter().any(|mount| mount.volume().is_some()))
}

fn come_back(data: &[u8]) {
    let text = OsStr::from_bytes(data);
    let mount = Mount {
        id: 7,
        parent: 1,
        dev: (0, 66),
        root: "/".into(),
        mount_point: text.into(),
        read_only: true,
        shared: Some(412),
        fs_type: "tmpfs".into(),
        source: text.into(),
        super_options: text.into(),
    };
    let mut line = Vec::with_capacity(data.len() * 3 + 64);
    print(&mount, &mut line);
    let read = Mounts::parse(&line);
    assert!(read.iter().eq([&mount]), "{mount:?} is read as {read:?}");
}

fn owned(mount: &Mount) {
    let whole = mount.fs_type == "tmpfs" && mount.root == "/";
    match mount.volume() {
        Some(volume) => {
            assert!(whole && mount.source == *source_of(&volume));
            assert_eq!(VolumeId::parse(volume.as_str()), Some(volume));
        }
        None => {
            let source = mount.source.to_str();
            let id = source.and_then(|source| source.strip_prefix("secretfs:"));
            assert!(!whole || id.is_none_or(|id| VolumeId::parse(id).is_none()));
        }
    }
}

/// A line in another reading: all fields first, then what they are.
fn read_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let text = |at: usize| Some(OsStr::from_bytes(&plain(fields.get(at)?)).to_owned());
    let mut dev = fields[2].split(|byte| *byte == b':');
    let groups = fields[6..dash].iter();
    let mut groups = groups.filter_map(|tag| number(tag.strip_prefix(b"shared:")?));
    Some(Mount {
        id: number(fields[0])?,
        parent: number(fields[1])?,
        dev: (number(dev.next()?)?, number(dev.next()?)?),
        root: text(3)?,
        mount_point: text(4)?,
        read_only: [b",", fields[5], b","]
            .concat()
            .windows(4)
            .any(|four| four == b",ro,"),
        shared: groups.next_back(),
        fs_type: text(dash + 1)?,
        source: text(dash + 2)?,
        super_options: text(dash + 3)?,
    })
}

/// Digits and nothing else, also no `+`.
fn number<N: FromStr>(digits: &[u8]) -> Option<N> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits.parse().ok().filter(|_| !digits.contains('+'))
}

/// `\` and three octal digits that make a byte are that byte.
fn plain(text: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        let digits = text.get(at + 1..at + 4).filter(|_| text[at] == b'\\');
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(text[at]));
        at += if byte.is_some() { 4 } else { 1 };
    }
    bytes
}

/// A line as the kernel writes it (`show_mountinfo` in fs/proc_namespace.c).
fn print(mount: &Mount, into: &mut Vec<u8>) {
    let (major, minor) = mount.dev;
    into.extend(format!("{} {} {major}:{minor} ", mount.id, mount.parent).bytes());
    escape(mount.root.as_bytes(), into);
    into.push(b' ');
    escape(mount.mount_point.as_bytes(), into);
    into.extend(match mount.read_only {
        true => b" ro,relatime",
        false => b" rw,relatime",
    });
    if let Some(group) = mount.shared {
        into.extend(format!(" shared:{group}").bytes());
    }
    into.extend(b" - ");
    escape(mount.fs_type.as_bytes(), into);
    into.push(b' ');
    escape(mount.source.as_bytes(), into);
    into.push(b' ');
    escape(mount.super_options.as_bytes(), into);
    into.push(b'\n');
}

fn escape(text: &[u8], into: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => into.extend(format!("\\{byte:03o}").bytes()),
            byte => into.push(*byte),
        }
    }
}
