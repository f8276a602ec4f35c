//! B of the CSI benchmarks: a publish that is nothing but its system calls.
//!
//! [`Recorder`] stands between our mounter and the kernel and notes every call of one publish, with what it was given and which
//! descriptor came of which call. A [`Script`] makes the same calls in the same order for another volume, with the same bytes, and closes
//! each descriptor where the publish closed it. What is left out is all that a publish does besides: spec, sources, render, record, audit.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use secretfs::sys::fs::{
    At, Change, Entry, Fs, FsKind, How, MountStat, RealFs, Removed, Setting, Space, Stat, Sys,
};

/// Number of the call that opened it.
type Ref = usize;

#[derive(Clone)]
struct Where {
    dir: Option<Ref>,
    path: PathBuf,
}

#[derive(Clone)]
enum Value {
    Text(String, String),
    Flag(String),
    Create,
    Reconfigure,
}

#[derive(Clone)]
enum Call {
    Fsopen(FsKind),
    Fsconfig(Ref, Value),
    Fsmount(Ref),
    Fspick(Ref),
    MountSetattr(Ref, Change),
    OpenTreeClone(Ref),
    MoveMount(Ref, Ref),
    Umount2(Ref),
    Mountinfo,
    Openat2(Where, How),
    Mkdirat(Where, u32),
    Symlinkat(PathBuf, Where),
    Renameat(Where, Where),
    Unlinkat(Where, Removed),
    Readlinkat(Where),
    Read(Ref, usize),
    Write(Ref, Vec<u8>),
    Fchmod(Ref, u32),
    Fchown(Ref, Option<u32>, Option<u32>),
    Utimensat(Where),
    Getdents(Ref),
    Statx(Ref),
    Fstatfs(Ref),
    UniqueMountId(Ref),
    /// Of the mount that so many calls of `UniqueMountId` before had named.
    Statmount(usize),
    Close(Ref),
}

#[derive(Default)]
struct Log {
    calls: Vec<Call>,
    /// What is open: (its number, which call opened it).
    open: Vec<(RawFd, Ref)>,
    opened: usize,
    /// What `unique_mount_id` answered.
    ids: Vec<u64>,
}

/// Notes what passes.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Log>>);

impl Recorder {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted since the last time.
    pub fn take(&self) -> Script {
        Script(std::mem::take(&mut *self.log()).calls)
    }

    /// Notes a call, after the closes that came before it.
    fn note(&self, call: impl FnOnce(&Log) -> Call) {
        let mut log = self.log();
        let (open, closed): (Vec<_>, Vec<_>) = log.open.iter().partition(|(fd, _)| is_open(*fd));
        log.open = open;
        log.calls
            .extend(closed.into_iter().map(|(_, of)| Call::Close(of)));
        let call = call(&log);
        log.calls.push(call);
    }

    fn opened(&self, result: Sys<OwnedFd>) -> Sys<OwnedFd> {
        let mut log = self.log();
        let of = log.opened;
        log.opened += 1;
        if let Ok(fd) = &result {
            log.open.push((fd.as_raw_fd(), of));
        }
        result
    }
}

/// Whether the number is an open descriptor. Nobody else opens any while one publish is recorded.
fn is_open(fd: RawFd) -> bool {
    Path::new(&format!("/proc/thread-self/fd/{fd}"))
        .symlink_metadata()
        .is_ok()
}

impl Log {
    fn of(&self, fd: BorrowedFd<'_>) -> Ref {
        let found = self
            .open
            .iter()
            .rev()
            .find(|(open, _)| *open == fd.as_raw_fd());
        found.map_or(Ref::MAX, |(_, of)| *of)
    }

    fn at(&self, at: At<'_>) -> Where {
        Where {
            dir: at.dir.map(|dir| self.of(dir)),
            path: at.path.to_owned(),
        }
    }
}

impl Fs for Recorder {
    fn fsopen(&self, kind: FsKind) -> Sys<OwnedFd> {
        self.note(|_| Call::Fsopen(kind));
        self.opened(RealFs.fsopen(kind))
    }

    fn fsconfig(&self, context: BorrowedFd<'_>, setting: Setting<'_>) -> Sys<()> {
        let value = match setting {
            Setting::Text(key, value) => Value::Text(key.to_owned(), value.to_owned()),
            Setting::Flag(key) => Value::Flag(key.to_owned()),
            Setting::Create => Value::Create,
            Setting::Reconfigure => Value::Reconfigure,
        };
        self.note(|log| Call::Fsconfig(log.of(context), value));
        RealFs.fsconfig(context, setting)
    }

    fn fsmount(&self, context: BorrowedFd<'_>) -> Sys<OwnedFd> {
        self.note(|log| Call::Fsmount(log.of(context)));
        self.opened(RealFs.fsmount(context))
    }

