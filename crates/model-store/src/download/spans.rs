//! Sets of byte ranges: which parts of a file are there.

use serde::{Deserialize, Serialize};

/// Ranges `start..end`, sorted, none empty, none touching another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(super) struct Spans(Vec<(u64, u64)>);

impl From<Vec<(u64, u64)>> for Spans {
    fn from(pairs: Vec<(u64, u64)>) -> Self {
        let mut spans = Self::default();
        for (start, end) in pairs {
            spans.insert(start, end);
        }
        spans
    }
}

impl From<Spans> for Vec<(u64, u64)> {
    fn from(spans: Spans) -> Self {
        spans.0
    }
}

impl Spans {
    /// Adds a range; an empty one adds nothing.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|&(_, e)| e < start);
        let last = self.0.partition_point(|&(s, _)| s <= end);
        let (mut start, mut end) = (start, end);
        if first < last {
            start = start.min(self.0[first].0);
            end = end.max(self.0[last - 1].1);
        }
        self.0.splice(first..last, [(start, end)]);
    }

    /// Forgets everything from `end` on.
    pub(super) fn truncate(&mut self, end: u64) {
        self.0.retain(|&(s, _)| s < end);
        if let Some(last) = self.0.last_mut() {
            last.1 = last.1.min(end);
        }
    }

    /// Bytes in all ranges.
    pub(super) fn sum(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// How far everything from 0 on is there.
    pub(super) fn front(&self) -> u64 {
        self.0.first().filter(|span| span.0 == 0).map_or(0, |span| span.1)
    }

    /// End of the last range.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |span| span.1)
    }

    /// The first range that is missing below `limit`, cut to `most` bytes.
    pub(super) fn gap(&self, limit: u64, most: u64) -> Option<(u64, u64)> {
        let start = self.front();
        let next = self.0.iter().map(|span| span.0).find(|&s| s > start);
        let end = next.unwrap_or(limit).min(limit).min(start.saturating_add(most));
        (start < end).then_some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_damaged_list_of_ranges_becomes_a_proper_one() {
        let spans: Spans = serde_json::from_str("[[30, 40], [9, 3], [0, 10], [10, 12], [35, 50]]").unwrap();
        assert_eq!(spans, Spans(vec![(0, 12), (30, 50)]));
        assert_eq!((spans.front(), spans.end(), spans.sum()), (12, 50, 32));
        assert_eq!(spans.gap(100, 10), Some((12, 22)));
        assert_eq!(spans.gap(20, 99), Some((12, 20)));
        assert_eq!(serde_json::to_string(&spans).unwrap(), "[[0,12],[30,50]]");
    }

    proptest! {
        #[test]
        fn they_behave_like_a_set_of_bytes(pairs in vec((0_u64..60, 0_u64..60), 0..20), cut in 0_u64..70) {
            let mut spans = Spans::from(pairs.clone());
            let mut bytes = [false; 60];
            for (start, end) in pairs {
                (start..end).for_each(|byte| bytes[byte as usize] = true);
            }
            spans.truncate(cut);
            bytes.iter_mut().skip(cut as usize).for_each(|byte| *byte = false);
            prop_assert_eq!(spans.sum(), bytes.iter().filter(|there| **there).count() as u64);
            let front = bytes.iter().take_while(|there| **there).count();
            prop_assert_eq!(spans.front(), front as u64);
            prop_assert_eq!(spans.end(), bytes.iter().rposition(|there| *there).map_or(0, |last| last as u64 + 1));
            let gap = bytes[front..].iter().take_while(|there| !**there).count();
            prop_assert_eq!(spans.gap(60, 7), (gap > 0).then(|| (front as u64, (front + gap.min(7)) as u64)));
            prop_assert!(spans.0.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }

        #[test]
        fn filling_every_gap_ends_with_the_whole(pairs in vec((0_u64..99, 0_u64..99), 0..9), most in 1_u64..20) {
            let mut spans = Spans::from(pairs);
            while let Some((start, end)) = spans.gap(100, most) {
                prop_assert!(end - start <= most);
                spans.insert(start, end);
            }
            prop_assert_eq!(spans.front(), 100);
        }
    }
}
