//! Names in a volume's root: the kubelet's AtomicWriter layout.
//!
//! ```text
//! password -> ..data/password            what users name: one link for each first segment of a path
//! ..data   -> ..2026_11_24_20_01_02.17   the commit: replaced by one rename
//! ..2026_11_24_20_01_02.17/password      generation 17: its files and directories
//! ..data_tmp                             the next `..data`, for an instant
//! ..copies/                              see `atomic`; empty but for an instant
//! ```
//!
//! Every name of the layout begins with `..`, and no segment of a [`crate::path::RelPath`] does.

use crate::{clock::Wall, render::Generation};

/// The link to the generation that readers see.
pub const DATA: &str = "..data";
/// The link that is renamed over [`DATA`].
pub const DATA_TMP: &str = "..data_tmp";
/// Where copies of superseded files wait to be renamed over them.
pub const COPIES: &str = "..copies";
/// Longest target of a symbolic link that tmpfs keeps in the inode; a longer one takes a page.
const SHORT_LINK_BYTES: usize = 127;

/// Name of a generation's directory. Its time is for people; `nth` sets apart what would have the same name.
pub fn generation_dir(made_at: Wall, generation: Generation, nth: i64) -> String {
    let millis = made_at.as_millis().saturating_add(nth.saturating_mul(1000));
    let time = jiff::Timestamp::from_millisecond(millis)
        .map(|time| time.strftime("%Y_%m_%d_%H_%M_%S").to_string())
        .unwrap_or_else(|_| format!("@{millis}"));
    format!("..{time}.{}", generation.0)
}

/// The generation that a directory's name gives.
pub fn generation_of(dir: &str) -> Option<Generation> {
    let (time, number) = dir.strip_prefix("..")?.rsplit_once('.')?;
    if time.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse().ok().map(Generation)
}

/// Whether a name in the root belongs to the layout, not to a user's file.
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("..")
}

/// Where the user-visible link of a first segment leads.
pub fn link_target(top: &str) -> String {
    format!("{DATA}/{top}")
}

/// Whether the user-visible link of a first segment takes a page.
pub fn link_takes_a_page(top: &str) -> bool {
    DATA.len() + 1 + top.len() > SHORT_LINK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directorys_name_gives_its_generation_back() {
        let at = Wall::from_millis(1_795_550_462_999);
        let name = generation_dir(at, Generation(17), 0);
        assert_eq!(name, "..2026_11_24_20_01_02.17");
        assert_eq!(generation_of(&name), Some(Generation(17)));
        assert_ne!(generation_dir(at, Generation(17), 1), name);
        let odd = generation_dir(Wall::from_millis(i64::MAX), Generation(3), 5);
        assert_eq!(generation_of(&odd), Some(Generation(3)));
        for name in [
            DATA,
            DATA_TMP,
            COPIES,
            "..",
            "...",
            "...7",
            "..x.",
            "..x.-1",
            "..x.+1",
            "..x.99999999999999999999",
            "x.1",
        ] {
            assert_eq!(generation_of(name), None, "{name}");
        }
    }
}
