//! What survives our death: one record for each volume, without secrets, in `<runtimeDir>/volumes/`.
//!
//! A record is written as `ID.new` before the mount is attached, and renamed to `ID.json` once it is: so a restart can tell a publish
//! that was answered from one that we died in. There is no fsync: a reboot takes the mounts as well. It is removed after the
//! mount is gone. A record that is lost, damaged, of another boot or of another version never fails a call: its mount is adopted
//! as it is, and completed at the next republish.
//!
//! All calls block. Never here: a token, or anything else of `Credentials`.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    caller::Identity,
    error::{Error, Result, codes},
    limits,
    mount::VolumeId,
    path::TargetPath,
    spec::MountKind,
    sys::file::open_regular,
    volume::Placing,
};

/// The form that this version writes. One that is higher is not read.
const VERSION: u32 = 1;
/// Of a publish that was answered.
const ANSWERED: &str = "json";
/// Of a publish that is under way.
const BEGUN: &str = "new";

/// What a restarted process needs to go on with a volume. Never a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeRecord {
    /// Whose mount.
    pub id: VolumeId,
    /// Where.
    pub target: TargetPath,
    /// For whom.
    pub who: Identity,
    /// The spec as it was written.
    pub spec: Arc<str>,
    /// How it is served.
    pub kind: MountKind,
    /// How it is mounted.
    pub placing: Placing,
}

/// A record as it stands in its file.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved<'a> {
    version: u32,
    boot: Cow<'a, str>,
    id: Cow<'a, str>,
    target: Cow<'a, Path>,
    kind: MountKind,
    who: Cow<'a, Identity>,
    placing: Cow<'a, Placing>,
    spec: Cow<'a, str>,
}

/// Of which version a file is, whatever else it holds.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// What a former process left.
#[derive(Default, Debug)]
pub struct Loaded {
    /// Good ones.
    pub records: BTreeMap<VolumeId, (VolumeRecord, Stage)>,
    /// Files that are none, or not for us: their names, and why.
    pub skipped: Vec<(String, Skip)>,
}

/// How far a record's publish had come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Its mount may not have been attached.
    Begun,
    /// It was attached.
    Attached,
}

/// Why a file is no record for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skip {
    /// It cannot be read.
    Unreadable,
    /// It is larger than [`limits::RECORD_BYTES`].
    TooLarge,
    /// It is not whole, or not a record.
    Damaged,
    /// A newer program wrote it; it may come back.
    Newer,
    /// Its mount went with that boot.
    OtherBoot,
    /// It is about another volume than its name says.
    Misnamed,
    /// There are more than [`limits::RECORDS`].
    TooMany,
}

/// Where records are kept; `None`: nowhere (`secretfs mount`, whose user starts it again with all it needs).
#[derive(Clone, Default, Debug)]
pub struct Records {
    place: Option<Arc<Place>>,
}

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    /// This boot's id; empty where the kernel does not tell.
    boot: String,
}

impl Records {
    /// None are kept.
    pub fn off() -> Self {
        Self::default()
    }

