//! The fused CPU path: f16 weights, f32 activations, f16 KV caches, on a thread pool of its own.

use std::num::NonZeroUsize;

use cpu_kernels::{
    Activation, AttentionJob, AttentionShape, HalfMatrix, Kernels, KvCache, Product, RopeStyle, RopeTable,
};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{Backend, Heads, Span};
use crate::error::LoadError;
use crate::gguf::RawTensor;

/// Kernels and the threads they run on.
pub(crate) struct Cpu {
    kernels: Kernels,
    pool: ThreadPool,
}

impl Cpu {
    pub(crate) fn new(threads: Option<NonZeroUsize>) -> Result<Self, LoadError> {
        let threads = match threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?,
        };
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.get())
            .thread_name(|index| format!("model-{index}"));
        let pool = pool.build().map_err(std::io::Error::other)?;
        let kernels = Kernels::from_env()?;
        tracing::debug!(level = %kernels.level(), threads, "fused cpu path");
        Ok(Self { kernels, pool })
    }
}

/// Row-major activations.
pub(crate) struct HostRows {
    data: Vec<f32>,
    width: usize,
}

impl HostRows {
    fn rows(&self) -> usize {
        self.data.len() / self.width
    }
}

impl Backend for Cpu {
    type Rows = HostRows;
    type Matrix = HalfMatrix;
    type Vector = Vec<f32>;
    type Rope = RopeTable;
    type Cache = KvCache;

    fn load_matrix(&self, raw: &RawTensor<'_>) -> Result<HalfMatrix, LoadError> {
        let &[rows, cols] = raw.dims.as_slice() else {
            return Err(LoadError::Damaged(format!("tensor {} is not a matrix", raw.name)));
        };
        self.pool
            .install(|| HalfMatrix::from_rows(rows, cols, |first, out| Ok(raw.rows_to_f32(first, out)?)))
    }

    fn load_vector(&self, raw: &RawTensor<'_>) -> Result<Vec<f32>, LoadError> {
        Ok(raw.to_f32()?)
    }

    fn matrix_bytes(&self, matrix: &HalfMatrix) -> usize {
        matrix.bytes()
    }

    fn new_cache(&self, heads: &Heads) -> KvCache {
        KvCache::new(heads.kv, heads.dim)
    }

    fn cache_bytes_per_token(&self, heads: &Heads) -> usize {
        KvCache::bytes_per_token(heads.kv, heads.dim)
    }

    fn run<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        self.pool.install(step)
    }

    fn embed(&self, table: &HalfMatrix, tokens: &[u32], scale: f32) -> candle_core::Result<HostRows> {
        let width = table.cols();
        let mut data = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            data.extend(table.row(token as usize).iter().map(|half| half.to_f32() * scale));
        }
        Ok(HostRows { data, width })
    }

    fn norm(&self, x: &HostRows, weights: &Vec<f32>, epsilon: f32) -> candle_core::Result<HostRows> {
        let mut data = vec![0.0; x.data.len()];
        self.kernels.rms_norm(&x.data, weights, epsilon, &mut data);
        Ok(HostRows { data, width: x.width })
    }

    fn linear<const N: usize>(&self, x: &HostRows, matrices: [&HalfMatrix; N]) -> candle_core::Result<[HostRows; N]> {
        let mut outs = matrices.map(|matrix| HostRows {
            data: vec![0.0; x.rows() * matrix.rows()],
            width: matrix.rows(),
        });
        let mut products: Vec<Product<'_>> = matrices
            .iter()
            .zip(&mut outs)
            .map(|(weights, out)| Product {
                weights,
                out: &mut out.data,
            })
            .collect();
        self.kernels.multiply(&x.data, &mut products);
        Ok(outs)
    }

    fn upload_rope(&self, table: RopeTable) -> candle_core::Result<RopeTable> {
        Ok(table)
    }

    fn rotate(
        &self,
        mut x: HostRows,
        head_dim: usize,
        rope: &RopeTable,
        style: RopeStyle,
    ) -> candle_core::Result<HostRows> {
        self.kernels.rotate(&mut x.data, head_dim, rope, style);
        Ok(x)
    }

    fn attend(
        &self,
        heads: &Heads,
        layer: usize,
        [q, k, v]: [HostRows; 3],
        spans: &mut [Span<'_, KvCache>],
    ) -> candle_core::Result<HostRows> {
        let shape = AttentionShape {
            heads: heads.query,
            scale: heads.scale,
            window: heads.window,
        };
        let mut out = vec![0.0; q.data.len()];
        let mut jobs = Vec::with_capacity(spans.len());
        let mut rest = out.as_mut_slice();
        for span in spans {
            let kv = span.first * k.width..(span.first + span.rows) * k.width;
            let cache = &mut span.caches[layer];
            cache.write(span.position, &k.data[kv.clone()], &v.data[kv]);
            let (out, behind) = rest.split_at_mut(span.rows * q.width);
            rest = behind;
            let queries = &q.data[span.first * q.width..][..out.len()];
            jobs.push(AttentionJob {
                cache,
                position: span.position,
                queries,
                out,
            });
        }
        self.kernels.attend(&shape, &mut jobs);
        drop(jobs);
        Ok(HostRows {
            data: out,
            width: q.width,
        })
    }

    fn gate(&self, activation: Activation, mut gate: HostRows, up: HostRows) -> candle_core::Result<HostRows> {
        self.kernels.gate(activation, &mut gate.data, &up.data);
        Ok(gate)
    }

    fn add(&self, mut x: HostRows, y: HostRows) -> candle_core::Result<HostRows> {
        self.kernels.add(&mut x.data, &y.data);
        Ok(x)
    }

    fn pick(&self, x: HostRows, rows: &[usize]) -> candle_core::Result<HostRows> {
        if rows.iter().copied().eq(0..x.rows()) {
            return Ok(x);
        }
        let data = rows
            .iter()
            .flat_map(|row| &x.data[row * x.width..][..x.width])
            .copied()
            .collect();
        Ok(HostRows { data, width: x.width })
    }

    fn read(&self, x: &HostRows, out: &mut Vec<f32>) -> candle_core::Result<()> {
        out.extend_from_slice(&x.data);
        Ok(())
    }
}
