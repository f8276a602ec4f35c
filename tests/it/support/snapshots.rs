//! Snapshots in one line.

use std::sync::Arc;

use secretfs::{
    clock::Wall,
    mount::{MountOptions, VolumeId},
    path::{Mode, Owner, RelPath},
    render::{File, FileContent, FileSet, Generation, Snapshot},
    secret::SecretBytes,
};

/// One file: path, mode, owner's uid, and text; no text keeps what is mounted.
pub type Row<'a> = (&'a str, u16, Option<u32>, Option<&'a str>);

pub fn file_set(rows: &[Row<'_>]) -> FileSet {
    let mut files = FileSet::default();
    for (path, mode, uid, text) in rows {
        let content = text.map_or(FileContent::Keep, |text| {
            FileContent::New(Arc::new(SecretBytes::new(text.as_bytes().to_vec())))
        });
        let owner = Owner {
            uid: *uid,
            gid: None,
        };
        let mode = Mode::literal(*mode);
        let file = File {
            mode,
            owner,
            content,
        };
        files.insert(RelPath::parse(path).unwrap(), file).unwrap();
    }
    files
}

/// Generation `n`, made `n` seconds after midnight of 2026-11-24.
pub fn snapshot_of(n: u64, rows: &[Row<'_>]) -> Snapshot {
    Snapshot {
        generation: Generation(n),
        made_at: Wall::from_millis(1_795_478_400_000 + 1000 * n as i64),
        versions: Vec::new(),
        files: file_set(rows),
    }
}

/// The same with mode 0400 and our own files.
pub fn snapshot(n: u64, texts: &[(&str, &str)]) -> Snapshot {
    let rows: Vec<Row<'_>> = texts
        .iter()
        .map(|(path, text)| (*path, 0o400, None, Some(*text)))
        .collect();
    snapshot_of(n, &rows)
}

/// Options of the volume `id`: 1 MiB, 64 files.
pub fn options(id: &str) -> MountOptions {
    MountOptions {
        volume: VolumeId::parse(id).unwrap(),
        bytes_limit: 1 << 20,
        files_limit: 64,
        context: None,
        make_target: false,
        grant: secretfs::mount::Grant::default(),
    }
}
