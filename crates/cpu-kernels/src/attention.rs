//! Causal attention of a step's rows over their sequences' KV caches.
//!
//! A cache is a list of blocks of [`BLOCK`] tokens; growing it adds a block and copies nothing. Within a block the keys
//! lie token by token and the values transposed, so that both products of attention are dot products of contiguous f16
//! rows. Softmax is streamed over the blocks: its memory does not grow with the context.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::elementwise::{exp_minus, largest};
use crate::shared::SharedOut;
use crate::tile::{Block, dot};
use crate::{Kernels, Level};

/// Tokens per cache block.
const BLOCK: usize = 256;
/// Query rows (tokens times query heads of one key head) that one task aims at.
const TASK_ROWS: usize = 32;
/// Multiply-adds below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 128 * 1024;

/// Keys and values of one sequence in one layer, as f16.
#[derive(Debug)]
pub struct KvCache {
    kv_heads: usize,
    head_dim: usize,
    blocks: Vec<CacheBlock>,
}

#[derive(Debug)]
struct CacheBlock {
    /// `[kv_heads][BLOCK][head_dim]`
    keys: Box<[f16]>,
    /// `[kv_heads][head_dim][BLOCK]`; zero where no token has been written, so that whole registers can be read.
    values: Box<[f16]>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        Self {
            kv_heads,
            head_dim,
            blocks: Vec::new(),
        }
    }

    /// Bytes that one token takes.
    pub fn bytes_per_token(kv_heads: usize, head_dim: usize) -> usize {
        2 * kv_heads * head_dim * size_of::<f16>()
    }

    /// Writes the keys and values (rows of `kv_heads * head_dim`) of the tokens from `position` on, growing as needed.
    /// Tokens must be written without gaps; writing a position again replaces it.
    ///
    /// # Panics
    /// `keys` and `values` differ in length or hold no whole rows, or `position` leaves a gap of whole blocks.
    pub fn write(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert!(
            keys.len() == values.len() && keys.len().is_multiple_of(width),
            "keys and values hold whole rows"
        );
        let rows = keys.len() / width;
        assert!(position <= self.blocks.len() * BLOCK, "tokens are written without gaps");
        let needed = (position + rows).div_ceil(BLOCK);
        while self.blocks.len() < needed {
            let empty = || vec![f16::ZERO; width * BLOCK].into_boxed_slice();
            self.blocks.push(CacheBlock {
                keys: empty(),
                values: empty(),
            });
        }
        let mut halves = vec![f16::ZERO; width];
        for (row, (keys, values)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let (block, token) = ((position + row) / BLOCK, (position + row) % BLOCK);
            let block = &mut self.blocks[block];
            for (head, keys) in keys.chunks_exact(self.head_dim).enumerate() {
                block.keys[(head * BLOCK + token) * self.head_dim..][..self.head_dim].convert_from_f32_slice(keys);
            }
            halves.convert_from_f32_slice(values);
            for (out, value) in block.values[token..].iter_mut().step_by(BLOCK).zip(&halves) {
                *out = *value;
            }
        }
    }
}

/// What the rows of a step have in common.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads; a multiple of the cache's heads.
    pub heads: usize,
    /// Factor on the scores before softmax.
    pub scale: f32,
    /// Tokens that a token sees, itself included; `None`: all before it.
    pub window: Option<usize>,
}

/// One sequence's rows: consecutive tokens that are in the cache already.
#[derive(Debug)]
pub struct AttentionJob<'a> {
    /// The sequence's cache.
    pub cache: &'a KvCache,
    /// Position of the first row.
    pub position: usize,
    /// Queries: rows of `heads * head_dim`.
    pub queries: &'a [f32],
    /// Results, the same shape.
    pub out: &'a mut [f32],
}

/// A few rows of a job, for one key head.
struct Task {
    job: usize,
    kv_head: usize,
    first: usize,
    rows: usize,
}

