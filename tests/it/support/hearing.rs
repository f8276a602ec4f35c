//! What is logged in one thread of many.

use tracing::{
    Subscriber,
    subscriber::{DefaultGuard, set_default, set_global_default},
};
use tracing_subscriber::registry;

/// Lets a subscriber hear what this thread logs, as long as the guard lives.
///
/// With one subscriber in the whole process, whichever thread meets an event first decides whether it is ever heard (`tracing-core`,
/// `callsite.rs`, `has_just_one`); so there is always a second one, which takes everything and shows nothing.
pub fn hear(subscriber: impl Subscriber + Send + Sync) -> DefaultGuard {
    let _ = set_global_default(registry()); // an error: it is there already
    set_default(subscriber)
}
