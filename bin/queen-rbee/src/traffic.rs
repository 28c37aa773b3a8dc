//! The last hour of requests, as it is shown: the router keeps the record, and is told here what time it is.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use router::{BUCKET_S, TrafficView};
use serde::Serialize;

use crate::State;

/// What `GET /v1/traffic` answers.
#[derive(Serialize)]
pub(crate) struct TrafficAnswer {
    /// The queen's clock, in seconds since the epoch.
    now_s: f64,
    /// What one point stands for, in seconds.
    bucket_s: i64,
    #[serde(flatten)]
    traffic: TrafficView,
}

impl TrafficAnswer {
    /// The hour up to now; its points only as far as they began later than `after_s`.
    pub(crate) fn of(state: &State, after_s: Option<i64>) -> Self {
        let now = since_epoch();
        Self {
            // Whole milliseconds: no clock of a network is better.
            now_s: now.as_millis() as f64 / 1_000.0,
            bucket_s: BUCKET_S,
            traffic: state.router.traffic(whole_seconds(now), after_s),
        }
    }
}

/// Tells the router whenever the time of a point is over.
pub(crate) async fn sample(state: Arc<State>) {
    loop {
        let now = since_epoch();
        state.router.sample_traffic(whole_seconds(now));
        tokio::time::sleep(until_next_point(now)).await;
    }
}

fn until_next_point(now: Duration) -> Duration {
    let bucket = Duration::from_secs(BUCKET_S.unsigned_abs());
    let into = Duration::from_nanos(u64::try_from(now.as_nanos() % bucket.as_nanos()).unwrap_or_default());
    bucket - into
}

/// The wall clock: points are named by it, so that they can be laid beside other figures.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn whole_seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_end_at_whole_multiples_of_their_length() {
        for (now_ms, wait_ms) in [
            (1_000_000, 5_000),
            (1_000_001, 4_999),
            (1_004_999, 1),
            (1_007_500, 2_500),
        ] {
            let wait = until_next_point(Duration::from_millis(now_ms));
            assert_eq!(wait, Duration::from_millis(wait_ms), "{now_ms}");
        }
    }
}
