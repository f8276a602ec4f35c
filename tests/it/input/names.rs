//! Every rule about names, by property: what is accepted cannot lead out of where it belongs. The oracles are none of ours: std's idea of a
//! path's parts, and the kernel's (`openat2` with RESOLVE_BENEATH, below a real directory).

use std::{
    ffi::OsStr,
    fs,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::LazyLock,
};

use proptest::{prelude::*, test_runner::TestCaseError};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use secretfs::{
    csi::{
        context::{Expect, TokensIn, read},
        proto::NodePublishVolumeRequest,
    },
    limits,
    path::{RelPath, TargetPath, VolumeId},
    spec::reference,
    store::Name,
};

use crate::support::kubelet::{FakeKubelet, Pod, volume_id};

/// Parts of names as somebody would write them who wants out: dots, separators, what the layout and the store use themselves, and
/// characters that are more than one byte, invisible, or not there.
const PARTS: &[&str] = &[
    "",
    ".",
    "..",
    "...",
    "..data",
    "..data_tmp",
    "..2026_11_24_00_00_17.1",
    "..copies",
    ".new",
    ".lock",
    "a",
    "b.c",
    "A-1_x",
    "a.",
    " ",
    "\\",
    "~",
    "%",
    "%2e%2e",
    "%2f",
    "@7",
    "#f",
    "?",
    "*",
    ":",
    "-",
    "con",
    "CON",
    "nul",
    "lost+found",
    "\u{0}",
    "\u{1}",
    "\n",
    "\r",
    "\t",
    "\u{1b}[2J",
    "\u{7f}",
    "\u{85}",
    "\u{202e}",
    "\u{200b}",
    "\u{feff}",
    "\u{301}",
    "é",
    "e\u{301}",
    "\u{2044}",
    "\u{2215}",
    "\u{ff0f}",
    "\u{2024}\u{2024}",
    "\u{ff0e}\u{ff0e}",
    "🔑",
    "\u{10ffff}",
    "vol_data.json",
    "json",
    "x.json",
    "x.new",
    "secretfs",
    "csi-0",
];

/// Some of these with `/` between them, before or after; or any text at all; now and then too long a one.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => prop::sample::select(PARTS).prop_map(str::to_owned),
        2 => "[a-z0-9.-]{1,12}",
        1 => prop::sample::select(vec![62_usize, 63, 64, 127, 128, 129, 253, 254, 255, 256]).prop_map(|n| "x".repeat(n)),
    ];
    prop_oneof![
        8 => (prop::sample::select(vec!["", "", "", "/", "//", "./", "../"]), prop::collection::vec(part, 1..6),
            prop::sample::select(vec!["", "", "", "/", "/.", "/.."]))
            .prop_map(|(before, parts, after)| format!("{before}{}{after}", parts.join("/"))),
        3 => prop::collection::vec(prop::sample::select(PARTS), 1..4).prop_map(|parts| parts.concat()),
        1 => any::<String>(),
        1 => (900_usize..1200).prop_map(|n| "abcdefg/".repeat(n / 8) + &"z".repeat(n % 8)),
    ]
}

/// Each part is a name of its own, and none is longer than a file system takes.
fn all_names(path: &Path) -> bool {
    path.components().all(
        |part| matches!(part, Component::Normal(name) if name.len() <= limits::FILE_NAME_BYTES),
    )
}

fn is_printable(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}

/// Makes `path` below `root` as a naive program would, and asks the kernel whether it lies beneath.
fn made_beneath(root: &Path, path: &str) -> Result<(), TestCaseError> {
    let full = root.join(path);
    fs::create_dir_all(full.parent().unwrap())
        .map_err(|e| TestCaseError::fail(format!("{path:?}: {e}")))?;
    fs::write(&full, "").map_err(|e| TestCaseError::fail(format!("{path:?}: {e}")))?;
    let dir: OwnedFd =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let found = openat2(&dir, path, OFlags::PATH, Mode::empty(), beneath);
    prop_assert!(found.is_ok(), "{path:?}: {found:?}");
    let real = fs::canonicalize(&full).unwrap();
    prop_assert!(
        real.starts_with(root) && real.strip_prefix(root).unwrap() == Path::new(path),
        "{real:?}"
    );
    Ok(())
}

