//! Attention beside its definition in f64, and against itself: the same bits however the work is cut.

use std::num::NonZeroUsize;

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::level::Level;

/// A layer and what it computes with. All numbers come from hashes of where they stand.
#[derive(Debug, Clone)]
struct Layer {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    pairs: usize,
    style: RopeStyle,
    window: Option<usize>,
    softcap: Option<f32>,
    norm: Option<Vec<f32>>,
}

const EPSILON: f32 = 1e-5;

impl Layer {
    fn plain(heads: usize, kv_heads: usize, dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            dim,
            pairs: dim / 2,
            style: RopeStyle::Halves,
            window: None,
            softcap: None,
            norm: None,
        }
    }

    fn shape(&self) -> AttentionShape<'_> {
        let norm = self.norm.as_deref().map(|weights| RmsNorm {
            weights,
            epsilon: EPSILON,
        });
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
            scale: self.scale(),
            window: self.window,
            softcap: self.softcap,
            query_norm: norm,
            key_norm: norm,
            style: self.style,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    fn frequencies(&self) -> Vec<f64> {
        (0..self.pairs).map(|pair| 0.3f64.powi(pair as i32)).collect()
    }

    fn q(&self, sequence: usize, position: usize) -> Vec<f32> {
        noise(self.heads * self.dim, [1, sequence, position])
    }

    fn k(&self, sequence: usize, position: usize) -> Vec<f32> {
        noise(self.kv_heads * self.dim, [2, sequence, position])
    }

    fn v(&self, sequence: usize, position: usize) -> Vec<f32> {
        noise(self.kv_heads * self.dim, [3, sequence, position])
    }
}

/// Numbers in -2..2.
fn noise(len: usize, seed: [usize; 3]) -> Vec<f32> {
    let mut state = seed.iter().fold(0x9e37_79b9_7f4a_7c15u64, |state, &part| {
        (state ^ part as u64)
            .wrapping_mul(0xff51_afd7_ed55_8ccd)
            .rotate_left(31)
    });
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 22) as f32) - 2.0
    };
    (0..len).map(|_| next()).collect()
}

/// What a sequence got: one entry per token.
#[derive(Debug, Default, Clone, PartialEq)]
struct Trace {
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    out: Vec<Vec<f32>>,
}

/// Block tables for sequences of these lengths, in an order that depends on the seed, and the number of blocks.
fn tables(lengths: &[usize], seed: usize) -> (Vec<Vec<u32>>, usize) {
    let needed: Vec<usize> = lengths.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).collect();
    let total = needed.iter().sum::<usize>() + 2;
    let mut order: Vec<u32> = (0..total as u32).collect();
    let keys = noise(total, [4, 0, seed]);
    if seed > 0 {
        order.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));
    }
    let mut free = order.into_iter();
    let tables = needed
        .iter()
        .map(|&needed| free.by_ref().take(needed).collect())
        .collect();
    (tables, total)
}

/// Feeds sequences in steps, each of which lists sequences and how many tokens of them.
fn feed(
    kernels: &Kernels,
    layer: &Layer,
    tables: &(Vec<Vec<u32>>, usize),
    steps: &[Vec<(usize, usize)>],
) -> Vec<Trace> {
    let (tables, blocks) = tables;
    let mut cache = KvCache::new(layer.kv_heads, layer.dim, *blocks).expect("memory for a small cache");
    poison(&mut cache);
    let mut traces = vec![Trace::default(); tables.len()];
    let (mut scratch, mut rope) = (AttentionScratch::default(), RopeTable::new());
    for step in steps {
        let (mut q, mut k, mut v, mut positions, mut spans) = (vec![], vec![], vec![], vec![], vec![]);
        for &(sequence, rows) in step {
            let position = traces[sequence].out.len();
            spans.push(Span {
                first: positions.len(),
                rows,
                position,
                blocks: &tables[sequence],
            });
            for position in position..position + rows {
                q.extend(layer.q(sequence, position));
                k.extend(layer.k(sequence, position));
                v.extend(layer.v(sequence, position));
                positions.push(position);
            }
        }
        rope.fill(&positions, &layer.frequencies(), 1.0);
        let mut out = vec![f32::NAN; q.len()];
        let qkv = Qkv {
            q: &mut q,
            k: &mut k,
            v: &v,
        };
        kernels.attend(&layer.shape(), &rope, qkv, &mut cache, &spans, &mut scratch, &mut out);
        let (width, kv_width) = (layer.heads * layer.dim, layer.kv_heads * layer.dim);
        let owners = step
            .iter()
            .flat_map(|&(sequence, rows)| std::iter::repeat_n(sequence, rows));
        for (row, sequence) in owners.enumerate() {
            traces[sequence].q.push(q[row * width..][..width].to_vec());
            traces[sequence].k.push(k[row * kv_width..][..kv_width].to_vec());
            traces[sequence].out.push(out[row * width..][..width].to_vec());
        }
    }
    traces
}

