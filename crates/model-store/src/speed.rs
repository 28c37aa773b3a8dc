//! How fast a transfer has been over the last seconds, and how long the rest will take at that speed.
//!
//! Time is passed in, as what has gone by since some fixed moment.

use std::collections::VecDeque;
use std::time::Duration;

/// Seconds that count.
const WINDOW: Duration = Duration::from_secs(5);
/// Samples closer together than this are one.
const STEP: Duration = Duration::from_millis(250);
/// No speed is told before this much has been seen of it.
const LEAST: Duration = Duration::from_millis(500);

/// A moment and the bytes that were there.
type Sample = (Duration, u64);

/// Mean speed over a sliding window. What was there at the first sample was not transferred.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    /// At most one for each step of the window, the oldest first.
    samples: VecDeque<Sample>,
    latest: Sample,
}

impl Speed {
    /// At `now`, `done` bytes are there. Fewer than before mean that the transfer began anew, earlier times count as now.
    pub(crate) fn observe(&mut self, now: Duration, done: u64) {
        let now = now.max(self.latest.0);
        if done < self.latest.1 {
            self.samples.clear();
        }
        self.latest = (now, done);
        if self.samples.back().is_none_or(|&(last, _)| now - last >= STEP) {
            self.samples.push_back(self.latest);
        }
        // One sample from before the window stays, so that the window is always covered.
        while self.samples.get(1).is_some_and(|&(second, _)| now - second >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes per second; `None` until enough was seen.
    pub(crate) fn per_second(&self) -> Option<u64> {
        let &(start, before) = self.samples.front()?;
        let (end, done) = self.latest;
        let millis = (end - start).as_millis();
        (end - start >= LEAST).then(|| (u128::from(done - before) * 1000 / millis) as u64)
    }

    /// Seconds, rounded up, that so many more bytes will take; `None` where the speed is not known or nothing moves.
    pub(crate) fn eta_s(&self, remaining: u64) -> Option<u64> {
        let speed = self.per_second().filter(|speed| *speed > 0)?;
        Some(remaining.div_ceil(speed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_steady_transfer_has_its_speed_and_what_was_kept_does_not_count() {
        let mut speed = Speed::default();
        for tenth in 0..100 {
            speed.observe(millis(100 * tenth), 7_000_000 + 50_000 * tenth);
            let known = (tenth >= 5).then_some(500_000);
            assert_eq!(speed.per_second(), known, "after {tenth} tenths");
        }
        assert_eq!(speed.eta_s(1_000_001), Some(3));
        assert_eq!(speed.eta_s(0), Some(0));
    }

    #[test]
    fn a_change_of_speed_shows_within_the_window_and_a_standstill_has_no_end() {
        let mut speed = Speed::default();
        for second in 0..=10 {
            speed.observe(millis(1000 * second), 100 * second);
        }
        for second in 11..=16 {
            speed.observe(millis(1000 * second), 1000 + 900 * (second - 10));
        }
        assert_eq!(speed.per_second(), Some(900));
        speed.observe(millis(60_000), 6400);
        speed.observe(millis(70_000), 6400);
        assert_eq!((speed.per_second(), speed.eta_s(5)), (Some(0), None));
    }

    #[test]
    fn a_transfer_that_begins_anew_is_measured_anew() {
        let mut speed = Speed::default();
        speed.observe(millis(0), 1000);
        speed.observe(millis(2000), 5000);
        speed.observe(millis(3000), 0);
        assert_eq!(speed.per_second(), None);
        speed.observe(millis(4000), 300);
        assert_eq!(speed.per_second(), Some(300));
    }

    proptest! {
        #[test]
        fn the_speed_lies_between_the_slowest_and_the_fastest_piece_and_memory_is_bounded(
            pieces in vec((1_u64..3000, 0_u64..1 << 40), 1..200),
        ) {
            let mut speed = Speed::default();
            let (mut now, mut done) = (0, 12345);
            speed.observe(millis(now), done);
            let rate = |&(time, bytes): &(u64, u64)| bytes as f64 * 1000.0 / time as f64;
            let slowest = pieces.iter().map(rate).fold(f64::MAX, f64::min);
            let fastest = pieces.iter().map(rate).fold(0.0, f64::max);
            for (time, bytes) in &pieces {
                now += time;
                done += bytes;
                speed.observe(millis(now), done);
                prop_assert!(speed.samples.len() <= 22);
            }
            if let Some(told) = speed.per_second() {
                prop_assert!(told as f64 >= slowest.floor() * 0.999_999 - 1.0, "{told} below {slowest}");
                prop_assert!(told as f64 <= fastest * 1.000_001 + 1.0, "{told} above {fastest}");
                if let Some(eta) = speed.eta_s(done) {
                    prop_assert!(eta * told >= done && eta.saturating_sub(1) * told < done.max(1));
                }
            } else {
                prop_assert!(now < 500);
            }
        }
    }
}
