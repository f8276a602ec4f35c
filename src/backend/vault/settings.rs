//! The settings of a backend of kind `vault`, read from the node's configuration. A pod has no say in any of it but for what
//! [`Settings::allowed`] and the login methods of pods leave to it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    backend::{
        Allowance,
        http::{self, Address, Timeouts, TlsFiles},
    },
    caller::AsksAs,
    config::BackendConfig,
    error::codes,
    limits,
    policy::Pattern,
    spec::{
        Problem, Problems,
        read::{self, Fields, shown},
        reference,
        times::duration,
    },
    yaml::Node,
};

/// Keys of a backend of this kind.
pub const KEYS: &[&str] = &[
    "kind",
    "address",
    "namespace",
    "tls",
    "proxy",
    "redirectHosts",
    "timeouts",
    "requests",
    "audience",
    "allowAPIServerAudience",
    "auth",
    "allowedPaths",
    "shareBy",
    "kv",
];
/// Keys of its `tls`.
pub const TLS_KEYS: &[&str] = &["ca", "serverName", "certificate", "key"];
/// Keys of its `timeouts`.
pub const TIMEOUT_KEYS: &[&str] = &["resolve", "connect", "tls", "answer"];
/// Keys of its `requests`.
pub const REQUEST_KEYS: &[&str] = &["perSecond", "burst", "inFlight"];
/// Keys of its `auth`.
pub const AUTH_KEYS: &[&str] = &[
    "method",
    "mount",
    "role",
    "roleId",
    "secretIdFile",
    "wrapped",
    "file",
    "username",
    "passwordFile",
];

/// How to log in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Method {
    /// The pod's token, which the store shows to the cluster's TokenReview.
    Kubernetes { role: Option<String> },
    /// The pod's token, whose signature the store checks itself.
    Jwt { role: Option<String> },
    /// A role's id, and a secret id from a file, which may be wrapped.
    AppRole {
        role_id: String,
        secret_id: Option<PathBuf>,
        wrapped: bool,
    },
    /// The client certificate of the TLS connection.
    Cert { role: Option<String> },
    /// A token from a file.
    Token { file: PathBuf },
    /// A name, and a password from a file.
    Userpass { username: String, password: PathBuf },
}

impl Method {
    /// Its name in the configuration.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Kubernetes { .. } => "kubernetes",
            Self::Jwt { .. } => "jwt",
            Self::AppRole { .. } => "approle",
            Self::Cert { .. } => "cert",
            Self::Token { .. } => "token",
            Self::Userpass { .. } => "userpass",
        }
    }

    /// Whether it shows the pod's own proof.
    pub(super) fn is_of_the_pod(&self) -> bool {
        matches!(self, Self::Kubernetes { .. } | Self::Jwt { .. })
    }

    /// The role that is taken where the reference names none.
    pub(super) fn role(&self) -> Option<&str> {
        match self {
            Self::Kubernetes { role } | Self::Jwt { role } | Self::Cert { role } => role.as_deref(),
            Self::AppRole { .. } | Self::Token { .. } | Self::Userpass { .. } => None,
        }
    }
}

/// All settings.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) http: http::Settings,
    pub(super) requests: Allowance,
    pub(super) namespace: Option<String>,
    /// Of the kubelet's tokens, the one that is sent.
    pub(super) audience: String,
    pub(super) method: Method,
    /// Where the login method is mounted, below `auth/`.
    pub(super) auth_mount: String,
    /// `None`: whatever the store allows.
    pub(super) allowed: Option<Vec<Pattern>>,
    pub(super) asks_as: AsksAs,
    /// Mounts of KV, and their versions.
    pub(super) kv: BTreeMap<String, u8>,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(super) fn read(backend: &BackendConfig) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader {
            problems: Problems::new(Some(&codes::CONFIG_INVALID)),
        };
        let (node, field) = (&backend.settings, &backend.field);
        let fields = Fields::new(node, field, KEYS, &[], &mut reader.problems);
        let settings = fields.and_then(|fields| reader.settings(&fields));
        match settings {
            Some(settings) if reader.problems.is_empty() => Ok(settings),
            _ => Err(reader.problems.sorted()),
        }
    }
}

struct Reader {
    problems: Problems,
}

