//! What one unit's queries get from one segment of tokens.

use std::ops::Range;

use half::f16;

use super::plan::{SEGMENT_TOKENS, Unit};
use super::softmax::{Weights, weigh};
use super::step::Step;
use super::tile::{PANEL_LEN, PANEL_ROWS, PANEL_STRIDE, Product, multiply};
use super::vector::{Portable, Vector};
use crate::kv::BLOCK_TOKENS;
use crate::level::Level;

/// Elements of a panel.
const PANEL: usize = PANEL_ROWS * PANEL_STRIDE;
const _: () = assert!(
    SEGMENT_TOKENS <= PANEL_LEN && SEGMENT_TOKENS.is_multiple_of(BLOCK_TOKENS),
    "a segment is whole blocks, and its scores fit a panel's row"
);

/// Elements that a worker needs as `panels`.
pub(super) fn panels_len(head_dim: usize) -> usize {
    PANEL * (1 + head_dim.div_ceil(PANEL_LEN))
}

/// A unit, a segment, and where the result goes.
pub(super) struct Segment<'a> {
    pub(super) step: &'a Step<'a>,
    pub(super) unit: &'a Unit,
    /// The segment's number.
    pub(super) segment: usize,
    /// Working memory: the scores' panel, then the queries', 256 elements of their heads in each.
    pub(super) panels: &'a mut [f32],
    /// What will be read after this segment.
    pub(super) ahead: *const f16,
    /// Per query row.
    pub(super) weights: &'a mut [Weights],
    /// Per query row, the sum of the values times their weights; of rows that see nothing here it is left as it was.
    pub(super) mixed: &'a mut [f32],
}

