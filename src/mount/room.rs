//! How large a tmpfs is to be. Pure.
//!
//! A swap holds three sets at once: the mounted one, the next, and the copies of the mounted one. A tmpfs begins with room for
//! three sets of its first content and grows when a swap needs more, up to three sets of what the volume may have.

use super::{
    MountOptions,
    plan::{Needs, Tree},
};
use crate::error::{Error, Result, codes};

/// Sets that a swap holds at once.
const SETS: u64 = 3;
/// Room besides the sets: the root, `..data`, `..copies`, and some air.
const HEAD: Needs = Needs {
    pages: 16,
    inodes: 16,
};
/// Inodes that a set may take for each of its files: itself, its link, and two directories.
const INODES_PER_FILE: u64 = 4;
/// Inodes of a set besides these, so that a volume of one file may lie deep.
const INODES_PER_SET: u64 = 64;

/// The most that a volume's tmpfs grows to.
pub fn most(options: &MountOptions, page_bytes: u64) -> Needs {
    let files = u64::from(options.files_limit);
    let set = Needs {
        // every file ends in a page of its own, and its link may take one
        pages: options.bytes_limit.div_ceil(page_bytes) + 2 * files,
        inodes: files * INODES_PER_FILE + INODES_PER_SET,
    };
    sets(set)
}

/// What a tmpfs with this content begins with.
pub fn first(set: Needs, most: Needs) -> Needs {
    at_most(sets(set), most)
}

/// What it grows to, when `used` is taken and `more` is wanted. At least double, so that growth is rare.
pub fn grown(capacity: Needs, used: Needs, more: Needs, most: Needs) -> Needs {
    let wanted = Needs {
        pages: (used.pages + more.pages + HEAD.pages).max(2 * capacity.pages),
        inodes: (used.inodes + more.inodes + HEAD.inodes).max(2 * capacity.inodes),
    };
    at_most(wanted, most)
}

/// Whether so much is used that superseded generations cannot stay long.
pub fn is_short(used: Needs, most: Needs) -> bool {
    used.pages > most.pages / 2 || used.inodes > most.inodes / 2
}

/// What a swap from `old` to `next` takes.
pub fn of_swap(old: &Tree, next: &Tree, page_bytes: u64) -> Needs {
    let (copies, set) = (old.needs(page_bytes), next.needs(page_bytes));
    Needs {
        pages: copies.pages + set.pages,
        inodes: copies.inodes + set.inodes,
    }
}

/// # Errors
/// `mount.too_large`: the set is more than the volume may have.
pub fn check(set: &Tree, options: &MountOptions, page_bytes: u64) -> Result<()> {
    let too_large = |what: String| Err(Error::new(&codes::MOUNT_TOO_LARGE).detail(what));
    if set.0.len() as u64 > u64::from(options.files_limit) {
        return too_large(format!(
            "the volume has more than {} files",
            options.files_limit
        ));
    }
    if set.bytes() > options.bytes_limit {
        return too_large(format!(
            "the volume's files have more than {} bytes",
            options.bytes_limit
        ));
    }
    if sets(set.needs(page_bytes)).inodes > most(options, page_bytes).inodes {
        return too_large("the volume's files lie in too many directories".to_owned());
    }
    Ok(())
}

fn sets(set: Needs) -> Needs {
    Needs {
        pages: SETS * set.pages + HEAD.pages,
        inodes: SETS * set.inodes + HEAD.inodes,
    }
}

fn at_most(needs: Needs, most: Needs) -> Needs {
    Needs {
        pages: needs.pages.min(most.pages),
        inodes: needs.inodes.min(most.inodes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::VolumeId;

    #[test]
    fn it_begins_small_doubles_and_ends_at_three_full_sets() {
        let options = MountOptions {
            volume: VolumeId::parse("v").unwrap(),
            bytes_limit: 1 << 20,
            files_limit: 16,
            context: None,
            make_target: false,
            grant: crate::mount::Grant::default(),
        };
        let most = most(&options, 4096);
        assert_eq!(most.pages, 3 * (256 + 32) + 16);
        let set = Needs {
            pages: 2,
            inodes: 5,
        };
        let begin = first(set, most);
        assert_eq!((begin.pages, begin.inodes), (22, 31));
        let more = grown(begin, begin, set, most);
        assert_eq!((more.pages, more.inodes), (44, 62));
        assert_eq!(grown(most, most, most, most), most);
        assert!(is_short(most, most) && !is_short(begin, most));
    }
}
