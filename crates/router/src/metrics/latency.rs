//! A histogram of durations that is written once a token, so nobody ever waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A histogram of durations in seconds. Clones share it. Writers and readers take no lock: a reader may see a duration in the
/// count that is not in the sum yet.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Arc<Cells>);

#[derive(Debug)]
struct Cells {
    /// Upper bounds in seconds, rising.
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond them all.
    counts: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

impl Latency {
    /// With these upper bounds in seconds, rising.
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self(Arc::new(Cells {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum_nanos: AtomicU64::new(0),
        }))
    }

    /// Notes one duration.
    pub(crate) fn observe(&self, duration: Duration) {
        self.observe_each(duration, 1);
    }

    /// Notes that so many took `in_all` together, each as long as the others.
    pub(crate) fn observe_each(&self, in_all: Duration, times: u32) {
        let cells = &*self.0;
        let each = in_all.as_secs_f64() / f64::from(times.max(1));
        let place = cells.bounds.partition_point(|bound| *bound < each);
        cells.counts[place].fetch_add(times.into(), Ordering::Relaxed);
        let nanos = u64::try_from(in_all.as_nanos()).unwrap_or(u64::MAX);
        cells.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let cells = &*self.0;
        let bounds = cells.bounds.iter().copied().chain([f64::INFINITY]);
        let counts = cells.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(cells.sum_nanos.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_duration_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let latency = Latency::new(&[0.1, 0.5]);
        latency.observe(Duration::from_millis(100));
        latency.observe_each(Duration::from_millis(600), 3);
        latency.observe(Duration::from_secs(2));
        let mut registry = Registry::default();
        registry.register("wait_seconds", "Waiting", latency);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE wait_seconds histogram",
            "wait_seconds_sum 2.7",
            "wait_seconds_count 5",
            "wait_seconds_bucket{le=\"0.1\"} 1",
            "wait_seconds_bucket{le=\"0.5\"} 4",
            "wait_seconds_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
