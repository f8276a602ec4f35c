//! statmount(2), which no library of ours has: one mount, by its unique id.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

use super::fs::{Errno, MountStat, Sys};

/// Number of the call, on every architecture that this program is built for.
const SYS_STATMOUNT: libc::c_long = 457;
/// Room for the strings: two paths of the usual length many times over. More is EOVERFLOW.
const STRINGS: usize = 8 << 10;

// What is asked for, and what came (linux/mount.h).
const SB_BASIC: u64 = 0x1;
const MNT_BASIC: u64 = 0x2;
const MNT_ROOT: u64 = 0x8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
const MNT_OPTS: u64 = 0x80;
const SB_SOURCE: u64 = 0x200;
/// Without these an answer is no answer.
const ALWAYS: u64 = SB_BASIC | MNT_BASIC | MNT_ROOT | MNT_POINT | FS_TYPE;

const MOUNT_ATTR_RDONLY: u64 = 1;
const MS_SHARED: u64 = 1 << 20;

/// `struct mnt_id_req`, of its first version.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mnt_id: u64,
    param: u64,
}

/// `struct statmount`, and its strings; a string's field is its place in those.
#[repr(C)]
struct Answer {
    size: u32,
    mnt_opts: u32,
    mask: u64,
    sb_dev_major: u32,
    sb_dev_minor: u32,
    sb_magic: u64,
    sb_flags: u32,
    fs_type: u32,
    mnt_id: u64,
    mnt_parent_id: u64,
    mnt_id_old: u32,
    mnt_parent_id_old: u32,
    mnt_attr: u64,
    mnt_propagation: u64,
    mnt_peer_group: u64,
    mnt_master: u64,
    propagate_from: u64,
    mnt_root: u32,
    mnt_point: u32,
    mnt_ns_id: u64,
    fs_subtype: u32,
    sb_source: u32,
    rest: [u64; 48],
    strings: [u8; STRINGS],
}

/// One mount of this thread's namespace.
pub(super) fn statmount(unique: u64) -> Sys<MountStat> {
    let request = Request {
        size: size_of::<Request>() as u32,
        spare: 0,
        mnt_id: unique,
        param: ALWAYS | MNT_OPTS | SB_SOURCE,
    };
    // SAFETY: only integers, for which zero is a value.
    let mut answer: Answer = unsafe { std::mem::zeroed() };
    // SAFETY: `request` is repr(C) as `struct mnt_id_req` (checked by `the_kernels_layouts`), says its own size, and is only read.
    // `answer` is repr(C), aligned for u64, and the kernel writes at most the size that goes with it. Both outlive the call.
    let rc = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            &raw mut answer,
            size_of::<Answer>(),
            0,
        )
    };
    if rc != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    answer.read().ok_or(Errno::OPNOTSUPP)
}

impl Answer {
    fn read(&self) -> Option<MountStat> {
        if self.mask & ALWAYS != ALWAYS {
            return None;
        }
        let optional = |bit, at| match self.mask & bit {
            0 => None,
            _ => self.string(at),
        };
        let is_shared = self.mnt_propagation & MS_SHARED != 0;
        Some(MountStat {
            id: self.mnt_id_old.into(),
            parent: self.mnt_parent_id_old.into(),
            parent_unique: self.mnt_parent_id,
            dev: (self.sb_dev_major, self.sb_dev_minor),
            root: self.string(self.mnt_root)?,
            point: self.string(self.mnt_point)?,
            read_only: self.mnt_attr & MOUNT_ATTR_RDONLY != 0,
            shared: u32::try_from(self.mnt_peer_group)
                .ok()
                .filter(|_| is_shared),
            fs_type: self.string(self.fs_type)?,
            source: optional(SB_SOURCE, self.sb_source),
            options: optional(MNT_OPTS, self.mnt_opts),
        })
    }

    fn string(&self, at: u32) -> Option<OsString> {
        let bytes = self.strings.get(usize::try_from(at).ok()?..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        bytes
            .get(..end)
            .map(|bytes| OsStr::from_bytes(bytes).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The kernel is believed, and yet: whatever its answer says of where strings stand, they are taken from within it.
        #[test]
        fn strings_lie_within_the_answer(
            mask in prop_oneof![Just(ALWAYS | MNT_OPTS | SB_SOURCE), any::<u64>()],
            places in prop::array::uniform5(prop_oneof![0..STRINGS as u32 + 4, any::<u32>()]),
            ends in prop::collection::vec(0..STRINGS, 0..4),
        ) {
            // SAFETY: only integers, for which zero is a value.
            let mut answer: Box<Answer> = Box::new(unsafe { std::mem::zeroed() });
            answer.strings.fill(b'x');
            for end in &ends {
                answer.strings[*end] = 0;
            }
            answer.mask = mask;
            [answer.mnt_root, answer.mnt_point, answer.fs_type, answer.sb_source, answer.mnt_opts] = places;
            let ended = |at: u32| ends.iter().any(|end| *end >= at as usize);
            match answer.read() {
                None => prop_assert!(mask & ALWAYS != ALWAYS || !places[..3].iter().all(|at| ended(*at))),
                Some(stat) => {
                    prop_assert!(mask & ALWAYS == ALWAYS && places[..3].iter().all(|at| ended(*at)));
                    for text in [&stat.root, &stat.point, &stat.fs_type] {
                        prop_assert!(text.as_bytes().iter().all(|byte| *byte == b'x'));
                    }
                    prop_assert_eq!(stat.source.is_some(), mask & SB_SOURCE != 0 && ended(places[3]));
                    prop_assert_eq!(stat.options.is_some(), mask & MNT_OPTS != 0 && ended(places[4]));
                }
            }
        }
    }

    #[test]
    fn the_kernels_layouts() {
        assert_eq!(size_of::<Request>(), 24, "MNT_ID_REQ_SIZE_VER0");
        assert_eq!(offset_of!(Request, mnt_id), 8);
        assert_eq!(offset_of!(Request, param), 16);
        for (field, at) in [
            (offset_of!(Answer, mnt_opts), 4),
            (offset_of!(Answer, mask), 8),
            (offset_of!(Answer, sb_dev_major), 16),
            (offset_of!(Answer, sb_magic), 24),
            (offset_of!(Answer, sb_flags), 32),
            (offset_of!(Answer, fs_type), 36),
            (offset_of!(Answer, mnt_id), 40),
            (offset_of!(Answer, mnt_id_old), 56),
            (offset_of!(Answer, mnt_attr), 64),
            (offset_of!(Answer, mnt_propagation), 72),
            (offset_of!(Answer, mnt_peer_group), 80),
            (offset_of!(Answer, propagate_from), 96),
            (offset_of!(Answer, mnt_root), 104),
            (offset_of!(Answer, mnt_point), 108),
            (offset_of!(Answer, mnt_ns_id), 112),
            (offset_of!(Answer, fs_subtype), 120),
            (offset_of!(Answer, sb_source), 124),
            (offset_of!(Answer, strings), 512),
        ] {
            assert_eq!(field, at);
        }
    }
}
