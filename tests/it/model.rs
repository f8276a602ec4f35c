//! Random lives of two volumes, against a reference that a page holds: whatever happens, readers see what the last change that
//! succeeded left. Run on the real mounter and on the fake one, so that the fake stays true.
//!
//! A failing run prints its seed and its steps; `SECRETFS_MODEL_SEED=N` runs that one alone.

use std::{
    collections::BTreeMap, fmt, fs, io, os::unix::fs::MetadataExt, path::Path, sync::Arc,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use secretfs::{
    clock::{Clock, Mono, SystemClock},
    error::{Code, Result, codes},
    mount::{
        MountOptions, Mounted, Mounter, Probe, Root, VolumeId, layout, memory::MemoryMounter,
        tmpfs::TmpfsMounter,
    },
    path::{Mode, Owner, RelPath, TargetPath},
    render::{File, FileContent, FileSet, Generation, Snapshot},
    secret::SecretBytes,
    sys::namespace::make_shared,
};

use crate::support::sandbox::Sandbox;

/// Sequences of one run.
const SEEDS: u64 = 200;
/// Steps of one sequence.
const STEPS: usize = 30;
/// Names to choose from; some are files here and directories there.
const PATHS: [&str; 9] = [
    "a",
    "b",
    ".env",
    "dir",
    "dir/x",
    "dir/y",
    "deep",
    "deep/er/z",
    "deep/er/w",
];
const MODES: [u16; 4] = [0o400, 0o440, 0o444, 0o640];

/// One file as a reader sees it.
#[derive(Clone, PartialEq, Eq)]
struct Shown {
    mode: u32,
    bytes: Vec<u8>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.bytes.first().copied().unwrap_or_default();
        write!(f, "{:o}:{}B:{head:02x}", self.mode, self.bytes.len())
    }
}

type Files = BTreeMap<String, Shown>;

/// The world that a mounter works in: what outlives it, and what others see and do.
trait Stage {
    /// A mounter as a new process would have it.
    fn mounter(&self) -> Box<dyn Mounter>;
    /// What a reader sees at a target that is mounted, and the number of generations that are still there.
    fn look(&self, target: &TargetPath) -> (Files, usize);
    /// Somebody else unmounts what is there.
    fn take_away(&self, target: &TargetPath);
    /// Somebody else mounts something of theirs where nothing is.
    fn occupy(&self, target: &TargetPath);
    /// The directory to mount on, if it has gone.
    fn make_target(&self, target: &TargetPath);
    /// Whether a publish makes it, where it is to be asked to.
    fn publish_makes_targets(&self) -> bool {
        false
    }
    /// Where targets are.
    fn root(&self) -> &Path;
}

/// The reference: what is at a target.
#[derive(Debug)]
enum Model {
    Nothing,
    Foreign,
    Ours(Generation, Files),
}

/// One volume: ours, and what it must be.
struct Volume {
    target: TargetPath,
    options: MountOptions,
    handle: Option<Box<dyn Mounted>>,
    model: Model,
    /// Number of the last set that was offered.
    offered: u64,
}

struct Run<'a> {
    stage: &'a dyn Stage,
    mounter: Box<dyn Mounter>,
    random: fastrand::Rng,
    volumes: Vec<Volume>,
    now: Mono,
    seed: u64,
    steps: Vec<String>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let steps = self.steps.join("\n  ");
            println!(
                "SECRETFS_MODEL_SEED={} fails at the last of:\n  {steps}",
                self.seed
            );
        }
    }
}

impl<'a> Run<'a> {
    fn new(stage: &'a dyn Stage, seed: u64) -> Self {
        let volume = |number: usize| Volume {
            target: TargetPath::parse(&stage.root().join(format!("{seed}-{number}"))).unwrap(),
            options: MountOptions {
                volume: VolumeId::parse(&format!("model-{seed}-{number}")).unwrap(),
                bytes_limit: 1 << 20,
                files_limit: 64,
                context: None,
                make_target: stage.publish_makes_targets(),
                grant: secretfs::mount::Grant::default(),
            },
            handle: None,
            model: Model::Nothing,
            offered: 0,
        };
        Self {
            stage,
            mounter: stage.mounter(),
            random: fastrand::Rng::with_seed(seed),
            volumes: vec![volume(0), volume(1)],
            now: SystemClock.now(),
            seed,
            steps: Vec::new(),
        }
    }

