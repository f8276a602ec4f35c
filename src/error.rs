//! One error for the whole program: a code, the step that failed, the object it was about, and the cause.
//!
//! A [`Code`] is a row of the table in [`codes`]; it fixes the [`ErrorKind`], and with it who must act. The table is what
//! docs/reference/errors.md is checked against. An `Error` never holds a secret or a store's response body.

use std::{fmt, sync::Arc, time::Duration};

/// Who must act, and what the four edges (gRPC, errno, HTTP, exit code) make of it: design section 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// The author of the spec or configuration.
    InvalidSpec,
    /// The target is another volume's.
    Conflict,
    /// The store has no such secret.
    SecretNotFound,
    /// The store does not believe us.
    Unauthenticated,
    /// The store, or our policy, says no.
    PermissionDenied,
    /// The same volume is in flight.
    Busy,
    /// Try again later.
    Unavailable,
    /// No answer in time.
    Timeout,
    /// A limit of ours or of the machine.
    Exhausted,
    /// The store's data is damaged.
    Corrupt,
    /// Kernel, capability or disk of this node.
    Node,
    /// Ours.
    Bug,
}

/// A row of docs/reference/errors.md.
#[derive(Debug)]
pub struct Code {
    /// Stable dotted name.
    pub name: &'static str,
    /// Who must act.
    pub kind: ErrorKind,
    /// What it means, as a sentence.
    pub cause: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

impl PartialEq for Code {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

macro_rules! table {
    ($($id:ident = $name:literal $kind:ident $cause:literal $fix:literal;)*) => {
        $(#[doc = $cause] pub static $id: Code = Code { name: $name, kind: ErrorKind::$kind, cause: $cause, fix: $fix };)*
        /// All codes, in the order of the table.
        pub static ALL: &[&Code] = &[$(&$id),*];
    };
}

/// The table. A new code is a line here and a line in docs/reference/errors.md.
#[rustfmt::skip]
pub mod codes {
    use super::{Code, ErrorKind};

    table! {
        // spec and configuration
        SPEC_SYNTAX = "spec.syntax" InvalidSpec "The text is not valid YAML." "Mend the line that is named.";
        SPEC_UNKNOWN_KEY = "spec.unknown_key" InvalidSpec "A key that this version does not know." "Use the key that is suggested, or remove it.";
        SPEC_DUPLICATE_KEY = "spec.duplicate_key" InvalidSpec "A key stands twice in one mapping." "Remove one of the two.";
        SPEC_MISSING_KEY = "spec.missing_key" InvalidSpec "A required key is missing." "Add the key that is named.";
        SPEC_WRONG_TYPE = "spec.wrong_type" InvalidSpec "A value has the wrong type or form." "Write it in the form that is shown.";
        SPEC_CONFLICTING_KEYS = "spec.conflicting_keys" InvalidSpec "Two keys exclude each other." "Remove one of the two.";
        SPEC_BAD_REFERENCE = "spec.bad_reference" InvalidSpec "A reference is not BACKEND:PATH[@VERSION][#FIELD]." "Write the reference in that form.";
        SPEC_UNKNOWN_BACKEND = "spec.unknown_backend" InvalidSpec "The node's configuration has no backend of this name." "Use a configured backend, or configure it.";
        SPEC_UNKNOWN_SOURCE = "spec.unknown_source" InvalidSpec "No source of this name is declared." "Declare it under `sources`, or use a reference with a backend.";
        SPEC_UNUSED_SOURCE = "spec.unused_source" InvalidSpec "A source is declared and no file uses it." "Use it in a file, or remove it.";
        SPEC_BAD_PATH = "spec.bad_path" InvalidSpec "A path cannot name a file of a volume." "Use a relative path without `..`.";
        SPEC_PATH_CONFLICT = "spec.path_conflict" InvalidSpec "Two files have the same path, or one lies inside the other." "Give one of the two another path.";
        SPEC_BAD_TEMPLATE = "spec.bad_template" InvalidSpec "A template cannot be compiled." "Mend the line of the template that is named.";
        SPEC_BAD_MODE = "spec.bad_mode" InvalidSpec "A mode is not a quoted octal string of at most 0777." "Write it like \"0440\".";
        SPEC_BAD_INTERVAL = "spec.bad_interval" InvalidSpec "An interval, or another span of time, is not a duration within its bounds." "Write it like 60s, 5m or 1h, within the bounds that are named.";
        SPEC_NOT_IMPLEMENTED = "spec.not_implemented" InvalidSpec "The key is reserved and this version does not implement it." "Remove the key, or use a version that has it.";
        SPEC_TOO_LARGE = "spec.too_large" InvalidSpec "The spec exceeds a limit." "Make it smaller; the limit is named.";
        SPEC_TOO_DEEP = "spec.too_deep" InvalidSpec "The spec is nested too deeply, or its aliases expand without end." "Flatten it.";
        SPEC_NEVER_REFRESHED = "spec.never_refreshed" InvalidSpec "`refreshInterval: never`, but a source cannot push and has no fixed version." "Give an interval, or fix the version with @VERSION.";
        CONFIG_INVALID = "config.invalid" InvalidSpec "The node's configuration is wrong." "Mend the line that is named.";
        CONFIG_UNREADABLE = "config.unreadable" InvalidSpec "A file named on the command line or in the configuration cannot be read." "Check its path and permissions.";
        USAGE = "usage" InvalidSpec "The command line is wrong." "See --help.";
        // rendering
        RENDER_NO_FIELD = "render.no_field" SecretNotFound "The secret has no field of this name." "Name a field that it has, or mark the file optional.";
        RENDER_NOT_FIELDS = "render.not_fields" InvalidSpec "Fields are asked of a secret that is not a JSON object." "Store a JSON object, or take the secret as a whole.";
        RENDER_TEMPLATE = "render.template" InvalidSpec "A template failed while it was rendered." "Mend the line of the template that is named.";
        RENDER_DECODE = "render.decode" InvalidSpec "A value is not in the encoding that `decode` names." "Store it in that encoding, or remove `decode`.";
        RENDER_FIELD_PATH = "render.field_path" InvalidSpec "A field's name cannot be a file's name." "Rename the field, or name each file in the spec.";
        RENDER_NOT_TEXT = "render.not_text" InvalidSpec "A value is not UTF-8 text, and a template or format needs text." "Use the value as a file of its own.";
        RENDER_BAD_KEY = "render.bad_key" InvalidSpec "A field's name or value cannot be said in the format that is asked for." "Rename the field, or use another format.";
        RENDER_TOO_LARGE = "render.too_large" Exhausted "The rendered files exceed a limit of the volume." "Make them smaller, or raise the limit in the node's configuration.";
        // backends
        BACKEND_NOT_FOUND = "backend.not_found" SecretNotFound "The store has no such secret." "Create it, or mend the reference.";
        BACKEND_PERMISSION_DENIED = "backend.permission_denied" PermissionDenied "The store refuses this identity." "Grant it access in the store.";
        BACKEND_UNAUTHENTICATED = "backend.unauthenticated" Unauthenticated "The store does not accept our proof." "Check the backend's login in the configuration.";
        BACKEND_UNAVAILABLE = "backend.unavailable" Unavailable "The store cannot be reached or is not ready." "Nothing: it is asked again.";
        BACKEND_THROTTLED = "backend.throttled" Unavailable "The store asks us to slow down." "Nothing: it is asked again later.";
        BACKEND_TIMEOUT = "backend.timeout" Timeout "The store did not answer in time." "Nothing: it is asked again.";
        BACKEND_CORRUPT = "backend.corrupt" Corrupt "The store's answer cannot be understood." "Look at the store.";
        BACKEND_UNRESOLVED = "backend.unresolved" Unavailable "The name of the store's host has no address." "Mend the `address` in the configuration, or the node's DNS.";
        BACKEND_PROXY = "backend.proxy" Unavailable "The proxy on the way to the store does not let us through." "Mend `proxy` in the configuration, or allow the store's host there.";
        BACKEND_TLS = "backend.tls" Unavailable "No TLS connection to the store comes about." "See that the address is one of TLS, 1.2 or later, and that its certificate is one for servers.";
        BACKEND_TLS_UNKNOWN_CA = "backend.tls_unknown_ca" Unavailable "The store's certificate is of an authority that is not believed." "Name the authority's certificate in `tls.ca`.";
        BACKEND_TLS_EXPIRED = "backend.tls_expired" Unavailable "The store's certificate has expired, or is not valid yet." "Renew it, and see that the node's clock is right.";
        BACKEND_TLS_WRONG_NAME = "backend.tls_wrong_name" Unavailable "The store's certificate is for another name." "Use the name of the certificate in `address`, or name it in `tls.serverName`.";
        BACKEND_TLS_CLIENT = "backend.tls_client" Unauthenticated "The store does not accept our certificate, or wants one." "Mend `tls.certificate` and `tls.key`, or let the store believe their authority.";
        BACKEND_TLS_FILE = "backend.tls_file" Node "A file that `tls` names cannot be used." "Mend the file that is named; the plugin must be able to read it.";
        BACKEND_REDIRECTED = "backend.redirected" Unavailable "The store sends us elsewhere, and the configuration does not allow it." "Add the host to `redirectHosts`, or set `address` to the one that answers.";
        BACKEND_SERVER_ERROR = "backend.server_error" Unavailable "The store failed while it answered." "See the store's own log; it is asked again.";
        BACKEND_ANSWER_CUT = "backend.answer_cut" Unavailable "The connection ended in the middle of the store's answer." "Nothing: it is asked again. If it goes on, see what is between.";
        BACKEND_ANSWER_TOO_LARGE = "backend.answer_too_large" Exhausted "The store's answer is larger than any secret may be." "Make the secret smaller, or name another path.";
        BACKEND_CANCELLED = "backend.cancelled" Unavailable "Nobody wants the answer any more." "Nothing.";
        IDENTITY_TOKEN_STALE = "identity.token_stale" Unauthenticated "There is no fresh token for the audience." "Nothing: the kubelet brings one within 90 seconds.";
        POLICY_UNKNOWN_BACKEND = "policy.unknown_backend" PermissionDenied "The backend of a secret that is mounted has left the node's configuration." "Configure it again, or let the volume name another.";
        POLICY_DENIED = "policy.denied" PermissionDenied "No line of the node's policy allows this." "Add a line to the policy.";
        // Vault and OpenBao
        VAULT_SEALED = "vault.sealed" Unavailable "The store is sealed: it has its data and not the key to it." "Unseal it; it is asked again.";
        VAULT_UNINITIALIZED = "vault.uninitialized" Unavailable "The store was never initialized." "Initialize it (`bao operator init`), or mend `address`.";
        VAULT_STANDBY = "vault.standby" Unavailable "A standby answers and sends us elsewhere, where the configuration does not let us go." "Add the active server to `redirectHosts`, or set `address` to one that leads to it.";
        VAULT_NO_LEADER = "vault.no_leader" Unavailable "A standby answers, and it knows of no active server." "Nothing: one is being chosen. If it goes on, see the servers' logs.";
        VAULT_LOGIN_REFUSED = "vault.login_refused" Unauthenticated "The store refuses the login." "See the login method's role and configuration in the store, and `auth` in ours.";
        VAULT_LOGIN_FILE = "vault.login_file" Node "A file that the login needs cannot be used." "Mend the file that `auth` names; the plugin must be able to read it.";
        VAULT_TOKEN_REFUSED = "vault.token_refused" Unauthenticated "The store does not know the token in the token file." "Write a token that lives into the file.";
        VAULT_WRAPPING = "vault.wrapping" Unauthenticated "The wrapped secret id cannot be unwrapped: it is too old, was opened before, or is something else." "Write a new one into the file. If nobody opened it before, somebody else did: revoke what was in it.";
        VAULT_PATH_NOT_ALLOWED = "vault.path_not_allowed" PermissionDenied "The backend's `allowedPaths` does not cover the path." "Name a path that it covers, or add one to `allowedPaths`.";
        VAULT_DELETED = "vault.deleted" SecretNotFound "This version of the secret was deleted; it can be undeleted." "Undelete it, write a new version, or name another one.";
        VAULT_DESTROYED = "vault.destroyed" SecretNotFound "This version of the secret was destroyed." "Write a new version, or name another one.";
        VAULT_BAD_REQUEST = "vault.bad_request" InvalidSpec "The store does not understand the request." "See the engine's API for `method` and `data`, and the store's own log for why.";
        // the embedded store
        STORE_MISSING = "store.missing" Node "There is no store at this place." "Make one with `secretfs store init`, or name it with --store.";
        STORE_EXISTS = "store.exists" Conflict "There is a store at this place already." "Use it, or choose another directory.";
        STORE_FORMAT = "store.format" Corrupt "The store is of a version that this program does not know." "Use a newer secretfs.";
        STORE_CORRUPT = "store.corrupt" Corrupt "A file of the store is damaged or encrypted to other keys." "Restore the file that is named, or roll back to another version.";
        STORE_IDENTITY_MISSING = "store.identity_missing" Unauthenticated "There is no identity file to decrypt with." "Name it with --identity; `secretfs store init` makes one.";
        STORE_IDENTITY_MODE = "store.identity_mode" Node "The identity file can be read by others." "chmod 600 it.";
        STORE_IDENTITY_BAD = "store.identity_bad" InvalidSpec "The identity file holds no age identity." "Use a file made by `secretfs store init` or `age-keygen`.";
        STORE_BAD_NAME = "store.bad_name" InvalidSpec "A secret's name is not allowed." "Use segments without `..`, `%`, `?`, control characters and leading `/`.";
        STORE_BAD_RECIPIENT = "store.bad_recipient" InvalidSpec "A recipient is not an age public key." "Use a key that begins with age1.";
        STORE_BAD_VALUE = "store.bad_value" InvalidSpec "A value cannot be stored in this form." "Follow what the message says.";
        STORE_TOO_LARGE = "store.too_large" Exhausted "A value is larger than the store takes." "Keep it below 1 MiB.";
        STORE_NO_VERSION = "store.no_version" SecretNotFound "The store has no such version of the secret." "See `secretfs store history`.";
        STORE_IO = "store.io" Node "The store's files cannot be read or written." "Check the directory's permissions and free space.";
        // mounts
        MOUNT_BUSY = "mount.busy" Busy "Another call for the same volume is in flight." "Nothing: the caller tries again.";
        MOUNT_HELD = "mount.held" Conflict "Another secretfs serves this target." "Stop it first, or use another target.";
        MOUNT_FOREIGN = "mount.foreign" Conflict "Something that is not ours is mounted at the target." "Unmount it, or use another target.";
        MOUNT_NOT_EMPTY = "mount.not_empty" Node "The target directory holds files that are not of a volume." "See on the node whose they are, and move or remove them.";
        MOUNT_NO_TARGET = "mount.no_target" Node "The target directory does not exist or is not a directory." "Make the directory.";
        MOUNT_NOT_PERMITTED = "mount.not_permitted" Node "Mounting needs CAP_SYS_ADMIN." "Run as root, or in a user namespace (`unshare -Urm`).";
        MOUNT_NO_PROPAGATION = "mount.no_propagation" Node "The mount that holds the target is not shared, so no pod would see the volume." "Set mountPropagation: Bidirectional.";
        MOUNT_KERNEL = "mount.kernel" Node "A system call of the mount failed." "See the call that is named; Linux 5.12 or later is needed.";
        MOUNT_TOO_LARGE = "mount.too_large" Exhausted "The files do not fit the volume's limit." "Make them smaller, or raise the limit in the node's configuration.";
        MOUNT_NO_SPACE = "mount.no_space" Exhausted "The machine has no memory or descriptors left for the volume." "Give it more.";
        MOUNT_OWNER = "mount.owner" Node "A file cannot be given to the owner that the spec names." "Leave uid and gid away, or run with CAP_CHOWN in a user namespace that has the id.";
        MOUNT_ALTERED = "mount.altered" Unavailable "Somebody has changed the volume's mount." "Undo that (see `findmnt`), or restart the pod.";
        MOUNT_GONE = "mount.gone" Node "The mount has gone from the target." "Restart the program or the pod that uses it, and see who unmounted it.";
        MOUNT_LEFT = "mount.left" Unavailable "A publish failed after its mount was attached, and the mount could not be taken down again." "Nothing: the next publish takes it over, or an unpublish takes it down.";
        MOUNT_LINK = "mount.link" Node "A symbolic link is in the way to the target." "Remove the link, or name the target without it; below kubeletDir none is followed.";
        MOUNT_CONTEXT = "mount.context" Node "The kernel does not take the SELinux context of the volume's files." "Remove the context from the pod, or enable SELinux on the node.";
        // volumes and the process
        VOLUME_UNKNOWN = "volume.unknown" SecretNotFound "No volume of this id or target is served here." "See `secretfs status`.";
        VOLUME_ELSEWHERE = "volume.elsewhere" Conflict "The volume is served already, at another target or with another group or SELinux context." "Unpublish it first.";
        VOLUME_CLOSED = "volume.closed" Busy "The volume is being unpublished." "Nothing.";
        VOLUME_STOPPED = "volume.stopped" Unavailable "The program is stopping." "Nothing.";
        ADMIN_UNREACHABLE = "admin.unreachable" Node "No secretfs answers at the admin socket." "Start `secretfs mount` or `secretfs node`.";
        ADMIN_BAD_REQUEST = "admin.bad_request" InvalidSpec "The admin request is not understood." "See docs/reference/admin.md.";
        NODE_IO = "node.io" Node "A file or socket of this program cannot be used." "Check the path's permissions and free space.";
        NODE_NAMESPACE = "node.namespace" Node "The system does not allow user namespaces to this user." "Run as root, or allow them (see the message).";
        STDOUT_CLOSED = "stdout.closed" Node "Whoever read the results has stopped reading." "Nothing: no message is shown.";
        CSI_BAD_REQUEST = "csi.bad_request" InvalidSpec "A CSI call lacks a field, or has a value that is not allowed." "Mend what is named; a kubelet sends it right.";
        CSI_NOT_READONLY = "csi.not_readonly" InvalidSpec "The volume is not read-only." "Add `readOnly: true` under `csi:` of the pod's volume.";
        CSI_BAD_TARGET = "csi.bad_target" InvalidSpec "The target does not lie where a kubelet puts volumes." "Set `kubeletDir` to the kubelet's --root-dir.";
        CSI_BUSY = "csi.busy" Exhausted "As many CSI calls are being answered as may be at once." "Nothing: a kubelet asks again. If it goes on, see who else speaks to the CSI socket.";
        CSI_NOT_REGISTERED = "csi.not_registered" Unavailable "The kubelet has not registered the driver." "Set `kubeletDir` to the kubelet's --root-dir, and mount its plugins_registry at the same path.";
        IDENTITY_FORGED = "identity.forged" PermissionDenied "What the pod says of itself and what the kubelet says of it do not agree." "Remove keys that begin with `csi.storage.k8s.io/` from volumeAttributes.";
        LIMIT_EXCEEDED = "limit.exceeded" Exhausted "The volumes of this pod, namespace or node have reached a limit." "Remove volumes, make them smaller, or raise the limit in the node's configuration.";
        DRIVER_OBJECT = "driver.object" Node "The CSIDriver object is not as it must be, so identities could be forged." "Apply the CSIDriver object that comes with this version.";
        KUBERNETES_UNREACHABLE = "kubernetes.unreachable" Unavailable "The API server cannot be asked." "Check the service account's token and permissions, or set `kubernetes: off` where there is none.";
        CONFIG_FIXED_KEY = "config.fixed_key" InvalidSpec "A key of the configuration cannot change while the node plugin runs." "Restart the plugin, or undo the change.";
        AUDIT_UNAVAILABLE = "audit.unavailable" Unavailable "The audit log cannot be written, and `onFailure: deny` lets nothing be delivered without it." "Make room for the log, or start what reads it; then it is tried again.";
        // exec
        EXEC_BAD_NAME = "exec.bad_name" InvalidSpec "A file's path does not make a variable's name." "Name the file with --env NAME=PATH, give a --prefix, or give it another path.";
        EXEC_NAME_CONFLICT = "exec.name_conflict" InvalidSpec "Two files make the same variable." "Name the files that the program needs with --env NAME=PATH.";
        EXEC_BAD_VALUE = "exec.bad_value" InvalidSpec "A value holds a NUL byte, which no variable can." "Encode it in the store or the spec, or let the program read the file.";
        EXEC_TOO_LARGE = "exec.too_large" Exhausted "The kernel does not take a variable, or an environment, as large as this." "Let the program read the file, or pass fewer files with --env NAME=PATH.";
        EXEC_NO_FILE = "exec.no_file" SecretNotFound "The directory or volume has no such file." "Mend --env or --from, and see that the volume is mounted.";
        EXEC_UNSETTLED = "exec.unsettled" Unavailable "The directory changed each time that it was read." "Try again.";
        EXEC_NOT_FOUND = "exec.not_found" InvalidSpec "There is no such program." "Check its name, and PATH; a script's interpreter counts, too.";
        EXEC_CANNOT_RUN = "exec.cannot_run" Node "The program is there and cannot be run." "Check its permissions, and what it was built for.";
        BUG = "bug" Bug "An internal rule of secretfs was broken." "Report it.";
    }
}

/// What a cause may be: anything that can be shown. Whoever attaches one makes sure that it holds no secret.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// The one error type.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: &'static Code,
    step: &'static str,
    object: String,
    detail: String,
    retry_after: Option<Duration>,
    source: Option<Source>,
}

/// `std::result::Result` with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this code.
    pub fn new(code: &'static Code) -> Self {
        Self(Box::new(Inner {
            code,
            step: "",
            object: String::new(),
            detail: String::new(),
            retry_after: None,
            source: None,
        }))
    }

