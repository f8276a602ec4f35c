//! What signals mean to a command in the foreground: SIGTERM and SIGINT end it, SIGHUP asks it to read or fetch anew.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result, codes};

/// Signals, from now on.
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    /// Listens: none of them kills any more. Call it inside a runtime.
    ///
    /// # Errors
    /// `node.io`.
    pub fn listen() -> Result<Self> {
        tracing::trace!("signals are listened for");
        let on = |kind| {
            signal(kind).map_err(|error| {
                Error::new(&codes::NODE_IO)
                    .step("listen for signals")
                    .source(error)
            })
        };
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    /// Returns when one has come that ends us.
    pub async fn ended(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }

    /// Whether to go on: `true` for SIGHUP, `false` for a signal that ends us.
    pub async fn again(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.term.recv() => false,
            _ = self.int.recv() => false,
            _ = self.hup.recv() => true,
        }
    }
}
