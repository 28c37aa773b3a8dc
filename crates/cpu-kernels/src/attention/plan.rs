//! How a step's attention is cut into tasks.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use super::{AttentionShape, Span};

/// Tokens that are attended to in one go. A segment begins at a multiple of this, whatever the row, so that how a row's
/// result is put together depends on nothing but its position.
pub(super) const SEGMENT_TOKENS: usize = 256;
/// Query rows (rows times query heads of one key head) that one unit aims at: so often are keys and values used that
/// are read from memory once.
const UNIT_QUERIES: usize = 48;
/// A unit is cut by segments when it is more than this part of a thread's share.
const EVEN_SHARE: usize = 8;

/// A few rows of one span and one key head, which one task or several attend for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) span: usize,
    pub(super) kv_head: usize,
    /// The first row, counted in the span.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Positions of the tokens that any of the rows sees.
    pub(super) tokens: Range<usize>,
    /// Where the segments' results begin, in query rows, if the unit is cut.
    pub(super) partials: usize,
    /// How many of its segments are to be done, if the unit is cut.
    pub(super) pending: usize,
}

impl Unit {
    /// The segments that any of the rows sees into.
    pub(super) fn segments(&self) -> Range<usize> {
        self.tokens.start / SEGMENT_TOKENS..self.tokens.end.div_ceil(SEGMENT_TOKENS)
    }

    fn cost(&self) -> usize {
        self.rows * self.tokens.len()
    }
}

/// A task of the second phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) unit: usize,
    /// The one segment that it is about, if the unit is cut.
    pub(super) segment: Option<usize>,
    cost: usize,
}

/// A step's units and tasks, and the memory to keep them in from step to step.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In order of spans, then rows, then key heads.
    pub(super) units: Vec<Unit>,
    /// The dearest first, so that the last ones to run are small.
    pub(super) tasks: Vec<Task>,
    /// Query rows of all cut units' segments' results.
    pub(super) partials: usize,
    /// Query rows of the largest unit.
    pub(super) most_queries: usize,
    /// Per cut unit, how many of its segments are still to be done.
    pub(super) pending: Vec<AtomicUsize>,
}

impl Plan {
    /// Tokens seen, summed over all units' rows, at most.
    pub(super) fn row_tokens(&self) -> usize {
        self.units.iter().map(Unit::cost).sum()
    }

    /// Plans a step for `threads` threads.
    pub(super) fn make(&mut self, shape: &AttentionShape<'_>, spans: &[Span<'_>], threads: usize) {
        self.units.clear();
        self.tasks.clear();
        self.pending.clear();
        self.partials = 0;
        self.most_queries = 0;
        let group = shape.heads / shape.kv_heads;
        let most = (UNIT_QUERIES / group).max(1);
        for (index, span) in spans.iter().enumerate() {
            for first in (0..span.rows).step_by(most) {
                let rows = most.min(span.rows - first);
                let (low, high) = (span.position + first, span.position + first + rows);
                let tokens = shape.seen(low).start..high;
                self.most_queries = self.most_queries.max(rows * group);
                self.units.extend((0..shape.kv_heads).map(|kv_head| Unit {
                    span: index,
                    kv_head,
                    first,
                    rows,
                    tokens: tokens.clone(),
                    partials: 0,
                    pending: 0,
                }));
            }
        }
        let share = self.units.iter().map(Unit::cost).sum::<usize>() / threads;
        for (index, unit) in self.units.iter_mut().enumerate() {
            let segments = unit.segments();
            if threads > 1 && segments.len() > 1 && unit.cost() > share / EVEN_SHARE {
                unit.partials = self.partials;
                unit.pending = self.pending.len();
                self.partials += segments.len() * unit.rows * group;
                self.pending.push(AtomicUsize::new(segments.len()));
                self.tasks.extend(segments.map(|segment| Task {
                    unit: index,
                    segment: Some(segment),
                    cost: unit.rows * SEGMENT_TOKENS,
                }));
            } else {
                self.tasks.push(Task {
                    unit: index,
                    segment: None,
                    cost: unit.cost(),
                });
            }
        }
        self.tasks
            .sort_unstable_by_key(|task| (Reverse(task.cost), task.unit, task.segment));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::rope::RopeStyle;

    fn shape(window: Option<usize>) -> AttentionShape<'static> {
        AttentionShape {
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            scale: 1.0,
            window,
            softcap: None,
            query_norm: None,
            key_norm: None,
            style: RopeStyle::Halves,
        }
    }

    fn plan(window: Option<usize>, spans: &[(usize, usize)], threads: usize) -> Plan {
        let spans: Vec<Span<'_>> = spans
            .iter()
            .map(|&(position, rows)| Span {
                first: 0,
                rows,
                position,
                blocks: &[],
            })
            .collect();
        let mut plan = Plan::default();
        plan.make(&shape(window), &spans, threads);
        plan
    }

    #[test]
    fn units_cover_each_row_of_each_span_once_for_each_key_head() {
        let spans = [(0, 100), (5, 1), (700, 17)];
        let plan = plan(None, &spans, 2);
        for (index, &(position, rows)) in spans.iter().enumerate() {
            for kv_head in 0..3 {
                let mut next = 0;
                for unit in plan
                    .units
                    .iter()
                    .filter(|unit| unit.span == index && unit.kv_head == kv_head)
                {
                    assert_eq!(unit.first, next);
                    next += unit.rows;
                    assert_eq!(unit.tokens, 0..position + next);
                }
                assert_eq!(next, rows);
            }
        }
        assert_eq!(plan.most_queries, 48);
    }

    #[test]
    fn each_unit_is_attended_for_whole_or_in_all_its_segments() {
        let plan = plan(Some(700), &[(3000, 1), (0, 400), (10, 1)], 2);
        for (index, unit) in plan.units.iter().enumerate() {
            let mut segments: Vec<_> = plan
                .tasks
                .iter()
                .filter(|task| task.unit == index)
                .map(|task| task.segment)
                .collect();
            segments.sort_unstable();
            assert!(segments == [None] || segments == unit.segments().map(Some).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_long_context_of_few_rows_is_cut_by_segments_where_there_are_threads_to_share_it() {
        let cut = plan(None, &[(2047, 1)], 2);
        assert_eq!(cut.tasks.len(), 3 * 8);
        assert_eq!(cut.partials, 3 * 8 * 3);
        assert!(cut.pending.iter().all(|pending| pending.load(Ordering::Relaxed) == 8) && cut.pending.len() == 3);
        assert_eq!(plan(None, &[(2047, 1)], 1).tasks.len(), 3);
        assert_eq!(plan(None, &[(200, 1)], 2).tasks.len(), 3);
    }

    #[test]
    fn what_is_even_enough_is_not_cut() {
        assert_eq!(plan(None, &[(0, 512)], 2).tasks.len(), 3 * 32);
        assert_eq!(plan(None, &[(2047, 1); 16], 2).tasks.len(), 3 * 16);
    }

    #[test]
    fn the_dearest_tasks_come_first() {
        let plan = plan(None, &[(0, 512)], 2);
        assert!(plan.tasks.is_sorted_by_key(|task| Reverse(task.cost)));
    }

    #[test]
    fn segments_outside_of_the_window_are_left_out() {
        let plan = plan(Some(300), &[(2047, 1)], 1);
        assert_eq!(plan.units[0].tokens, 1748..2048);
        assert_eq!(plan.units[0].segments(), 6..8);
    }
}
