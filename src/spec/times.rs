//! What a spec says of time: how often its secrets are asked for, how old they may be for a pod that starts, and how long they stay once they
//! are refused.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    error::codes,
    limits,
    spec::{
        OnDenied, Refresh,
        parse::Reader,
        read::{self, Fields, shown},
    },
    yaml::{Node, Value},
};

/// Keys of `onDenied` as a mapping.
pub const DENIED_KEYS: &[&str] = &["action", "grace"];

impl Reader<'_> {
    /// `refreshInterval`.
    pub fn refresh(&mut self, top: &Fields<'_>) -> Refresh {
        const FIELD: &str = "refreshInterval";
        let default = Refresh::Every(limits::REFRESH_DEFAULT);
        let Some(node) = top.value(FIELD) else {
            return default;
        };
        if node.scalar().is_some_and(|scalar| scalar.text == "never") {
            return Refresh::Never;
        }
        let within = limits::REFRESH_MIN..=limits::REFRESH_MAX;
        let form = "60s, 5m or 1h30m, from 1s to 720h; or never";
        let every = self.duration(node, FIELD, within, form);
        every.map_or(default, Refresh::Every)
    }

    /// `serveStaleFor`.
    pub fn serve_stale_for(&mut self, top: &Fields<'_>) -> Duration {
        const FIELD: &str = "serveStaleFor";
        let Some(node) = top.value(FIELD) else {
            return Duration::ZERO;
        };
        let within = Duration::ZERO..=limits::REFRESH_MAX;
        let form = "15m or 12h, from 0s to 720h";
        self.duration(node, FIELD, within, form).unwrap_or_default()
    }

    /// `onDenied`: a word, or a mapping that says how long.
    pub fn on_denied(&mut self, top: &Fields<'_>) -> OnDenied {
        const FIELD: &str = "onDenied";
        const REMOVE: OnDenied = OnDenied::RemoveAfter(limits::DENIED_GRACE);
        const WORDS: &[(&str, OnDenied)] = &[("keep", OnDenied::Keep), ("remove", REMOVE)];
        let default = REMOVE;
        let Some(node) = top.value(FIELD) else {
            return default;
        };
        if !matches!(node.value, Value::Mapping(_)) {
            return read::word(node, FIELD, WORDS, &mut self.problems).unwrap_or(default);
        }
        let Some(fields) = Fields::new(node, FIELD, DENIED_KEYS, &[], &mut self.problems) else {
            return default;
        };
        let action = fields
            .value("action")
            .and_then(|node| read::word(node, &fields.field("action"), WORDS, &mut self.problems));
        let Some((at, grace)) = fields.entry("grace") else {
            return action.unwrap_or(default);
        };
        let field = fields.field("grace");
        if action == Some(OnDenied::Keep) {
            let message =
                "`grace` is how long files stay before they are removed; `action: keep` keeps them";
            let help = Some("leave `grace` out, or write `action: remove`".to_owned());
            let code = &codes::SPEC_CONFLICTING_KEYS;
            self.problems.add(code, at, &field, message, help);
            return OnDenied::Keep;
        }
        let within = Duration::ZERO..=limits::REFRESH_MAX;
        let form = "10m or 1h, from 0s (at once) to 720h";
        let grace = self.duration(grace, &field, within, form);
        grace.map_or(default, OnDenied::RemoveAfter)
    }

    /// A duration within bounds; `form` says how to write one.
    fn duration(
        &mut self,
        node: &Node,
        field: &str,
        within: RangeInclusive<Duration>,
        form: &str,
    ) -> Option<Duration> {
        let scalar = read::text(node, field, &mut self.problems)?;
        let why = match duration(&scalar.text) {
            Some(read) if within.contains(&read) => return Some(read),
            Some(_) => "is out of bounds",
            None => "is not a duration",
        };
        let message = format!("{field} `{}` {why}", shown(&scalar.text));
        let help = Some(format!("write it like {form}"));
        let code = &codes::SPEC_BAD_INTERVAL;
        self.problems.add(code, node.at, field, message, help);
        None
    }

    /// `refreshInterval: never` is for secrets that need no asking.
    pub fn never(&mut self, top: &Fields<'_>, refresh: Refresh) {
        let Some(node) = top
            .value("refreshInterval")
            .filter(|_| refresh == Refresh::Never)
        else {
            return;
        };
        let stuck = self
            .objects
            .iter()
            .find(|(object, facts)| !facts.pushes && object.version.is_none());
        if let Some((object, _)) = stuck {
            let message = format!(
                "`refreshInterval: never`, but `{object}` cannot push and has no fixed version"
            );
            let help = Some("give an interval, or fix the version with @VERSION".to_owned());
            let code = &codes::SPEC_NEVER_REFRESHED;
            self.problems
                .add(code, node.at, "refreshInterval", message, help);
        }
    }
}

/// `1h30m`, `60s`, `5m`: whole numbers with units, the larger unit first.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0u64;
    let mut last = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let seconds = match rest.as_bytes().get(digits)? {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        if seconds >= last {
            return None;
        }
        last = seconds;
        total = total.checked_add(number.checked_mul(seconds)?)?;
        rest = rest.get(digits + 1..)?;
    }
    (last != u64::MAX).then(|| Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [
            ("60s", Some(60)),
            ("5m", Some(300)),
            ("1h30m", Some(5400)),
            ("720h", Some(2_592_000)),
            ("60", None),
            ("", None),
            ("1d", None),
            ("30m1h", None),
            ("1.5h", None),
            ("-1s", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
