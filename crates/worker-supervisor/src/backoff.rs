//! When a process that ended is started again, and when that is given up.

use std::time::Duration;

/// Pauses double from `first` to `max`; a process that lived for `settled` begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Pause after the first failure.
    pub first: Duration,
    /// Longest pause.
    pub max: Duration,
    /// A process that lived this long was in order: earlier failures are forgotten.
    pub settled: Duration,
    /// After so many failures in a row, each before `settled`, it is given up.
    pub failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            max: Duration::from_secs(30),
            settled: Duration::from_secs(60),
            failures: 5,
        }
    }
}

/// What follows a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Restart { after: Duration },
    GiveUp,
}

/// Failures in a row of one process.
#[derive(Debug, Default)]
pub(crate) struct Failures(u32);

impl Failures {
    /// Counts a failure of a process that lived for `lived`.
    pub(crate) fn record(&mut self, lived: Duration, backoff: &Backoff) -> Verdict {
        if lived >= backoff.settled {
            self.0 = 0;
        }
        self.0 += 1;
        if self.0 >= backoff.failures {
            return Verdict::GiveUp;
        }
        let doubled = 2u32.saturating_pow(self.0 - 1);
        Verdict::Restart {
            after: backoff.first.saturating_mul(doubled).min(backoff.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Verdict {
        Verdict::Restart {
            after: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn pauses_double_and_the_fifth_quick_failure_is_the_last() {
        let mut failures = Failures::default();
        let verdicts: Vec<_> = (0..5)
            .map(|_| failures.record(Duration::from_secs(59), &Backoff::default()))
            .collect();
        assert_eq!(verdicts, [secs(1), secs(2), secs(4), secs(8), Verdict::GiveUp]);
    }

    #[test]
    fn a_process_that_settled_begins_anew() {
        let mut failures = Failures::default();
        failures.record(Duration::ZERO, &Backoff::default());
        failures.record(Duration::ZERO, &Backoff::default());
        assert_eq!(failures.record(Duration::from_secs(60), &Backoff::default()), secs(1));
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let patient = Backoff {
            failures: 100,
            ..Backoff::default()
        };
        let mut failures = Failures::default();
        let last = (0..99).map(|_| failures.record(Duration::ZERO, &patient)).last();
        assert_eq!(last, Some(secs(30)));
    }
}