/// A directory of a test's own, with a neighbour that must stay empty.
struct Place {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap().join("root");
        fs::create_dir(&root).unwrap();
        Self { dir, root }
    }

    /// Nothing was made beside the root; it is empty afterwards.
    fn only_below(&self) -> Result<(), TestCaseError> {
        let beside: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        prop_assert_eq!(beside, [OsStr::new("root")]);
        fs::remove_dir_all(&self.root).unwrap();
        fs::create_dir(&self.root).unwrap();
        Ok(())
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn a_files_path_is_names_and_nothing_else(text in text()) {
        let Ok(path) = RelPath::parse(&text) else { return Ok(()) };
        prop_assert_eq!(path.as_str(), &text, "it is taken as it is");
        prop_assert!(is_printable(&text) && text.len() <= limits::PATH_BYTES);
        prop_assert!(all_names(Path::new(&text)));
        // std throws away `//`, `/.` and a `/` at the end: a path that has them would come back another
        let again: PathBuf = Path::new(&text).components().collect();
        prop_assert_eq!(again.to_str(), Some(&*text));
        prop_assert!(path.segments().all(|part| !part.starts_with("..")), "the layout's own names");
        prop_assert_eq!(path.segments().collect::<Vec<_>>().join("/"), text);
        prop_assert!(!path.contains(&path));
    }

    #[test]
    fn a_target_is_absolute_names_and_is_below_what_it_begins_with(text in text()) {
        let Ok(target) = TargetPath::parse(Path::new(&text)) else { return Ok(()) };
        let path = target.as_path();
        prop_assert!(path.is_absolute() && is_printable(&text));
        prop_assert!(path.as_os_str().len() <= limits::TARGET_BYTES);
        prop_assert!(all_names(path.strip_prefix("/").unwrap()) && path != Path::new("/"));
        let again = TargetPath::parse(path);
        prop_assert_eq!(again.as_ref(), Ok(&target), "once is enough");
        prop_assert_eq!(target.parent().join(target.name()), path);
        let below = target.below(Path::new("/")).unwrap();
        prop_assert!(all_names(below) && Path::new("/").join(below) == path);
        for dir in path.ancestors().skip(1) {
            prop_assert_eq!(target.below(dir).map(|below| dir.join(below)), Some(path.to_owned()));
        }
        prop_assert_eq!(target.below(path), None);
    }

    #[test]
    fn a_volumes_id_is_one_name_whatever_is_added_to_it(text in text()) {
        let Some(id) = VolumeId::parse(&text) else { return Ok(()) };
        prop_assert_eq!(id.as_str(), &text);
        prop_assert!(text.len() <= limits::VOLUME_ID_BYTES && text.is_ascii() && is_printable(&text));
        for name in [text.clone(), format!("{text}.json"), format!("{text}.new"), format!("{text}.lock")] {
            let parts: Vec<_> = Path::new(&name).components().collect();
            prop_assert_eq!(parts, [Component::Normal(OsStr::new(&name))]);
            prop_assert!(name.len() <= limits::FILE_NAME_BYTES && !name.starts_with('.'));
        }
        // a mount's source and an option of fsconfig(2): no comma, no blank, nothing that mountinfo would escape
        prop_assert!(!text.contains([',', ' ', '\\', '#', '=', '/']));
    }

    #[test]
    fn a_stores_name_is_one_directory_and_its_own(text in text(), other in text()) {
        let Ok(name) = Name::parse(&text) else { return Ok(()) };
        let dir = name.to_dir();
        prop_assert!(dir.len() <= limits::FILE_NAME_BYTES && !dir.starts_with('.') && is_printable(&dir));
        prop_assert_eq!(Path::new(&dir).components().collect::<Vec<_>>(), [Component::Normal(OsStr::new(&dir))]);
        let again = Name::from_dir(&dir);
        prop_assert_eq!(again.as_ref(), Some(&name));
        prop_assert!(reference::check_path(name.as_str()).is_ok(), "a reference can say it");
        if let Ok(other) = Name::parse(&other) {
            prop_assert_eq!(other == name, other.to_dir() == dir, "no two names have one directory");
        }
    }

    #[test]
    fn a_references_path_has_no_way_up_and_survives_a_url(text in text()) {
        let reference = format!("store:{text}");
        if let Ok(parsed) = reference::parse(&reference) {
            prop_assert!(is_printable(parsed.path) && parsed.path.len() <= limits::REFERENCE_BYTES);
            prop_assert!(parsed.path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            prop_assert!(!parsed.path.contains(['%', '?']));
            let whole = format!("store:{}", parsed.path);
            prop_assert!(reference.starts_with(&whole));
        }
        // and what cannot be a path in a store cannot be a secret's name there
        if reference::check_path(&text).is_err() {
            prop_assert!(Name::parse(&text).is_err(), "{text:?}");
        }
    }

    /// A kubelet that lies about everything, but consistently: the target and the id are made of the uid and the name that it gives.
    #[test]
    fn a_publish_that_is_believed_names_one_directory_of_one_pod(
        uid in text(), volume in text(), namespace in text(), pod in text(), account in text(),
    ) {
        let dir = Path::new("/var/lib/kubelet");
        let expect = Expect { kubelet_dir: dir.into(), tokens_in: TokensIn::Nowhere };
        let good = |text: String, usual: &str| if text.len().is_multiple_of(2) { usual.to_owned() } else { text };
        let mut who = Pod::of(&good(pod, "web"), &good(namespace, "shop"), &good(account, "api"));
        let volume = good(volume, "secrets");
        who.uid = good(uid, "0a1b2c3d-0000");
        let mut request = template();
        request.volume_id = volume_id(&who.uid, &volume);
        request.target_path = format!("{}/pods/{}/volumes/kubernetes.io~csi/{volume}/mount", dir.display(), who.uid);
        for (key, value) in [("pod.name", &who.name), ("pod.namespace", &who.namespace), ("pod.uid", &who.uid), ("serviceAccount.name", &who.account)] {
            request.volume_context.insert(format!("csi.storage.k8s.io/{key}"), value.clone());
        }
        let Ok(asked) = read(request, &expect) else { return Ok(()) };
        let below = asked.target.below(dir).unwrap().to_str().unwrap().to_owned();
        let parts: Vec<&str> = below.split('/').collect();
        prop_assert_eq!(&parts, &["pods", &*who.uid, "volumes", "kubernetes.io~csi", &*volume, "mount"]);
        for name in [&who.uid, &volume, &who.namespace, &who.name, &who.account] {
            prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')), "{name:?}");
            prop_assert!(!name.starts_with(['.', '-']) && name.len() <= limits::SUBDOMAIN_BYTES, "{name:?}");
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// The kernel's own opinion.
    #[test]
    fn what_is_accepted_lies_beneath_its_root_for_the_kernel_too(texts in prop::collection::vec(text(), 8)) {
        let place = Place::new();
        for text in texts {
            if let Ok(path) = RelPath::parse(&text) {
                made_beneath(&place.root, path.as_str())?;
                place.only_below()?;
            }
            if let Ok(name) = Name::parse(&text) {
                made_beneath(&place.root, &name.to_dir())?;
                place.only_below()?;
            }
            if let Some(id) = VolumeId::parse(&text) {
                made_beneath(&place.root, &format!("{id}.json"))?;
                place.only_below()?;
            }
        }
    }
}

/// The rig: what the properties are for does come out of the generator, and would be caught.
#[test]
fn the_generator_makes_ways_out_and_the_oracle_sees_them() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let (mut up, mut absolute, mut nul, mut long, mut accepted, mut layout) = (0, 0, 0, 0, 0, 0);
    for _ in 0..4000 {
        let text = text().new_tree(&mut runner).unwrap().current();
        let path = Path::new(&text);
        up += u32::from(path.components().any(|part| part == Component::ParentDir));
        absolute += u32::from(path.is_absolute());
        nul += u32::from(text.contains('\0'));
        long += u32::from(text.len() > 255);
        layout += u32::from(
            text.split('/')
                .any(|part| part.starts_with("..") && part.len() > 2),
        );
        accepted += u32::from(RelPath::parse(&text).is_ok());
    }
    for (what, count) in [
        ("up", up),
        ("absolute", absolute),
        ("nul", nul),
        ("long", long),
        ("layout", layout),
        ("accepted", accepted),
    ] {
        assert!(count >= 40, "{what}: only {count} of 4000");
    }
    let place = Place::new();
    for out in ["../beside", "a/../../beside"] {
        let dir = rustix::fs::open(&place.root, OFlags::PATH, Mode::empty()).unwrap();
        mkdirat(CWD, place.root.join("a"), Mode::RWXU).ok();
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let refused = openat2(&dir, out, OFlags::PATH, Mode::empty(), beneath).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::XDEV, "{out}");
        assert!(!all_names(Path::new(out)));
    }
}

/// Half of a surrogate pair is no text, in JSON and in YAML.
#[test]
fn half_a_character_is_no_name() {
    assert!(serde_json::from_str::<String>(r#""\ud800""#).is_err());
    for spec in [
        r#"files: [{path: "a\ud800", from: "store:a"}]"#,
        r#"files: [{path: a, from: "store:\udfff"}]"#,
    ] {
        let problems = crate::spec::problems(spec);
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}

/// A good publish, made once: it costs some directories.
fn template() -> NodePublishVolumeRequest {
    static GOOD: LazyLock<NodePublishVolumeRequest> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let kubelet = FakeKubelet::new(dir.path());
        kubelet.volume(&Pod::new("web"), "v", "files: []").request()
    });
    GOOD.clone()
}
