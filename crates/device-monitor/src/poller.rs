//! A thread that reads a source again and again, and keeps the last reading for whoever asks.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

/// A reading and when it was complete.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    pub(crate) value: T,
    pub(crate) at: Instant,
}

/// Ends its thread when it is dropped; a thread that hangs in a driver is left behind.
#[derive(Debug)]
pub(crate) struct Poller<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    latest: ArcSwapOption<Timed<T>>,
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

/// What the thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Reads again after the interval.
    Pause,
    /// Reads again at once.
    Read,
    /// Ends.
    End,
}

impl<T: Send + Sync + 'static> Poller<T> {
    pub(crate) fn start(
        name: &str,
        interval: Duration,
        mut read: impl FnMut() -> T + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            latest: ArcSwapOption::empty(),
            wanted: Mutex::new(Wanted::Pause),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            loop {
                let value = read();
                let at = Instant::now();
                theirs.publish(Timed { value, at });
                if theirs.pause(interval) == Wanted::End {
                    return;
                }
            }
        })?;
        Ok(Self { shared })
    }

    /// The last reading; `None` until the first is complete.
    pub(crate) fn latest(&self) -> Option<Arc<Timed<T>>> {
        self.shared.latest.load_full()
    }

    /// Reads again at once. What is wanted while the source is being read is read once more after it.
    pub(crate) fn read_now(&self) {
        let mut wanted = self.shared.lock();
        if *wanted == Wanted::Pause {
            *wanted = Wanted::Read;
            self.shared.changed.notify_all();
        }
    }

    /// Blocks until the first reading is complete, at most this long.
    pub(crate) fn wait_first(&self, limit: Duration) {
        // Which of the two ended the wait shows in `latest`.
        let _ = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), limit, |_| self.shared.latest.load().is_none());
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, reading: Timed<T>) {
        self.latest.store(Some(Arc::new(reading)));
        // With the lock, whoever has just found nothing is already waiting, and hears of it.
        let _guard = self.lock();
        self.changed.notify_all();
    }

    /// Waits for the interval, or until something else is wanted.
    fn pause(&self, interval: Duration) -> Wanted {
        let (mut guard, _) = self
            .changed
            .wait_timeout_while(self.lock(), interval, |wanted| *wanted == Wanted::Pause)
            .unwrap_or_else(PoisonError::into_inner);
        let wanted = *guard;
        if wanted == Wanted::Read {
            *guard = Wanted::Pause;
        }
        wanted
    }
}

impl<T> Drop for Poller<T> {
    fn drop(&mut self) {
        *self.shared.lock() = Wanted::End;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_last_reading_is_kept_while_the_source_hangs() {
        let (results, source) = mpsc::channel::<u32>();
        let poller = Poller::start("test", Duration::ZERO, move || source.recv().unwrap_or(0)).unwrap();
        poller.wait_first(Duration::ZERO);
        assert!(poller.latest().is_none());
        results.send(7).unwrap();
        poller.wait_first(Duration::from_secs(60));
        assert_eq!(poller.latest().unwrap().value, 7);
        // The source waits for its next value, which never comes; readers do not.
        assert_eq!(poller.latest().unwrap().value, 7);
    }

    #[test]
    fn a_reading_can_be_had_before_its_time() {
        let (count, reads) = mpsc::channel();
        let poller = Poller::start("test", Duration::from_secs(3600), move || count.send(()).is_ok()).unwrap();
        reads.recv().unwrap();
        poller.wait_first(Duration::from_secs(60));
        poller.read_now();
        assert_eq!(reads.recv(), Ok(()));
    }

    #[test]
    fn a_dropped_poller_ends_its_thread() {
        let (alive, ended) = mpsc::channel::<()>();
        let poller = Poller::start("test", Duration::from_secs(3600), move || {
            let _keep = &alive;
        })
        .unwrap();
        drop(poller);
        assert_eq!(ended.recv(), Err(mpsc::RecvError));
    }
}
