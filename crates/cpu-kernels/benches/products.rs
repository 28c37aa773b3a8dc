//! Rates of products by format and number of rows, beside what the machine can do at best in the same run: reading the
//! same bytes, and multiplying bytes without reading any. `THREADS` sets the number of threads (2), and
//! `RBEE_CPU_KERNELS` the level.
//!
//! Bytes per second are those of the weights; elements are multiply-adds.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cpu_kernels::{Activation, Activations, Format, Forms, Kernels, Matrix, Product, Store};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;

/// Bytes that no cache holds, of which each pass reads a part.
const MEMORY_BYTES: usize = 96 << 20;
/// Inputs, and outputs of one matrix.
const COLS: usize = 1536;
const ROWS: usize = 6144;

fn kernels() -> Kernels {
    let threads = std::env::var("THREADS").ok().and_then(|threads| threads.parse().ok());
    let threads = threads.unwrap_or(NonZeroUsize::new(2).expect("2 is not 0"));
    Kernels::from_env(threads).expect("the level is there")
}

/// Any bytes are weights; only the scales must be numbers.
fn raw(format: Format) -> Vec<u8> {
    let mut raw: Vec<u8> = (0..ROWS * COLS / format.block_elements() * format.block_bytes())
        .map(|i| (i * 167 + i / 251) as u8)
        .collect();
    let scale = f16::from_f32(0.01).to_le_bytes();
    for block in raw.chunks_exact_mut(format.block_bytes()) {
        let halves: &[usize] = match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 | Format::F16 | Format::Bf16 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
            Format::F32 => &[2],
        };
        for &at in halves {
            block[at..at + 2].copy_from_slice(&scale);
        }
    }
    raw
}

fn activations(kernels: &Kernels, rows: usize, forms: Forms) -> Activations {
    let x: Vec<f32> = (0..rows * COLS).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
    let mut out = Activations::new();
    kernels.prepare(&x, COLS, None, forms, &mut out);
    out
}

fn multiply(kernels: &Kernels, x: &Activations, weights: &Matrix, out: &mut [f32]) {
    let product = Product {
        weights,
        bias: None,
        out,
        store: Store::Set,
    };
    kernels.multiply(x, &mut [product]);
}

fn products(criterion: &mut Criterion) {
    let kernels = kernels();
    for format in Format::ALL {
        let raw = raw(format);
        let first = Matrix::pack(&kernels, format, ROWS, COLS, &raw).expect("a matrix");
        let mut matrices = vec![first];
        while matrices.iter().map(Matrix::bytes).sum::<usize>() < MEMORY_BYTES {
            matrices.push(Matrix::pack(&kernels, format, ROWS, COLS, &raw).expect("a matrix"));
        }
        let mut group = criterion.benchmark_group(format.to_string());
        let mut turn = 0;
        for rows in [1, 8, 64, 256] {
            let x = activations(&kernels, rows, Forms::of(&matrices));
            let mut out = vec![0.0; rows * ROWS];
            group.throughput(match rows {
                1 => Throughput::Bytes(matrices[0].bytes() as u64),
                _ => Throughput::Elements((rows * ROWS * COLS) as u64),
            });
            group.bench_function(BenchmarkId::new("rows", rows), |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % matrices.len();
                    multiply(&kernels, &x, &matrices[turn], &mut out);
                });
            });
        }
        group.finish();
    }
}

