//! How long the requests of a model take.

use std::time::Duration;

/// Weight of the newest request in the mean: the last twenty decide.
const WEIGHT: f64 = 0.1;

/// How long a request holds its worker: a mean in which the latest weigh most.
#[derive(Debug, Default)]
pub(super) struct Pace {
    mean_s: Option<f64>,
}

impl Pace {
    /// A request held its worker for so long.
    pub(super) fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.mean_s = Some(self.mean_s.map_or(took, |mean| mean + WEIGHT * (took - mean)));
    }

    /// How long it takes until so many more have ended, where so many run all the time (Little's law); `None` if none has
    /// ended yet.
    pub(super) fn time_for(&self, requests: usize, running: u32) -> Option<Duration> {
        let seconds = self.mean_s? * requests as f64 / f64::from(running.max(1));
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_what_all_before_it_take_shared_by_those_that_run_together() {
        let mut pace = Pace::default();
        assert_eq!(pace.time_for(1, 1), None, "nothing has ended yet");
        for _ in 0..3 {
            pace.note(Duration::from_millis(500));
        }
        assert_eq!(pace.time_for(8, 1), Some(Duration::from_secs(4)));
        assert_eq!(pace.time_for(8, 4), Some(Duration::from_secs(1)));
    }

    #[test]
    fn requests_of_another_length_are_learned() {
        let mut pace = Pace::default();
        pace.note(Duration::from_secs(60));
        for _ in 0..100 {
            pace.note(Duration::from_secs(1));
        }
        assert!(pace.time_for(1, 1).is_some_and(|time| time < Duration::from_secs(2)));
    }
}
