//! How busy the engine is, and what it has done.

use std::time::{Duration, Instant};

/// How busy the engine is, as of the last step or the last change of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Sequences being prefilled or decoded.
    pub running: usize,
    /// Requests that wait for a slot or for room in the KV cache.
    pub waiting: usize,
    /// Room in the blocks that running sequences hold, in tokens. A block that several hold counts once.
    pub kv_used_tokens: usize,
    /// Room in the blocks that running sequences hold or may come to hold, in tokens; what admission goes by.
    pub kv_reserved_tokens: usize,
    /// Tokens in the blocks that only the prefix cache keeps. They give way to whoever needs room.
    pub kv_cached_tokens: usize,
    /// Tokens that the KV cache can hold.
    pub kv_total_tokens: usize,
    /// Tokens decoded per second over the last 5 seconds, or since decoding began where that is less; 0 while nothing
    /// runs.
    pub tokens_per_second: f64,
}

/// What the engine has done since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Prompt tokens run through the model.
    pub prefill_tokens: u64,
    /// Prompt tokens of begun answers that could have been in the prefix cache: all but each prompt's last, and none of
    /// requests that do not use it.
    pub prefix_lookup_tokens: u64,
    /// Those of them that were, and were not run again.
    pub prefix_hit_tokens: u64,
    /// Blocks of the prefix cache that gave way to new ones.
    pub prefix_evicted_blocks: u64,
    /// Tokens generated and handed to readers.
    pub decode_tokens: u64,
    /// Steps run.
    pub steps: u64,
    /// Time spent in steps, sampling included.
    pub step_time: Duration,
    /// Answers and embeddings completed.
    pub finished: u64,
    /// Requests whose reader left before their end.
    pub cancelled: u64,
    /// Requests that ended by an error.
    pub failed: u64,
}

impl Counters {
    pub(crate) fn add(&mut self, more: &Self) {
        self.prefill_tokens += more.prefill_tokens;
        self.prefix_lookup_tokens += more.prefix_lookup_tokens;
        self.prefix_hit_tokens += more.prefix_hit_tokens;
        self.prefix_evicted_blocks += more.prefix_evicted_blocks;
        self.decode_tokens += more.decode_tokens;
        self.steps += more.steps;
        self.step_time += more.step_time;
        self.finished += more.finished;
        self.cancelled += more.cancelled;
        self.failed += more.failed;
    }
}

/// Length of one counting interval of a [`RateWindow`].
pub(crate) const BUCKET: Duration = Duration::from_millis(250);
const BUCKETS: usize = 20;

/// Counts events over the last 5 seconds.
#[derive(Debug)]
pub(crate) struct RateWindow {
    start: Instant,
    /// A ring; bucket `n` since `start` is at `n % BUCKETS`.
    counts: [u64; BUCKETS],
    /// Number, since `start`, of the bucket being filled.
    current: u128,
    /// When the first of the counted events since the window was last empty happened.
    busy_since: Option<Instant>,
}

impl RateWindow {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            start: now,
            counts: [0; BUCKETS],
            current: 0,
            busy_since: None,
        }
    }

    pub(crate) fn record(&mut self, count: u64, now: Instant) {
        self.forget_before(now);
        if count > 0 {
            self.counts[(self.current % BUCKETS as u128) as usize] += count;
            self.busy_since.get_or_insert(now);
        }
    }

    pub(crate) fn per_second(&mut self, now: Instant) -> f64 {
        self.forget_before(now);
        let Some(busy_since) = self.busy_since else { return 0.0 };
        let since_bucket_start =
            now.duration_since(self.start).as_secs_f64() - self.current as f64 * BUCKET.as_secs_f64();
        let window = (BUCKETS - 1) as f64 * BUCKET.as_secs_f64() + since_bucket_start;
        // At least a bucket: the first token after a pause is no burst.
        let covered = now
            .duration_since(busy_since)
            .as_secs_f64()
            .min(window)
            .max(BUCKET.as_secs_f64());
        self.counts.iter().sum::<u64>() as f64 / covered
    }

    fn forget_before(&mut self, now: Instant) {
        let bucket = now.duration_since(self.start).as_nanos() / BUCKET.as_nanos();
        let passed = bucket.saturating_sub(self.current).min(BUCKETS as u128);
        for step in 1..=passed {
            self.counts[((self.current + step) % BUCKETS as u128) as usize] = 0;
        }
        self.current = self.current.max(bucket);
        if self.counts.iter().all(|&count| count == 0) {
            self.busy_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_pace_is_the_rate() {
        let start = Instant::now();
        let mut rate = RateWindow::new(start);
        for tick in 0..1000 {
            rate.record(3, second(start, f64::from(tick) * 0.01));
        }
        let per_second = rate.per_second(second(start, 10.0));
        assert!((295.0..=305.0).contains(&per_second), "{per_second}");
    }

    #[test]
    fn decoding_that_has_just_begun_is_not_averaged_over_the_idle_time_before() {
        let start = Instant::now();
        let mut rate = RateWindow::new(start);
        for tick in 0..=100 {
            rate.record(1, second(start, 60.0 + f64::from(tick) * 0.01));
        }
        let per_second = rate.per_second(second(start, 61.0));
        assert!((99.0..=102.0).contains(&per_second), "{per_second}");
    }

    #[test]
    fn one_token_is_no_burst() {
        let start = Instant::now();
        let mut rate = RateWindow::new(start);
        rate.record(1, second(start, 1.0));
        assert_eq!(rate.per_second(second(start, 1.0)), 4.0);
    }

    #[test]
    fn the_rate_falls_to_zero_once_the_window_has_passed() {
        let start = Instant::now();
        let mut rate = RateWindow::new(start);
        rate.record(50, second(start, 0.1));
        assert!(rate.per_second(second(start, 4.0)) > 0.0);
        assert_eq!(rate.per_second(second(start, 5.1)), 0.0);
        rate.record(1, second(start, 100.0));
        assert_eq!(rate.per_second(second(start, 100.1)), 4.0);
    }
}
