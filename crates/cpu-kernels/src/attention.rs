//! Causal attention of a step's rows over their sequences' cached keys and values.
//!
//! The tokens of a sequence are cut into segments of fixed positions. Within a segment a row has its own largest score,
//! sum of weights and mixed values; segments are put together in order of position. Whoever computes a segment, beside
//! which other rows, in whatever blocks it lies: a row's result is the same bits.
//!
//! `plan` cuts a step into tasks, `step` runs them, `segment` does one segment for some rows by the products of `tile`
//! and the arithmetic of `softmax`.

mod plan;
mod segment;
mod softmax;
mod step;
mod tile;
mod vector;

#[cfg(test)]
mod tests;

use std::ops::Range;

use plan::Plan;
use softmax::Weights;
use step::Step;

use crate::kv::BLOCK_TOKENS;
use crate::rope::{RopeStyle, RopeTable};
use crate::shared::SharedOut;
use crate::{Kernels, KvCache, RmsNorm};

/// Elements to norm, turn and store below which a dispatch costs more than it saves.
const WORTH_SHARING_ELEMENTS: usize = 16 * 1024;
/// Multiply-adds below which a dispatch costs more than it saves.
const WORTH_SHARING_PRODUCTS: usize = 128 * 1024;

/// Consecutive rows of a step that belong to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The first of the step's rows.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// The sequence's blocks in order of position, enough for `position + rows` tokens.
    pub blocks: &'a [u32],
}

/// What the rows of a step have in common.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape<'a> {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Tokens that a token sees, itself included, so at least 1; `None`: all before it.
    pub window: Option<usize>,
    /// `s = cap * tanh(s / cap)` for each scaled score.
    pub softcap: Option<f32>,
    /// Norm of each query head before it is turned.
    pub query_norm: Option<RmsNorm<'a>>,
    /// Norm of each key head before it is turned.
    pub key_norm: Option<RmsNorm<'a>>,
    /// Which elements are turned together.
    pub style: RopeStyle,
}

impl AttentionShape<'_> {
    /// The positions that a position sees.
    #[inline(always)]
    fn seen(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// The projections of a step's rows.
#[derive(Debug)]
pub struct Qkv<'a> {
    /// `[rows][heads * head_dim]`; normed and turned in place.
    pub q: &'a mut [f32],
    /// `[rows][kv_heads * head_dim]`; normed and turned in place.
    pub k: &'a mut [f32],
    /// `[rows][kv_heads * head_dim]`
    pub v: &'a [f32],
}

/// Working memory that is kept from step to step.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    plan: Plan,
    written: Vec<u32>,
    weights: Vec<Weights>,
    mixed: Vec<f32>,
    panels: Vec<f32>,
}

