//! Durations in buckets of 6 % width: a bounded size for a run of any length.

use std::time::Duration;

/// Buckets for each doubling.
const STEPS: f64 = 12.0;
/// Up to 2^40 ns, which is 18 minutes.
const BUCKETS: usize = 480;

/// How often which duration was seen.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
        }
    }

    pub(crate) fn add(&mut self, duration: Duration) {
        let bucket = (duration.as_nanos().max(1) as f64).log2() * STEPS;
        self.counts[(bucket as usize).min(BUCKETS - 1)] += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration that this share of all does not exceed; zero if none was seen.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return Duration::from_nanos(((bucket + 1) as f64 / STEPS).exp2() as u64);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_one_bucket_above_the_true_one() {
        let mut histogram = Histogram::new();
        for micros in 1..=1_000 {
            histogram.add(Duration::from_micros(micros));
        }
        for (share, truth) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let told = histogram.quantile(share).as_nanos() as f64 / 1_000.0;
            assert!((truth..truth * 1.07).contains(&told), "{share}: {told} for {truth}");
        }
    }
}
