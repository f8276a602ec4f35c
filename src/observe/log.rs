//! Logs on stderr: one event each with a constant message and its values in fields.
//!
//! `--log-level` is about our own crate. Dependencies stay at `warn`: an HTTP client's trace prints headers and bodies.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How much.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Level {
    /// What failed and needs somebody.
    Error,
    /// What failed and mends itself.
    Warn,
    /// What happened.
    Info,
    /// Why.
    Debug,
    /// Everything but secrets.
    Trace,
}

/// In which form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Starts logging. A second call (tests) changes nothing.
pub fn start(level: Level, format: Format) {
    let own = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let others = if level == Level::Error {
        "error"
    } else {
        "warn"
    };
    let filter = EnvFilter::new(format!("{others},secretfs={own}"));
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        Format::Text => {
            let ansi = std::io::stderr().is_terminal();
            let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
            registry.with(layer).try_init()
        }
        Format::Json => {
            let layer = fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    drop(started); // only a second subscriber is an error
}

/// From now on a panic says where, and not what: its message may hold what it choked on.
pub fn hide_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        tracing::error!(place, "a bug of secretfs: a panic; please report the place");
    }));
}