/// A layer of a small model: what counts are the tasks' edges and the calls.
fn small_layer(criterion: &mut Criterion) {
    const WIDTH: usize = 576;
    const HIDDEN: usize = 1536;
    let kernels = kernels();
    let cut = |rows: usize, cols: usize| {
        let raw = &raw(Format::Q4_1)[..rows * cols / 32 * 20];
        Matrix::pack(&kernels, Format::Q4_1, rows, cols, raw).expect("a matrix")
    };
    let (query, key, value) = (cut(WIDTH, WIDTH), cut(192, WIDTH), cut(192, WIDTH));
    let (gate, up) = (cut(HIDDEN, WIDTH), cut(HIDDEN, WIDTH));
    let mut group = criterion.benchmark_group("small layer");
    for rows in [1, 8, 64, 256] {
        let x: Vec<f32> = (0..rows * WIDTH).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
        let mut prepared = Activations::new();
        group.bench_function(BenchmarkId::new("prepare", rows), |bencher| {
            bencher.iter(|| kernels.prepare(&x, WIDTH, None, Forms::of([&query]), &mut prepared));
        });
        let [mut q, mut k, mut v] = [WIDTH, 192, 192].map(|width| vec![0.0; rows * width]);
        group.throughput(Throughput::Elements((rows * WIDTH * (WIDTH + 2 * 192)) as u64));
        group.bench_function(BenchmarkId::new("query, key, value", rows), |bencher| {
            bencher.iter(|| {
                let products = [(&query, &mut q), (&key, &mut k), (&value, &mut v)];
                let mut products = products.map(|(weights, out)| Product {
                    weights,
                    bias: None,
                    out,
                    store: Store::Set,
                });
                kernels.multiply(&prepared, &mut products);
            });
        });
        let mut hidden = vec![0.0; rows * HIDDEN];
        group.throughput(Throughput::Elements((rows * 2 * WIDTH * HIDDEN) as u64));
        group.bench_function(BenchmarkId::new("gate and up", rows), |bencher| {
            bencher.iter(|| kernels.multiply_gated(&prepared, &gate, &up, Activation::Silu, &mut hidden));
        });
    }
    group.finish();
}

/// The machine's best, to compare with.
fn floors(criterion: &mut Criterion) {
    let kernels = kernels();
    let memory = vec![[1u64; 8]; MEMORY_BYTES / 64];
    let mut group = criterion.benchmark_group("floor");
    for streams in [1, 4] {
        group.throughput(Throughput::Bytes(MEMORY_BYTES as u64));
        group.bench_function(BenchmarkId::new("read, streams per thread", streams), |bencher| {
            let total = AtomicU64::new(0);
            bencher.iter(|| {
                kernels.pool().run(&|worker| {
                    let each = memory.len() / kernels.threads();
                    let part = &memory[worker * each..][..each];
                    total.fetch_add(read(part, streams), Ordering::Relaxed);
                });
            });
            black_box(total);
        });
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") {
        const STEPS: u64 = 1 << 16;
        group.throughput(Throughput::Elements(
            STEPS * vnni::MULTIPLY_ADDS * kernels.threads() as u64,
        ));
        group.bench_function("multiply bytes", |bencher| {
            bencher.iter(|| {
                // SAFETY: the processor has the instruction set, as just asked.
                kernels.pool().run(&|_worker| unsafe { vnni::multiply(STEPS) });
            });
        });
    }
    group.finish();
}

fn read(part: &[[u64; 8]], streams: usize) -> u64 {
    let each = part.len() / streams;
    let mut sums = [0u64; 8];
    for line in 0..each {
        for stream in 0..streams {
            for (sum, word) in sums.iter_mut().zip(part[stream * each + line]) {
                *sum = sum.wrapping_add(word);
            }
        }
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_set1_epi32};
    use std::hint::black_box;

    const CHAINS: usize = 12;
    /// Of one step.
    pub(super) const MULTIPLY_ADDS: u64 = 64 * CHAINS as u64;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply(steps: u64) {
        let (w, x) = (
            black_box(_mm512_set1_epi32(0x0102_0304)),
            black_box(_mm512_set1_epi32(0x0101_0101)),
        );
        let mut sums = [_mm512_set1_epi32(0); CHAINS];
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, x);
            }
        }
        black_box(sums);
    }
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
}

criterion_group! {
    name = benches;
    config = short();
    targets = floors, products, small_layer
}
criterion_main!(benches);