impl Reader {
    fn settings(&mut self, top: &Fields<'_>) -> Option<Settings> {
        let address = top.require("address", &mut self.problems);
        let address = address.and_then(|node| self.address(node, &top.field("address")));
        let tls = self.tls(top);
        let http = |address| http::Settings {
            address,
            tls,
            proxy: self.proxy(top),
            redirects: self.redirects(top),
            timeouts: self.timeouts(top),
        };
        let http = address.map(http);
        let namespace = self.segments(top, "namespace");
        let auth = self.auth(top);
        let audience = match &auth {
            Some((method, _)) if method.is_of_the_pod() => self.audience(top),
            _ => self.no_audience(top, auth.is_some()),
        };
        let method = auth.as_ref().map(|(method, _)| method);
        let asks_as = self.share_by(top, method);
        if let (Some(Method::Cert { .. }), Some(http)) = (method, &http)
            && http.tls.client.is_none()
            && let Some(node) = top.value("auth")
        {
            self.wrong(
                node,
                &top.field("auth"),
                "the method `cert` needs `tls.certificate` and `tls.key`",
            );
        }
        let (allowed, kv) = (self.allowed(top), self.kv(top));
        let requests = self.requests(top);
        let (method, auth_mount) = auth?;
        Some(Settings {
            http: http?,
            requests,
            namespace,
            audience,
            method,
            auth_mount,
            allowed,
            asks_as,
            kv,
        })
    }

    fn wrong(&mut self, node: &Node, field: &str, message: impl Into<String>) {
        self.problems
            .add(&codes::CONFIG_INVALID, node.at, field, message, None);
    }

    fn text(&mut self, fields: &Fields<'_>, key: &str) -> Option<String> {
        let node = fields.value(key)?;
        let scalar = read::text(node, &fields.field(key), &mut self.problems)?;
        Some(scalar.text.clone())
    }

    fn needed(&mut self, fields: &Fields<'_>, key: &str) -> Option<String> {
        fields.require(key, &mut self.problems)?;
        self.text(fields, key)
    }

    /// The absolute path of a file.
    fn file(&mut self, fields: &Fields<'_>, key: &str) -> Option<PathBuf> {
        let node = fields.value(key)?;
        let text = self.text(fields, key)?;
        if text.starts_with('/') && !text.contains(char::is_control) {
            return Some(PathBuf::from(text));
        }
        let field = fields.field(key);
        self.wrong(
            node,
            &field,
            format!("{field} `{}` is not an absolute path", shown(&text)),
        );
        None
    }

    fn address(&mut self, node: &Node, field: &str) -> Option<Address> {
        let text = &read::text(node, field, &mut self.problems)?.text;
        Address::parse(text)
            .map_err(|refusal| {
                self.wrong(node, field, format!("{field} `{}` {refusal}", shown(text)))
            })
            .ok()
    }

    fn tls(&mut self, top: &Fields<'_>) -> TlsFiles {
        let Some((node, fields)) = self.part(top, "tls", TLS_KEYS) else {
            return TlsFiles::default();
        };
        let field = &fields.path;
        let (certificate, key) = (self.file(&fields, "certificate"), self.file(&fields, "key"));
        if fields.value("certificate").is_some() != fields.value("key").is_some() {
            self.wrong(
                node,
                field,
                format!("{field} has one of `certificate` and `key`; both are needed"),
            );
        }
        TlsFiles {
            ca: self.file(&fields, "ca"),
            server_name: self.text(&fields, "serverName"),
            client: certificate.zip(key),
        }
    }

    fn proxy(&mut self, top: &Fields<'_>) -> Option<(String, u16)> {
        let node = top.value("proxy")?;
        let field = top.field("proxy");
        match self.address(node, &field)? {
            Address::Net {
                tls: false,
                host,
                port,
            } => Some((host, port)),
            _ => {
                self.wrong(node, &field, format!("{field} is not `http://HOST:PORT`"));
                None
            }
        }
    }

    fn redirects(&mut self, top: &Fields<'_>) -> Vec<Address> {
        let field = top.field("redirectHosts");
        let items = top
            .value("redirectHosts")
            .and_then(|node| read::list(node, &field, &mut self.problems));
        let items = items.into_iter().flatten();
        items
            .filter_map(|item| self.address(item, &field))
            .collect()
    }

    /// A mapping among the settings, if it is there, and its place.
    fn part<'n>(
        &mut self,
        top: &Fields<'n>,
        key: &str,
        known: &[&'static str],
    ) -> Option<(&'n Node, Fields<'n>)> {
        let node = top.value(key)?;
        let fields = Fields::new(node, &top.field(key), known, &[], &mut self.problems)?;
        Some((node, fields))
    }

    fn timeouts(&mut self, top: &Fields<'_>) -> Timeouts {
        let mut times = Timeouts::default();
        let Some((_, fields)) = self.part(top, "timeouts", TIMEOUT_KEYS) else {
            return times;
        };
        for (key, into) in [
            ("resolve", &mut times.resolve),
            ("connect", &mut times.connect),
            ("tls", &mut times.tls),
            ("answer", &mut times.answer),
        ] {
            let (Some(node), Some(text)) = (fields.value(key), self.text(&fields, key)) else {
                continue;
            };
            match duration(&text) {
                Some(time) if (Duration::from_secs(1)..=limits::FETCH_DEADLINE).contains(&time) => {
                    *into = time
                }
                _ => {
                    let field = fields.field(key);
                    self.wrong(
                        node,
                        &field,
                        format!("{field} `{}` is not a time from 1s to 30s", shown(&text)),
                    );
                }
            }
        }
        times
    }

