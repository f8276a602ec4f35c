//! Logs on stderr: one event each with a constant message and its values in fields.
//!
//! The level is that of `--log-level`, else of SECRETFS_LOG_LEVEL, else of the configuration, where it can change at run time
//! ([`follow`]). It is about our own crate. Dependencies stay at `warn`: an HTTP client's trace prints headers and bodies. Nothing is repeated
//! without end (`limit`).

use std::{
    io::IsTerminal,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing_subscriber::{
    EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

pub use crate::config::LogLevel as Level;
use crate::{clock::SystemClock, observe::limit::Limit};

/// When nobody says anything.
const DEFAULT: Level = Level::Warn;

/// In which form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// How much is logged, and by whose word.
struct Control {
    /// A flag or the environment said so: the configuration does not change it.
    explicit: bool,
    filter: reload::Handle<EnvFilter, Registry>,
    limit: Limit,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Starts logging; `explicit` is what a flag or the environment says. A second call (tests) changes nothing.
pub fn start(explicit: Option<Level>, format: Format) {
    let (filter, handle) = reload::Layer::new(filter(explicit.unwrap_or(DEFAULT)));
    let limit = Limit::new(Arc::new(SystemClock));
    let registry = tracing_subscriber::registry().with(filter);
    let registry = registry.with(limit.clone());
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
    if started.is_ok() {
        let _ = CONTROL.set(Control {
            explicit: explicit.is_some(),
            filter: handle,
            limit,
        });
        tracing::debug!("the log begins");
    }
}

/// Before the process ends: how many lines were left out, if any were.
pub fn tell_rest() {
    if let Some(control) = CONTROL.get() {
        control.limit.tell_rest();
    }
}

/// From now on logs as much as a configuration says, `None` being nothing; a flag or the environment wins over it.
pub fn follow(configured: Option<Level>) {
    if let Some(control) = CONTROL.get() {
        control.follow(configured);
    }
}

impl Control {
    fn follow(&self, configured: Option<Level>) {
        if !self.explicit {
            // an error means that nothing logs any more
            let _ = self.filter.reload(filter(configured.unwrap_or(DEFAULT)));
        }
    }
}

fn filter(level: Level) -> EnvFilter {
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
    // the Kubernetes client logs each request that fails, as an error; `csi::driver_object` and `kube::reports` tell it once
    EnvFilter::new(format!("{others},kube_client=off,secretfs={own}"))
}

/// Panics of this process: the hook is of the process as well.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many panics there have been since [`hide_panics`]: caught or not, each once.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// From now on a panic is counted and says where, and not what: its message may hold what it choked on.
pub fn hide_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic
            .location()
            .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        tracing::error!(place, "a bug of secretfs: a panic; please report the place");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_changes_what_no_flag_has_fixed_and_nothing_but_our_own_crate() {
        let shown = |control: &Control| control.filter.with_current(ToString::to_string).unwrap();
        for explicit in [false, true] {
            let (layer, filter) = reload::Layer::new(filter(DEFAULT));
            let limit = Limit::new(Arc::new(SystemClock));
            let control = Control {
                explicit,
                filter,
                limit,
            };
            let seen: Vec<bool> = [Some(Level::Debug), None, Some(Level::Error)]
                .into_iter()
                .map(|level| {
                    let before = shown(&control);
                    control.follow(level);
                    before != shown(&control)
                })
                .collect();
            assert_eq!(seen, [!explicit; 3]);
            drop(layer);
        }
        let trace = filter(Level::Trace).to_string();
        assert!(
            trace.contains("secretfs=trace") && trace.contains("warn"),
            "{trace}"
        );
    }
}
