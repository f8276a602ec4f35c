//! A directory whose files change as one set: the kubelet's AtomicWriter layout (see `layout`), swapped by "copy over".
//!
//! [`AtomicDir`] is the writable side of a mount: a descriptor of its root. The kernel holds the truth: what readers see is
//! where `..data` leads, so a new process needs nothing but the descriptor. Remembered here, and rebuilt by [`AtomicDir::open`]:
//! which generations are superseded, and since when.
//!
//! All files are written anew. The loser, hard links of unchanged files, is not silent: each `link` and `unlink` tells the file's
//! watchers, and a wipe of the old name would hit the live file.
//!
//! Does not: know a mount, a limit, or a target. One thread calls it.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{
    errno::Step as _,
    layout::{self, COPIES, DATA, DATA_TMP},
    plan::{Placed, Plan, Tree},
};
use crate::{
    clock::{Mono, Wall},
    error::{Error, Result, codes},
    path::{Mode, RelPath},
    render::Generation,
    secret::SecretBytes,
    sys::fs::{At, Entry, EntryKind, Errno, Fs, How, Removed, Sys, own_ids, read_up_to, write_all},
};

/// Directories of one name (generation and second) that may lie there before a swap gives up.
const SAME_NAMES: i64 = 64;

/// Mode of the volume's directories.
const DIR_MODE: u32 = 0o755;

/// The writable side of a mount.
pub struct AtomicDir {
    fs: Arc<dyn Fs>,
    root: OwnedFd,
    /// Where `..data` leads; `None` if an unpublish was interrupted.
    current: Option<String>,
    generation: Generation,
    superseded: Vec<Superseded>,
    /// A step after the commit failed, or leftovers could not be removed.
    unsettled: bool,
    /// A swap was committed, and its caller was told of an error.
    untold: bool,
    /// The last time that a caller brought.
    now: Option<Mono>,
}

/// A generation that readers may still be in.
struct Superseded {
    dir: String,
    /// The first sweep after it was superseded.
    since: Option<Mono>,
}

impl AtomicDir {
    /// Fills the empty directory `root`. Nobody sees it yet, so `..data` is made in place.
    pub fn create(
        fs: Arc<dyn Fs>,
        root: OwnedFd,
        first: &Tree,
        made_at: Wall,
        generation: Generation,
    ) -> Result<Self> {
        let mut dir = Self::empty(fs, root);
        let name = dir.build(first, made_at, generation)?;
        dir.fs
            .mkdirat(dir.at(COPIES), DIR_MODE)
            .file_step("make the directory for copies")?;
        dir.fs
            .symlinkat(Path::new(&name), dir.at(DATA))
            .file_step("link ..data")?;
        for top in first.tops() {
            dir.link(top)?;
        }
        dir.current = Some(name);
        dir.generation = generation;
        Ok(dir)
    }

