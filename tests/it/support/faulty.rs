//! System calls that fail, or end, at a chosen one; and kernels that lack something.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
};

use secretfs::sys::fs::{
    At, Change, Entry, Errno, Fs, FsKind, How, MountStat, RealFs, Removed, Setting, Space, Stat,
    Sys,
};

/// What happens at the chosen call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It fails, and the calls after it do not. A failing `write` has taken half of its bytes, as on a full tmpfs.
    Errno(Errno),
    /// It fails, and so does every later call of its kind.
    Stuck(Errno),
    /// It does nothing, nor does any call after it: `kill -9` just before it.
    Death,
}

/// What a kernel offers of that which is newer than Linux 5.12.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub name: &'static str,
    /// `noswap`, Linux 6.4.
    pub has_noswap: bool,
    /// statmount(2).
    pub statmount: Statmount,
    /// Cloning a mount that is not attached, Linux 6.15.
    pub clones_detached: bool,
}

/// What statmount(2) tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statmount {
    /// There is none, before Linux 6.8.
    Absent,
    /// Neither source nor options, before Linux 6.11 and 6.13.
    Half,
    /// It exists, and a container's seccomp profile forbids it.
    Forbidden,
    /// What this program needs.
    Whole,
}

/// This kernel, and older ones as far as they differ.
pub const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "this one",
        has_noswap: true,
        statmount: Statmount::Whole,
        clones_detached: true,
    },
    Kernel {
        name: "6.8",
        has_noswap: true,
        statmount: Statmount::Half,
        clones_detached: false,
    },
    Kernel {
        name: "6.1",
        has_noswap: false,
        statmount: Statmount::Absent,
        clones_detached: false,
    },
    Kernel {
        name: "5.15",
        has_noswap: false,
        statmount: Statmount::Forbidden,
        clones_detached: false,
    },
];

/// The kernel, with faults.
pub struct FaultyFs {
    kernel: Kernel,
    state: Mutex<State>,
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    calls: u64,
    armed: Option<(u64, Fault)>,
    hook: Option<(u64, Hook)>,
    hook_ran: bool,
    struck: Option<&'static str>,
    /// A kind of call that fails, whatever else does.
    broken: Option<(&'static str, Errno)>,
    is_dead: bool,
    made: BTreeSet<&'static str>,
    /// What was set on file systems, as `key=value` or `key`.
    settings: Vec<String>,
    has_selinux: Option<bool>,
    /// Ids of mounts that were made and not yet attached.
    detached: BTreeSet<u64>,
}

impl FaultyFs {
    pub fn new(kernel: Kernel) -> Arc<Self> {
        Arc::new(Self {
            kernel,
            state: Mutex::default(),
        })
    }

    /// The `nth` call from now, counted from 1, meets `fault`.
    pub fn arm(&self, nth: u64, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        (state.calls, state.armed, state.struck) = (0, Some((nth, fault)), None);
    }

    /// `hook` runs before the `nth` call from now.
    pub fn before(&self, nth: u64, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        (state.calls, state.hook_ran) = (0, false);
        state.hook = Some((nth, Box::new(hook)));
    }

    /// Every call of this kind fails, beside what is armed; `None`: no more.
    pub fn break_all(&self, broken: Option<(&'static str, Errno)>) {
        self.state.lock().unwrap().broken = broken;
    }

    /// Ends the fault, and death: the next call is of a new process.
    pub fn disarm(&self) {
        let mut state = self.state.lock().unwrap();
        (state.armed, state.is_dead) = (None, false);
    }

    /// The call that was struck since it was armed.
    pub fn struck(&self) -> Option<&'static str> {
        self.state.lock().unwrap().struck
    }

    /// Drops a hook that has not run.
    pub fn calm(&self) {
        self.state.lock().unwrap().hook = None;
    }

    /// Whether the hook has run.
    pub fn hook_ran(&self) -> bool {
        self.state.lock().unwrap().hook_ran
    }

