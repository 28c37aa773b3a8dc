//! The two ways to end: asked to drain by the first signal, ended at once by the second.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Tells every part of a daemon that it should end. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    force: CancellationToken,
}

impl Shutdown {
    /// One that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to drain: take nothing new, finish what there is.
    pub fn request(&self) {
        self.drain.cancel();
    }

    /// Asks to end at once, without waiting for anything.
    pub fn force(&self) {
        self.drain.cancel();
        self.force.cancel();
    }

    /// Ends when draining is asked for.
    pub fn requested(&self) -> WaitForCancellationFuture<'_> {
        self.drain.cancelled()
    }

    /// Ends when ending at once is asked for.
    pub fn forced(&self) -> WaitForCancellationFuture<'_> {
        self.force.cancelled()
    }

    /// Whether draining was asked for.
    pub fn is_requested(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether ending at once was asked for.
    pub fn is_forced(&self) -> bool {
        self.force.is_cancelled()
    }

    /// Requests on the first SIGINT, SIGTERM or SIGHUP; on a further one forces, if it may.
    pub fn listen(&self, may_force: bool) -> io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            while !shutdown.is_forced() {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    _ = hangup.recv() => "SIGHUP",
                };
                if shutdown.is_requested() && may_force {
                    tracing::warn!(signal = name, "second signal, ending at once");
                    shutdown.force();
                } else {
                    tracing::info!(signal = name, "shutting down");
                    shutdown.request();
                }
            }
        });
        Ok(())
    }
}
