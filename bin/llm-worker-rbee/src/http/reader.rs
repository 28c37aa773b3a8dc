//! A stream whose reader may stay away only for so long.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{BoxStream, Stream, StreamExt};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Gives a stream to a reader, and drops it when the reader has not come back for a while: a connection that nobody reads
/// and nobody closes must not hold a slot for ever. Waiting for the stream is not staying away.
pub(super) struct Attended<T> {
    held: Arc<Mutex<Held<T>>>,
    _watch: AbortOnDropHandle<()>,
}

struct Held<T> {
    /// `None`: dropped.
    stream: Option<BoxStream<'static, T>>,
    /// Since when the reader could come for more; `None` while it waits.
    away_since: Option<Instant>,
}

/// The reader stayed away, and what it would have read is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer was broken off: its reader took nothing for too long")]
pub(super) struct Gone;

impl<T: Send + 'static> Attended<T> {
    /// The stream for a reader that may stay away for `patience`.
    pub(super) fn new(stream: BoxStream<'static, T>, patience: Duration) -> Self {
        let held = Arc::new(Mutex::new(Held {
            stream: Some(stream),
            away_since: Some(Instant::now()),
        }));
        let watch = tokio::spawn(watch(Arc::downgrade(&held), patience));
        Self {
            held,
            _watch: AbortOnDropHandle::new(watch),
        }
    }
}

async fn watch<T>(held: Weak<Mutex<Held<T>>>, patience: Duration) {
    let mut until = Instant::now() + patience;
    loop {
        tokio::time::sleep_until(until).await;
        let Some(held) = held.upgrade() else { return };
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        until = held.away_since.unwrap_or(now) + patience;
        if until <= now {
            let stream = held.stream.take();
            drop(held);
            tracing::info!("a reader stayed away: its answer is broken off");
            return drop(stream);
        }
    }
}

impl<T> Stream for Attended<T> {
    type Item = Result<T, Gone>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stream) = &mut held.stream else {
            return Poll::Ready(Some(Err(Gone)));
        };
        let item = stream.poll_next_unpin(context);
        held.away_since = item.is_ready().then(Instant::now);
        item.map(|item| item.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Counts for ever, and says when it is dropped.
    fn counting() -> (Attended<u32>, Weak<()>) {
        let alive = Arc::new(());
        let dropped = Arc::downgrade(&alive);
        let numbers = stream::iter(0..).inspect(move |_| {
            let _ = &alive;
        });
        (Attended::new(numbers.boxed(), PATIENCE), dropped)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stays_away_loses_the_stream() {
        let (mut stream, alive) = counting();
        assert_eq!(stream.next().await, Some(Ok(0)));
        tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
        assert_eq!(stream.next().await, Some(Ok(1)), "it came back in time");
        tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
        assert!(alive.upgrade().is_some(), "the time counts anew");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(alive.upgrade().is_none());
        assert_eq!(stream.next().await, Some(Err(Gone)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_waits_has_not_stayed_away() {
        let slow = stream::once(async {
            tokio::time::sleep(3 * PATIENCE).await;
            7
        });
        let mut stream = Attended::new(slow.boxed(), PATIENCE);
        assert_eq!(stream.next().await, Some(Ok(7)));
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_leaves_takes_the_stream_with_it() {
        let (stream, alive) = counting();
        drop(stream);
        assert!(alive.upgrade().is_none());
    }
}
