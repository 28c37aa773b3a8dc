//! When a worker that nobody asks is stopped: a decision on what it says of itself.

use std::time::Duration;

/// Longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Shortest pause between two looks, however short the limit is.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// What to do with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nobody needed it for as long as the limit.
    Stop,
    /// Look again after this.
    LookAgain(Duration),
}

/// Judges a worker that was without a request for `idle`, or works or cannot tell (`None`).
pub(crate) fn judge(limit: Duration, idle: Option<Duration>) -> Verdict {
    let left = match idle {
        Some(idle) if idle >= limit => return Verdict::Stop,
        Some(idle) => limit - idle,
        None => limit,
    };
    let pause = left.min(limit / 4).min(LONGEST_PAUSE);
    Verdict::LookAgain(pause.max(SHORTEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(900);

    #[test]
    fn a_worker_is_stopped_when_it_was_idle_for_the_limit_and_not_before() {
        assert_eq!(judge(LIMIT, Some(LIMIT)), Verdict::Stop);
        let almost = LIMIT - Duration::from_millis(100);
        assert_eq!(
            judge(LIMIT, Some(almost)),
            Verdict::LookAgain(Duration::from_millis(100))
        );
    }

    #[test]
    fn one_that_works_is_never_stopped() {
        assert_eq!(judge(LIMIT, None), Verdict::LookAgain(LONGEST_PAUSE));
        assert_eq!(
            judge(Duration::from_secs(4), None),
            Verdict::LookAgain(Duration::from_secs(1))
        );
    }

    proptest! {
        #[test]
        fn looks_are_never_so_far_apart_that_a_worker_stays_much_beyond_its_limit(limit_ms in 1..10_000_000_u64, idle_ms: u32) {
            let limit = Duration::from_millis(limit_ms);
            if let Verdict::LookAgain(pause) = judge(limit, Some(Duration::from_millis(idle_ms.into()))) {
                prop_assert!(u64::from(idle_ms) < limit_ms);
                prop_assert!((SHORTEST_PAUSE..=LONGEST_PAUSE).contains(&pause));
                let end = Duration::from_millis(idle_ms.into()) + pause;
                prop_assert!(end <= limit.max(Duration::from_millis(idle_ms.into()) + SHORTEST_PAUSE));
            }
        }
    }
}
