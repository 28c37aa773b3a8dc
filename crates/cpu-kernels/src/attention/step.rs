//! A step's two phases, by units and tasks that run on any thread.

use std::sync::atomic::Ordering;
use std::{ptr, slice};

use super::plan::{Plan, SEGMENT_TOKENS, Task, Unit};
use super::segment::Segment;
use super::softmax::{Weights, merge};
use super::{AttentionShape, Span};
use crate::RmsNorm;
use crate::elementwise::{leveled, rms_norm_in_place};
use crate::kv::{BLOCK_TOKENS, SharedCache};
use crate::level::Level;
use crate::rope::{RopeStyle, RopeTable, turn};
use crate::shared::SharedOut;

/// What all tasks of a step see.
pub(super) struct Step<'a> {
    pub(super) level: Level,
    pub(super) shape: &'a AttentionShape<'a>,
    pub(super) rope: &'a RopeTable,
    pub(super) spans: &'a [Span<'a>],
    pub(super) plan: &'a Plan,
    pub(super) cache: SharedCache<'a>,
    /// `[rows][heads * head_dim]`; written in the first phase, each call its own rows, and only read in the second.
    pub(super) q: SharedOut<'a, f32>,
    /// `[rows][kv_heads * head_dim]`; used in the first phase only, each call its own rows.
    pub(super) k: SharedOut<'a, f32>,
    pub(super) v: &'a [f32],
    /// As `q`; each unit's rows and heads are written once, in the second phase.
    pub(super) out: SharedOut<'a, f32>,
    /// Results of segments, in query rows: the cut units' first, then for each worker two times `plan.most_queries`.
    pub(super) weights: SharedOut<'a, Weights>,
    /// For each of them the mixed values.
    pub(super) mixed: SharedOut<'a, f32>,
    /// Per worker, as many elements as a segment needs.
    pub(super) panels: SharedOut<'a, f32>,
    pub(super) panels_len: usize,
}

/// Results for some query rows.
struct Results<'a> {
    weights: &'a mut [Weights],
    mixed: &'a mut [f32],
}

leveled! {
    /// Norm and turn of each head of a row.
    fn prepare_heads(
        heads: &mut [f32],
        head_dim: usize,
        norm: Option<RmsNorm<'_>>,
        angles: (&[f32], &[f32]),
        style: RopeStyle,
    ) {
        for head in heads.chunks_exact_mut(head_dim) {
            if let Some(norm) = norm {
                rms_norm_in_place(head, norm);
            }
            turn(head, angles, style);
        }
    }
}

leveled! {
    fn divide(out: &mut [f32], mixed: &[f32], sum: f32) {
        for (out, mixed) in out.iter_mut().zip(mixed) {
            *out = mixed / sum;
        }
    }
}

