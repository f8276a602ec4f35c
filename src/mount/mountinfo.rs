//! Reads `/proc/PID/mountinfo`: what is mounted where, and which of it is ours. Pure.
//!
//! A line is a mount: its own id and that of the mount it is attached to, the superblock's device, and the source string that whoever
//! made it gave. Ours is `secretfs:<volume id>`. A line that is not understood is skipped: the kernel may add fields, and
//! other mounts' strings are not ours to judge. Mounts are told apart by id, never by path: a path is the reader's view.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use super::VolumeId;

/// What our source strings begin with.
const SOURCE_PREFIX: &str = "secretfs:";

/// The source string of a volume's mount.
pub fn source_of(volume: &VolumeId) -> String {
    format!("{SOURCE_PREFIX}{volume}")
}

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Its id, as `statx` gives it.
    pub id: u64,
    /// Id of the mount that it is attached to.
    pub parent: u64,
    /// Device of its superblock: major, minor.
    pub dev: (u32, u32),
    /// The directory of the file system that it shows.
    pub root: OsString,
    /// Where it is attached.
    pub mount_point: OsString,
    /// Whether the mount is read-only (the superblock may be writable).
    pub read_only: bool,
    /// Its peer group, if what is mounted below it is seen in other namespaces.
    pub shared: Option<u32>,
    /// `tmpfs`, `ext4`, `fuse.x` ...
    pub fs_type: OsString,
    /// What it was made of.
    pub source: OsString,
    /// The superblock's own options.
    pub super_options: OsString,
}

impl Mount {
    /// Whose it is, if it is a whole tmpfs of ours.
    pub fn volume(&self) -> Option<VolumeId> {
        if self.fs_type != "tmpfs" || self.root != "/" {
            return None;
        }
        VolumeId::parse(self.source.to_str()?.strip_prefix(SOURCE_PREFIX)?)
    }

    /// Whether the superblock has this option, as `key` or `key=value`.
    pub fn has_option(&self, option: &str) -> bool {
        let options = self.super_options.as_encoded_bytes();
        options
            .split(|byte| *byte == b',')
            .any(|one| one == option.as_bytes())
    }
}

/// All mounts of a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Parses; whatever is not a mount's line is skipped.
    pub fn parse(text: &[u8]) -> Self {
        Self(
            text.split(|byte| *byte == b'\n')
                .filter_map(parse_line)
                .collect(),
        )
    }

    /// One mount.
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// The mounts that lie on each other where `top` is, `top` first.
    pub fn layers(&self, top: u64) -> Vec<&Mount> {
        let mut layers: Vec<&Mount> = Vec::new();
        let mut next = self.by_id(top);
        while let Some(mount) = next {
            let same_place = layers
                .first()
                .is_none_or(|first| first.mount_point == mount.mount_point);
            let seen = layers.iter().any(|layer| layer.id == mount.id);
            if !same_place || seen {
                break;
            }
            layers.push(mount);
            next = self.by_id(mount.parent);
        }
        layers
    }

    /// All of them, in the kernel's order.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }
}

/// `ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS [TAG...] - TYPE SOURCE SUPER-OPTIONS`
fn parse_line(line: &[u8]) -> Option<Mount> {
    // One space each, never more: an empty source is an empty field.
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut dev = fields.next()?.split(|byte| *byte == b':');
    let dev = (number(dev.next()?)?, number(dev.next()?)?);
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let read_only = fields
        .next()?
        .split(|byte| *byte == b',')
        .any(|one| one == b"ro");
    let mut shared = None;
    loop {
        let tag = fields.next()?;
        if tag == b"-" {
            break;
        }
        shared = tag.strip_prefix(b"shared:").and_then(number).or(shared);
    }
    Some(Mount {
        id,
        parent,
        dev,
        root,
        mount_point,
        read_only,
        shared,
        fs_type: unescape(fields.next()?),
        source: unescape(fields.next()?),
        super_options: unescape(fields.next()?),
    })
}

fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None; // `+1` parses as a number
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The kernel writes space, tab, newline, `\` and `#` as `\` and three octal digits; anything else stands for itself.
fn unescape(mut text: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        match rest {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                text = after;
            }
            _ => {
                bytes.push(*first);
                text = rest;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 0:50 / /run/a\\040b ro,nosuid,nodev,noexec,relatime shared:7 master:2 - tmpfs secretfs:local-1 rw,size=64k,noswap
41 40 0:51 / /run/a\\040b rw - tmpfs secretfs:local-2 rw,size=64k
42 27 0:52 /sub /mnt rw - tmpfs secretfs:local-3 rw
43 27 0:53 / /empty rw -  tmpfs  rw
44 27 0:54 / /none rw - tmpfs  rw
garbage
45 27 0:55 / /half rw -
46 +7 0:56 / /sign rw - tmpfs x rw
";

    #[test]
    fn lines_of_a_kernel_and_garbage_between() {
        let mounts = Mounts::parse(TEXT);
        let ids: Vec<u64> = mounts.iter().map(|mount| mount.id).collect();
        assert_eq!(ids, [27, 40, 41, 42, 43, 44]);
        let ours = mounts.by_id(40).unwrap();
        assert_eq!(ours.mount_point, "/run/a b");
        assert_eq!(
            (ours.dev, ours.read_only, ours.shared),
            ((0, 50), true, Some(7))
        );
        assert_eq!(ours.volume().unwrap().as_str(), "local-1");
        assert!(ours.has_option("noswap") && !ours.has_option("swap"));
        assert_eq!(mounts.by_id(44).unwrap().source, "");
    }

    #[test]
    fn ours_is_a_whole_tmpfs_with_our_source() {
        let mounts = Mounts::parse(TEXT);
        for (id, ours) in [(27, false), (40, true), (41, true), (42, false)] {
            assert_eq!(
                mounts.by_id(id).unwrap().volume().is_some(),
                ours,
                "mount {id}"
            );
        }
    }

    #[test]
    fn layers_are_the_mounts_at_one_place_and_a_circle_ends() {
        let mounts = Mounts::parse(TEXT);
        let ids = |top| -> Vec<u64> { mounts.layers(top).iter().map(|mount| mount.id).collect() };
        assert_eq!(ids(41), [41, 40]);
        assert_eq!(ids(40), [40]);
        assert_eq!(ids(99), [] as [u64; 0]);
        let circle = Mounts::parse(b"1 2 0:1 / / rw - a b c\n2 1 0:1 / / rw - a b c\n");
        assert_eq!(circle.layers(1).len(), 2);
    }

    /// As the kernel escapes (`mangle` in fs/proc_namespace.c).
    fn escape(text: &[u8]) -> Vec<u8> {
        let escaped = text.iter().flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
            byte => vec![*byte],
        });
        escaped.collect()
    }

    proptest! {
        #[test]
        fn any_strings_come_back(
            point in prop::collection::vec(1_u8.., 1..40),
            source in prop::collection::vec(1_u8.., 0..40),
            id in any::<u32>(),
        ) {
            let mut line = format!("{id} 1 8:1 / ").into_bytes();
            line.extend(escape(&point));
            line.extend(b" ro,relatime shared:9 - tmpfs ");
            line.extend(escape(&source));
            line.extend(b" rw\n");
            let mounts = Mounts::parse(&line);
            let mount = mounts.by_id(u64::from(id)).unwrap();
            prop_assert_eq!(mount.mount_point.as_bytes(), &point[..]);
            prop_assert_eq!(mount.source.as_bytes(), &source[..]);
            prop_assert!(mount.read_only && mount.shared == Some(9));
        }

        #[test]
        fn garbage_never_panics_nor_hides_a_good_line(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut text = garbage;
            text.extend(b"\n77 1 8:1 / /x rw - tmpfs secretfs:v rw\n");
            let mounts = Mounts::parse(&text);
            prop_assert!(mounts.iter().any(|mount| mount.id == 77 && mount.volume().is_some()));
            for mount in mounts.iter() {
                prop_assert!(!mounts.layers(mount.id).is_empty());
            }
        }
    }
}