    /// The calls that were made since it was last asked.
    pub fn made(&self) -> BTreeSet<&'static str> {
        std::mem::take(&mut self.state.lock().unwrap().made)
    }

    /// What was set on file systems since it was last asked.
    pub fn settings(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().settings)
    }

    /// From now on a tmpfs takes a `context`, as with SELinux, and does nothing with it; or takes none.
    pub fn pretend_selinux(&self, has_it: bool) {
        self.state.lock().unwrap().has_selinux = Some(has_it);
    }

    fn enter(&self, call: &'static str) -> Sys<()> {
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        let calls = state.calls;
        if let Some((_, hook)) = state.hook.take_if(|(nth, _)| *nth == calls) {
            hook();
            state.hook_ran = true;
        }
        if state.is_dead {
            return Err(Errno::IO);
        }
        if let Some((_, errno)) = state.broken.filter(|(broken, _)| *broken == call) {
            return Err(errno);
        }
        match state.armed {
            Some((_, Fault::Stuck(errno))) if state.struck == Some(call) => Err(errno),
            Some((nth, fault)) if nth == calls => {
                state.struck = Some(call);
                state.is_dead = fault == Fault::Death;
                match fault {
                    Fault::Errno(errno) | Fault::Stuck(errno) => Err(errno),
                    Fault::Death => Err(Errno::IO),
                }
            }
            _ => {
                state.made.insert(call);
                Ok(())
            }
        }
    }

    fn is_dead(&self) -> bool {
        self.state.lock().unwrap().is_dead
    }
}

