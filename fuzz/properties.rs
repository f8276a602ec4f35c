//! What must hold for any input. The fuzz targets search for one for which it does not; tests/it/fuzz_corpus.rs replays those
//! that are kept.
//!
//! A property is a function of bytes. It panics where something does not hold; its [`Verdict`] says whether the input got as far as an
//! input of that kind can, so that a corpus that reaches nothing is noticed.

#[path = "properties/admin_http.rs"]
mod admin_http;
#[path = "properties/csi_publish.rs"]
mod csi_publish;
#[path = "properties/mountinfo.rs"]
mod mountinfo;
#[path = "properties/store_header.rs"]
mod store_header;
#[path = "properties/token.rs"]
mod token;

use std::{collections::BTreeMap, sync::Arc};

use secretfs::{
    backend::registry,
    cli::check,
    config::{Config, Env},
    csi::status,
    error::{Error, codes},
    limits,
    render::{self, FileContent, Known},
    secret::{Content, Field, Object, SecretBytes, Version},
    spec::{self, Facts, ObjectRef, Origin, Place, Problem, Setting, Span, VolumeSpec},
};

pub use admin_http::admin_http;
pub use csi_publish::csi_publish;
pub use mountinfo::mountinfo;
pub use store_header::store_header;
pub use token::token;

/// What became of an input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// It was not taken.
    Refused,
    /// It went all the way.
    Accepted,
}

impl Verdict {
    fn of(accepted: bool) -> Self {
        match accepted {
            true => Self::Accepted,
            false => Self::Refused,
        }
    }
}

/// Any text as a spec and as a configuration: it is accepted, or it has problems, each with its place and its words.
pub fn spec(data: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(data) else {
        return Verdict::Refused;
    };
    let place = match data.len() % 2 {
        0 => Place::Local,
        _ => Place::Kubernetes { fs_group: None },
    };
    let parsed = parse(text, place);
    let config = Config::parse(text, &Env::default(), &registry::problems);
    let verdict = Verdict::of(parsed.is_ok() || config.is_ok());
    match parsed {
        Ok(spec) => {
            well_formed(&spec);
            let again = parse(text, place).map(|spec| spec.digest);
            assert_eq!(
                again.ok(),
                Some(spec.digest),
                "the digest is not a function of the text"
            );
        }
        Err(problems) => told(text, &problems),
    }
    if let Err(problems) = config {
        told(text, &problems);
    }
    verdict
}

/// `spec \0 secret \0 secret ...`: rendered twice alike, within the limits, and no error holds a secret. A secret that begins
/// with `F` is fields, a line each; one that is `A` is absent, `W` withdrawn; one that is missing is unknown.
pub fn render(data: &[u8]) -> Verdict {
    let mut parts = data.split(|byte| *byte == 0);
    let Some(Ok(text)) = parts.next().map(std::str::from_utf8) else {
        return Verdict::Refused;
    };
    let Ok(spec) = parse(text, Place::Local) else {
        return Verdict::Refused;
    };
    let secrets: Vec<&[u8]> = parts.collect();
    let known: Vec<Known> = (0..spec.objects.len())
        .map(|index| {
            secrets
                .get(index)
                .map_or(Known::Unknown, |secret| object(secret))
        })
        .collect();
    match (render::render(&spec, &known), render::render(&spec, &known)) {
        (Ok(set), Ok(again)) => {
            assert!(set.bytes() <= spec.limits.bytes_per_volume);
            assert!(set.len() <= spec.limits.files_per_volume as usize);
            assert_eq!(set.len(), again.len());
            for ((path, file), (path_again, file_again)) in set.iter().zip(again.iter()) {
                assert_eq!((path, file.mode), (path_again, file_again.mode));
                match (&file.content, &file_again.content) {
                    (FileContent::New(a), FileContent::New(b)) => {
                        assert!(a.same(b), "{path} was rendered in two ways");
                        assert!(a.len() as u64 <= spec.limits.bytes_per_file);
                    }
                    (FileContent::Keep, FileContent::Keep) => {}
                    _ => panic!("{path} is kept or not"),
                }
            }
            Verdict::Accepted
        }
        (Err(error), Err(_)) => {
            let said = format!("{error} {error:?}");
            assert!(!said.contains('\n'), "{said:?}");
            // Names of fields may be shown. Values, never: a value of the corpus holds this word.
            let names = [
                &codes::RENDER_FIELD_PATH,
                &codes::RENDER_BAD_KEY,
                &codes::RENDER_NOT_TEXT,
            ];
            if !names.contains(&error.code()) && !text.contains(CANARY) {
                assert!(!said.contains(CANARY), "{said}");
            }
            Verdict::Refused
        }
        _ => panic!("rendering is not a function of its input"),
    }
}

