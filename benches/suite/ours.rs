//! A: the tmpfs mounter of this crate, and the sets of files that both sides write.

use std::{path::Path, sync::Arc, time::Duration};

use secretfs::{
    clock::{Clock, Mono, SystemClock},
    limits::{BYTES_PER_VOLUME, FILES_PER_VOLUME},
    mount::{MountOptions, Mounted, VolumeId, tmpfs::TmpfsMounter},
    path::{Mode, Owner, RelPath, TargetPath},
    render::{File, FileContent, FileSet, Generation, Snapshot},
    secret::SecretBytes,
};

use super::{Outcome, kubelet::Payload};

/// Our mounter.
pub fn mounter() -> TmpfsMounter {
    TmpfsMounter::default()
}

/// Removes superseded sets as if they had had their ten seconds: rounds follow each other faster than the tmpfs could bear.
pub struct Later(Mono);

impl Later {
    /// From now.
    pub fn new() -> Self {
        Self(SystemClock.now())
    }

    /// A minute passes. How long the removal took.
    pub fn sweep(&mut self, mounted: &mut dyn Mounted) -> Duration {
        mounted.sweep(self.0); // from here on they count as superseded
        self.0 = self.0.after(Duration::from_secs(60));
        let begun = SystemClock.now();
        mounted.sweep(self.0);
        SystemClock.now().since(begun)
    }
}

/// What goes with volume `number`.
pub fn options(number: usize) -> Outcome<MountOptions> {
    Ok(MountOptions {
        volume: VolumeId::parse(&format!("bench-{number}")).ok_or("volume id")?,
        bytes_limit: BYTES_PER_VOLUME,
        files_limit: FILES_PER_VOLUME,
        context: None,
        make_target: false,
        grant: secretfs::mount::Grant::default(),
    })
}

/// A target that the mounter takes.
pub fn target(path: &Path) -> Outcome<TargetPath> {
    Ok(TargetPath::parse(path)?)
}

/// `files` files of `bytes` bytes, all unlike those of any other generation.
pub fn payload(files: usize, bytes: usize, generation: u64) -> Payload {
    let mut random = fastrand::Rng::with_seed(generation);
    (0..files)
        .map(|number| {
            let mut content = vec![0; bytes];
            random.fill(&mut content);
            (format!("key-{number:03}"), content)
        })
        .collect()
}

/// The same as a snapshot.
pub fn snapshot(payload: &Payload, generation: u64) -> Outcome<Snapshot> {
    let mut files = FileSet::default();
    for (name, bytes) in payload {
        let file = File {
            mode: Mode::literal(0o444),
            owner: Owner::default(),
            content: FileContent::New(Arc::new(SecretBytes::new(bytes.clone()))),
        };
        files
            .insert(RelPath::parse(name)?, file)
            .map_err(|other| format!("{name} and {other}"))?;
    }
    Ok(Snapshot {
        generation: Generation(generation),
        made_at: SystemClock.wall(),
        versions: Vec::new(),
        files,
    })
}