    /// In `<runtimeDir>/volumes/`.
    pub fn below(runtime_dir: &Path) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let (dir, boot) = (runtime_dir.join("volumes"), boot.trim().to_owned());
        Self {
            place: Some(Arc::new(Place { dir, boot })),
        }
    }

    /// Whether any are kept.
    pub fn are_kept(&self) -> bool {
        self.place.is_some()
    }

    /// Writes the record of a publish that is under way. Readable by us alone.
    ///
    /// # Errors
    /// `node.io`. The publish goes on without.
    pub fn write(&self, record: &VolumeRecord) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let saved = Saved {
            version: VERSION,
            boot: Cow::Borrowed(&place.boot),
            id: Cow::Borrowed(record.id.as_str()),
            target: Cow::Borrowed(record.target.as_path()),
            kind: record.kind,
            who: Cow::Borrowed(&record.who),
            placing: Cow::Borrowed(&record.placing),
            spec: Cow::Borrowed(&record.spec),
        };
        let path = place.path(&record.id, BEGUN);
        tracing::trace!(volume_id = %record.id, "a record is written");
        let io = |error| failed("write a volume's record", &path, error);
        let bytes = serde_json::to_vec(&saved).map_err(|error| io(error.into()))?;
        let made = match create(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut dir = DirBuilder::new();
                let made = dir.recursive(true).mode(0o700).create(&place.dir);
                made.and_then(|()| create(&path))
            }
            made => made,
        };
        let written = made.and_then(|mut file| file.write_all(&bytes));
        written.map_err(|error| {
            let _ = fs::remove_file(&path); // half a record is none
            io(error)
        })
    }

    /// The mount is attached: the record that was written counts from now on.
    ///
    /// # Errors
    /// `node.io`.
    pub fn settle(&self, id: &VolumeId) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        let (from, to) = (place.path(id, BEGUN), place.path(id, ANSWERED));
        fs::rename(&from, &to).map_err(|error| failed("name a volume's record", &to, error))
    }

    /// The publish has failed: the record that was written goes, and the one before it counts.
    pub fn withdraw(&self, id: &VolumeId) {
        if let Some(place) = &self.place {
            let _ = fs::remove_file(place.path(id, BEGUN)); // it may not have been written
        }
    }

    /// The mount is gone, and so is its record.
    ///
    /// # Errors
    /// `node.io`: a restart will look for the mount in vain.
    pub fn remove(&self, id: &VolumeId) -> Result<()> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        for stage in [BEGUN, ANSWERED] {
            let path = place.path(id, stage);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove a volume's record", &path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All records of this boot. What can never be of use goes: the damaged, and those of another boot.
    pub fn load(&self) -> Loaded {
        let mut loaded = Loaded::default();
        let Some(place) = &self.place else {
            return loaded;
        };
        let Ok(entries) = fs::read_dir(&place.dir) else {
            return loaded; // there is none yet, or it is not ours to read: mounts are adopted without
        };
        for (count, entry) in entries.flatten().enumerate() {
            let (path, name) = (entry.path(), entry.file_name());
            let stage = match path.extension().and_then(OsStr::to_str) {
                Some(ANSWERED) => Stage::Attached,
                Some(BEGUN) => Stage::Begun,
                _ => continue,
            };
            let read = match count < limits::RECORDS {
                true => place.read(&path),
                false => Err(Skip::TooMany),
            };
            match read {
                Ok(record) => loaded.take(record, stage),
                Err(why) => {
                    if matches!(why, Skip::Damaged | Skip::OtherBoot) {
                        let _ = fs::remove_file(&path); // or it stays, and is skipped again
                    }
                    let name = name.to_string_lossy().into_owned();
                    loaded.skipped.push((name, why));
                }
            }
        }
        loaded
    }
}

impl Loaded {
    /// Of an update that was under way the record before counts: readers may never have seen the next.
    fn take(&mut self, record: VolumeRecord, stage: Stage) {
        let before = self.records.get(&record.id);
        if stage == Stage::Attached || before.is_none() {
            self.records.insert(record.id.clone(), (record, stage));
        }
    }
}

impl Place {
    fn path(&self, id: &VolumeId, stage: &str) -> PathBuf {
        self.dir.join(format!("{id}.{stage}"))
    }

    fn read(&self, path: &Path) -> Result<VolumeRecord, Skip> {
        let mut bytes = Vec::new();
        let file = open_regular(path).map_err(|_| Skip::Unreadable)?;
        file.take(limits::RECORD_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|_| Skip::Unreadable)?;
        if bytes.len() as u64 > limits::RECORD_BYTES {
            return Err(Skip::TooLarge);
        }
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(|_| Skip::Damaged)?;
        if version > VERSION {
            return Err(Skip::Newer);
        }
        let saved: Saved<'_> = serde_json::from_slice(&bytes).map_err(|_| Skip::Damaged)?;
        if saved.boot != self.boot.as_str() {
            return Err(Skip::OtherBoot);
        }
        if path.file_stem() != Some(OsStr::new(&*saved.id)) {
            return Err(Skip::Misnamed);
        }
        Ok(VolumeRecord {
            id: VolumeId::parse(&saved.id).ok_or(Skip::Damaged)?,
            target: TargetPath::parse(&saved.target).map_err(|_| Skip::Damaged)?,
            who: saved.who.into_owned(),
            spec: saved.spec.into(),
            kind: saved.kind,
            placing: saved.placing.into_owned(),
        })
    }
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

fn failed(step: &'static str, path: &Path, error: io::Error) -> Error {
    Error::new(&codes::NODE_IO)
        .step(step)
        .object(path.display())
        .source(error)
}