    fn whole(mut self) {
        for _ in 0..STEPS {
            let which = self.random.usize(..self.volumes.len());
            match self.random.u32(..20) {
                0..3 => self.publish(which),
                3..11 => self.rotate(which),
                11 => self.rotate_to_the_same(which),
                12..14 => self.adopt(which),
                14 => self.crash(),
                15 => self.somebody_else(which),
                16..19 => self.sweep(which),
                _ => self.unpublish(which),
            }
            self.check();
        }
        for which in 0..self.volumes.len() {
            self.unpublish(which);
            if matches!(self.volumes[which].model, Model::Foreign) {
                self.somebody_else(which);
            }
        }
        self.check();
    }

    fn note(&mut self, which: usize, what: impl fmt::Display) {
        self.steps.push(format!("{which}: {what}"));
    }

    fn publish(&mut self, which: usize) {
        let set = self.any_set(which, false);
        self.note(which, format_args!("publish {:?}", shown(&set.files)));
        let volume = &mut self.volumes[which];
        if !volume.options.make_target {
            self.stage.make_target(&volume.target);
        }
        let result = self.mounter.publish(&volume.target, &set, &volume.options);
        match volume.model {
            Model::Ours(..) => refused(result, &codes::MOUNT_HELD),
            Model::Foreign => refused(result, &codes::MOUNT_FOREIGN),
            Model::Nothing => {
                let stale = volume.handle.replace(result.unwrap());
                volume.model = Model::Ours(set.generation, after(None, &set.files));
                if let Some(mut stale) = stale {
                    let result = stale.replace(&set); // of a mount that has gone
                    assert_eq!(result.unwrap_err().code().name, codes::MOUNT_GONE.name);
                }
            }
        }
    }

    fn rotate(&mut self, which: usize) {
        let set = self.any_set(which, true);
        self.note(which, format_args!("rotate {:?}", shown(&set.files)));
        self.replace(which, &set);
    }

    /// With a new number, but with the files that are there.
    fn rotate_to_the_same(&mut self, which: usize) {
        self.note(which, "rotate to the same");
        let generation = self.next_number(which);
        let Model::Ours(_, files) = &self.volumes[which].model else {
            return;
        };
        let files = files.iter().map(|(path, shown)| {
            let content = FileContent::New(Arc::new(SecretBytes::new(shown.bytes.clone())));
            (path.as_str(), Mode::new(shown.mode).unwrap(), content)
        });
        let set = snapshot(generation, files);
        self.replace(which, &set);
    }

    fn replace(&mut self, which: usize, set: &Snapshot) {
        let volume = &mut self.volumes[which];
        let Some(handle) = &mut volume.handle else {
            return;
        };
        let result = handle.replace(set);
        let Model::Ours(generation, files) = &mut volume.model else {
            let code = result.unwrap_err().code();
            assert_eq!(code.name, codes::MOUNT_GONE.name);
            return;
        };
        let next = after(Some(files), &set.files);
        assert_eq!(result.unwrap(), next != *files, "said that it changed");
        if next != *files {
            (*generation, *files) = (set.generation, next);
        }
        assert_eq!(handle.generation(), *generation);
    }

    /// The process dies, and a new one takes over all mounts, or some of them, or none yet.
    fn crash(&mut self) {
        self.steps.push("crash".into());
        self.mounter = self.stage.mounter();
        for volume in &mut self.volumes {
            volume.handle = None;
        }
        for which in 0..self.volumes.len() {
            if self.random.bool() {
                self.adopt(which);
            }
        }
    }

    fn adopt(&mut self, which: usize) {
        self.note(which, "adopt");
        let volume = &mut self.volumes[which];
        self.stage.make_target(&volume.target);
        volume.handle = None;
        let result = self.mounter.adopt(&volume.target, &volume.options);
        match &volume.model {
            Model::Ours(generation, _) => {
                let handle = result.unwrap();
                assert_eq!(handle.generation(), *generation);
                volume.handle = Some(handle);
            }
            Model::Nothing => refused(result, &codes::MOUNT_GONE),
            Model::Foreign => refused(result, &codes::MOUNT_FOREIGN),
        }
    }

    /// Takes away what is there, or mounts something of theirs.
    fn somebody_else(&mut self, which: usize) {
        self.note(which, "somebody else unmounts it, or mounts there");
        let volume = &mut self.volumes[which];
        self.stage.make_target(&volume.target);
        volume.model = match volume.model {
            Model::Nothing => {
                self.stage.occupy(&volume.target);
                Model::Foreign
            }
            Model::Ours(..) | Model::Foreign => {
                self.stage.take_away(&volume.target);
                Model::Nothing
            }
        };
    }

