//! When a model gets one worker more.
//!
//! What is wanted of [`scale`], and property-tested below:
//! 1. As many as were stated run or start, however short the line is.
//! 2. However many wait for a model that nobody serves, one worker is started, and at once.
//! 3. A line above its bound for long enough gives one worker more, up to the limit; while one starts, no other does: it
//!    may relieve the line.
//! 4. Never more than the limit, unless more were stated.
//! 5. With nobody waiting and nothing stated, none is started.

/// What is known of a model's workers and of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that may wait without a further worker.
    pub bound: usize,
    /// For how long more than that have been waiting; 0 where no more do.
    pub above_bound_ms: u64,
    /// For how long more than that may wait.
    pub patience_ms: u64,
    /// Workers that serve it.
    pub running: usize,
    /// Workers that were ordered and do not serve it yet.
    pub starting: usize,
    /// Workers that were stated to run always; 0: none was.
    pub wanted: usize,
    /// Workers that a line alone may bring the model to.
    pub max: usize,
}

/// Whether a model gets one worker more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// It does.
    Up,
    /// It does not. Nor is one taken away: who is idle goes when he is in somebody's way, or has been for long enough.
    Keep,
}

/// Decides whether one more is to be started.
pub fn scale(replicas: &Replicas) -> Scale {
    let there = replicas.running.saturating_add(replicas.starting);
    let is_line_too_long = match there {
        0 => replicas.waiting > 0,
        _ => replicas.waiting > replicas.bound && replicas.above_bound_ms >= replicas.patience_ms,
    };
    let may_line_have_one = replicas.starting == 0 && there < replicas.max;
    if there < replicas.wanted || (is_line_too_long && may_line_have_one) {
        Scale::Up
    } else {
        Scale::Keep
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNSERVED: Replicas = Replicas {
        waiting: 0,
        bound: 8,
        above_bound_ms: 0,
        patience_ms: 10_000,
        running: 0,
        starting: 0,
        wanted: 0,
        max: 4,
    };

    fn any_replicas() -> impl Strategy<Value = Replicas> {
        (
            0..20_usize,
            0..10_usize,
            0..20_u64,
            0..5_usize,
            0..5_usize,
            0..5_usize,
            1..5_usize,
        )
            .prop_map(|(waiting, bound, above, running, starting, wanted, max)| Replicas {
                waiting,
                bound,
                above_bound_ms: if waiting > bound { above } else { 0 },
                patience_ms: 10,
                running,
                starting,
                wanted,
                max,
            })
    }

    proptest! {
        #[test]
        fn as_many_as_were_stated_are_started_and_a_line_brings_no_more_than_the_limit(replicas in any_replicas()) {
            let there = replicas.running + replicas.starting;
            let decided = scale(&replicas);
            if there < replicas.wanted {
                prop_assert_eq!(decided, Scale::Up);
            } else if there >= replicas.max || replicas.waiting == 0 || replicas.starting > 0 {
                prop_assert_eq!(decided, Scale::Keep);
            }
        }

        #[test]
        fn a_line_within_its_bound_or_above_it_for_a_moment_starts_nothing_beside_who_serves(replicas in any_replicas()) {
            let replicas = Replicas { wanted: 0, running: replicas.running.max(1), ..replicas };
            let is_long = replicas.waiting > replicas.bound && replicas.above_bound_ms >= replicas.patience_ms;
            prop_assert!(is_long || scale(&replicas) == Scale::Keep);
        }

        #[test]
        fn a_line_that_stays_brings_one_after_the_other_up_to_the_limit(max in 1..9_usize, wanted in 0..9_usize) {
            let mut replicas = Replicas { waiting: 100, above_bound_ms: 60_000, wanted, max, ..UNSERVED };
            while scale(&replicas) == Scale::Up {
                replicas.starting += 1;
                prop_assert!(replicas.starting <= wanted.saturating_sub(replicas.running).max(1));
                if replicas.running + replicas.starting >= wanted {
                    replicas.running += replicas.starting;
                    replicas.starting = 0;
                }
            }
            prop_assert_eq!(replicas.running, max.max(wanted));
        }
    }

    #[test]
    fn a_hundred_requests_for_a_model_that_nobody_serves_start_one_worker_at_once() {
        let hundred = Replicas {
            waiting: 100,
            ..UNSERVED
        };
        assert_eq!(scale(&hundred), Scale::Up);
        let ordered = Replicas {
            starting: 1,
            above_bound_ms: 60_000,
            ..hundred
        };
        assert_eq!(scale(&ordered), Scale::Keep);
    }

    #[test]
    fn nobody_waits_and_nothing_was_stated_so_nothing_is_started() {
        assert_eq!(scale(&UNSERVED), Scale::Keep);
    }
}
