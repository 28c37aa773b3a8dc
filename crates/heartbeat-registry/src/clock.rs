//! The time in which silence is judged: it passes only while the receiver listens.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Listening time: the monotonic clock, less the times in which the receiver was not running.
///
/// The sweep ticks. Where no tick comes for longer than `longest_pause`, as in a process that was stopped or starved, time
/// stands still until the next tick, and what the tick was late by is never counted. So every deadline moves by the lateness,
/// also for those who ask before the late sweep.
#[derive(Debug)]
pub(crate) struct Clock {
    longest_pause: Duration,
    /// The first moment that it was told of.
    epoch: OnceLock<Instant>,
    /// Nanoseconds from the epoch to the newest tick.
    ticked: AtomicU64,
    /// Nanoseconds that were not listened to.
    skipped: AtomicU64,
}

impl Clock {
    /// `Duration::MAX`: no pause is too long, time never stands still.
    pub(crate) fn new(longest_pause: Duration) -> Self {
        Self {
            longest_pause,
            epoch: OnceLock::new(),
            ticked: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }

    /// Listening time at `now`, since the epoch.
    pub(crate) fn at(&self, now: Instant) -> Duration {
        // In the other order than `tick` writes them: a reader in between sees time late, never early.
        let ticked = Duration::from_nanos(self.ticked.load(Ordering::Acquire));
        let skipped = Duration::from_nanos(self.skipped.load(Ordering::Acquire));
        self.since_epoch(now)
            .min(ticked.saturating_add(self.longest_pause))
            .saturating_sub(skipped)
    }

    /// The receiver runs. One caller at a time.
    pub(crate) fn tick(&self, now: Instant) {
        let now = self.since_epoch(now);
        let ticked = Duration::from_nanos(self.ticked.load(Ordering::Relaxed));
        let late = now.saturating_sub(ticked.saturating_add(self.longest_pause));
        self.skipped.fetch_add(nanos(late), Ordering::Release);
        self.ticked.fetch_max(nanos(now), Ordering::Release);
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.epoch.get_or_init(|| now))
    }
}

/// Five hundred years fit.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_stands_still_while_no_tick_comes_and_the_lateness_is_never_counted() {
        let (clock, start) = (Clock::new(2 * SECOND), Instant::now());
        let at = |seconds: u32| clock.at(start + seconds * SECOND);
        clock.tick(start);
        assert_eq!(at(1), SECOND);
        assert_eq!(at(600), 2 * SECOND, "before the late tick");
        clock.tick(start + 600 * SECOND);
        assert_eq!(at(600), 2 * SECOND, "after it");
        assert_eq!(at(601), 3 * SECOND);
        clock.tick(start + 601 * SECOND);
        assert_eq!(at(602), 4 * SECOND);
    }

    #[test]
    fn without_a_longest_pause_it_is_the_monotonic_clock() {
        let (clock, start) = (Clock::new(Duration::MAX), Instant::now());
        assert_eq!(clock.at(start), Duration::ZERO);
        assert_eq!(clock.at(start + 1_000 * SECOND), 1_000 * SECOND);
        clock.tick(start + 2_000 * SECOND);
        assert_eq!(clock.at(start + 3_000 * SECOND), 3_000 * SECOND);
    }
}
