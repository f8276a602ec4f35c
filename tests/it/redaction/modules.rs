//! Every module that does something at run time is heard at trace level: what is not heard was not searched for secrets.
//!
//! Each file of src is in the table below, in one of two ways: the session in which its events are seen, or why it has none.

use std::collections::BTreeSet;

use crate::tidy;

/// A session, and the log that it leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// `cli::every_command_says_nothing_whether_it_works_or_not`
    Commands,
    /// `cli::a_whole_life_of_a_mount_says_nothing`
    Mount,
    /// `node::a_nights_work_of_the_plugin_says_nothing`
    Node,
    /// `vault::a_life_with_a_real_server_says_nothing`
    Vault,
}

/// Modules whose events are seen, and where.
#[rustfmt::skip]
const HEARD: &[(Seen, &[&str])] = &[
    (Seen::Commands, &[
        "cli", "cli::check", "cli::client", "cli::exec", "cli::exec::dir", "cli::exec::program", "cli::exec::supervise", "cli::exec::volume", "cli::load", "cli::status", "cli::store", "cli::version",
        "store", "store::keys", "store::read", "store::rekey", "store::write", "observe::log", "backend::registry",
    ]),
    (Seen::Mount, &[
        "cli::hook", "cli::mount", "cli::rundir", "cli::signals", "admin", "admin::http", "backend::instrumented", "backend::store",
        "backend::store::watch", "source::runner", "mount::atomic", "mount::tmpfs", "mount::tmpfs::volume", "volume::served", "volume::task",
        "volume::volumes",
    ]),
    (Seen::Node, &[
        "cli::node", "cli::node::doors", "cli::node::lock", "cli::node::plugin", "cli::node::serve", "cli::reload",
        "admin::health", "csi::driver_object", "csi::log", "csi::node", "csi::plugin_info", "csi::registration", "csi::server",
        "kube", "kube::reports", "mount::look", "mount::spot", "observe::audit", "observe::events", "observe::ready",
        "volume::attempt", "volume::ledger", "volume::look", "volume::publish", "volume::read", "volume::record", "volume::resettle",
        "volume::restore", "volume::shortcut", "volume::unpublish",
    ]),
    (Seen::Vault, &[
        "backend::http", "backend::http::connect", "backend::http::tls", "backend::login", "backend::vault", "backend::vault::auth",
        "backend::vault::mounts", "volume::withdraw",
    ]),
];