impl Kernels {
    /// Attention of all jobs' rows, in one parallel region.
    ///
    /// # Panics
    /// A job's slices do not fit its shape, or its tokens are not in its cache.
    pub fn attend(self, shape: &AttentionShape, jobs: &mut [AttentionJob<'_>]) {
        let mut tasks = Vec::new();
        let mut work = 0;
        for (index, job) in jobs.iter().enumerate() {
            let (kv_heads, width) = (job.cache.kv_heads, shape.heads * job.cache.head_dim);
            assert!(
                shape.heads.is_multiple_of(kv_heads),
                "query heads share key heads evenly"
            );
            assert!(
                job.queries.len() == job.out.len() && job.queries.len().is_multiple_of(width),
                "whole rows"
            );
            let rows = job.queries.len() / width;
            assert!(
                job.position + rows <= job.cache.blocks.len() * BLOCK,
                "the rows are in the cache"
            );
            let seen = shape
                .window
                .map_or(job.position + rows, |window| (job.position + rows).min(window + rows));
            work += 2 * rows * width * seen;
            let step = (TASK_ROWS * kv_heads / shape.heads).max(1);
            for first in (0..rows).step_by(step) {
                let rows = step.min(rows - first);
                tasks.extend((0..kv_heads).map(|kv_head| Task {
                    job: index,
                    kv_head,
                    first,
                    rows,
                }));
            }
        }
        let inputs: Vec<_> = jobs.iter().map(|job| (job.cache, job.position, job.queries)).collect();
        let outs: Vec<_> = jobs.iter_mut().map(|job| SharedOut::new(job.out)).collect();
        let run = |task: &Task| {
            let (cache, position, queries) = inputs[task.job];
            let stream = Stream::new(self.level, shape, cache, position, queries, task);
            stream.run(&outs[task.job]);
        };
        if work < WORTH_SHARING {
            tasks.iter().for_each(run);
        } else {
            tasks.par_iter().with_max_len(1).for_each(run);
        }
    }
}

/// Streaming softmax of one task's query rows.
struct Stream<'a> {
    level: Level,
    cache: &'a KvCache,
    kv_head: usize,
    /// Query heads per key head.
    group: usize,
    heads: usize,
    window: usize,
    /// Row of the job that the task begins with, and its position.
    first: usize,
    position: usize,
    /// `[tokens * group][head_dim]`, scaled.
    queries: Vec<f32>,
    /// Per query row: the largest score, the sum of weights, and the weighted sum of values so far.
    top: Vec<f32>,
    sum: Vec<f32>,
    mixed: Vec<f32>,
}

impl<'a> Stream<'a> {
    fn new(
        level: Level,
        shape: &AttentionShape,
        cache: &'a KvCache,
        position: usize,
        queries: &[f32],
        task: &Task,
    ) -> Self {
        let (group, dim) = (shape.heads / cache.kv_heads, cache.head_dim);
        let rows = task.rows * group;
        let mut scaled = Vec::with_capacity(rows * dim);
        for row in task.first..task.first + task.rows {
            let heads = &queries[(row * shape.heads + task.kv_head * group) * dim..][..group * dim];
            scaled.extend(heads.iter().map(|q| q * shape.scale));
        }
        Self {
            level,
            cache,
            kv_head: task.kv_head,
            group,
            heads: shape.heads,
            window: shape.window.unwrap_or(usize::MAX),
            first: task.first,
            position: position + task.first,
            queries: scaled,
            top: vec![f32::NEG_INFINITY; rows],
            sum: vec![0.0; rows],
            mixed: vec![0.0; rows * dim],
        }
    }

    /// Tokens that a query row sees.
    fn seen(&self, row: usize) -> std::ops::Range<usize> {
        let end = self.position + row / self.group + 1;
        end.saturating_sub(self.window)..end
    }

    fn run(mut self, out: &SharedOut<'_>) {
        let (rows, dim) = (self.top.len(), self.cache.head_dim);
        let (from, to) = (self.seen(0).start, self.seen(rows - 1).end);
        let mut scores = vec![0.0; rows * BLOCK];
        let mut part = vec![0.0; rows * dim];
        for block in from / BLOCK..to.div_ceil(BLOCK) {
            self.step(block, to, &mut scores, &mut part);
        }
        for (row, (mixed, sum)) in self.mixed.chunks_exact_mut(dim).zip(&self.sum).enumerate() {
            mixed.iter_mut().for_each(|value| *value /= sum);
            let token = self.first + row / self.group;
            let head = self.kv_head * self.group + row % self.group;
            // SAFETY: this task alone writes this key head's query heads of its rows; `window` checks the bounds,
            // and `mixed` is exactly as long as the window.
            unsafe {
                let to = out.window((token * self.heads + head) * dim, dim);
                std::ptr::copy_nonoverlapping(mixed.as_ptr(), to, dim);
            }
        }
    }

