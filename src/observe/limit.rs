//! No line is repeated without end: of each place in the code that warns, so many lines a minute are written, and one that counts the rest.
//!
//! This is the last bound, for every path: a panic, a volume that cannot be kept current, a dependency. Where somebody should hear of each
//! pod that fails, the place has a patience of its own, which is shorter (`csi::log`, `volume::complaint`). It is about `warn` and
//! `error`; and not at `debug` and `trace`: whoever asks for those wants all.
//!
//! The rest is told by a thread that lives until the end of the minute, and is started only when something was left out.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tracing::{
    Event, Level, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{Layer, layer::Context};

use crate::{
    clock::{Clock, Mono},
    limits,
    observe::patience::{Allowed, Patience, Verdict},
};

/// Lines of one place in a minute. None is more interesting than another.
const ALLOWED: Allowed = Allowed {
    lines: limits::LOG_LINES,
    repeated: limits::LOG_LINES,
    of_one: limits::LOG_LINES,
};

/// Bytes of a message that are shown again; all of ours are shorter.
const MESSAGE_BYTES: usize = 120;

/// Cloned freely; all clones are one.
#[derive(Clone)]
pub struct Limit {
    clock: Arc<dyn Clock>,
    places: Arc<Mutex<HashMap<Identifier, Place>>>,
}

/// A place in the code.
struct Place {
    patience: Patience<()>,
    /// What it says.
    message: String,
}

impl Limit {
    /// With the time of this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            places: Arc::default(),
        }
    }

    /// Tells how many lines of each place were left out, if any were.
    pub fn tell_rest(&self) {
        let mut places = self.places();
        let rest = |place: &mut Place| Some((place.patience.rest()?, place.message.clone()));
        let untold: Vec<_> = places.values_mut().filter_map(rest).collect();
        drop(places); // whoever logs comes back here
        for (lines, like) in untold {
            tracing::warn!(lines, like, "lines were left out of the log");
        }
    }

    /// Whether a line is to be written; if not, when the rest is to be told, if nobody waits for that.
    fn judge(&self, event: &Event<'_>) -> Verdict {
        let mut places = self.places();
        let place = places
            .entry(event.metadata().callsite())
            .or_insert_with(|| Place {
                patience: Patience::new(ALLOWED),
                message: String::new(),
            });
        let verdict = place.patience.failed(self.clock.now(), ());
        if verdict != Verdict::Tell && place.message.is_empty() {
            event.record(&mut Message(&mut place.message));
        }
        verdict
    }

    fn places(&self) -> MutexGuard<'_, HashMap<Identifier, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without a thread (none is to be had) the end of the process tells it.
    fn tell_rest_at(&self, at: Mono) {
        let limit = self.clone();
        let started = thread::Builder::new().name("log".to_owned());
        let _ = started.spawn(move || {
            loop {
                let left = at.since(limit.clock.now());
                if left.is_zero() {
                    return limit.tell_rest();
                }
                thread::park_timeout(left);
            }
        });
    }
}

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let limited = *metadata.level() <= Level::WARN
            && LevelFilter::current() < LevelFilter::DEBUG
            && metadata.target() != module_path!();
        if !limited {
            return true;
        }
        match self.judge(event) {
            Verdict::Tell => true,
            Verdict::Count(wake) => {
                if let Some(at) = wake {
                    self.tell_rest_at(at);
                }
                false
            }
        }
    }
}

/// Takes the message of an event, and nothing else of it.
struct Message<'m>(&'m mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}").chars().take(MESSAGE_BYTES).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tracing_subscriber::{layer::SubscriberExt, registry};

    use super::*;
    use crate::clock::Wall;

    /// Stands still.
    struct Still;

    #[async_trait]
    impl Clock for Still {
        fn now(&self) -> Mono {
            Mono::from_nanos(1)
        }

        fn wall(&self) -> Wall {
            Wall::from_millis(0)
        }

        async fn sleep_until(&self, _: Mono) {}
    }

    /// What was written: the message, and the lines that it says were left out.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<(String, u64)>>>);

    impl<S: Subscriber> Layer<S> for Written {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            struct Lines(u64);
            impl Visit for Lines {
                fn record_u64(&mut self, _: &Field, value: u64) {
                    self.0 = value;
                }
                fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
            }
            let (mut message, mut lines) = (String::new(), Lines(0));
            event.record(&mut Message(&mut message));
            event.record(&mut lines);
            self.0.lock().unwrap().push((message, lines.0));
        }
    }

    #[test]
    fn each_place_has_so_many_lines_and_the_rest_is_counted_by_its_message() {
        let (limit, written) = (Limit::new(Arc::new(Still)), Written::default());
        let subscriber = registry()
            .with(LevelFilter::INFO)
            .with(limit.clone())
            .with(written.clone());
        // one more, or another thread's first look decides whether an event is ever heard (`tests/it/support/hearing.rs`)
        let _ = tracing::subscriber::set_global_default(registry().with(LevelFilter::INFO));
        tracing::subscriber::with_default(subscriber, || {
            for nth in 0..1000 {
                tracing::warn!(nth, "often");
                tracing::info!("for those who ask");
            }
            tracing::error!("once");
            limit.tell_rest();
            limit.tell_rest();
        });
        let written = written.0.lock().unwrap();
        let count = |message: &str| written.iter().filter(|(one, _)| one == message).count();
        assert_eq!(count("often"), limits::LOG_LINES as usize);
        assert_eq!(count("for those who ask"), 1000);
        assert_eq!(count("once"), 1);
        let rest = (
            "lines were left out of the log".to_owned(),
            1000 - u64::from(limits::LOG_LINES),
        );
        let told = written.iter().filter(|(message, _)| *message == rest.0);
        assert_eq!(told.collect::<Vec<_>>(), [&rest]);
    }
}