/// Modules without an event, and why they need none.
#[rustfmt::skip]
const SILENT: &[(&str, &[&str])] = &[
    ("nouns, tables and traits", &[
        "backend", "caller", "csi", "error", "lib", "limits", "main", "mount", "observe", "path", "secret", "source",
        "volume", "volume::status",
    ]),
    ("parsers: pure, and their callers tell the outcome", &[
        "cli::exec::names", "config", "config::change", "config::parse", "config::policy", "csi::authority", "csi::context", "csi::context::names", "csi::context::token",
        "mount::mountinfo", "spec", "spec::canonical", "spec::files", "spec::parse", "spec::places", "spec::problems", "spec::read",
        "spec::reference", "spec::scan", "spec::suggest", "spec::template", "spec::times", "store::document", "store::name", "yaml",
    ]),
    ("decisions without I/O: whoever asked tells what came of them", &[
        "csi::status", "mount::errno", "mount::layout", "mount::plan", "mount::room", "observe::limit", "observe::patience", "policy",
        "source::bell", "source::breaker", "source::caught", "source::runner::proof", "source::gate", "source::pool", "source::pool::doors",
        "source::pool::leases", "source::pool::source", "source::schedule", "volume::budget", "volume::complaint", "volume::decide",
        "volume::followed", "volume::specs", "volume::wanted", "volume::word",
    ]),
    ("the system call filter: a refused call is told from a signal handler, without `tracing`", &[
        "sys::seccomp", "sys::seccomp::allowed", "sys::seccomp::names", "sys::seccomp::program",
    ]),
    ("rendering is pure and holds values: the less it could say the better", &[
        "render", "render::decode", "render::fields", "render::filters", "render::format", "render::json", "render::quote", "render::rules",
        "render::template", "store::seal",
    ]),
    ("one system call each; whoever calls tells the outcome", &[
        "clock", "store::disk", "sys", "sys::alloc", "sys::child", "sys::file", "sys::fs", "sys::inotify", "sys::memory", "sys::mmap",
        "sys::namespace", "sys::process", "sys::real_fs", "sys::socket", "sys::stack", "sys::statmount", "sys::timer",
    ]),
    ("the demo and what only it uses: it prints each of its steps, and its plugin is a `node`", &[
        "cli::demo", "cli::demo::burst", "cli::demo::container", "cli::demo::ending", "cli::demo::kubelet", "cli::demo::plugin",
        "cli::demo::rotate", "cli::demo::stage", "csi::client",
    ]),
    ("numbers for a scrape, and the log of who got what: both are searched themselves", &[
        "admin::scrape", "csi::measured", "observe::metrics", "observe::metrics::cells", "observe::metrics::table",
        "observe::metrics::text", "volume::gauges", "volume::trail",
    ]),
    ("parts of a request to a store, which `backend::http` and `backend::instrumented` tell", &[
        "backend::http::fault", "backend::http::resolve", "backend::vault::asked", "backend::vault::endpoint", "backend::vault::kv",
        "backend::vault::settings", "backend::vault::wire", "backend::vault::wrap",
    ]),
    ("holds messages that nobody has read yet, and says nothing of them", &["csi::inlet"]),
    ("the last view of each source, which `source::runner` tells", &["source::runner::shown"]),
    ("holds what `exec --spec` passes on, and says nothing of it", &["mount::memory"]),
    ("what a person sees, which is searched itself", &["cli::status::show", "cli::status::watch", "cli::table"]),
];

/// All modules, by the files of src.
fn modules() -> BTreeSet<String> {
    let all = tidy::program_files();
    let name = |file: &std::path::PathBuf| {
        let text = file.with_extension("").to_str().unwrap().replace('/', "::");
        let text = text.strip_prefix("src::").unwrap();
        text.strip_suffix("::mod").unwrap_or(text).to_owned()
    };
    all.iter().map(name).collect()
}

/// What the log of a session must hold: at least one event of each of its modules.
#[track_caller]
pub fn assert_seen(session: Seen, log: &str) {
    let expected = HEARD.iter().filter(|(seen, _)| *seen == session);
    let mut unheard: Vec<&str> = expected
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    unheard.retain(|name| !is_heard(name, log));
    assert_eq!(
        unheard, [""; 0],
        "modules that said nothing at trace level, so the search for secrets did not see them"
    );
}

/// An event's target is followed by a colon in text, and by a quote in JSON.
fn is_heard(module: &str, log: &str) -> bool {
    let target = format!("secretfs::{module}");
    log.contains(&format!(" {target}: ")) || log.contains(&format!("\"target\":\"{target}\""))
}

#[test]
fn every_module_is_heard_or_has_a_reason_to_be_silent() {
    let heard = HEARD.iter().flat_map(|(_, names)| names.iter());
    let silent = SILENT.iter().flat_map(|(_, names)| names.iter());
    let listed: Vec<String> = heard.chain(silent).map(|name| (*name).to_owned()).collect();
    let table: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(table.len(), listed.len(), "a module is listed twice");
    let all = modules();
    let unlisted: Vec<_> = all.difference(&table).collect();
    assert!(
        unlisted.is_empty(),
        "{unlisted:?}: give each an event at `trace` that a session sees, or a reason to have none"
    );
    let gone: Vec<_> = table.difference(&all).collect();
    assert!(gone.is_empty(), "no longer there: {gone:?}");
}

#[test]
fn a_module_that_is_not_heard_is_noticed() {
    let text = "2026 TRACE secretfs::store::read: a secret is looked up name=a\n";
    let json = "{\"level\":\"TRACE\",\"target\":\"secretfs::store::read\"}";
    for log in [text, json] {
        assert!(is_heard("store::read", log));
        assert!(!is_heard("store", log) && !is_heard("store::write", log));
    }
}