    fn requests(&mut self, top: &Fields<'_>) -> Allowance {
        let mut allowed = Allowance::default();
        let Some((_, fields)) = self.part(top, "requests", REQUEST_KEYS) else {
            return allowed;
        };
        for (key, into) in [
            ("perSecond", &mut allowed.per_second),
            ("burst", &mut allowed.burst),
            ("inFlight", &mut allowed.in_flight),
        ] {
            let Some(node) = fields.value(key) else {
                continue;
            };
            let (field, max) = (fields.field(key), limits::BACKEND_REQUESTS_MAX);
            let number = read::number(node, &field, max.into(), &mut self.problems);
            match number.and_then(|number| u32::try_from(number).ok()) {
                Some(0) => self.wrong(
                    node,
                    &field,
                    format!("{field} is 0: nothing could be asked"),
                ),
                Some(number) => *into = number,
                None => {} // it has been said
            }
        }
        allowed
    }

    /// One or more segments, without `/` at an end: a namespace, a mount.
    fn segments(&mut self, fields: &Fields<'_>, key: &str) -> Option<String> {
        let node = fields.value(key)?;
        let text = self.text(fields, key)?;
        let text = text.trim_end_matches('/');
        let field = fields.field(key);
        self.is_path(node, &field, text).then(|| text.to_owned())
    }

    fn is_path(&mut self, node: &Node, field: &str, text: &str) -> bool {
        let refusal = reference::check_path(text).err();
        let refusal = refusal.or((!text.bytes().all(|b| b.is_ascii_graphic()))
            .then_some("has other than visible ASCII characters"));
        if let Some(refusal) = refusal {
            self.wrong(node, field, format!("{field} `{}` {refusal}", shown(text)));
        }
        refusal.is_none()
    }

    fn audience(&mut self, top: &Fields<'_>) -> String {
        let node = top.require("audience", &mut self.problems);
        let (Some(node), Some(audience)) = (node, self.text(top, "audience")) else {
            return String::new();
        };
        let allowed = top.value("allowAPIServerAudience").and_then(|node| {
            read::flag(
                node,
                &top.field("allowAPIServerAudience"),
                &mut self.problems,
            )
        });
        if is_of_the_api_server(&audience) && allowed != Some(true) {
            let field = top.field("audience");
            let message = format!(
                "{field} `{}` is the API server's own: whoever gets such a token can use it there as the pod",
                shown(&audience)
            );
            let help = "give the store an audience of its own, as `vault`, in its login's role and in `tokenRequests`; or set `allowAPIServerAudience: true`";
            self.problems.add(
                &codes::CONFIG_INVALID,
                node.at,
                &field,
                message,
                Some(help.to_owned()),
            );
        }
        audience
    }

    /// A method that shows no token of the pod has no audience. `known`: the method is.
    fn no_audience(&mut self, top: &Fields<'_>, known: bool) -> String {
        for key in ["audience", "allowAPIServerAudience", "shareBy"] {
            if let (Some(node), true) = (top.value(key), known) {
                let field = top.field(key);
                self.wrong(node, &field, format!("{field} goes with the methods `kubernetes` and `jwt` only: others show no token of the pod"));
            }
        }
        String::new()
    }

    fn share_by(&mut self, top: &Fields<'_>, method: Option<&Method>) -> AsksAs {
        if method.is_some_and(|method| !method.is_of_the_pod()) {
            return AsksAs::Node;
        }
        let words = [
            ("serviceAccount", AsksAs::ServiceAccount),
            ("pod", AsksAs::Pod),
        ];
        let node = top.value("shareBy");
        let word = node
            .and_then(|node| read::word(node, &top.field("shareBy"), &words, &mut self.problems));
        word.unwrap_or(AsksAs::ServiceAccount)
    }

