//! The text of a spec becomes a [`VolumeSpec`], or all its problems at once.
//!
//! 1. YAML to a tree (`yaml`), bounded.
//! 2. The keys of the whole volume.
//! 3. `sources`: each name becomes an object.
//! 4. `files` (`files.rs`): each becomes a rule; references become objects, each object once.
//! 5. What only the whole shows: path conflicts, unused sources, `refreshInterval: never`.
//!
//! A part that is wrong is left out and the rest is read on, so one fault is told once and hides no other.

use crate::{
    error::codes,
    path::{Mode, Owner},
    spec::{
        MountKind, ObjectRef, Part, Places, Problem, Problems, Select, Share, Span, VolumeLimits,
        VolumeSpec, canonical,
        files::{self, Claim},
        read::{self, Fields, shown},
        reference::{self, Reference, Take},
        suggest,
    },
    yaml::{self, Node, Style, Value},
};

/// The `apiVersion` of specs and of the node's configuration.
pub const API_VERSION: &str = "secretfs.dev/v1alpha1";

/// Where a volume is, which decides the mode of its files when the spec does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On this machine, for its user: 0400.
    Local,
    /// In a pod: 0444, or 0440 with a group.
    Kubernetes {
        /// The pod's `fsGroup`: the files' group, where the spec gives none.
        fs_group: Option<u32>,
    },
}

impl Place {
    fn group(self) -> Option<u32> {
        match self {
            Self::Local => None,
            Self::Kubernetes { fs_group } => fs_group,
        }
    }
}

/// What a spec is read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Where the volume is.
    pub place: Place,
    /// The limits that hold for it.
    pub limits: VolumeLimits,
}

impl Setting {
    /// Outside Kubernetes, with the default limits.
    pub fn local() -> Self {
        Self {
            place: Place::Local,
            limits: VolumeLimits::default(),
        }
    }
}

/// What the backend of a reference says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// It tells of changes.
    pub pushes: bool,
    /// It has versions: an `@` in a reference means one.
    pub versions: bool,
}

/// Asks a reference's backend whether it could read it.
pub type Check<'c> = &'c dyn Fn(&ObjectRef) -> Result<Facts, Problem>;

/// Reads a spec.
///
/// `check` asks the reference's backend, without I/O; its problem is shown at the reference.
///
/// # Errors
/// All problems, in the order of the text, at most [`crate::limits::PROBLEMS`].
pub fn parse(text: &str, setting: &Setting, check: Check<'_>) -> Result<VolumeSpec, Vec<Problem>> {
    let mut problems = Problems::default();
    let Some(tree) = yaml::parse(text, &mut problems) else {
        return Err(problems.sorted()); // 1
    };
    let mut reader = Reader {
        text,
        setting,
        check,
        problems,
        objects: Vec::new(),
        places: Vec::new(),
        sources: Vec::new(),
    };
    let spec = reader.volume(&tree);
    match spec {
        Some(spec) if reader.problems.is_empty() => Ok(spec),
        _ => Err(reader.problems.sorted()),
    }
}

/// Keys of a spec.
pub const KEYS: &[&str] = &[
    "apiVersion",
    "mount",
    "refreshInterval",
    "serveStaleFor",
    "onDenied",
    "defaultMode",
    "uid",
    "gid",
    "sources",
    "files",
];
/// Keys that a later version will have.
pub const RESERVED: &[&str] = &["fuse"];

/// A spec being read.
pub(super) struct Reader<'a> {
    pub text: &'a str,
    pub setting: &'a Setting,
    check: Check<'a>,
    pub problems: Problems,
    pub objects: Vec<(ObjectRef, Facts)>,
    /// Where each of `objects` is named first.
    places: Vec<Part>,
    pub sources: Vec<Source>,
}

/// A declared source.
pub(super) struct Source {
    pub name: String,
    at: Span,
    /// `None`: what it names is wrong, which has been said.
    pub object: Option<usize>,
    pub used: bool,
}