impl Step<'_> {
    /// Query heads of one key head.
    #[inline(always)]
    pub(super) fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// The position of a unit's row.
    #[inline(always)]
    pub(super) fn position(&self, unit: &Unit, row: usize) -> usize {
        self.spans[unit.span].position + unit.first + row
    }

    /// Where a query of a unit lies in `q` and `out`.
    #[inline(always)]
    fn query_offset(&self, unit: &Unit, query: usize) -> usize {
        let group = self.group();
        let row = self.spans[unit.span].first + unit.first + query / group;
        (row * self.shape.heads + unit.kv_head * group + query % group) * self.shape.head_dim
    }

    /// A query, in the second phase.
    #[inline(always)]
    pub(super) fn query(&self, unit: &Unit, query: usize) -> &[f32] {
        let dim = self.shape.head_dim;
        // SAFETY: `window` checks the bounds, and in the second phase nobody writes the queries.
        unsafe { slice::from_raw_parts(self.q.window(self.query_offset(unit, query), dim), dim) }
    }

    /// The first phase: norms and turns the queries and keys of a unit's rows, for all heads, and writes keys and values
    /// into the cache. To be called for one of the units that share the rows.
    pub(super) fn prepare(&self, unit: &Unit) {
        let shape = self.shape;
        let (dim, width, kv_width) = (
            shape.head_dim,
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        let span = &self.spans[unit.span];
        for row in 0..unit.rows {
            let step_row = span.first + unit.first + row;
            let angles = self.rope.row(step_row);
            // SAFETY: `window` checks the bounds; spans share no rows, so this call alone uses this one.
            let (queries, keys) = unsafe {
                (
                    slice::from_raw_parts_mut(self.q.window(step_row * width, width), width),
                    slice::from_raw_parts_mut(self.k.window(step_row * kv_width, kv_width), kv_width),
                )
            };
            prepare_heads(self.level, queries, dim, shape.query_norm, angles, shape.style);
            prepare_heads(self.level, keys, dim, shape.key_norm, angles, shape.style);
            let position = self.position(unit, row);
            let (block, token) = (span.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            let values = &self.v[step_row * kv_width..][..kv_width];
            let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
            for (kv_head, (key, value)) in heads.enumerate() {
                // SAFETY: spans share no blocks that are written, so this call alone uses this token.
                unsafe { self.cache.write(block, token, kv_head, key, value) };
            }
        }
    }

    /// The second phase: attends for a unit, or for one segment of it.
    pub(super) fn attend(&self, worker: usize, task: &Task) {
        let unit = &self.plan.units[task.unit];
        let queries = unit.rows * self.group();
        let own = self.plan.partials + worker * 2 * self.plan.most_queries;
        // SAFETY: a worker runs one task at a time, and the partial results end where the workers' begin.
        let (mut so_far, local) = unsafe { (self.results(own, queries), self.results(own + queries, queries)) };
        so_far.weights.fill(Weights::NONE);
        let segments = unit.segments();
        if let Some(segment) = task.segment {
            let place = |segment: usize| unit.partials + (segment - segments.start) * queries;
            // SAFETY: this task alone has this segment of this unit, and nobody reads it before all are done.
            self.attend_segment(worker, unit, segment, &mut unsafe {
                self.results(place(segment), queries)
            });
            if self.plan.pending[unit.pending].fetch_sub(1, Ordering::AcqRel) > 1 {
                return;
            }
            for segment in segments.clone() {
                // SAFETY: all segments are done, and who has seen that is the only one left.
                self.merge(&mut so_far, &unsafe { self.results(place(segment), queries) });
            }
        } else {
            let mut local = local;
            for segment in segments {
                self.attend_segment(worker, unit, segment, &mut local);
                self.merge(&mut so_far, &local);
            }
        }
        self.finish(unit, &so_far);
    }

    /// # Safety
    /// While they are used, nobody else uses the results of these query rows.
    unsafe fn results(&self, first: usize, queries: usize) -> Results<'_> {
        let stride = self.cache.layout.value_stride;
        // SAFETY: `window` checks the bounds; the rest is the caller's to vouch for.
        unsafe {
            Results {
                weights: slice::from_raw_parts_mut(self.weights.window(first, queries), queries),
                mixed: slice::from_raw_parts_mut(self.mixed.window(first * stride, queries * stride), queries * stride),
            }
        }
    }

    fn attend_segment(&self, worker: usize, unit: &Unit, segment: usize, results: &mut Results<'_>) {
        let len = self.panels_len;
        // SAFETY: a worker runs one task at a time; `window` checks the bounds.
        let panels = unsafe { slice::from_raw_parts_mut(self.panels.window(worker * len, len), len) };
        // Of a cut unit another worker may have the next segment; then this fetches a little in vain.
        let next = (segment + 1) * SEGMENT_TOKENS;
        let ahead = if next < unit.tokens.end {
            self.cache
                .keys(self.spans[unit.span].blocks[next / BLOCK_TOKENS], unit.kv_head)
        } else {
            ptr::null()
        };
        Segment {
            step: self,
            unit,
            segment,
            panels,
            ahead,
            weights: results.weights,
            mixed: results.mixed,
        }
        .attend();
    }

    fn merge(&self, so_far: &mut Results<'_>, next: &Results<'_>) {
        let stride = self.cache.layout.value_stride;
        let mixed = so_far
            .mixed
            .chunks_exact_mut(stride)
            .zip(next.mixed.chunks_exact(stride));
        let weights = so_far.weights.iter_mut().zip(next.weights.iter());
        for ((so_far, next), (mixed, next_mixed)) in weights.zip(mixed) {
            merge(self.level, so_far, mixed, *next, next_mixed);
        }
    }

    /// Writes a unit's results out.
    fn finish(&self, unit: &Unit, results: &Results<'_>) {
        let dim = self.shape.head_dim;
        let mixed = results.mixed.chunks_exact(self.cache.layout.value_stride);
        for (query, (weights, mixed)) in results.weights.iter().zip(mixed).enumerate() {
            // SAFETY: `window` checks the bounds; this unit is finished once, and nobody else has its rows and heads.
            let out = unsafe { slice::from_raw_parts_mut(self.out.window(self.query_offset(unit, query), dim), dim) };
            divide(self.level, out, &mixed[..dim], weights.sum);
        }
    }
}
