//! What a swap has to do, from what is mounted and what is wanted. Pure.
//!
//! A [`Tree`] is the files of one generation as they are on the mount, with real owners. [`plan`] resolves the wanted
//! [`FileSet`] against it: kept files come from the mounted generation, owners that are not given are ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::layout;
use crate::{
    path::{Mode, RelPath},
    render::{FileContent, FileSet},
    secret::SecretBytes,
};

/// One file as it is, or will be, on the mount.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its permission bits.
    pub mode: Mode,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its bytes.
    pub bytes: Arc<SecretBytes>,
}

impl Placed {
    fn same(&self, other: &Placed) -> bool {
        (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)
            && (Arc::ptr_eq(&self.bytes, &other.bytes) || self.bytes.same(&other.bytes))
    }
}

/// The files of one generation.
#[derive(Clone, Debug, Default)]
pub struct Tree(pub BTreeMap<RelPath, Placed>);

impl Tree {
    /// Names that the root shows: the first segments.
    pub fn tops(&self) -> BTreeSet<&str> {
        self.0.keys().map(RelPath::top).collect()
    }

    /// Its directories, each after its parent.
    pub fn directories(&self) -> BTreeSet<&str> {
        let parents = self.0.keys().flat_map(|path| {
            let text = path.as_str();
            text.match_indices('/').filter_map(|(at, _)| text.get(..at))
        });
        parents.collect()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.values().map(|file| file.bytes.len() as u64).sum()
    }

    /// What one copy of it takes of a tmpfs.
    pub fn needs(&self, page_bytes: u64) -> Needs {
        let files = self.0.values().map(|file| file.bytes.len() as u64);
        let links = self.tops();
        let long_links = links.iter().filter(|top| layout::link_takes_a_page(top));
        Needs {
            pages: files.map(|bytes| bytes.div_ceil(page_bytes)).sum::<u64>()
                + long_links.count() as u64,
            inodes: (self.0.len() + self.directories().len() + links.len()) as u64 + 1,
        }
    }
}

/// Room in a tmpfs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Memory pages.
    pub pages: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a swap has to do.
#[derive(Debug, Default)]
pub struct Plan {
    /// The next generation.
    pub next: Tree,
    /// First segments that both generations have and below which something differs: their links are touched.
    pub changed: BTreeSet<String>,
    /// First segments that only the next generation has: their links are made.
    pub added: BTreeSet<String>,
    /// First segments that only the old generation has: their links are removed.
    pub removed: BTreeSet<String>,
}

impl Plan {
    /// Whether readers would see no difference.
    pub fn is_nothing(&self) -> bool {
        self.changed.is_empty() && self.added.is_empty() && self.removed.is_empty()
    }
}

