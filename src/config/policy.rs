//! The lines of the policy, read: what each names must be able to exist.

use super::parse::Reader;
use crate::{
    error::codes,
    policy::{Pattern, PolicyLine},
    spec::{
        BackendName, Span,
        read::{self, Fields, shown},
        suggest,
    },
};

/// Keys of a line of the policy.
pub const POLICY_KEYS: &[&str] = &["namespaces", "serviceAccounts", "allow"];

impl Reader {
    /// Reads `policy`; `backends` comes before it.
    pub(super) fn policy(&mut self, top: &Fields<'_>) {
        let Some(node) = top.value("policy") else {
            return;
        };
        let lines = read::list(node, "policy", &mut self.problems).unwrap_or_default();
        for (index, node) in lines.iter().enumerate() {
            let field = format!("policy[{index}]");
            let Some(fields) = Fields::new(node, &field, POLICY_KEYS, &[], &mut self.problems)
            else {
                continue;
            };
            let namespaces = self.accounts(&fields, "namespaces", 63, false);
            let service_accounts = self.accounts(&fields, "serviceAccounts", 253, true);
            let field = fields.field("allow");
            let allow = self.texts(&fields, "allow");
            let allow = allow
                .iter()
                .filter_map(|(text, at)| self.pattern(text, *at, &field))
                .collect();
            self.config.policy.push(PolicyLine {
                namespaces,
                service_accounts,
                allow,
            });
        }
    }

    /// Names as Kubernetes allows them (DNS-1123; `dots`: a subdomain, else a label), or `*`.
    fn accounts(
        &mut self,
        fields: &Fields<'_>,
        key: &str,
        bytes: usize,
        dots: bool,
    ) -> Vec<String> {
        let field = fields.field(key);
        let names = self.texts(fields, key);
        for (name, at) in &names {
            if name == "*" || dns_1123(name, bytes, dots) {
                continue;
            }
            let message = format!("`{}` cannot be a name in {field}", shown(name));
            let help = if name.contains('*') {
                "give exact names, or `*` alone for all"
            } else {
                "a name is of a-z, 0-9 and -, as Kubernetes shows it; `*` stands for all"
            };
            let help = Some(help.to_owned());
            self.problems
                .add(&codes::CONFIG_INVALID, *at, &field, message, help);
        }
        names.into_iter().map(|(name, _)| name).collect()
    }

    /// `BACKEND:PATTERN`. Both halves are looked at: whoever mends one should not then meet the other.
    fn pattern(&mut self, text: &str, at: Span, field: &str) -> Option<(BackendName, Pattern)> {
        let mut wrong = |message: String, help: Option<String>| {
            self.problems
                .add(&codes::CONFIG_INVALID, at, field, message, help);
        };
        let Some((backend, pattern)) = text.split_once(':') else {
            let help = Some("write it like `store:payments/**`".to_owned());
            wrong(format!("`{}` is not BACKEND:PATTERN", shown(text)), help);
            return None;
        };
        let name = BackendName::parse(backend).ok();
        let name = name.filter(|_| self.declared.contains(backend));
        if name.is_none() {
            let known = || self.declared.iter().map(String::as_str);
            let all: Vec<_> = known().collect();
            let help = suggest::did_you_mean(backend, known())
                .or_else(|| Some(format!("there are: {}", all.join(", "))))
                .filter(|_| !all.is_empty());
            wrong(format!("there is no backend `{}`", shown(backend)), help);
        }
        let pattern = Pattern::parse(pattern)
            .map_err(|(refusal, fix)| {
                let message = format!("the pattern of `{}` {refusal}", shown(text));
                wrong(message, Some(fix.to_owned()));
            })
            .ok();
        Some((name?, pattern?))
    }

    /// A list of texts that must be there and hold something: an empty one would allow nobody, or mean all.
    fn texts(&mut self, fields: &Fields<'_>, key: &str) -> Vec<(String, Span)> {
        let field = fields.field(key);
        let Some(node) = fields.require(key, &mut self.problems) else {
            return Vec::new();
        };
        let Some(items) = read::list(node, &field, &mut self.problems) else {
            return Vec::new();
        };
        if items.is_empty() {
            self.wrong(node, &field, format!("{field} names nothing"));
        }
        items
            .iter()
            .filter_map(|item| {
                let scalar = read::text(item, &field, &mut self.problems)?;
                Some((scalar.text.clone(), item.at))
            })
            .collect()
    }
}

/// Whether `name` is a DNS-1123 label, or with `dots` a subdomain (labels with dots between).
fn dns_1123(name: &str, bytes: usize, dots: bool) -> bool {
    let label = |label: &str| {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        label.bytes().all(|b| good(b) || b == b'-')
            && label.bytes().next().is_some_and(good)
            && label.bytes().last().is_some_and(good)
    };
    name.len() <= bytes && (dots || !name.contains('.')) && name.split('.').all(label)
}