    /// Some time passes, or much.
    fn sweep(&mut self, which: usize) {
        let far = self.random.bool();
        let passes = Duration::from_millis(if far {
            60_000
        } else {
            self.random.u64(..3_000)
        });
        self.note(which, format_args!("sweep, again after {passes:?}"));
        let volume = &mut self.volumes[which];
        let Some(handle) = &mut volume.handle else {
            return;
        };
        handle.sweep(self.now); // says when what was superseded since the last one may go
        self.now = self.now.after(passes);
        let again = handle.sweep(self.now);
        if !matches!(volume.model, Model::Ours(..)) {
            return;
        }
        assert!(
            again.is_none_or(|at| at > self.now),
            "asks for a sweep in the past"
        );
        if far {
            let left = self.stage.look(&volume.target).1;
            assert_eq!(left, 1, "generations that outlived a minute");
            assert_eq!(again, None, "nothing is left to sweep");
        }
    }

    fn unpublish(&mut self, which: usize) {
        let (remove, twice) = (self.random.bool(), self.random.bool());
        self.note(
            which,
            format_args!("unpublish, remove {remove}, twice {twice}"),
        );
        let volume = &mut self.volumes[which];
        volume.handle = None;
        for _ in 0..=usize::from(twice) {
            self.mounter.unpublish(&volume.target, remove).unwrap();
        }
        let foreign = matches!(volume.model, Model::Foreign);
        if !foreign {
            volume.model = Model::Nothing;
        }
        let there = volume.target.as_path().exists();
        assert!(foreign || !(remove && there), "the target is still there");
    }

    /// What anybody sees, of both volumes.
    fn check(&self) {
        for volume in &self.volumes {
            let probe = self.mounter.probe(&volume.target).unwrap();
            match &volume.model {
                Model::Nothing => assert_eq!(probe, Probe::Absent),
                Model::Foreign => assert_eq!(probe, Probe::Foreign),
                Model::Ours(_, files) => {
                    let ours = matches!(&probe, Probe::Ours { volume: id, layers: 1, .. }
                        if *id == volume.options.volume);
                    assert!(ours, "{probe:?}");
                    assert_eq!(self.stage.look(&volume.target).0, *files);
                }
            }
        }
    }

    fn next_number(&mut self, which: usize) -> Generation {
        let volume = &mut self.volumes[which];
        volume.offered += 1;
        Generation(volume.offered)
    }

    /// Any files; with `keep`, some that stay as they are, and some that differ in their mode alone.
    fn any_set(&mut self, which: usize, keep: bool) -> Snapshot {
        let generation = self.next_number(which);
        let old = match &self.volumes[which].model {
            Model::Ours(_, files) => Some(files),
            Model::Nothing | Model::Foreign => None,
        };
        let random = &mut self.random;
        let mut files = Vec::new();
        for path in PATHS {
            if random.u32(..3) == 0 {
                continue;
            }
            let mode = Mode::literal(MODES[random.usize(..MODES.len())]);
            let content = match (random.u32(..4), old.and_then(|files| files.get(path))) {
                (0, _) if keep => FileContent::Keep,
                (1, Some(shown)) => {
                    FileContent::New(Arc::new(SecretBytes::new(shown.bytes.clone())))
                }
                _ => {
                    let mut bytes = vec![0; random.usize(..9_000)];
                    random.fill(&mut bytes);
                    FileContent::New(Arc::new(SecretBytes::new(bytes)))
                }
            };
            files.push((path, mode, content));
        }
        random.shuffle(&mut files);
        snapshot(generation, files)
    }
}

fn refused(result: Result<Box<dyn Mounted>>, code: &Code) {
    match result {
        Ok(_) => panic!("not refused: {}", code.name),
        Err(error) => assert_eq!(error.code().name, code.name, "{error}"),
    }
}

/// The set of these files, without those that would be in the way of an earlier one.
fn snapshot<'a>(
    generation: Generation,
    files: impl IntoIterator<Item = (&'a str, Mode, FileContent)>,
) -> Snapshot {
    let mut set = FileSet::default();
    for (path, mode, content) in files {
        let file = File {
            mode,
            owner: Owner::default(),
            content,
        };
        let _in_the_way = set.insert(RelPath::parse(path).unwrap(), file);
    }
    Snapshot {
        generation,
        made_at: SystemClock.wall(),
        versions: Vec::new(),
        files: set,
    }
}

/// The reference: what readers see after `set` was shown over `old`. A kept file stays as it was, its mode as well.
fn after(old: Option<&Files>, set: &FileSet) -> Files {
    let file = |(path, file): (&RelPath, &File)| {
        let shown = match &file.content {
            FileContent::Keep => old?.get(path.as_str())?.clone(),
            FileContent::New(bytes) => Shown {
                mode: file.mode.bits(),
                bytes: bytes.expose().to_vec(),
            },
        };
        Some((path.as_str().to_owned(), shown))
    };
    set.iter().filter_map(file).collect()
}