/// Compares the mounted generation with the wanted one. `own` are the ids that our files have when the spec gives none.
pub fn plan(old: &Tree, wanted: &FileSet, own: (u32, u32)) -> Plan {
    let mut next = BTreeMap::new();
    for (path, file) in wanted.iter() {
        let placed = match &file.content {
            FileContent::New(bytes) => Some(Placed {
                mode: file.mode,
                uid: file.owner.uid.unwrap_or(own.0),
                gid: file.owner.gid.unwrap_or(own.1),
                bytes: bytes.clone(),
            }),
            // As mounted, or absent: which mode the next content asks for is not known either.
            FileContent::Keep => old.0.get(path).cloned(),
        };
        next.extend(placed.map(|placed| (path.clone(), placed)));
    }
    let kept = old.0.iter().filter(|(path, _)| wanted.keeps(path));
    next.extend(kept.map(|(path, placed)| (path.clone(), placed.clone())));
    let next = Tree(next);
    let (before, after) = (old.tops(), next.tops());
    let owned = |top: &&str| (*top).to_owned();
    let mut plan = Plan {
        added: after.difference(&before).map(owned).collect(),
        removed: before.difference(&after).map(owned).collect(),
        ..Plan::default()
    };
    let differs = |path: &&RelPath| match (old.0.get(path), next.0.get(path)) {
        (Some(old), Some(next)) => !old.same(next),
        _ => true,
    };
    let paths = old.0.keys().chain(next.0.keys());
    let tops = paths.filter(differs).map(RelPath::top);
    plan.changed = tops
        .filter(|top| before.contains(top) && after.contains(top))
        .map(str::to_owned)
        .collect();
    plan.next = next;
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{path::Owner, render::File};

    fn set(files: &[(&str, u16, Option<u32>, Option<&str>)]) -> FileSet {
        let mut set = FileSet::default();
        for (path, mode, uid, text) in files {
            let content = text.map_or(FileContent::Keep, |text| {
                FileContent::New(Arc::new(SecretBytes::new(text.into())))
            });
            let file = File {
                mode: Mode::literal(*mode),
                owner: Owner {
                    uid: *uid,
                    gid: None,
                },
                content,
            };
            set.insert(RelPath::parse(path).unwrap(), file).unwrap();
        }
        set
    }

    fn names(set: &BTreeSet<String>) -> String {
        set.iter().cloned().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn what_differs_is_touched_and_nothing_else() {
        let old = plan(
            &Tree::default(),
            &set(&[
                ("a", 0o400, None, Some("1")),
                ("b/c", 0o400, None, Some("2")),
            ]),
            (5, 6),
        )
        .next;
        assert_eq!(old.0.values().next().map(|f| (f.uid, f.gid)), Some((5, 6)));
        let a = ("a", 0o400, None, Some("1"));
        let b = ("b/c", 0o400, None, Some("2"));
        for (wanted, changed, added, removed) in [
            (vec![a, b], "", "", ""),
            (vec![a], "", "", "b"),
            (vec![a, b, ("d", 0o400, None, Some(""))], "", "d", ""),
            (vec![a, b, ("b/d", 0o400, None, Some(""))], "b", "", ""),
            (vec![("a", 0o400, None, Some("9")), b], "a", "", ""),
            (vec![("a", 0o440, None, Some("1")), b], "a", "", ""),
            (vec![("a", 0o400, Some(7), Some("1")), b], "a", "", ""),
            (vec![("a", 0o400, Some(5), Some("1")), b], "", "", ""),
            (vec![("a", 0o440, Some(9), None), b], "", "", ""),
            (vec![a, b, ("absent", 0o400, None, None)], "", "", ""),
            (vec![("a/x", 0o400, None, Some("1")), b], "a", "", ""),
        ] {
            let plan = plan(&old, &set(&wanted), (5, 6));
            assert_eq!(
                (
                    names(&plan.changed).as_str(),
                    names(&plan.added).as_str(),
                    names(&plan.removed).as_str()
                ),
                (changed, added, removed),
                "{wanted:?}"
            );
        }
    }

    #[test]
    fn a_directory_whose_secret_is_unknown_keeps_its_files() {
        let file = |path, text| (path, 0o400, None, Some(text));
        let old = [
            file("all/a", "1"),
            file("all/b", "2"),
            file("gone", "3"),
            file("new", "4"),
        ];
        let old = plan(&Tree::default(), &set(&old), (0, 0)).next;
        let mut wanted = set(&[file("all/b", "9"), file("new/x", "5")]);
        wanted.keep_below(Some(RelPath::parse("all").unwrap()));
        let next = plan(&old, &wanted, (0, 0)).next;
        let seen: Vec<_> = next
            .0
            .iter()
            .map(|(path, file)| (path.as_str(), file.bytes.expose()))
            .collect();
        assert_eq!(
            seen,
            [("all/a", &b"1"[..]), ("all/b", b"9"), ("new/x", b"5")]
        );
        wanted.keep_below(None);
        let next = plan(&old, &wanted, (0, 0)).next;
        assert!(
            next.0.keys().any(|path| path.as_str() == "gone"),
            "the root's own files"
        );
        assert!(
            !next.0.keys().any(|path| path.as_str() == "new"),
            "a directory took its place"
        );
    }

    #[test]
    fn needs_count_pages_directories_and_long_links() {
        let long = "x".repeat(200);
        let files = set(&[
            ("a/b/c", 0o400, None, Some("1")),
            ("a/b/d", 0o400, None, Some(&"2".repeat(4097))),
            ("empty", 0o400, None, Some("")),
            (&long, 0o400, None, Some("3")),
        ]);
        let tree = plan(&Tree::default(), &files, (0, 0)).next;
        assert_eq!(tree.directories(), BTreeSet::from(["a", "a/b"]));
        // 1 + 2 + 0 + 1 pages of files and one of a link; 4 files, 2 directories, 3 links, the generation's directory
        assert_eq!(
            tree.needs(4096),
            Needs {
                pages: 5,
                inodes: 10
            }
        );
    }
}
