//! Attention of a small model's 30 layers (9 heads of 64 elements on 3 key heads): a decoding step at 2,048 tokens of
//! context beside a plain read of as many bytes, sixteen sequences' decoding step, and a prompt of 512 tokens.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Duration;

use cpu_kernels::{AttentionScratch, AttentionShape, BLOCK_TOKENS, Kernels, KvCache, Qkv, RopeStyle, RopeTable, Span};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};

const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;

/// A model's caches, full of numbers, and a step.
struct Bench {
    kernels: Kernels,
    caches: Vec<KvCache>,
    tables: Vec<Vec<u32>>,
    scratch: AttentionScratch,
    rope: RopeTable,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
}

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.731).sin()).collect()
}

impl Bench {
    /// For sequences of at most `context` tokens.
    fn new(threads: NonZeroUsize, sequences: usize, context: usize) -> Self {
        let blocks = context.div_ceil(BLOCK_TOKENS);
        let cache = || KvCache::new(KV_HEADS, DIM, sequences * blocks).expect("memory for a cache");
        let mut bench = Self {
            kernels: Kernels::from_env(threads).expect("kernels"),
            caches: (0..LAYERS).map(|_| cache()).collect(),
            // A sequence's blocks lie apart, as they do when sequences grow together.
            tables: (0..sequences)
                .map(|sequence| (0..blocks).map(|block| (block * sequences + sequence) as u32).collect())
                .collect(),
            scratch: AttentionScratch::default(),
            rope: RopeTable::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            out: Vec::new(),
        };
        for position in (0..context).step_by(256) {
            bench.step(position, 256.min(context - position));
        }
        bench
    }

    /// All layers' attention for some rows of each sequence.
    fn step(&mut self, position: usize, rows: usize) {
        let total = rows * self.tables.len();
        if self.q.len() != total * HEADS * DIM {
            self.q = noise(total * HEADS * DIM);
            self.k = noise(total * KV_HEADS * DIM);
            self.v = noise(total * KV_HEADS * DIM);
            self.out = vec![0.0; total * HEADS * DIM];
        }
        let spans: Vec<Span<'_>> = self
            .tables
            .iter()
            .enumerate()
            .map(|(index, blocks)| Span {
                first: index * rows,
                rows,
                position,
                blocks,
            })
            .collect();
        let frequencies: Vec<f64> = (0..DIM / 2)
            .map(|pair| 1e4f64.powf(-(pair as f64) * 2.0 / DIM as f64))
            .collect();
        let positions: Vec<usize> = spans.iter().flat_map(|_| position..position + rows).collect();
        self.rope.fill(&positions, &frequencies, 1.0);
        let shape = AttentionShape {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: DIM,
            scale: 0.125,
            window: None,
            softcap: None,
            query_norm: None,
            key_norm: None,
            style: RopeStyle::Halves,
        };
        for cache in &mut self.caches {
            let qkv = Qkv {
                q: &mut self.q,
                k: &mut self.k,
                v: &self.v,
            };
            let (scratch, out) = (&mut self.scratch, &mut self.out);
            self.kernels
                .attend(&shape, &self.rope, qkv, cache, &spans, scratch, out);
        }
        black_box(&self.out);
    }
}

/// Reads memory with as many threads, in pieces as large as a key head's segment.
fn read(kernels: &Kernels, memory: &[u64]) {
    const PIECE: usize = 8 * 1024;
    kernels.pool().for_each(memory.len().div_ceil(PIECE), &|piece| {
        let piece = &memory[piece * PIECE..memory.len().min((piece + 1) * PIECE)];
        black_box(piece.iter().fold(0u64, |sum, &x| sum ^ x));
    });
}

fn decode(group: &mut BenchmarkGroup<'_, WallTime>, threads: NonZeroUsize) {
    const CONTEXT: usize = 2048;
    let bytes = LAYERS * CONTEXT / BLOCK_TOKENS * KvCache::bytes_per_block(KV_HEADS, DIM);
    group.throughput(Throughput::Bytes(bytes as u64));
    let mut bench = Bench::new(threads, 1, CONTEXT);
    group.bench_function(format!("decode at 2048, {threads} threads"), |b| {
        b.iter(|| bench.step(CONTEXT - 1, 1));
    });
    let memory: Vec<u64> = (0..bytes as u64 / 8).collect();
    group.bench_function(format!("floor: read of as many bytes, {threads} threads"), |b| {
        b.iter(|| read(&bench.kernels, &memory));
    });
}

fn decode_many(group: &mut BenchmarkGroup<'_, WallTime>, threads: NonZeroUsize) {
    const CONTEXT: usize = 512;
    const SEQUENCES: usize = 16;
    let bytes = LAYERS * SEQUENCES * CONTEXT / BLOCK_TOKENS * KvCache::bytes_per_block(KV_HEADS, DIM);
    group.throughput(Throughput::Bytes(bytes as u64));
    let mut bench = Bench::new(threads, SEQUENCES, CONTEXT);
    group.bench_function(format!("decode of 16 at 512, {threads} threads"), |b| {
        b.iter(|| bench.step(CONTEXT - 1, 1));
    });
}

fn prefill(group: &mut BenchmarkGroup<'_, WallTime>, threads: NonZeroUsize) {
    const TOKENS: usize = 512;
    group.throughput(Throughput::Elements(TOKENS as u64));
    let mut bench = Bench::new(threads, 1, TOKENS);
    group.bench_function(format!("prefill of 512, {threads} threads"), |b| {
        b.iter(|| {
            bench.step(0, 256);
            bench.step(256, 256);
        });
    });
}

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    for threads in [1, 2].into_iter().filter_map(NonZeroUsize::new) {
        decode(&mut group, threads);
        decode_many(&mut group, threads);
        prefill(&mut group, threads);
    }
    group.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
