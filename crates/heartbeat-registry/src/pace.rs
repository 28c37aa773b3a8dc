//! How fast senders should beat.

use std::time::Duration;

use shared_contract::timing;

/// What an acknowledgement asks of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Pause between two beats.
    pub interval: Duration,
    /// Silence after which the sender is lost.
    pub ttl: Duration,
}

impl Default for Pace {
    /// The contract's times.
    fn default() -> Self {
        Self {
            interval: timing::HEARTBEAT_INTERVAL,
            ttl: timing::HEARTBEAT_TTL,
        }
    }
}

impl Pace {
    /// The same, or slower where so many senders would together send more than `max_beats_per_s` on average. The TTL grows
    /// by the same factor, so that as many beats may be missed as before.
    #[must_use]
    pub fn stretched(self, senders: usize, max_beats_per_s: u32) -> Self {
        let least = senders as f64 / f64::from(max_beats_per_s.max(1));
        let factor = least / self.interval.as_secs_f64();
        if factor <= 1.0 {
            return self;
        }
        Self {
            interval: self.interval.mul_f64(factor),
            ttl: self.ttl.mul_f64(factor),
        }
    }

    /// Beats that should have come during a silence, and did not. One that is late by less than half an interval may come
    /// yet.
    pub fn missed(&self, silence: Duration) -> u64 {
        let intervals = (silence.as_secs_f64() / self.interval.as_secs_f64().max(f64::EPSILON)).round() as u64;
        intervals.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(pace: Pace) -> (u64, u64) {
        (pace.interval.as_secs(), pace.ttl.as_secs())
    }

    #[test]
    fn the_contracts_pace_holds_up_to_1500_senders_and_is_stretched_beyond() {
        let pace = |senders| seconds(Pace::default().stretched(senders, 50));
        assert_eq!(pace(0), (30, 90));
        assert_eq!(pace(1_500), (30, 90));
        assert_eq!(pace(3_000), (60, 180));
        assert_eq!(pace(10_000), (200, 600));
    }

    #[test]
    fn a_beat_counts_as_missed_once_it_is_late_by_half_an_interval() {
        let missed = |silence| Pace::default().missed(Duration::from_secs(silence));
        assert_eq!([0, 30, 33, 44].map(missed), [0; 4]);
        assert_eq!([46, 60, 65].map(missed), [1; 3]);
        assert_eq!(missed(100), 2);
    }

    proptest! {
        #[test]
        fn no_more_beats_come_than_wanted_and_never_fewer_intervals_fit_the_ttl(
            senders in 0..200_000_usize, most in 1..10_000_u32,
        ) {
            let pace = Pace::default().stretched(senders, most);
            prop_assert!(senders as f64 / pace.interval.as_secs_f64() <= f64::from(most) * 1.000_001);
            prop_assert!((pace.ttl.as_secs_f64() / pace.interval.as_secs_f64() - 3.0).abs() < 1e-6);
        }
    }
}
