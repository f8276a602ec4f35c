//! Who may read what of a backend that has only the node's identity. Pure; denied unless a line allows it.
//!
//! A [`Policy`] is a list of lines, and a line only allows: it names accounts (by namespace and name) and *patterns* of secrets.
//! A [`Pattern`] is read once, with the configuration; [`Policy::allows`] only compares. What a pattern means is fixed by the table
//! in docs/reference/config.md:
//!
//! - `*` is any run of characters within one segment, also none, also as a part of it: `db-*`.
//! - `**`, as a whole segment, is any number of segments, also none; as the last one at least one. So `payments/**` is what lies
//!   below `payments` and not the secret `payments` itself, `**/tls` is every `tls`, and `**` alone is everything.
//! - Every other character is itself.
//!
//! A line is about whole secrets, in all their versions. Does not: deny by line, know a pod's labels, read a store.

use crate::{
    caller::PodIdentity,
    error::{Error, Result, codes},
    spec::{BackendName, ObjectRef, reference},
};

/// The policy of a node: any line may allow, none denies.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Policy {
    lines: Vec<PolicyLine>,
}

/// One line: each of these accounts may read all that the patterns name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyLine {
    /// Namespaces, exact names or `*`.
    pub namespaces: Vec<String>,
    /// Service accounts, exact names or `*`.
    pub service_accounts: Vec<String>,
    /// Of which backend, which secrets.
    pub allow: Vec<(BackendName, Pattern)>,
}

impl Policy {
    /// Of these lines.
    pub fn new(lines: Vec<PolicyLine>) -> Self {
        Self { lines }
    }

    /// Whether `who` may read `object`.
    ///
    /// # Errors
    /// `policy.denied`, naming who, what, and the line to add.
    pub fn allows(&self, who: &PodIdentity, object: &ObjectRef) -> Result<()> {
        if self.lines.iter().any(|line| line.allows(who, object)) {
            return Ok(());
        }
        Err(Error::new(&codes::POLICY_DENIED)
            .object(object)
            .detail(format!(
                "no line of the node's policy allows service account {}/{} to read it; {}",
                who.namespace,
                who.service_account,
                missing_line(who, object)
            )))
    }
}

impl PolicyLine {
    fn allows(&self, who: &PodIdentity, object: &ObjectRef) -> bool {
        let listed = |list: &[String], name: &str| list.iter().any(|one| one == "*" || one == name);
        listed(&self.namespaces, &who.namespace)
            && listed(&self.service_accounts, &who.service_account)
            && self.allow.iter().any(|(backend, pattern)| {
                *backend == object.backend && pattern.covers(&object.path)
            })
    }
}

/// What to add to the policy. A path with a `*` in it comes from the pod's author, and would allow more than itself: whoever
/// copies our words must not open the whole store by that.
fn missing_line(who: &PodIdentity, object: &ObjectRef) -> String {
    if object.path.contains(['*', '#']) {
        return "no pattern names this secret alone, because of the `*` or `#` in its name"
            .to_owned();
    }
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "to allow it, add to `policy`: - {{namespaces: [{}], serviceAccounts: [{}], allow: [{}]}}",
        quoted(&who.namespace),
        quoted(&who.service_account),
        quoted(&format!("{}:{}", object.backend, object.path)),
    )
}

/// Which paths of a backend are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(Vec<Segment>);

/// A part of a pattern, between two `/`.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Segment {
    /// Any number of segments, also none.
    Many,
    /// One segment, in which `*` is any run of characters.
    One(Box<str>),
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Why it is refused, as a phrase that follows it, and what to write instead. What could never name a secret is refused.
    pub fn parse(text: &str) -> Result<Self, (&'static str, &'static str)> {
        if let Err(refusal) = reference::check_path(text) {
            return Err((
                refusal,
                "write the secret's path, with `*` for a part of a segment and `**` for any depth",
            ));
        }
        if text.contains('#') {
            let fix = "leave the field away: a line allows whole secrets";
            return Err(("holds `#`", fix));
        }
        let mut segments = Vec::new();
        for segment in text.split('/') {
            if segment == "**" {
                segments.push(Segment::Many);
            } else if segment.contains("**") {
                let fix = "`**` stands alone between two `/`; within a segment write one `*`";
                return Err(("has `**` within a segment", fix));
            } else {
                segments.push(Segment::One(segment.into()));
            }
        }
        if segments.last() == Some(&Segment::Many) {
            segments.push(Segment::One("*".into())); // at the end at least one
        }
        Ok(Self(segments))
    }

    /// Whether it names `path`. Takes at most as many steps as the lengths of the two multiplied, whatever they hold.
    pub fn covers(&self, path: &str) -> bool {
        let segments: Vec<&str> = path.split('/').collect();
        wild(
            &self.0,
            &segments,
            |part| *part == Segment::Many,
            |part, segment| match part {
                Segment::Many => false,
                Segment::One(glob) => wild(
                    glob.as_bytes(),
                    segment.as_bytes(),
                    |byte| *byte == b'*',
                    |byte, other| byte == other,
                ),
            },
        )
    }
}

/// Whether `pattern` is all of `text`: a star is any run, also none; every other part is `one` item.
///
/// 1. A part that fits takes an item.
/// 2. A star takes nothing, for now.
/// 3. Where neither goes on, the last star takes one item more. An earlier one need not: whatever it could take, the last can.
/// 4. At the end of the text only stars may be left.
///
/// So each pair of a part and an item is looked at once at most; a search that tries all stars would take exponential time.
fn wild<P, T>(
    pattern: &[P],
    text: &[T],
    star: impl Fn(&P) -> bool,
    one: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut part, mut item) = (0, 0);
    let mut last_star = None;
    while let Some(next) = text.get(item) {
        match (pattern.get(part), last_star) {
            (Some(found), _) if star(found) => {
                last_star = Some((part, item)); // 2
                part += 1;
            }
            (Some(found), _) if one(found, next) => {
                part += 1; // 1
                item += 1;
            }
            (_, Some((at, from))) => {
                last_star = Some((at, from + 1)); // 3
                part = at + 1;
                item = from + 1;
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(part).all(star) // 4
}