impl Segment<'_> {
    /// Attends. Nobody must be writing the queries or the cache.
    pub(super) fn attend(&mut self) {
        match self.step.level {
            // SAFETY: a level is only ever held by `Kernels`, which has asked the processor for it.
            #[cfg(target_arch = "x86_64")]
            Level::Amx | Level::Avx512 => unsafe { self.avx512() },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni | Level::Avx2 => unsafe { self.avx2() },
            // SAFETY: there is nothing to ask for.
            _ => unsafe { self.run::<Portable>() },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn avx512(&mut self) {
        // SAFETY: this function enables the instruction set.
        unsafe { self.run::<std::arch::x86_64::__m512>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2(&mut self) {
        // SAFETY: this function enables the instruction set.
        unsafe { self.run::<std::arch::x86_64::__m256>() }
    }

    /// # Safety
    /// The processor has V's instruction set, which the calling function enables.
    #[inline(always)]
    unsafe fn run<V: Vector>(&mut self) {
        let queries = self.weights.len();
        for first in (0..queries).step_by(PANEL_ROWS) {
            let rows = first..(first + PANEL_ROWS).min(queries);
            // Later queries see later tokens.
            let seen = self.seen(rows.start).start..self.seen(rows.end - 1).end;
            if seen.is_empty() {
                self.weights[rows].fill(Weights::NONE);
                continue;
            }
            self.pack(rows.clone());
            // SAFETY: the caller vouches for the instruction set.
            unsafe {
                self.score::<V>(rows.len(), &seen);
                self.weigh::<V>(rows.clone(), &seen);
                self.mix::<V>(rows, &seen);
            }
        }
    }

    /// The tokens of this segment that a query row sees, counted from the segment's first.
    #[inline(always)]
    fn seen(&self, query: usize) -> Range<usize> {
        let start = self.segment * SEGMENT_TOKENS;
        let inside = |token: usize| token.clamp(start, start + SEGMENT_TOKENS) - start;
        let seen = self
            .step
            .shape
            .seen(self.step.position(self.unit, query / self.step.group()));
        inside(seen.start)..inside(seen.end)
    }

    /// Puts the scaled queries into their panels.
    #[inline(always)]
    fn pack(&mut self, rows: Range<usize>) {
        // A copy on the stack, which the panels cannot overlap, so that the loop becomes vector code.
        let scale = self.step.shape.scale;
        let panels = self.panels[PANEL..].chunks_exact_mut(PANEL);
        for (panel, first) in panels.zip((0..self.step.cache.layout.head_dim).step_by(PANEL_LEN)) {
            for (to, query) in panel.chunks_exact_mut(PANEL_STRIDE).zip(rows.clone()) {
                let from = &self.step.query(self.unit, query)[first..];
                for (to, from) in to[..PANEL_LEN].iter_mut().zip(from) {
                    *to = from * scale;
                }
            }
        }
    }

    /// Scores of the packed queries for all blocks that have one of the tokens in `seen`.
    ///
    /// # Safety
    /// As [`Segment::run`].
    #[inline(always)]
    unsafe fn score<V: Vector>(&mut self, rows: usize, seen: &Range<usize>) {
        let (step, unit, segment) = (self.step, self.unit, self.segment);
        let dim = step.cache.layout.head_dim;
        let (scores, queries) = self.panels.split_at_mut(PANEL);
        let range = blocks(seen);
        for block in range.clone() {
            let keys = step.cache.keys(cache_block(step, unit, segment, block), unit.kv_head);
            let next = if block + 1 < range.end {
                step.cache
                    .keys(cache_block(step, unit, segment, block + 1), unit.kv_head)
            } else {
                step.cache
                    .values(cache_block(step, unit, segment, range.start), unit.kv_head)
            };
            for (panel, first) in queries.chunks_exact(PANEL).zip((0..dim).step_by(PANEL_LEN)) {
                let k = PANEL_LEN.min(dim - first);
                let product = Product {
                    a: panel.as_ptr(),
                    rows,
                    // SAFETY: rows `first..first + k` of the block's keys.
                    b: unsafe { keys.add(first * BLOCK_TOKENS) },
                    b_stride: BLOCK_TOKENS,
                    k,
                    // SAFETY: a block of the segment is inside of a panel's row.
                    c: unsafe { scores.as_mut_ptr().add(block * BLOCK_TOKENS) },
                    c_stride: PANEL_STRIDE,
                    cols: BLOCK_TOKENS,
                    ahead: next.wrapping_add(first * BLOCK_TOKENS),
                    accumulate: first > 0,
                };
                // SAFETY: the caller vouches for the instruction set; the panels have `PANEL_ROWS` rows, the scores'
                // is ours, and nobody writes the cache while queries attend.
                unsafe { multiply::<V>(&product) };
            }
        }
    }

    /// Turns the scores into weights.
    #[inline(always)]
    fn weigh<V: Vector>(&mut self, rows: Range<usize>, seen: &Range<usize>) {
        let blocks = blocks(seen);
        let tokens = blocks.start * BLOCK_TOKENS..blocks.end * BLOCK_TOKENS;
        for (row, query) in rows.enumerate() {
            let seen = self.seen(query);
            let seen = seen.start.clamp(tokens.start, tokens.end)..seen.end.clamp(tokens.start, tokens.end);
            let scores = &mut self.panels[row * PANEL_STRIDE..][tokens.clone()];
            let (scores, _) = scores.as_chunks_mut();
            let seen = seen.start - tokens.start..seen.end - tokens.start;
            let softcap = self.step.shape.softcap;
            self.weights[query] = if V::FUSED {
                weigh::<true>(scores, seen, softcap)
            } else {
                weigh::<false>(scores, seen, softcap)
            };
        }
    }

    /// Adds up the values by their weights.
    ///
    /// # Safety
    /// As [`Segment::run`].
    #[inline(always)]
    unsafe fn mix<V: Vector>(&mut self, rows: Range<usize>, seen: &Range<usize>) {
        let (step, unit, segment) = (self.step, self.unit, self.segment);
        let stride = step.cache.layout.value_stride;
        let mixed = &mut self.mixed[rows.start * stride..rows.end * stride];
        let mixed = mixed.as_mut_ptr();
        let range = blocks(seen);
        for block in range.clone() {
            let values = step.cache.values(cache_block(step, unit, segment, block), unit.kv_head);
            let next = if block + 1 < range.end {
                step.cache
                    .values(cache_block(step, unit, segment, block + 1), unit.kv_head)
            } else {
                self.ahead
            };
            // Only what has been written: memory of tokens to come may hold another sequence's.
            let start = block * BLOCK_TOKENS;
            let (low, high) = (seen.start.max(start), seen.end.min(start + BLOCK_TOKENS));
            let product = Product {
                // SAFETY: a token of the segment is inside of a panel's row.
                a: unsafe { self.panels.as_ptr().add(low) },
                rows: rows.len(),
                // SAFETY: a token of the block.
                b: unsafe { values.add((low - start) * stride) },
                b_stride: stride,
                k: high - low,
                c: mixed,
                c_stride: stride,
                cols: stride,
                ahead: next,
                accumulate: start > seen.start,
            };
            // SAFETY: the caller vouches for the instruction set; the rows of `mixed` are ours and checked above, and
            // nobody writes the cache while queries attend.
            unsafe { multiply::<V>(&product) };
        }
    }
}

/// The cache's block that is the segment's `block`-th.
#[inline(always)]
fn cache_block(step: &Step<'_>, unit: &Unit, segment: usize, block: usize) -> u32 {
    step.spans[unit.span].blocks[segment * (SEGMENT_TOKENS / BLOCK_TOKENS) + block]
}

/// The blocks that have one of the tokens.
#[inline(always)]
fn blocks(tokens: &Range<usize>) -> Range<usize> {
    tokens.start / BLOCK_TOKENS..tokens.end.div_ceil(BLOCK_TOKENS)
}
