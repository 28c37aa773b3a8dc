//! A number for each start of a process, by which others tell one start from the next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The last number given.
#[derive(Debug, Default)]
pub(crate) struct StartNumbers(AtomicU64);

impl StartNumbers {
    /// Greater than all before, and, while the clock does not step back, than those of earlier runs of this program.
    pub(crate) fn next(&self) -> u64 {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        self.next_at(now_ms)
    }

    fn next_at(&self, now_ms: u64) -> u64 {
        let follow = |last: u64| now_ms.max(last.saturating_add(1));
        let last = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(follow(last)));
        // The update refuses no value, so that both arms hold the former number.
        let (Ok(last) | Err(last)) = last;
        follow(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_clocks_and_grows_also_within_a_millisecond_and_when_the_clock_steps_back() {
        let numbers = StartNumbers::default();
        let given: Vec<_> = [5_000, 5_000, 1_000, 5_001, 9_000]
            .map(|now_ms| numbers.next_at(now_ms))
            .into();
        assert_eq!(given, [5_000, 5_001, 5_002, 5_003, 9_000]);
    }
}