fn shown(set: &FileSet) -> Vec<String> {
    let file = |(path, file): (&RelPath, &File)| match &file.content {
        FileContent::Keep => format!("{path}=keep"),
        FileContent::New(bytes) => format!("{path}={}:{}B", file.mode, bytes.len()),
    };
    set.iter().map(file).collect()
}

fn seeds() -> Vec<u64> {
    match std::env::var("SECRETFS_MODEL_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    }
}

/// The fake: its world is a map that its clones share.
struct InMemory(MemoryMounter);

impl Stage for InMemory {
    fn mounter(&self) -> Box<dyn Mounter> {
        Box::new(self.0.clone())
    }

    fn look(&self, target: &TargetPath) -> (Files, usize) {
        let shown = self.0.shown(target).unwrap();
        let files = shown.files.0.iter().map(|(path, placed)| {
            let shown = Shown {
                mode: placed.mode.bits(),
                bytes: placed.bytes.expose().to_vec(),
            };
            (path.as_str().to_owned(), shown)
        });
        (files.collect(), 1)
    }

    fn take_away(&self, target: &TargetPath) {
        self.0.lose(target);
    }

    fn occupy(&self, target: &TargetPath) {
        self.0.occupy(target);
    }

    fn make_target(&self, _: &TargetPath) {}

    fn root(&self) -> &Path {
        Path::new("/memory")
    }
}

/// The kernel. With a root: the targets lie below a shared mount, and a publish makes them.
struct OnTmpfs {
    sandbox: Sandbox,
    root: Option<Root>,
}

impl Stage for OnTmpfs {
    fn mounter(&self) -> Box<dyn Mounter> {
        let mounter = TmpfsMounter::default();
        Box::new(match &self.root {
            Some(root) => mounter.below(root.clone()),
            None => mounter,
        })
    }

    /// Through the names that users have, which must all lead somewhere.
    fn look(&self, target: &TargetPath) -> (Files, usize) {
        let (mut files, mut generations) = (Files::new(), 0);
        for entry in fs::read_dir(target.as_path()).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if !layout::is_reserved(&name) {
                assert!(entry.file_type().unwrap().is_symlink(), "{name}");
                read_all(&entry.path(), name, &mut files).unwrap();
            } else if layout::generation_of(&name).is_some() {
                generations += 1;
            }
        }
        (files, generations)
    }

    fn take_away(&self, target: &TargetPath) {
        unmount(target.as_path(), UnmountFlags::DETACH).unwrap();
    }

    fn occupy(&self, target: &TargetPath) {
        let flags = MountFlags::empty();
        mount("theirs", target.as_path(), "tmpfs", flags, None).unwrap();
    }

    fn make_target(&self, target: &TargetPath) {
        fs::create_dir_all(target.as_path()).unwrap();
    }

    fn publish_makes_targets(&self) -> bool {
        self.root.is_some()
    }

    fn root(&self) -> &Path {
        match &self.root {
            Some(root) => &root.dir,
            None => self.sandbox.path(),
        }
    }
}

fn read_all(at: &Path, name: String, files: &mut Files) -> io::Result<()> {
    let metadata = fs::metadata(at)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(at)? {
            let entry = entry?;
            let below = format!("{name}/{}", entry.file_name().display());
            read_all(&entry.path(), below, files)?;
        }
        return Ok(());
    }
    let shown = Shown {
        mode: metadata.mode() & 0o7777,
        bytes: fs::read(at)?,
    };
    files.insert(name, shown);
    Ok(())
}

#[test]
fn the_real_mounter_lives_as_the_reference_does() {
    let stage = OnTmpfs {
        sandbox: Sandbox::new(),
        root: None,
    };
    for seed in seeds() {
        Run::new(&stage, seed).whole();
    }
}

#[test]
fn the_real_mounter_below_a_shared_root_lives_as_the_reference_does() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path().join("kubelet");
    fs::create_dir(&dir).unwrap();
    make_shared(&dir).unwrap();
    let root = Some(Root { dir, shared: true });
    let stage = OnTmpfs { sandbox, root };
    for seed in seeds().into_iter().take(50) {
        Run::new(&stage, seed).whole();
    }
}

#[test]
fn the_fake_mounter_lives_as_the_reference_does() {
    for seed in seeds() {
        Run::new(&InMemory(MemoryMounter::default()), seed).whole();
    }
}
