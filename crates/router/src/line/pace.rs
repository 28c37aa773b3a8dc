//! How fast the requests of a model end.

use std::time::Duration;

use tokio::time::Instant;

/// What ended before that hardly counts.
const MEMORY: Duration = Duration::from_secs(30);

/// How fast requests end: a rate in which each of them weighs the less, the longer it is ago.
#[derive(Debug, Default)]
pub(super) struct Pace {
    per_second: f64,
    newest: Option<Instant>,
}

impl Pace {
    /// One ended.
    pub(super) fn note(&mut self, now: Instant) {
        self.per_second = self.at(now) + 1.0 / MEMORY.as_secs_f64();
        self.newest = Some(now);
    }

    /// How long it takes until so many more have ended; `None` if none has lately.
    pub(super) fn time_for(&self, requests: usize, now: Instant) -> Option<Duration> {
        let rate = self.at(now);
        // Less than half of one request in all of the memory.
        let is_known = rate * MEMORY.as_secs_f64() > 0.5;
        is_known.then(|| Duration::from_secs_f64(requests as f64 / rate))
    }

    fn at(&self, now: Instant) -> f64 {
        let age = self
            .newest
            .map_or(Duration::ZERO, |newest| now.saturating_duration_since(newest));
        self.per_second * (-age.as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(estimate: Option<Duration>) -> f64 {
        estimate.map_or(f64::INFINITY, |time| time.as_secs_f64())
    }

    #[test]
    fn the_estimate_is_the_number_before_over_what_ends_in_a_second() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut now = start;
        for _ in 0..1_000 {
            now += Duration::from_millis(250);
            pace.note(now);
        }
        assert!((seconds(pace.time_for(8, now)) - 2.0).abs() < 0.1);
    }

    #[test]
    fn nothing_is_known_before_anything_ended_nor_long_after() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.time_for(1, now), None);
        pace.note(now);
        assert!(pace.time_for(1, now).is_some());
        assert_eq!(pace.time_for(1, now + MEMORY), None);
    }
}