/// Fills a cache with what must not be read before it is written.
fn poison(cache: &mut KvCache) {
    let nan = vec![f32::NAN; cache.head_dim()];
    let (blocks, kv_heads) = (cache.blocks() as u32, cache.kv_heads());
    let shared = cache.share();
    for block in 0..blocks {
        for kv_head in 0..kv_heads {
            for token in 0..BLOCK_TOKENS {
                // SAFETY: nothing else uses the cache.
                unsafe { shared.write(block, token, kv_head, &nan, &nan) };
            }
        }
    }
}

/// Norm and turn of a head by their definitions.
fn prepared(layer: &Layer, head: &[f32], position: usize) -> Vec<f64> {
    let mut head: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
    if let Some(weights) = &layer.norm {
        let mean = head.iter().map(|x| x * x).sum::<f64>() / head.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPSILON)).sqrt();
        head.iter_mut()
            .zip(weights)
            .for_each(|(x, &weight)| *x *= scale * f64::from(weight));
    }
    for (pair, frequency) in layer.frequencies().into_iter().enumerate() {
        let (a, b) = match layer.style {
            RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
            RopeStyle::Halves => (pair, pair + layer.pairs),
        };
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
    }
    head
}

/// A row's attention by its definition, from the turned queries and keys, keys and values rounded to f16.
fn attended(layer: &Layer, sequence: usize, trace: &Trace, position: usize) -> Vec<f64> {
    let half = |x: f32| f64::from(f16::from_f32(x).to_f32());
    let seen = layer.window.map_or(0, |window| (position + 1).saturating_sub(window))..=position;
    let values: Vec<Vec<f32>> = seen.clone().map(|token| layer.v(sequence, token)).collect();
    let mut out = Vec::new();
    for head in 0..layer.heads {
        let kv = head / (layer.heads / layer.kv_heads) * layer.dim;
        let query = &trace.q[position][head * layer.dim..][..layer.dim];
        let weights: Vec<f64> = seen
            .clone()
            .map(|token| {
                let key = &trace.k[token][kv..][..layer.dim];
                let dot: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * half(k)).sum();
                let score = dot * f64::from(layer.scale());
                let cap = layer.softcap.map(f64::from);
                cap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..layer.dim).map(|d| {
            weights
                .iter()
                .zip(&values)
                .map(|(weight, value)| weight * half(value[kv + d]))
                .sum::<f64>()
                / sum
        }));
    }
    out
}

fn kernels(level: Level, threads: usize) -> Option<Kernels> {
    let threads = NonZeroUsize::new(threads).expect("a test asks for threads");
    level
        .is_available()
        .then(|| Kernels::new(level, threads).expect("threads for a test"))
}

/// The levels that differ in what attention runs.
const LEVELS: [Level; 3] = [Level::Portable, Level::Avx2, Level::Avx512];