    fn fspick(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd> {
        self.note(|log| Call::Fspick(log.of(mount)));
        self.opened(RealFs.fspick(mount))
    }

    fn mount_setattr(&self, mount: BorrowedFd<'_>, change: Change) -> Sys<()> {
        self.note(|log| Call::MountSetattr(log.of(mount), change));
        RealFs.mount_setattr(mount, change)
    }

    fn open_tree_clone(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd> {
        self.note(|log| Call::OpenTreeClone(log.of(mount)));
        self.opened(RealFs.open_tree_clone(mount))
    }

    fn move_mount(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Sys<()> {
        self.note(|log| Call::MoveMount(log.of(mount), log.of(target)));
        RealFs.move_mount(mount, target)
    }

    fn umount2(&self, mount: BorrowedFd<'_>) -> Sys<()> {
        self.note(|log| Call::Umount2(log.of(mount)));
        RealFs.umount2(mount)
    }

    fn mountinfo(&self) -> Sys<Vec<u8>> {
        self.note(|_| Call::Mountinfo);
        RealFs.mountinfo()
    }

    fn openat2(&self, at: At<'_>, how: How) -> Sys<OwnedFd> {
        self.note(|log| Call::Openat2(log.at(at), how));
        self.opened(RealFs.openat2(at, how))
    }

    fn mkdirat(&self, at: At<'_>, mode: u32) -> Sys<()> {
        self.note(|log| Call::Mkdirat(log.at(at), mode));
        RealFs.mkdirat(at, mode)
    }

    fn symlinkat(&self, to: &Path, at: At<'_>) -> Sys<()> {
        self.note(|log| Call::Symlinkat(to.to_owned(), log.at(at)));
        RealFs.symlinkat(to, at)
    }

    fn renameat(&self, from: At<'_>, to: At<'_>) -> Sys<()> {
        self.note(|log| Call::Renameat(log.at(from), log.at(to)));
        RealFs.renameat(from, to)
    }

    fn unlinkat(&self, at: At<'_>, what: Removed) -> Sys<()> {
        self.note(|log| Call::Unlinkat(log.at(at), what));
        RealFs.unlinkat(at, what)
    }

    fn readlinkat(&self, at: At<'_>) -> Sys<OsString> {
        self.note(|log| Call::Readlinkat(log.at(at)));
        RealFs.readlinkat(at)
    }

    fn read(&self, file: BorrowedFd<'_>, into: &mut [u8]) -> Sys<usize> {
        self.note(|log| Call::Read(log.of(file), into.len()));
        RealFs.read(file, into)
    }

    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Sys<usize> {
        self.note(|log| Call::Write(log.of(file), bytes.to_vec()));
        RealFs.write(file, bytes)
    }

    fn fchmod(&self, file: BorrowedFd<'_>, mode: u32) -> Sys<()> {
        self.note(|log| Call::Fchmod(log.of(file), mode));
        RealFs.fchmod(file, mode)
    }

    fn fchown(&self, file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Sys<()> {
        self.note(|log| Call::Fchown(log.of(file), uid, gid));
        RealFs.fchown(file, uid, gid)
    }

    fn utimensat(&self, at: At<'_>) -> Sys<()> {
        self.note(|log| Call::Utimensat(log.at(at)));
        RealFs.utimensat(at)
    }

    fn getdents(&self, dir: BorrowedFd<'_>) -> Sys<Vec<Entry>> {
        self.note(|log| Call::Getdents(log.of(dir)));
        RealFs.getdents(dir)
    }

    fn statx(&self, file: BorrowedFd<'_>) -> Sys<Stat> {
        self.note(|log| Call::Statx(log.of(file)));
        RealFs.statx(file)
    }

    fn fstatfs(&self, file: BorrowedFd<'_>) -> Sys<Space> {
        self.note(|log| Call::Fstatfs(log.of(file)));
        RealFs.fstatfs(file)
    }

    fn unique_mount_id(&self, file: BorrowedFd<'_>) -> Sys<u64> {
        self.note(|log| Call::UniqueMountId(log.of(file)));
        let id = RealFs.unique_mount_id(file);
        self.log().ids.push(id.unwrap_or_default());
        id
    }

    fn statmount(&self, id: u64) -> Sys<MountStat> {
        self.note(|log| {
            let back = log.ids.iter().rev().position(|known| *known == id);
            Call::Statmount(back.unwrap_or_default())
        });
        RealFs.statmount(id)
    }
}

/// The calls of one publish.
#[derive(Clone)]
pub struct Script(Vec<Call>);

impl Script {
    /// How many there are, closes left out.
    pub fn len(&self) -> usize {
        self.0
            .iter()
            .filter(|call| !matches!(call, Call::Close(_)))
            .count()
    }

    /// The same for another volume: what `rename` does to each path and source string.
    pub fn for_other(&self, rename: impl Fn(&str) -> String) -> Self {
        let path = |path: &Path| PathBuf::from(rename(&path.to_string_lossy()));
        let place = |at: &Where| Where {
            dir: at.dir,
            path: path(&at.path),
        };
        let renamed = self.0.iter().map(|call| match call {
            Call::Fsconfig(context, Value::Text(key, value)) => {
                Call::Fsconfig(*context, Value::Text(key.clone(), rename(value)))
            }
            Call::Openat2(at, how) => Call::Openat2(place(at), *how),
            Call::Mkdirat(at, mode) => Call::Mkdirat(place(at), *mode),
            Call::Unlinkat(at, what) => Call::Unlinkat(place(at), *what),
            other => other.clone(),
        });
        Self(renamed.collect())
    }

    /// Makes the calls. What is open at the end is given back, as a volume keeps it. A call that failed when it was recorded
    /// (a look at a target that is not there yet) may fail again.
    ///
    /// # Errors
    /// A call needs a descriptor that another one did not give.
    pub fn play(&self) -> io::Result<Vec<Option<OwnedFd>>> {
        let (mut open, mut ids) = (Vec::new(), Vec::new());
        for call in &self.0 {
            match call {
                Call::UniqueMountId(file) => {
                    let id = RealFs.unique_mount_id(fd(&open, *file)?);
                    ids.push(id.unwrap_or_default());
                }
                Call::Statmount(back) => {
                    let id = ids.iter().rev().nth(*back);
                    let _ = RealFs.statmount(id.copied().unwrap_or_default());
                }
                other => play_one(other, &mut open)?,
            }
        }
        Ok(open)
    }
}

fn play_one(call: &Call, open: &mut Vec<Option<OwnedFd>>) -> io::Result<()> {
    let opened = match call {
        Call::Fsopen(kind) => RealFs.fsopen(*kind),
        Call::Fsmount(context) => RealFs.fsmount(fd(open, *context)?),
        Call::Fspick(mount) => RealFs.fspick(fd(open, *mount)?),
        Call::OpenTreeClone(mount) => RealFs.open_tree_clone(fd(open, *mount)?),
        Call::Openat2(place, how) => RealFs.openat2(at(open, place)?, *how),
        Call::Close(of) => {
            if let Some(slot) = open.get_mut(*of) {
                *slot = None;
            }
            return Ok(());
        }
        other => return play_other(other, open),
    };
    open.push(opened.ok());
    Ok(())
}

fn play_other(call: &Call, open: &[Option<OwnedFd>]) -> io::Result<()> {
    let _ = match call {
        Call::Fsconfig(context, value) => RealFs.fsconfig(fd(open, *context)?, setting(value)),
        Call::MountSetattr(mount, change) => RealFs.mount_setattr(fd(open, *mount)?, *change),
        Call::MoveMount(mount, target) => RealFs.move_mount(fd(open, *mount)?, fd(open, *target)?),
        Call::Umount2(mount) => RealFs.umount2(fd(open, *mount)?),
        Call::Mountinfo => RealFs.mountinfo().map(drop),
        Call::Mkdirat(place, mode) => RealFs.mkdirat(at(open, place)?, *mode),
        Call::Symlinkat(to, place) => RealFs.symlinkat(to, at(open, place)?),
        Call::Renameat(from, to) => RealFs.renameat(at(open, from)?, at(open, to)?),
        Call::Unlinkat(place, what) => RealFs.unlinkat(at(open, place)?, *what),
        Call::Readlinkat(place) => RealFs.readlinkat(at(open, place)?).map(drop),
        Call::Read(file, size) => RealFs.read(fd(open, *file)?, &mut vec![0; *size]).map(drop),
        Call::Write(file, bytes) => RealFs.write(fd(open, *file)?, bytes).map(drop),
        Call::Fchmod(file, mode) => RealFs.fchmod(fd(open, *file)?, *mode),
        Call::Fchown(file, uid, gid) => RealFs.fchown(fd(open, *file)?, *uid, *gid),
        Call::Utimensat(place) => RealFs.utimensat(at(open, place)?),
        Call::Getdents(dir) => RealFs.getdents(fd(open, *dir)?).map(drop),
        Call::Statx(file) => RealFs.statx(fd(open, *file)?).map(drop),
        Call::Fstatfs(file) => RealFs.fstatfs(fd(open, *file)?).map(drop),
        Call::Fsopen(_)
        | Call::Fsmount(_)
        | Call::Fspick(_)
        | Call::OpenTreeClone(_)
        | Call::Openat2(..)
        | Call::UniqueMountId(_)
        | Call::Statmount(_)
        | Call::Close(_) => Ok(()), // `play` and `play_one` have them
    };
    Ok(())
}

fn fd(open: &[Option<OwnedFd>], of: Ref) -> io::Result<BorrowedFd<'_>> {
    let found = open.get(of).and_then(Option::as_ref);
    found
        .map(AsFd::as_fd)
        .ok_or_else(|| io::Error::other(format!("descriptor {of} is not open")))
}

fn at<'a>(open: &'a [Option<OwnedFd>], place: &'a Where) -> io::Result<At<'a>> {
    Ok(match place.dir {
        Some(dir) => At::below(fd(open, dir)?, &place.path),
        None => At::absolute(&place.path),
    })
}

fn setting(value: &Value) -> Setting<'_> {
    match value {
        Value::Text(key, value) => Setting::Text(key, value),
        Value::Flag(key) => Setting::Flag(key),
        Value::Create => Setting::Create,
        Value::Reconfigure => Setting::Reconfigure,
    }
}