impl Reader<'_> {
    fn volume(&mut self, tree: &Node) -> Option<VolumeSpec> {
        let top = Fields::new(tree, "", KEYS, RESERVED, &mut self.problems)?; // 2
        self.api_version(&top);
        let mount = self.mount(&top);
        let refresh = self.refresh(&top);
        let (serve_stale_for, on_denied) = (self.serve_stale_for(&top), self.on_denied(&top));
        let mode = top
            .value("defaultMode")
            .and_then(|node| self.mode(node, "defaultMode"));
        let owner = Owner {
            uid: self.id(&top, "uid"),
            gid: self.id(&top, "gid").or(self.setting.place.group()),
        };
        self.read_sources(&top); // 3
        let claims = self.read_files(&top); // 4
        files::conflicts(&claims, &mut self.problems); // 5
        // A file that is wrong may have been meant to use it.
        if claims.iter().all(|claim| claim.rule.is_some()) {
            self.unused_sources();
        }
        self.never(&top, refresh);
        let (rules, places): (Vec<_>, Vec<_>) = claims
            .into_iter()
            .map(|claim| (claim.rule, claim.place))
            .unzip();
        let files = rules.into_iter().collect::<Option<Vec<_>>>()?;
        let mut spec = VolumeSpec {
            mount,
            refresh,
            serve_stale_for,
            on_denied,
            objects: self
                .objects
                .iter()
                .map(|(object, _)| object.clone())
                .collect(),
            files,
            default_mode: mode.unwrap_or_else(|| self.default_mode(owner)),
            owner,
            limits: self.setting.limits,
            digest: super::Digest([0; 32]),
            places: Places {
                objects: std::mem::take(&mut self.places),
                files: places,
            },
        };
        spec.digest = canonical::digest(&spec);
        Some(spec)
    }

    fn api_version(&mut self, top: &Fields<'_>) {
        let Some(node) = top.value("apiVersion") else {
            return;
        };
        let Some(scalar) = read::text(node, "apiVersion", &mut self.problems) else {
            return;
        };
        if scalar.text != API_VERSION {
            let message = format!("apiVersion is `{}`", shown(&scalar.text));
            let help = Some(format!("this version of secretfs reads `{API_VERSION}`"));
            self.problems.add(
                &codes::SPEC_WRONG_TYPE,
                node.at,
                "apiVersion",
                message,
                help,
            );
        }
    }

    fn mount(&mut self, top: &Fields<'_>) -> MountKind {
        const KINDS: &[(&str, MountKind)] =
            &[("tmpfs", MountKind::Tmpfs), ("fuse", MountKind::Fuse)];
        let Some(node) = top.value("mount") else {
            return MountKind::Tmpfs;
        };
        let kind = read::word(node, "mount", KINDS, &mut self.problems);
        if kind == Some(MountKind::Fuse) {
            let message =
                "`mount: fuse` is reserved; this version of secretfs does not have it yet";
            let help = Some("use `mount: tmpfs`".to_owned());
            self.problems.add(
                &codes::SPEC_NOT_IMPLEMENTED,
                node.at,
                "mount",
                message,
                help,
            );
        }
        kind.unwrap_or(MountKind::Tmpfs)
    }

    /// A mode: a quoted octal string. 0440 without quotes is another number to every YAML reader.
    pub fn mode(&mut self, node: &Node, field: &str) -> Option<Mode> {
        let scalar = node.scalar().filter(|scalar| !scalar.is_null());
        let octal = |text: &str| {
            let digits = text.strip_prefix("0o").unwrap_or(text);
            let good = !digits.is_empty() && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
            let bits = good.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
            bits.and_then(Mode::new)
        };
        let parsed = scalar.and_then(|scalar| octal(&scalar.text));
        let quoted = scalar.is_some_and(|scalar| scalar.style == Style::Quoted);
        match (parsed, quoted) {
            (Some(mode), true) => return Some(mode),
            (Some(mode), false) => {
                let message = format!("{field} is a number; YAML readers disagree which one");
                let help = Some(format!("quote it: \"{mode}\""));
                self.problems
                    .add(&codes::SPEC_BAD_MODE, node.at, field, message, help);
            }
            (None, _) => {
                let what =
                    scalar.map_or(node.kind().to_owned(), |s| format!("`{}`", shown(&s.text)));
                let message =
                    format!("{field} is {what}, not a quoted octal string of at most 0777");
                let help = Some("write it like \"0440\"".to_owned());
                self.problems
                    .add(&codes::SPEC_BAD_MODE, node.at, field, message, help);
            }
        }
        None
    }

    fn id(&mut self, top: &Fields<'_>, key: &str) -> Option<u32> {
        let node = top.value(key)?;
        let max = u64::from(u32::MAX - 1); // the last one means "leave it" to chown
        let id = read::number(node, key, max, &mut self.problems)?;
        u32::try_from(id).ok()
    }

    fn default_mode(&self, owner: Owner) -> Mode {
        match self.setting.place {
            Place::Local => Mode::literal(0o400),
            Place::Kubernetes { fs_group: None } if owner == Owner::default() => {
                Mode::literal(0o444)
            }
            Place::Kubernetes { .. } => Mode::literal(0o440),
        }
    }

    fn read_sources(&mut self, top: &Fields<'_>) {
        let Some(node) = top.value("sources") else {
            return;
        };
        let Some(sources) = read::names(node, "sources", &mut self.problems) else {
            return;
        };
        for (key, node) in sources.all() {
            let field = sources.field(&shown(&key.text));
            if let Err(refusal) = reference::check_name(&key.text) {
                let message = format!("`{}` {refusal}", shown(&key.text));
                self.problems
                    .add(&codes::SPEC_WRONG_TYPE, key.at, &field, message, None);
            }
            let object = match &node.value {
                Value::Mapping(_) => self
                    .structured(node, &field, true)
                    .map(|(object, _)| object),
                _ => self.source_text(node, &field),
            };
            self.sources.push(Source {
                name: key.text.clone(),
                at: key.at,
                object,
                used: reference::check_name(&key.text).is_err(),
            });
        }
    }

    fn source_text(&mut self, node: &Node, field: &str) -> Option<usize> {
        let scalar = read::text(node, field, &mut self.problems)?;
        let reference = match reference::parse(&scalar.text) {
            Ok(reference) => reference,
            Err(message) => {
                self.bad_reference(node, field, &message);
                return None;
            }
        };
        if reference.take != Take::Value(Select::Whole) {
            let message = "a source is a whole secret";
            let help = Some("name the field where it is used: `from: NAME#FIELD`".to_owned());
            self.problems
                .add(&codes::SPEC_BAD_REFERENCE, node.at, field, message, help);
            return None;
        }
        self.object(&reference, node, field)
    }

    /// Says that a reference is wrong.
    pub fn bad_reference(&mut self, node: &Node, field: &str, message: &str) {
        let help = Some("a reference is BACKEND:PATH[@VERSION][#FIELD]".to_owned());
        self.problems
            .add(&codes::SPEC_BAD_REFERENCE, node.at, field, message, help);
    }

    /// The index of a reference's object. Its `@` is a version if the backend has versions: so it is asked about both readings.
    pub fn object(&mut self, reference: &Reference<'_>, node: &Node, field: &str) -> Option<usize> {
        let plain = ObjectRef {
            backend: reference.backend.clone(),
            path: reference.path.into(),
            version: None,
            params: "".into(),
            share: Share::Principal,
        };
        let Some((path, version)) = reference::split_version(reference.path) else {
            return self.checked(plain, node, field);
        };
        let split = ObjectRef {
            path: path.into(),
            version: Some(version.into()),
            ..plain.clone()
        };
        let versions = match ((self.check)(&plain), (self.check)(&split)) {
            (Ok(facts), _) | (Err(_), Ok(facts)) => facts.versions,
            (Err(_), Err(_)) => true,
        };
        if !versions {
            return self.checked(plain, node, field);
        }
        let refusal = reference::check_path(path)
            .map_err(|refusal| format!("the path {refusal}"))
            .and_then(|()| {
                reference::check_version(version)
                    .map_err(|refusal| format!("the version (after the `@`) {refusal}"))
            });
        if let Err(message) = refusal {
            self.bad_reference(node, field, &message);
            return None;
        }
        self.checked(split, node, field)
    }

    /// The index of an object that its backend knows how to read.
    pub fn checked(&mut self, object: ObjectRef, node: &Node, field: &str) -> Option<usize> {
        if let Some(index) = self.objects.iter().position(|(known, _)| *known == object) {
            return Some(index);
        }
        match (self.check)(&object) {
            Ok(facts) => {
                self.objects.push((object, facts));
                self.places.push(Part {
                    at: node.at,
                    field: field.to_owned(),
                    first_line: 0,
                });
                Some(self.objects.len() - 1)
            }
            Err(mut problem) => {
                if problem.at == Span::default() {
                    problem.at = node.at;
                }
                if problem.field.is_empty() {
                    field.clone_into(&mut problem.field);
                }
                self.problems.push(problem);
                None
            }
        }
    }

    fn unused_sources(&mut self) {
        for source in self.sources.iter().filter(|source| !source.used) {
            let message = format!("no file uses the source `{}`", shown(&source.name));
            let field = format!("sources.{}", shown(&source.name));
            let help = Some("use it, or remove it: it would be fetched for nothing".to_owned());
            self.problems
                .add(&codes::SPEC_UNUSED_SOURCE, source.at, &field, message, help);
        }
    }

    fn read_files(&mut self, top: &Fields<'_>) -> Vec<Claim> {
        let Some(node) = top.require("files", &mut self.problems) else {
            return Vec::new();
        };
        let Some(items) = read::list(node, "files", &mut self.problems) else {
            return Vec::new();
        };
        let limit = self.setting.limits.files_per_volume as usize;
        if items.is_empty() {
            let message = "there is no file in `files`";
            self.problems
                .add(&codes::SPEC_MISSING_KEY, node.at, "files", message, None);
        }
        if let Some(first) = items.get(limit) {
            let message = format!("{} files; the limit is {limit}", items.len());
            let help =
                Some("the limit is `limits.filesPerVolume` of the node's configuration".to_owned());
            self.problems
                .add(&codes::SPEC_TOO_LARGE, first.at, "files", message, help);
        }
        let items = items.iter().take(limit).enumerate();
        items.map(|(index, node)| self.file(index, node)).collect()
    }

    /// The source of this name, marked as used. `Some(None)`: it is declared, and wrong.
    pub fn source(&mut self, name: &str) -> Option<Option<usize>> {
        let source = self.sources.iter_mut().find(|source| source.name == name)?;
        source.used = true;
        Some(source.object)
    }

    /// What to say of a source that is not declared.
    pub fn source_help(&self, name: &str) -> Option<String> {
        suggest::did_you_mean(name, self.sources.iter().map(|source| &*source.name))
            .or_else(|| Some("declare it under `sources`".to_owned()))
    }
}