fn layers() -> impl Strategy<Value = Layer> {
    let shapes = [
        (9, 3, 64),
        (3, 1, 2),
        (2, 2, 16),
        (4, 1, 18),
        (1, 1, 72),
        (7, 1, 80),
        (10, 2, 96),
        (5, 1, 32),
        (2, 1, 256),
        (1, 1, 330),
        (13, 1, 20),
        (16, 1, 34),
    ];
    let style = prop::sample::select(vec![RopeStyle::Interleaved, RopeStyle::Halves]);
    let window = prop::option::of(1usize..500);
    let softcap = prop::option::of(0.5f32..30.0);
    (
        prop::sample::select(shapes.to_vec()),
        style,
        window,
        softcap,
        0.0..=1.0,
        any::<bool>(),
    )
        .prop_map(
            |((heads, kv_heads, dim), style, window, softcap, turned, normed)| Layer {
                pairs: (turned * dim as f64) as usize / 2,
                style,
                window,
                softcap,
                norm: normed.then(|| noise(dim, [5, 0, 0])),
                ..Layer::plain(heads, kv_heads, dim)
            },
        )
}

/// Cuts sequences into steps of the given numbers of tokens, over and over. A sequence joins a step later than the one
/// before it.
fn steps(lengths: &[usize], cuts: &[usize]) -> Vec<Vec<(usize, usize)>> {
    let mut left = lengths.to_vec();
    let mut cuts = cuts.iter().cycle();
    let mut steps = Vec::new();
    while left.iter().any(|&left| left > 0) {
        let mut step = Vec::new();
        for (sequence, left) in left.iter_mut().enumerate().take(steps.len() + 1) {
            let rows = cuts.next().map_or(0, |&cut| cut.min(*left));
            *left -= rows;
            if rows > 0 {
                step.push((sequence, rows));
            }
        }
        steps.push(step);
    }
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Keys and values rounded to f16 are in both, so what is left is f32's rounding. Queries and keys: a few roundings of
    /// numbers up to 8. Results: a score of up to 30 comes out of 330 products with up to 2e-6 of it lost, which changes
    /// weights by as much, and results, which are at most 2, by twice that, but mostly much less.
    #[test]
    fn attention_is_what_its_definition_says(layer in layers(), length in 1usize..560, blocks in 0usize..9) {
        let tables = tables(&[length], blocks);
        for kernels in LEVELS.into_iter().filter_map(|level| kernels(level, 2)) {
            let trace = feed(&kernels, &layer, &tables, &[vec![(0, length)]]).remove(0);
            for position in (0..length).filter(|p| p % 37 == 0 || p % 256 == 1 || p + 1 == length) {
                let raw = layer.q(0, position).into_iter().chain(layer.k(0, position)).collect::<Vec<_>>();
                let turned = trace.q[position].iter().chain(&trace.k[position]);
                let truth = raw.chunks(layer.dim).flat_map(|head| prepared(&layer, head, position));
                for (turned, truth) in turned.zip(truth) {
                    prop_assert!((f64::from(*turned) - truth).abs() < 5e-6, "{}, position {position}: turned to {turned}, not {truth}", kernels.level());
                }
                for (i, (out, truth)) in trace.out[position].iter().zip(attended(&layer, 0, &trace, position)).enumerate() {
                    prop_assert!((f64::from(*out) - truth).abs() < 2e-5, "{}, position {position}, element {i}: {out} is not {truth}", kernels.level());
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_bits_alone_and_among_others_in_any_blocks_on_any_threads(
        layer in layers(), lengths in prop::collection::vec(1usize..560, 1..4),
        small in prop::collection::vec(1usize..5, 0..6), large in 20usize..300, blocks in 1usize..99, threads in 1usize..4,
    ) {
        let cuts: Vec<usize> = small.into_iter().chain([large]).collect();
        for level in LEVELS {
            let (Some(alone), Some(among)) = (kernels(level, 1), kernels(level, threads)) else { continue };
            let together = feed(&among, &layer, &tables(&lengths, blocks), &steps(&lengths, &cuts));
            for (sequence, &length) in lengths.iter().enumerate() {
                let trace = feed(&alone, &layer, &tables(&lengths, 0), &[vec![(sequence, length)]]).remove(sequence);
                prop_assert!(bits(&trace) == bits(&together[sequence]), "{level}, sequence {sequence}");
            }
        }
    }
}

fn bits(trace: &Trace) -> Vec<u32> {
    trace.out.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn a_prompt_s_rows_equal_those_of_decoding_it_token_by_token() {
    let layer = Layer {
        window: Some(300),
        ..Layer::plain(6, 2, 32)
    };
    let tables = tables(&[530], 3);
    let one_by_one: Vec<_> = std::iter::once(vec![(0, 250)])
        .chain((0..280).map(|_| vec![(0, 1)]))
        .collect();
    for level in LEVELS {
        let Some(kernels) = kernels(level, 2) else { continue };
        let at_once = feed(&kernels, &layer, &tables, &[vec![(0, 530)]]);
        assert_eq!(at_once, feed(&kernels, &layer, &tables, &one_by_one), "{level}");
    }
}

#[test]
fn rows_of_no_span_are_left_alone() {
    let kernels = kernels(Level::Portable, 1).expect("the portable level");
    let layer = Layer::plain(2, 1, 4);
    let mut cache = KvCache::new(1, 4, 1).expect("memory for a small cache");
    let mut rope = RopeTable::new();
    rope.fill(&[0, 0, 0], &[1.0], 1.0);
    let (mut q, mut k, v) = (noise(24, [1, 1, 1]), noise(12, [2, 2, 2]), noise(12, [3, 3, 3]));
    let (q_before, mut out) = (q.clone(), vec![7.0; 24]);
    let span = Span {
        first: 1,
        rows: 1,
        position: 0,
        blocks: &[0],
    };
    let qkv = Qkv {
        q: &mut q,
        k: &mut k,
        v: &v,
    };
    kernels.attend(
        &layer.shape(),
        &rope,
        qkv,
        &mut cache,
        &[span],
        &mut AttentionScratch::default(),
        &mut out,
    );
    assert_eq!((&out[..8], &out[16..]), (&[7.0; 8][..], &[7.0; 8][..]));
    assert_eq!((&q[..8], &q[16..]), (&q_before[..8], &q_before[16..]));
    // A row that sees itself alone gets its own values.
    let own: Vec<f32> = v[4..8].iter().map(|&v| f16::from_f32(v).to_f32()).collect();
    assert_eq!((&out[8..12], &out[12..16]), (&own[..], &own[..]));
}

/// A step of two rows at position 0 with the given spans and blocks.
fn step_of_two(spans: &[Span<'_>]) {
    let kernels = kernels(Level::Portable, 1).expect("the portable level");
    let layer = Layer::plain(1, 1, 2);
    let mut cache = KvCache::new(1, 2, 2).expect("memory for a small cache");
    let mut rope = RopeTable::new();
    rope.fill(&[0, 0], &[1.0], 1.0);
    let (mut q, mut k, mut out) = ([1.0; 4], [1.0; 4], [0.0; 4]);
    let qkv = Qkv {
        q: &mut q,
        k: &mut k,
        v: &[1.0; 4],
    };
    kernels.attend(
        &layer.shape(),
        &rope,
        qkv,
        &mut cache,
        spans,
        &mut AttentionScratch::default(),
        &mut out,
    );
}

fn span(first: usize, rows: usize, blocks: &[u32]) -> Span<'_> {
    Span {
        first,
        rows,
        position: 0,
        blocks,
    }
}

#[test]
fn a_step_without_spans_does_nothing() {
    step_of_two(&[]);
}

#[test]
#[should_panic(expected = "a block is written by one span")]
fn two_spans_must_not_write_one_block() {
    step_of_two(&[span(0, 1, &[1]), span(1, 1, &[1])]);
}

#[test]
#[should_panic(expected = "rows of their own")]
fn two_spans_must_not_share_a_row() {
    step_of_two(&[span(0, 2, &[0]), span(1, 1, &[1])]);
}

#[test]
#[should_panic(expected = "the blocks are the cache's")]
fn a_block_must_be_in_the_cache() {
    step_of_two(&[span(0, 1, &[2])]);
}

#[test]
#[should_panic(expected = "blocks for its tokens")]
fn a_span_must_have_blocks() {
    step_of_two(&[span(0, 2, &[])]);
}
