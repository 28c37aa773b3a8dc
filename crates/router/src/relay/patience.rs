//! Waiting with a limit, for a body that is polled: one timer for a whole stream.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set anew only when it goes off too early, not for each piece of a stream.
#[derive(Debug, Default)]
pub(super) struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when nothing came although it was asked for. A client that does not read takes nothing from it.
    idle_since: Option<Instant>,
}

impl Patience {
    /// Something came.
    pub(super) fn restart(&mut self) {
        self.idle_since = None;
    }

    /// Called when nothing is there: ready once that has been so for `limit`, or it is later than `deadline`.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>, limit: Duration, deadline: Option<Instant>) -> Poll<()> {
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        let end = since + limit;
        self.poll_until(cx, deadline.map_or(end, |deadline| deadline.min(end)))
    }

    /// Ready from that moment on.
    pub(super) fn poll_until(&mut self, cx: &mut Context<'_>, moment: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(moment)));
        if timer.deadline() > moment {
            timer.as_mut().reset(moment);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= moment {
                return Poll::Ready(());
            }
            timer.as_mut().reset(moment);
        }
        Poll::Pending
    }
}
