//! Whether requests are being answered, and since when not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Requests that are being answered. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    requests: usize,
    /// When the last of them ended, or the model became ready.
    rests_since: Instant,
}

impl Activity {
    pub(crate) fn new(now: Instant) -> Self {
        let inner = Inner {
            requests: 0,
            rests_since: now,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// A request has come.
    pub(crate) fn begin(&self) {
        self.lock().requests += 1;
    }

    /// A request is over, however it ended.
    pub(crate) fn end(&self, now: Instant) {
        let mut inner = self.lock();
        inner.requests = inner.requests.saturating_sub(1);
        inner.rests_since = now;
    }

    /// The time before `now` was no rest: the model was being loaded.
    pub(crate) fn reset(&self, now: Instant) {
        self.lock().rests_since = now;
    }

    /// How long nothing has been asked; `None` while something is.
    pub(crate) fn idle(&self, now: Instant) -> Option<Duration> {
        let inner = self.lock();
        (inner.requests == 0).then(|| now.saturating_duration_since(inner.rests_since))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_idle_from_the_end_of_its_last_request_on() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let activity = Activity::new(start);
        assert_eq!(activity.idle(at(3)), Some(Duration::from_secs(3)));
        activity.reset(at(5));
        activity.begin();
        activity.begin();
        activity.end(at(6));
        assert_eq!(activity.idle(at(7)), None, "one still runs");
        activity.end(at(8));
        assert_eq!(activity.idle(at(10)), Some(Duration::from_secs(2)));
    }
}