    fn auth(&mut self, top: &Fields<'_>) -> Option<(Method, String)> {
        let field = top.field("auth");
        let node = top.require("auth", &mut self.problems)?;
        let fields = Fields::new(node, &field, AUTH_KEYS, &[], &mut self.problems)?;
        let method = fields.require("method", &mut self.problems)?;
        let words = [
            ("kubernetes", "kubernetes"),
            ("jwt", "jwt"),
            ("approle", "approle"),
            ("cert", "cert"),
            ("token", "token"),
            ("userpass", "userpass"),
        ];
        let name = read::word(method, &fields.field("method"), &words, &mut self.problems)?;
        let used: &[&str] = match name {
            "kubernetes" | "jwt" | "cert" => &["method", "mount", "role"],
            "approle" => &["method", "mount", "roleId", "secretIdFile", "wrapped"],
            "token" => &["method", "file"],
            _ => &["method", "mount", "username", "passwordFile"],
        };
        for key in AUTH_KEYS.iter().filter(|key| !used.contains(key)) {
            if let Some(node) = fields.value(key) {
                let field = fields.field(key);
                self.wrong(
                    node,
                    &field,
                    format!("{field} does not go with the method `{name}`"),
                );
            }
        }
        let mount = self
            .segments(&fields, "mount")
            .unwrap_or_else(|| name.to_owned());
        let role = self.role(&fields);
        let method = match name {
            "kubernetes" => Method::Kubernetes { role },
            "jwt" => Method::Jwt { role },
            "cert" => Method::Cert { role },
            "approle" => self.approle(&fields)?,
            "token" => {
                fields.require("file", &mut self.problems)?;
                Method::Token {
                    file: self.file(&fields, "file")?,
                }
            }
            _ => self.userpass(&fields)?,
        };
        Some((method, mount))
    }

    fn role(&mut self, fields: &Fields<'_>) -> Option<String> {
        let role = self.text(fields, "role")?;
        if let Err(refusal) = super::asked::check_role(&role) {
            let field = fields.field("role");
            let node = fields.value("role")?;
            self.wrong(
                node,
                &field,
                format!("{field} `{}` {refusal}", shown(&role)),
            );
        }
        Some(role)
    }

    fn approle(&mut self, fields: &Fields<'_>) -> Option<Method> {
        let role_id = self.needed(fields, "roleId");
        let secret_id = self.file(fields, "secretIdFile");
        let wrapped = fields
            .value("wrapped")
            .and_then(|node| read::flag(node, &fields.field("wrapped"), &mut self.problems));
        let wrapped = wrapped.unwrap_or(false);
        if wrapped && fields.value("secretIdFile").is_none() {
            let node = fields.value("wrapped")?;
            self.wrong(
                node,
                &fields.field("wrapped"),
                "`wrapped` says what is in `secretIdFile`, which is not there",
            );
        }
        Some(Method::AppRole {
            role_id: role_id?,
            secret_id,
            wrapped,
        })
    }

    fn userpass(&mut self, fields: &Fields<'_>) -> Option<Method> {
        let username = self.needed(fields, "username");
        fields.require("passwordFile", &mut self.problems);
        let password = self.file(fields, "passwordFile");
        if let (Some(name), Some(node)) = (&username, fields.value("username")) {
            let field = fields.field("username");
            match name.contains('/') {
                true => self.wrong(node, &field, format!("{field} `{}` has a `/`", shown(name))),
                false => drop(self.is_path(node, &field, name)),
            }
        }
        Some(Method::Userpass {
            username: username?,
            password: password?,
        })
    }

    fn allowed(&mut self, top: &Fields<'_>) -> Option<Vec<Pattern>> {
        let node = top.value("allowedPaths")?;
        let field = top.field("allowedPaths");
        let items = read::list(node, &field, &mut self.problems)?;
        let mut patterns = Vec::new();
        for item in items {
            let Some(scalar) = read::text(item, &field, &mut self.problems) else {
                continue;
            };
            match Pattern::parse(&scalar.text) {
                Ok(pattern) => patterns.push(pattern),
                Err((refusal, fix)) => {
                    let message = format!("`{}` in {field} {refusal}", shown(&scalar.text));
                    self.problems.add(
                        &codes::CONFIG_INVALID,
                        item.at,
                        &field,
                        message,
                        Some(fix.to_owned()),
                    );
                }
            }
        }
        Some(patterns)
    }

    fn kv(&mut self, top: &Fields<'_>) -> BTreeMap<String, u8> {
        let field = top.field("kv");
        let mut mounts = BTreeMap::new();
        let names = top
            .value("kv")
            .and_then(|node| read::names(node, &field, &mut self.problems));
        let Some(names) = names else {
            return mounts;
        };
        for (key, node) in names.all() {
            let field = names.field(&shown(&key.text));
            let mount = key.text.trim_end_matches('/');
            let known = self.is_path(node, &field, mount);
            let version = read::word(node, &field, &[("1", 1), ("2", 2)], &mut self.problems);
            if let (true, Some(version)) = (known, version) {
                mounts.insert(mount.to_owned(), version);
            }
        }
        mounts
    }
}

/// Audiences that API servers take by default. Which one ours takes is not known here.
fn is_of_the_api_server(audience: &str) -> bool {
    let bare = audience.strip_prefix("https://").unwrap_or(audience);
    let host = bare.split(['/', ':']).next().unwrap_or_default();
    ["", "api", "kubernetes", "k3s"].contains(&audience)
        || host == "kubernetes.default"
        || host.starts_with("kubernetes.default.svc")
}