    /// Results cannot be written to stdout: `stdout.closed` if nobody reads them any more (`| head -1`), else `node.io`.
    pub fn stdout(error: std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::BrokenPipe => &codes::STDOUT_CLOSED,
            _ => &codes::NODE_IO,
        };
        Self::new(code).object("stdout").source(error)
    }

    /// What was being done, as a phrase: "attach it". The first one set stays: it is nearest to the fault.
    pub fn step(mut self, step: &'static str) -> Self {
        if self.0.step.is_empty() {
            self.0.step = step;
        }
        self
    }

    /// What it was about: a path, a reference, a name. Never a value. The first one set stays.
    pub fn object(mut self, object: impl fmt::Display) -> Self {
        if self.0.object.is_empty() {
            self.0.object = object.to_string();
        }
        self
    }

    /// What exactly is wrong, in place of the table's general cause. Never a value.
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.0.detail = detail.to_string();
        self
    }

    /// When the store wants to be asked again, at the earliest.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// The cause below. It will be shown: it must not hold a secret.
    pub fn source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// The row of the table.
    pub fn code(&self) -> &'static Code {
        self.0.code
    }

    /// Who must act.
    pub fn kind(&self) -> ErrorKind {
        self.0.code.kind
    }

    /// The failed step, or "".
    pub fn failed_step(&self) -> &'static str {
        self.0.step
    }

    /// Whether it means that somebody may not have it. A token that is late is no denial.
    pub fn is_denial(&self) -> bool {
        let kinds = [ErrorKind::PermissionDenied, ErrorKind::Unauthenticated];
        kinds.contains(&self.kind()) && self.code() != &codes::IDENTITY_TOKEN_STALE
    }

    /// Whether it means that nobody was there to answer.
    pub fn is_outage(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
    }

    /// Whether it means that a secret, or the right to it, is gone by the word of who has to say so. A refused login is no such word: that of
    /// a whole cluster is refused when one of its own credentials has ended. Nor is a backend that has left the configuration.
    pub fn takes_back(&self) -> bool {
        let kinds = [ErrorKind::PermissionDenied, ErrorKind::SecretNotFound];
        kinds.contains(&self.kind()) && self.code() != &codes::POLICY_UNKNOWN_BACKEND
    }

    /// When to ask again, at the earliest.
    pub fn wait(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Error {
    /// `object: detail (step: cause)`: one line, the fix is the caller's to print.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if !inner.object.is_empty() {
            write!(f, "{}: ", inner.object)?;
        }
        let what = if inner.detail.is_empty() {
            inner.code.cause.trim_end_matches('.')
        } else {
            &inner.detail
        };
        f.write_str(what)?;
        match (inner.step, &inner.source) {
            ("", None) => Ok(()),
            (step, None) => write!(f, " ({step})"),
            ("", Some(source)) => write!(f, " ({source})"),
            (step, Some(source)) => write!(f, " ({step}: {source})"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.0.code.name)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_dotted_and_say_what_to_do() {
        let names: BTreeSet<_> = codes::ALL.iter().map(|code| code.name).collect();
        assert_eq!(names.len(), codes::ALL.len());
        for code in codes::ALL {
            assert!(
                code.name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_'),
                "{}",
                code.name
            );
            assert!(
                code.cause.ends_with('.') && code.fix.ends_with('.'),
                "{}",
                code.name
            );
        }
    }

    #[test]
    fn display_is_one_line_with_object_detail_step_and_cause() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::new(&codes::STORE_IO)
            .object("payments/db")
            .step("rename it")
            .step("put")
            .source(io);
        assert_eq!(
            error.to_string(),
            "payments/db: The store's files cannot be read or written (rename it: disk on fire)"
        );
        assert_eq!(
            format!("{:?}", Error::new(&codes::BUG).detail("x")),
            "[bug] x"
        );
    }
}