impl Kernels {
    /// Attention: norms queries and keys per head if the shape asks for it, turns them by `rope` (a row of it for each
    /// row of the step), writes keys and values into the cache, then lets each row attend to its sequence up to itself.
    /// Results go to `out`, `[rows][heads * head_dim]`; rows in no span are left alone.
    ///
    /// # Panics
    /// Slices, spans, rope or cache do not fit the shape; spans are not in order of their rows or share some; a block
    /// is not in the cache, or would be written by two spans.
    #[expect(clippy::too_many_arguments, reason = "each is a different thing, and all are needed")]
    pub fn attend(
        &self,
        shape: &AttentionShape<'_>,
        rope: &RopeTable,
        qkv: Qkv<'_>,
        cache: &mut KvCache,
        spans: &[Span<'_>],
        scratch: &mut AttentionScratch,
        out: &mut [f32],
    ) {
        check(shape, rope, &qkv, cache, out);
        check_spans(spans, rope.rows(), cache, &mut scratch.written);
        let Qkv { q, k, v } = qkv;
        let AttentionScratch {
            plan,
            weights,
            mixed,
            panels,
            ..
        } = scratch;
        let threads = self.pool.threads();
        plan.make(shape, spans, threads);
        let cache = cache.share();
        let panels_len = segment::panels_len(shape.head_dim);
        let query_rows = plan.partials + threads * 2 * plan.most_queries;
        grow(weights, query_rows, Weights::NONE);
        grow(mixed, query_rows * cache.layout.value_stride, 0.0);
        grow(panels, threads * panels_len, 0.0);
        let elements = q.len() + 2 * k.len();
        let step = Step {
            level: self.level,
            shape,
            rope,
            spans,
            plan,
            cache,
            q: SharedOut::new(q),
            k: SharedOut::new(k),
            v,
            out: SharedOut::new(out),
            weights: SharedOut::new(weights),
            mixed: SharedOut::new(mixed),
            panels: SharedOut::new(panels),
            panels_len,
        };
        // The units of all key heads follow each other; one stands for their rows.
        let rows = plan.units.len() / shape.kv_heads;
        self.each(elements >= WORTH_SHARING_ELEMENTS, rows, &|_worker, rows| {
            step.prepare(&plan.units[rows * shape.kv_heads]);
        });
        let products = 2 * shape.head_dim * (shape.heads / shape.kv_heads) * plan.row_tokens();
        self.each(products >= WORTH_SHARING_PRODUCTS, plan.tasks.len(), &|worker, task| {
            step.attend(worker, &plan.tasks[task]);
        });
    }

    /// Runs tasks on all threads, or here.
    fn each(&self, shared: bool, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if shared {
            self.pool.for_each_on(tasks, work);
        } else {
            (0..tasks).for_each(|task| work(0, task));
        }
    }
}

fn grow<T: Clone>(memory: &mut Vec<T>, len: usize, value: T) {
    if memory.len() < len {
        memory.resize(len, value);
    }
}

fn check(shape: &AttentionShape<'_>, rope: &RopeTable, qkv: &Qkv<'_>, cache: &KvCache, out: &[f32]) {
    let &AttentionShape {
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    assert!(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "query heads share key heads evenly"
    );
    assert!(
        head_dim > 0 && head_dim.is_multiple_of(2),
        "a head has pairs of elements"
    );
    assert!(shape.window != Some(0), "a row sees itself");
    assert_eq!(
        (cache.kv_heads(), cache.head_dim()),
        (kv_heads, head_dim),
        "the cache has the shape's key heads"
    );
    let (queries, keys) = (rope.rows() * heads * head_dim, rope.rows() * kv_heads * head_dim);
    assert_eq!(
        (qkv.q.len(), out.len()),
        (queries, queries),
        "a query and a result for each row"
    );
    assert_eq!(
        (qkv.k.len(), qkv.v.len()),
        (keys, keys),
        "a key and a value for each row"
    );
    assert!(2 * rope.pairs() <= head_dim, "rope turns no more than a head");
    for norm in [shape.query_norm, shape.key_norm].into_iter().flatten() {
        assert_eq!(
            norm.weights.len(),
            head_dim,
            "a norm has a weight for each element of a head"
        );
    }
}

/// Checks what keeps tasks out of each other's way: spans share neither rows nor blocks that are written.
fn check_spans(spans: &[Span<'_>], rows: usize, cache: &KvCache, written: &mut Vec<u32>) {
    written.clear();
    let mut free = 0;
    for span in spans {
        assert!(
            span.first >= free && span.rows <= rows - span.first.min(rows),
            "spans have rows of their own"
        );
        free = span.first + span.rows;
        let end = span.position + span.rows;
        assert!(
            end.div_ceil(BLOCK_TOKENS) <= span.blocks.len(),
            "a span has blocks for its tokens"
        );
        let blocks = &span.blocks[..end.div_ceil(BLOCK_TOKENS)];
        if span.rows > 0 {
            written.extend(&blocks[span.position / BLOCK_TOKENS..]);
        }
    }
    written.sort_unstable();
    assert!(
        written.last().is_none_or(|&block| (block as usize) < cache.blocks()),
        "the blocks are the cache's"
    );
    assert!(
        written.is_sorted_by(|a, b| a < b),
        "a block is written by one span, as one place of it"
    );
}