/// A word that stands in the secrets of the corpus and nowhere else.
const CANARY: &str = "cAnArY7f";

fn object(secret: &[u8]) -> Known {
    let bytes = |bytes: &[u8]| Arc::new(SecretBytes::new(bytes.to_vec()));
    let content = match secret {
        b"A" => return Known::Absent,
        b"W" => return Known::Withdrawn,
        [b'F', lines @ ..] => {
            let mut fields = BTreeMap::new();
            for line in lines.split(|byte| *byte == b'\n') {
                let (name, value) =
                    line.split_at(line.iter().position(|b| *b == b'=').unwrap_or(line.len()));
                let field = Field {
                    value: bytes(value.strip_prefix(b"=").unwrap_or(value)),
                    mode: None,
                };
                fields.insert(String::from_utf8_lossy(name).into(), field);
            }
            Content::Fields(fields)
        }
        whole => Content::Bytes(bytes(whole)),
    };
    Known::Object(Arc::new(Object {
        version: Version::new("1"),
        content,
        lease: None,
    }))
}

/// `store` pushes and has versions, `plain` does neither; there is no other backend.
fn parse(text: &str, place: Place) -> Result<VolumeSpec, Vec<Problem>> {
    let setting = Setting {
        place,
        ..Setting::local()
    };
    spec::parse(
        text,
        &setting,
        &|object: &ObjectRef| match object.backend.as_str() {
            "store" => Ok(Facts {
                pushes: true,
                versions: true,
            }),
            "plain" => Ok(Facts {
                pushes: false,
                versions: false,
            }),
            other => Err(Problem {
                code: &codes::SPEC_UNKNOWN_BACKEND,
                at: Span::default(),
                field: String::new(),
                message: format!("there is no backend `{other}`"),
                help: None,
            }),
        },
    )
}

/// Two judgements of one input say the same, in one line that a kubelet's event, a log and an HTTP answer can show, without what was
/// planted.
fn same_words(error: &Error, again: &Error) {
    assert_eq!(words(error), format!("{again} {again:?}"));
}

/// The words of an error.
fn words(error: &Error) -> String {
    let said = format!("{error} {error:?}");
    assert!(!said.contains(PLANTED), "a secret in an error: {said}");
    let status = status::first_publish(error);
    let message = status.message();
    assert!(message.len() <= limits::CSI_STATUS_BYTES, "{message:?}");
    assert!(message.contains(error.code().name), "{message:?}");
    // UTF-8 has control characters as these bytes, and U+0080 to U+009F as C2 80 to C2 9F
    let bytes = message.as_bytes();
    assert!(
        bytes.iter().all(|byte| *byte >= b' ' && *byte != 0x7f),
        "{message:?}"
    );
    assert!(
        message.is_ascii() || !message.contains(char::is_control),
        "{message:?}"
    );
    said
}

/// A word that a property puts into an input's secrets by itself.
const PLANTED: &str = "pLaNtEd7f3c";

/// What leaves the parser cannot be wrong.
fn well_formed(spec: &VolumeSpec) {
    assert!(!spec.files.is_empty());
    assert!(spec.files.len() <= spec.limits.files_per_volume as usize);
    for (index, object) in spec.objects.iter().enumerate() {
        assert!(!spec.objects[..index].contains(object), "an object twice");
        let used = spec
            .files
            .iter()
            .any(|rule| rule.origin.objects().contains(&index));
        assert!(used, "{object} is fetched for nothing");
    }
    for (index, rule) in spec.files.iter().enumerate() {
        let many = matches!(rule.origin, Origin::AllFields { .. });
        assert!(many || rule.path.is_some());
        assert!(
            rule.origin
                .objects()
                .iter()
                .all(|object| *object < spec.objects.len())
        );
        for other in &spec.files[..index] {
            if let (Some(a), Some(b)) = (&rule.path, &other.path)
                && !many
                && !matches!(other.origin, Origin::AllFields { .. })
            {
                assert!(a != b && !a.contains(b) && !b.contains(a), "{a} and {b}");
            }
        }
    }
}

/// Problems that a person can use: a place in the text, one line of words, and they can be shown.
fn told(text: &str, problems: &[Problem]) {
    assert!(!problems.is_empty() && problems.len() <= limits::PROBLEMS);
    let lines = u32::try_from(text.split('\n').count()).unwrap_or(u32::MAX);
    for problem in problems {
        assert!((1..=lines + 1).contains(&problem.at.line), "{problem:?}");
        assert!(problem.at.column >= 1, "{problem:?}");
        assert!(!problem.message.is_empty(), "{problem:?}");
        let words = problem.message.chars().chain(problem.field.chars());
        assert!(!words.into_iter().any(char::is_control), "{problem:?}");
    }
    assert!(check::show("spec", text, problems).lines().count() >= problems.len());
}