    /// Takes over what a former process left, and puts it in order. Whoever calls it has checked that `root` is ours.
    pub fn open(fs: Arc<dyn Fs>, root: OwnedFd) -> Result<Self> {
        let mut dir = Self::empty(fs, root);
        dir.current = match dir.fs.readlinkat(dir.at(DATA)) {
            // Anything but a plain name of the layout is not ours, and nothing that it leads to is served or touched.
            Ok(name) => name
                .into_string()
                .ok()
                .filter(|name| layout::is_reserved(name) && !name.contains('/')),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno).file_step("read where ..data leads"),
        };
        let generation = dir.current.as_deref().and_then(layout::generation_of);
        dir.generation = generation.unwrap_or(Generation(0));
        dir.settle()?;
        Ok(dir)
    }

    fn empty(fs: Arc<dyn Fs>, root: OwnedFd) -> Self {
        Self {
            fs,
            root,
            current: None,
            generation: Generation(0),
            superseded: Vec::new(),
            unsettled: false,
            untold: false,
            now: None,
        }
    }

    /// Its root.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The same root by another mount.
    pub fn with_root(mut self, root: OwnedFd) -> Self {
        self.root = root;
        self
    }

    /// What readers see.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether a swap was committed of which no caller knows.
    pub fn has_untold(&self) -> bool {
        self.untold
    }

    /// The same, and forgets it: the caller is being told.
    pub fn take_untold(&mut self) -> bool {
        std::mem::take(&mut self.untold)
    }

    /// The files that readers see.
    pub fn read(&self) -> Result<Tree> {
        let mut tree = Tree::default();
        if let Some(current) = &self.current {
            let dir = self
                .fs
                .openat2(self.at(current), How::Directory)
                .file_step("open the mounted generation")?;
            read_below(&*self.fs, dir.as_fd(), "", &mut tree)
                .file_step("read the mounted generation")?;
        }
        Ok(tree)
    }

    /// Readers see `plan.next` instead of `old`, which is what [`Self::read`] gave.
    ///
    /// 1. Build the new generation beside the old one: every file in full, with its final mode and owner, and closed.
    /// 2. Copy each old file into `..copies`. The loser, beside the old files, would show the copies to who lists `..data`.
    /// 3. Rename `..data_tmp` over `..data`: the commit. Watchers of the directory hear it.
    /// 4. Make the links of new names and remove those of removed ones. Before step 3 a new link would lead nowhere: a name that
    ///    is late looks as in the old set, one that dangles looks broken.
    /// 5. Rename each copy over its old file. The old inode dies, so watchers of the *file* hear it now and not when the
    ///    directory goes; who still walks the old generation finds the old bytes under the same name.
    /// 6. Touch the links of changed names: programs that filter events by file name hear only that.
    /// 7. Remember the old generation for [`Self::sweep`].
    ///
    /// # Errors
    /// Before step 3 is done: readers see `old`. After it: they see `plan.next`, [`Self::generation`] says so, and the
    /// next [`Self::settle`] makes up for what is missing. Steps 5 and 6 only tell sooner what the sweep tells later: their
    /// failure is no error.
    pub fn swap(
        &mut self,
        old: &Tree,
        plan: &Plan,
        made_at: Wall,
        generation: Generation,
    ) -> Result<()> {
        tracing::trace!(generation = generation.0, "the files are swapped");
        let name = self.build(&plan.next, made_at, generation)?; // 1
        let prepared = self.copy(old).and_then(|()| self.commit(&name)); // 2, 3
        if let Err(error) = prepared {
            self.discard(&name);
            return Err(error);
        }
        self.generation = generation;
        let before = self.current.replace(name);
        let links = self.relink(plan); // 4
        if let Some(before) = before {
            for (nth, path) in old.0.keys().enumerate() {
                let copy = format!("{COPIES}/{nth}");
                let file = format!("{before}/{path}");
                let renamed = self.fs.renameat(self.at(&copy), self.at(&file)); // 5
                self.unsettled |= renamed.is_err();
            }
            self.superseded.push(Superseded {
                dir: before,
                since: None,
            }); // 7
        }
        for top in &plan.changed {
            let _ = self.fs.utimensat(self.at(top)); // 6
        }
        if links.is_err() {
            self.unsettled = true;
            self.settle().inspect_err(|_| self.untold = true)?;
        }
        Ok(())
    }

    /// Step 1: a directory under a name that no other has.
    fn build(&mut self, tree: &Tree, made_at: Wall, generation: Generation) -> Result<String> {
        let mut nth = 0;
        let name = loop {
            let name = layout::generation_dir(made_at, generation, nth);
            match self.fs.mkdirat(self.at(&name), DIR_MODE) {
                Ok(()) => break name,
                Err(Errno::EXIST) if nth < SAME_NAMES => nth += 1,
                Err(errno) => return Err(errno).file_step("make the generation's directory"),
            }
        };
        match self.fill(&name, tree) {
            Ok(()) => Ok(name),
            Err(error) => {
                self.discard(&name);
                Err(error)
            }
        }
    }

    fn fill(&self, name: &str, tree: &Tree) -> Result<()> {
        let fs = &*self.fs;
        let open = |at| {
            let dir = fs.openat2(at, How::Directory)?;
            widen(fs, dir.as_fd()).map(|()| dir)
        };
        let dir = open(self.at(name)).file_step("open the generation's directory")?;
        for below in tree.directories() {
            let at = At::below(dir.as_fd(), below);
            let made = fs.mkdirat(at, DIR_MODE).and_then(|()| open(at));
            made.file_step("make a directory")?;
        }
        for (path, file) in &tree.0 {
            create(fs, At::below(dir.as_fd(), path.as_str()), file)?;
        }
        Ok(())
    }

    /// Step 2.
    fn copy(&self, old: &Tree) -> Result<()> {
        for (nth, file) in old.0.values().enumerate() {
            let copy = format!("{COPIES}/{nth}");
            create(&*self.fs, self.at(&copy), file)?;
        }
        Ok(())
    }

    /// Step 3.
    fn commit(&self, name: &str) -> Result<()> {
        self.fs
            .symlinkat(Path::new(name), self.at(DATA_TMP))
            .file_step("link ..data_tmp")?;
        self.fs
            .renameat(self.at(DATA_TMP), self.at(DATA))
            .file_step("rename it over ..data")
    }

    /// Step 4.
    fn relink(&self, plan: &Plan) -> Result<()> {
        for top in &plan.added {
            self.link(top)?;
        }
        for top in &plan.removed {
            self.unlink(top, Removed::File)
                .file_step("remove the link of a removed file")?;
        }
        Ok(())
    }

    fn link(&self, top: &str) -> Result<()> {
        let to = layout::link_target(top);
        self.fs
            .symlinkat(Path::new(&to), self.at(top))
            .file_step("link a file's name")
    }

    /// Removes what a failed swap made before its commit.
    fn discard(&mut self, name: &str) {
        let removed = self.remove_tree(name);
        let link = self.unlink(DATA_TMP, Removed::File);
        self.unsettled |= removed.is_err() || link.is_err() || self.empty_copies().is_err();
    }

    /// Puts everything but the files in order: what a crash or a failed step left.
    ///
    /// 1. Remove `..data_tmp`, the copies, and names of the root that the current generation has not.
    /// 2. Note the directories that `..data` does not name: readers may be in them, so the sweep removes them.
    /// 3. Make the links that are missing.
    pub fn settle(&mut self) -> Result<()> {
        let tops = match &self.current {
            Some(current) => self.entries(current).file_step("list the generation")?,
            None => Vec::new(),
        };
        let root = self.entries(".").file_step("list the root")?;
        let tops: BTreeSet<&str> = tops
            .iter()
            .filter_map(|entry| entry.name.to_str())
            .collect();
        let mut linked = BTreeSet::new();
        for entry in &root {
            let name = entry.name.to_str();
            let known = |dir: &str| self.superseded.iter().any(|old| old.dir == dir);
            match name {
                Some(DATA | COPIES) => {}
                Some(name) if self.current.as_deref() == Some(name) => {}
                Some(name) if tops.contains(name) => {
                    linked.insert(name);
                }
                Some(name) if entry.kind == EntryKind::Directory && known(name) => {}
                Some(name) if entry.kind == EntryKind::Directory => {
                    self.superseded.push(Superseded {
                        dir: name.to_owned(),
                        since: None,
                    }); // 2
                }
                _ => self
                    .fs
                    .unlinkat(At::below(self.root(), &entry.name), Removed::File)
                    .file_step("remove a leftover")?, // 1
            }
        }
        if root.iter().any(|entry| entry.name == COPIES) {
            self.empty_copies().file_step("remove leftover copies")?; // 1
        } else {
            self.fs
                .mkdirat(self.at(COPIES), DIR_MODE)
                .file_step("make the directory for copies")?;
        }
        for top in tops.difference(&linked) {
            self.link(top)?; // 3
        }
        self.unsettled = false;
        Ok(())
    }

    /// [`Self::settle`], if there is something to settle.
    pub fn settle_if_needed(&mut self) -> Result<()> {
        if self.unsettled {
            self.settle()
        } else {
            Ok(())
        }
    }

    /// Removes what was superseded at least `grace` before `now`. When to call again.
    pub fn sweep(&mut self, now: Mono, grace: Duration) -> Option<Mono> {
        self.now = Some(now);
        for old in &mut self.superseded {
            old.since.get_or_insert(now);
        }
        let mut again = self.settle_if_needed().is_err();
        again |= self.remove_older(now, grace).is_err();
        let due = self
            .superseded
            .iter()
            .map(|old| old.since.unwrap_or(now).after(grace));
        let due = due.min()?;
        Some(if again {
            due.max(now.after(grace))
        } else {
            due
        })
    }

    /// Makes room: removes what was superseded `grace` before the last sweep, which is the only time that we know.
    pub fn remove_early(&mut self, grace: Duration) -> Result<()> {
        match self.now {
            Some(now) => self
                .remove_older(now, grace)
                .file_step("remove superseded generations"),
            None => Ok(()),
        }
    }

    fn remove_older(&mut self, now: Mono, grace: Duration) -> Sys<()> {
        let is_due = |old: &Superseded| old.since.is_some_and(|since| now.since(since) >= grace);
        let (due, mut kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.superseded)
            .into_iter()
            .partition(is_due);
        let mut result = Ok(());
        for old in due {
            match self.remove_tree(&old.dir) {
                Ok(()) => {}
                Err(errno) => {
                    result = Err(errno);
                    kept.push(old);
                }
            }
        }
        self.superseded = kept;
        result
    }

    /// [`Self::wipe_all`] of this one; a later swap begins as on an empty root.
    pub fn wipe(&mut self) -> Sys<()> {
        self.current = None;
        self.unsettled = true;
        Self::wipe_all(&*self.fs, self.root.as_fd())?;
        self.superseded.clear();
        Ok(())
    }

    /// Overwrites and removes everything: whoever holds a copy of the mount, or a file open, reads nothing any more.
    ///
    /// 1. Remove `..data`, then the links: from here on nobody opens a file by its name, and none is seen half wiped.
    /// 2. Overwrite each file in its full length, remove it, and remove the directories.
    pub fn wipe_all(fs: &dyn Fs, root: BorrowedFd<'_>) -> Sys<()> {
        match fs.unlinkat(At::below(root, DATA), Removed::File) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        } // 1
        wipe_below(fs, root) // 1, 2
    }

    fn at<'a>(&'a self, path: &'a str) -> At<'a> {
        At::below(self.root.as_fd(), path)
    }

    fn entries(&self, dir: &str) -> Sys<Vec<Entry>> {
        let dir = self.fs.openat2(self.at(dir), How::Directory)?;
        self.fs.getdents(dir.as_fd())
    }

    fn unlink(&self, name: &str, what: Removed) -> Sys<()> {
        match self.fs.unlinkat(self.at(name), what) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    fn empty_copies(&self) -> Sys<()> {
        for entry in self.entries(COPIES)? {
            let path = Path::new(COPIES).join(&entry.name);
            self.fs
                .unlinkat(At::below(self.root(), &path), Removed::File)?;
        }
        Ok(())
    }

    fn remove_tree(&self, name: &str) -> Sys<()> {
        match self.fs.openat2(self.at(name), How::Directory) {
            Ok(dir) => remove_below(&*self.fs, dir.as_fd())?,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        self.unlink(name, Removed::Directory)
    }
}

/// A new directory's mode, whatever the umask. Only where it differs: watchers of the root hear a chmod.
fn widen(fs: &dyn Fs, dir: BorrowedFd<'_>) -> Sys<()> {
    match fs.statx(dir)?.mode {
        DIR_MODE => Ok(()),
        _ => fs.fchmod(dir, DIR_MODE),
    }
}

/// A new file, complete and closed.
fn create(fs: &dyn Fs, at: At<'_>, placed: &Placed) -> Result<()> {
    let file = fs.openat2(at, How::Create).file_step("make a file")?;
    let file = file.as_fd();
    write_all(fs, file, placed.bytes.expose()).file_step("write a file")?;
    fs.fchmod(file, placed.mode.bits())
        .file_step("set a file's mode")?;
    let own = own_ids();
    let uid = (placed.uid != own.0).then_some(placed.uid);
    let gid = (placed.gid != own.1).then_some(placed.gid);
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    match fs.fchown(file, uid, gid) {
        // Without CAP_CHOWN, and where the user namespace does not have the id.
        Err(errno @ (Errno::PERM | Errno::INVAL)) => Err(Error::new(&codes::MOUNT_OWNER)
            .detail(format_args!(
                "a file cannot be given to {}:{}",
                placed.uid, placed.gid
            ))
            .source(errno)),
        result => result.file_step("set a file's owner"),
    }
}

fn read_below(fs: &dyn Fs, dir: BorrowedFd<'_>, prefix: &str, tree: &mut Tree) -> Sys<()> {
    for entry in fs.getdents(dir)? {
        let Some(name) = entry.name.to_str() else {
            continue; // not ours: a RelPath is UTF-8
        };
        let at = At::below(dir, name);
        let path = format!("{prefix}{name}");
        if entry.kind == EntryKind::Directory {
            let below = fs.openat2(at, How::Directory)?;
            read_below(fs, below.as_fd(), &format!("{path}/"), tree)?;
        } else if let (EntryKind::File, Ok(path)) = (entry.kind, RelPath::parse(&path)) {
            let file = fs.openat2(at, How::Read)?;
            let stat = fs.statx(file.as_fd())?;
            let size = usize::try_from(stat.size).map_err(|_| Errno::FBIG)?;
            let bytes = read_up_to(fs, file.as_fd(), size)?;
            let placed = Placed {
                mode: Mode::new(stat.mode).unwrap_or(Mode::literal(0)),
                uid: stat.uid,
                gid: stat.gid,
                bytes: Arc::new(SecretBytes::new(bytes)),
            };
            tree.0.insert(path, placed);
        }
    }
    Ok(())
}

fn remove_below(fs: &dyn Fs, dir: BorrowedFd<'_>) -> Sys<()> {
    for entry in fs.getdents(dir)? {
        let at = At::below(dir, &entry.name);
        if entry.kind == EntryKind::Directory {
            let below = fs.openat2(at, How::Directory)?;
            remove_below(fs, below.as_fd())?;
            fs.unlinkat(at, Removed::Directory)?;
        } else {
            fs.unlinkat(at, Removed::File)?;
        }
    }
    Ok(())
}

fn wipe_below(fs: &dyn Fs, dir: BorrowedFd<'_>) -> Sys<()> {
    // A mount's descriptor is O_PATH: it names, and cannot be listed.
    let listed = fs.openat2(At::below(dir, "."), How::Directory)?;
    let mut entries = fs.getdents(listed.as_fd())?;
    entries.sort_by_key(|entry| entry.kind != EntryKind::Link); // links first
    for entry in &entries {
        let at = At::below(dir, &entry.name);
        match entry.kind {
            EntryKind::Directory => {
                let below = fs.openat2(at, How::Directory)?;
                wipe_below(fs, below.as_fd())?;
                fs.unlinkat(at, Removed::Directory)?;
            }
            EntryKind::File => {
                overwrite(fs, at)?;
                fs.unlinkat(at, Removed::File)?;
            }
            EntryKind::Link | EntryKind::Other => fs.unlinkat(at, Removed::File)?,
        }
    }
    Ok(())
}

fn overwrite(fs: &dyn Fs, at: At<'_>) -> Sys<()> {
    const ZEROS: &[u8] = &[0; 16 << 10];
    let file = fs.openat2(at, How::Overwrite)?;
    let mut left = fs.statx(file.as_fd())?.size;
    while left > 0 {
        let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        write_all(fs, file.as_fd(), ZEROS.get(..chunk).unwrap_or(ZEROS))?;
        left -= chunk as u64;
    }
    Ok(())
}