    /// Adds one cache block's tokens, of which those before position `end` have been written.
    fn step(&mut self, block: usize, end: usize, scores: &mut [f32], part: &mut [f32]) {
        let (rows, dim) = (self.top.len(), self.cache.head_dim);
        let start = block * BLOCK;
        let tokens = BLOCK.min(end - start);
        let data = &self.cache.blocks[block];
        let queries = Block {
            x: &self.queries,
            x_rows: rows,
            x_stride: dim,
            w: &data.keys[self.kv_head * BLOCK * dim..][..tokens * dim],
            w_rows: tokens,
            w_stride: dim,
            k: dim,
        };
        dot(self.level, &queries, scores, BLOCK);
        for row in 0..rows {
            let seen = self.seen(row);
            let low = seen.start.clamp(start, start + tokens) - start;
            let high = seen.end.clamp(start, start + tokens) - start;
            let scores = &mut scores[row * BLOCK..][..BLOCK];
            scores[..low].fill(0.0);
            scores[high..].fill(0.0);
            if low == high {
                continue;
            }
            let top = largest(self.level, &scores[low..high]).max(self.top[row]);
            // The first block of a row multiplies zeros by 0, later ones what was mixed under a smaller top.
            let fade = (self.top[row] - top).exp();
            self.sum[row] = self.sum[row] * fade + exp_minus(self.level, &mut scores[low..high], top);
            self.top[row] = top;
            self.mixed[row * dim..][..dim]
                .iter_mut()
                .for_each(|value| *value *= fade);
        }
        // Weights and values are zero beyond the tokens, so whole registers can be read.
        let values = Block {
            x: scores,
            x_rows: rows,
            x_stride: BLOCK,
            w: &data.values[self.kv_head * dim * BLOCK..][..dim * BLOCK],
            w_rows: dim,
            w_stride: BLOCK,
            k: tokens.next_multiple_of(crate::simd::MAX_LANES),
        };
        dot(self.level, &values, part, dim);
        crate::elementwise::add_to(self.level, &mut self.mixed, part);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        (0..len)
            .map(|i| (((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0) * 1.5)
            .collect()
    }

    struct Case {
        heads: usize,
        kv_heads: usize,
        dim: usize,
        window: Option<usize>,
    }

    /// Attention by its definition, in f64, on keys and values rounded to f16.
    fn plain(case: &Case, scale: f32, position: usize, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let half = |x: f32| f64::from(f16::from_f32(x).to_f32());
        let (width, kv_width, group) = (
            case.heads * case.dim,
            case.kv_heads * case.dim,
            case.heads / case.kv_heads,
        );
        let mut out = vec![0.0; queries.len()];
        for (row, query) in queries.chunks(width).enumerate() {
            let end = position + row + 1;
            let seen = end.saturating_sub(case.window.unwrap_or(usize::MAX))..end;
            for head in 0..case.heads {
                let query = &query[head * case.dim..][..case.dim];
                let at = |token: usize, d: usize| token * kv_width + head / group * case.dim + d;
                let scores: Vec<f64> = seen
                    .clone()
                    .map(|t| {
                        (0..case.dim)
                            .map(|d| f64::from(query[d]) * half(keys[at(t, d)]))
                            .sum::<f64>()
                    })
                    .map(|score| (score * f64::from(scale)).exp())
                    .collect();
                let sum: f64 = scores.iter().sum();
                for d in 0..case.dim {
                    out[row * width + head * case.dim + d] = seen
                        .clone()
                        .zip(&scores)
                        .map(|(t, s)| s * half(values[at(t, d)]))
                        .sum::<f64>()
                        / sum;
                }
            }
        }
        out
    }

    /// Feeds `tokens` in steps of the given sizes and returns all rows' results.
    fn run(kernels: Kernels, case: &Case, scale: f32, steps: &[usize], q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (width, kv_width) = (case.heads * case.dim, case.kv_heads * case.dim);
        let mut cache = KvCache::new(case.kv_heads, case.dim);
        let mut out = vec![f32::NAN; q.len()];
        let mut position = 0;
        for &rows in steps {
            let kv = position * kv_width..(position + rows) * kv_width;
            cache.write(position, &k[kv.clone()], &v[kv]);
            let range = position * width..(position + rows) * width;
            let shape = AttentionShape {
                heads: case.heads,
                scale,
                window: case.window,
            };
            let job = AttentionJob {
                cache: &cache,
                position,
                queries: &q[range.clone()],
                out: &mut out[range],
            };
            kernels.attend(&shape, &mut [job]);
            position += rows;
        }
        out
    }

    fn kernels() -> impl Iterator<Item = Kernels> {
        Level::ALL
            .into_iter()
            .filter_map(|level| Kernels::with_level(level).ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn streaming_over_blocks_equals_the_definition(
            shape in prop::sample::select(vec![(1, 1, 8), (6, 2, 20), (4, 1, 64), (3, 3, 16)]),
            tokens in 1usize..600, window in prop::option::of(1usize..400), seed in 0usize..1000,
        ) {
            let (heads, kv_heads, dim) = shape;
            let case = Case { heads, kv_heads, dim, window };
            let q = noise(tokens * heads * dim, seed);
            let k = noise(tokens * kv_heads * dim, seed + 1);
            let v = noise(tokens * kv_heads * dim, seed + 2);
            let truth = plain(&case, 0.25, 0, &q, &k, &v);
            for kernels in kernels() {
                let out = run(kernels, &case, 0.25, &[tokens], &q, &k, &v);
                for (i, (out, truth)) in out.iter().zip(&truth).enumerate() {
                    prop_assert!((f64::from(*out) - truth).abs() < 2e-5, "{}, element {i}: {out} is not {truth}", kernels.level());
                }
            }
        }
    }

    #[test]
    fn feeding_a_prompt_in_pieces_gives_bit_for_bit_what_feeding_it_at_once_gives() {
        for window in [None, Some(100)] {
            let case = Case {
                heads: 6,
                kv_heads: 2,
                dim: 32,
                window,
            };
            let tokens = 530;
            let (q, k, v) = (noise(tokens * 192, 1), noise(tokens * 64, 2), noise(tokens * 64, 3));
            for kernels in kernels() {
                let at_once = run(kernels, &case, 0.2, &[tokens], &q, &k, &v);
                let pieces = run(kernels, &case, 0.2, &[1, 1, 253, 2, 100, 170, 1, 1, 1], &q, &k, &v);
                assert_eq!(at_once, pieces, "{}", kernels.level());
            }
        }
    }

    #[test]
    fn sequences_in_one_call_do_not_see_each_other() {
        let case = Case {
            heads: 2,
            kv_heads: 1,
            dim: 16,
            window: None,
        };
        let (q, k, v) = (noise(320, 1), noise(160, 2), noise(160, 3));
        let kernels = Kernels::detect();
        let alone = run(kernels, &case, 0.25, &[10], &q, &k, &v);
        let mut caches = [KvCache::new(1, 16), KvCache::new(1, 16)];
        caches[0].write(0, &k, &v);
        caches[1].write(0, &v, &k);
        let (mut first, mut second) = (vec![0.0; 320], vec![0.0; 320]);
        let shape = AttentionShape {
            heads: 2,
            scale: 0.25,
            window: None,
        };
        kernels.attend(
            &shape,
            &mut [
                AttentionJob {
                    cache: &caches[0],
                    position: 0,
                    queries: &q,
                    out: &mut first,
                },
                AttentionJob {
                    cache: &caches[1],
                    position: 0,
                    queries: &q,
                    out: &mut second,
                },
            ],
        );
        assert_eq!(first, alone);
        assert_ne!(second, alone);
    }
}