impl Fs for FaultyFs {
    fn fsopen(&self, kind: FsKind) -> Sys<OwnedFd> {
        self.enter("fsopen")?;
        RealFs.fsopen(kind)
    }
    fn fsconfig(&self, context: BorrowedFd<'_>, setting: Setting<'_>) -> Sys<()> {
        self.enter("fsconfig")?;
        if setting == Setting::Flag("noswap") && !self.kernel.has_noswap {
            return Err(Errno::INVAL);
        }
        let mut state = self.state.lock().unwrap();
        match setting {
            Setting::Text(key, value) => state.settings.push(format!("{key}={value}")),
            Setting::Flag(key) => state.settings.push(key.to_owned()),
            Setting::Create | Setting::Reconfigure => {}
        }
        match (setting, state.has_selinux) {
            (Setting::Text("context", _), Some(true)) => return Ok(()),
            (Setting::Text("context", _), Some(false)) => return Err(Errno::INVAL),
            _ => {}
        }
        drop(state);
        RealFs.fsconfig(context, setting)
    }
    fn fsmount(&self, context: BorrowedFd<'_>) -> Sys<OwnedFd> {
        self.enter("fsmount")?;
        let mount = RealFs.fsmount(context)?;
        let id = RealFs.statx(mount.as_fd())?.mount_id;
        self.state.lock().unwrap().detached.insert(id);
        Ok(mount)
    }
    fn fspick(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd> {
        self.enter("fspick")?;
        RealFs.fspick(mount)
    }
    fn mount_setattr(&self, mount: BorrowedFd<'_>, change: Change) -> Sys<()> {
        self.enter("mount_setattr")?;
        RealFs.mount_setattr(mount, change)
    }
    fn open_tree_clone(&self, mount: BorrowedFd<'_>) -> Sys<OwnedFd> {
        self.enter("open_tree_clone")?;
        let id = RealFs.statx(mount)?.mount_id;
        if !self.kernel.clones_detached && self.state.lock().unwrap().detached.contains(&id) {
            return Err(Errno::INVAL);
        }
        let clone = RealFs.open_tree_clone(mount)?;
        let id = RealFs.statx(clone.as_fd())?.mount_id;
        self.state.lock().unwrap().detached.insert(id);
        Ok(clone)
    }
    fn move_mount(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Sys<()> {
        self.enter("move_mount")?;
        RealFs.move_mount(mount, target)?;
        let id = RealFs.statx(mount)?.mount_id;
        self.state.lock().unwrap().detached.remove(&id);
        Ok(())
    }
    fn umount2(&self, mount: BorrowedFd<'_>) -> Sys<()> {
        self.enter("umount2")?;
        RealFs.umount2(mount)
    }
    fn mountinfo(&self) -> Sys<Vec<u8>> {
        self.enter("mountinfo")?;
        RealFs.mountinfo()
    }
    fn unique_mount_id(&self, file: BorrowedFd<'_>) -> Sys<u64> {
        self.enter("unique_mount_id")?;
        match self.kernel.statmount {
            Statmount::Absent => Err(Errno::NOSYS),
            _ => RealFs.unique_mount_id(file),
        }
    }
    fn statmount(&self, unique: u64) -> Sys<MountStat> {
        self.enter("statmount")?;
        match self.kernel.statmount {
            Statmount::Absent => Err(Errno::NOSYS),
            Statmount::Forbidden => Err(Errno::PERM),
            Statmount::Half => RealFs.statmount(unique).map(|stat| MountStat {
                source: None,
                options: None,
                ..stat
            }),
            Statmount::Whole => RealFs.statmount(unique),
        }
    }
    fn openat2(&self, at: At<'_>, how: How) -> Sys<OwnedFd> {
        self.enter("openat2")?;
        RealFs.openat2(at, how)
    }
    fn mkdirat(&self, at: At<'_>, mode: u32) -> Sys<()> {
        self.enter("mkdirat")?;
        RealFs.mkdirat(at, mode)
    }
    fn symlinkat(&self, to: &Path, at: At<'_>) -> Sys<()> {
        self.enter("symlinkat")?;
        RealFs.symlinkat(to, at)
    }
    fn renameat(&self, from: At<'_>, to: At<'_>) -> Sys<()> {
        self.enter("renameat")?;
        RealFs.renameat(from, to)
    }
    fn unlinkat(&self, at: At<'_>, what: Removed) -> Sys<()> {
        self.enter("unlinkat")?;
        RealFs.unlinkat(at, what)
    }
    fn readlinkat(&self, at: At<'_>) -> Sys<OsString> {
        self.enter("readlinkat")?;
        RealFs.readlinkat(at)
    }
    fn read(&self, file: BorrowedFd<'_>, into: &mut [u8]) -> Sys<usize> {
        self.enter("read")?;
        RealFs.read(file, into)
    }
    fn write(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Sys<usize> {
        let was_dead = self.is_dead();
        let entered = self.enter("write");
        if let (Err(errno), false, false) = (entered, was_dead, self.is_dead()) {
            RealFs.write(file, &bytes[..bytes.len() / 2])?;
            return Err(errno);
        }
        entered?;
        RealFs.write(file, bytes)
    }
    fn fchmod(&self, file: BorrowedFd<'_>, mode: u32) -> Sys<()> {
        self.enter("fchmod")?;
        RealFs.fchmod(file, mode)
    }
    fn fchown(&self, file: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Sys<()> {
        self.enter("fchown")?;
        RealFs.fchown(file, uid, gid)
    }
    fn utimensat(&self, at: At<'_>) -> Sys<()> {
        self.enter("utimensat")?;
        RealFs.utimensat(at)
    }
    fn getdents(&self, dir: BorrowedFd<'_>) -> Sys<Vec<Entry>> {
        self.enter("getdents")?;
        RealFs.getdents(dir)
    }
    fn statx(&self, file: BorrowedFd<'_>) -> Sys<Stat> {
        self.enter("statx")?;
        RealFs.statx(file)
    }
    fn fstatfs(&self, file: BorrowedFd<'_>) -> Sys<Space> {
        self.enter("fstatfs")?;
        RealFs.fstatfs(file)
    }
}
