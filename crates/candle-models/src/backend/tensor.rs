//! Candle's own operations, on any device that candle knows: quantised matrices stay as they lie in the file.

use candle_core::quantized::QMatMul;
use candle_core::{D, DType, Device, IndexOp, Module, Result, Tensor};
use cpu_kernels::{Activation, RopeStyle, RopeTable};

use super::{Backend, Heads, Span};
use crate::error::LoadError;
use crate::gguf::RawTensor;

/// Tokens by which a cache grows: each growth copies what is there.
const GROWTH: usize = 512;

/// A candle device.
pub(crate) struct Candle {
    device: Device,
}

impl Candle {
    pub(crate) fn new(device: Device) -> Self {
        Self { device }
    }
}

/// A matrix and the bytes it takes.
pub(crate) struct DeviceMatrix {
    weights: QMatMul,
    bytes: usize,
}

/// Cosines and sines, `[rows, 1, pairs]`.
pub(crate) struct DeviceRope {
    cos: Tensor,
    sin: Tensor,
    pairs: usize,
}

/// Keys and values, `[kv_heads, capacity, head_dim]`, of which the first `len` tokens are filled.
#[derive(Default)]
pub(crate) struct DeviceCache {
    stored: Option<(Tensor, Tensor)>,
}

impl DeviceCache {
    /// Writes `[kv_heads, rows, head_dim]` from `position` on; returns all keys and values up to there.
    fn append(&mut self, position: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (kv_heads, rows, dim) = k.dims3()?;
        let end = position + rows;
        let capacity = self.stored.as_ref().map_or(Ok(0), |(keys, _)| keys.dim(1))?;
        if capacity < end {
            let shape = (kv_heads, end.next_multiple_of(GROWTH), dim);
            let grown = (
                Tensor::zeros(shape, k.dtype(), k.device())?,
                Tensor::zeros(shape, v.dtype(), v.device())?,
            );
            if let Some((keys, values)) = &self.stored {
                grown.0.slice_set(keys, 1, 0)?;
                grown.1.slice_set(values, 1, 0)?;
            }
            self.stored = Some(grown);
        }
        let Some((keys, values)) = &self.stored else {
            candle_core::bail!("an empty step")
        };
        keys.slice_set(k, 1, position)?;
        values.slice_set(v, 1, position)?;
        Ok((keys.narrow(1, 0, end)?, values.narrow(1, 0, end)?))
    }
}

impl Candle {
    /// 0 where row `i` of a span at `position` sees token `from + j`, minus infinity where not.
    fn mask(&self, heads: &Heads, span: (usize, usize), from: usize) -> Result<Tensor> {
        let (position, rows) = span;
        let tokens = position + rows - from;
        let mask: Vec<f32> = (0..rows)
            .flat_map(|row| (from..from + tokens).map(move |token| (position + row, token)))
            .map(|(at, token)| token <= at && heads.window.is_none_or(|window| at - token < window))
            .map(|seen| if seen { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        Tensor::from_vec(mask, (rows, tokens), &self.device)
    }

    /// One span's attention: queries `[rows, heads * dim]`, keys and values `[kv_heads, tokens, dim]`.
    fn attend_span(&self, heads: &Heads, position: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let rows = q.dim(0)?;
        let from = heads.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let tokens = position + rows - from;
        let (k, v) = (
            k.narrow(1, from, tokens)?.contiguous()?,
            v.narrow(1, from, tokens)?.contiguous()?,
        );
        let group = heads.query / heads.kv;
        // The query heads that share a key head become rows of one product.
        let q = q
            .reshape((rows, heads.kv, group, heads.dim))?
            .permute((1, 2, 0, 3))?
            .contiguous()?;
        let q = (q.reshape((heads.kv, group * rows, heads.dim))? * f64::from(heads.scale))?;
        let scores = q.matmul(&k.t()?)?.reshape((heads.kv, group, rows, tokens))?;
        let scores = if rows == 1 {
            scores
        } else {
            scores.broadcast_add(&self.mask(heads, (position, rows), from)?)?
        };
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mixed = weights.reshape((heads.kv, group * rows, tokens))?.matmul(&v)?;
        let mixed = mixed
            .reshape((heads.kv, group, rows, heads.dim))?
            .permute((2, 0, 1, 3))?;
        mixed.contiguous()?.reshape((rows, heads.query * heads.dim))
    }
}

impl Backend for Candle {
    type Rows = Tensor;
    type Matrix = DeviceMatrix;
    type Vector = Tensor;
    type Rope = DeviceRope;
    type Cache = DeviceCache;

    fn load_matrix(&self, raw: &RawTensor<'_>) -> std::result::Result<DeviceMatrix, LoadError> {
        let weights = QMatMul::from_qtensor(raw.to_qtensor(&self.device)?)?;
        let bytes = match &weights {
            QMatMul::QTensor(_) => raw.data.len(),
            QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor) => {
                tensor.elem_count() * tensor.dtype().size_in_bytes()
            }
        };
        Ok(DeviceMatrix { weights, bytes })
    }

    fn load_vector(&self, raw: &RawTensor<'_>) -> std::result::Result<Tensor, LoadError> {
        Ok(raw.to_tensor(&self.device)?)
    }

    fn matrix_bytes(&self, matrix: &DeviceMatrix) -> usize {
        matrix.bytes
    }

    fn new_cache(&self, _heads: &Heads) -> DeviceCache {
        DeviceCache::default()
    }

    fn cache_bytes_per_token(&self, heads: &Heads) -> usize {
        2 * heads.kv * heads.dim * DType::F32.size_in_bytes()
    }

    fn run<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R {
        step()
    }

    fn embed(&self, table: &DeviceMatrix, tokens: &[u32], scale: f32) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &self.device)?;
        let rows = table.weights.embedding(&ids)?;
        if scale == 1.0 {
            Ok(rows)
        } else {
            rows * f64::from(scale)
        }
    }

    fn norm(&self, x: &Tensor, weights: &Tensor, epsilon: f32) -> Result<Tensor> {
        let shape = x.shape();
        let x = x.reshape(((), weights.dim(0)?))?;
        let scale = (x.sqr()?.mean_keepdim(1)? + f64::from(epsilon))?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(weights)?.reshape(shape)
    }

    fn linear<const N: usize>(&self, x: &Tensor, matrices: [&DeviceMatrix; N]) -> Result<[Tensor; N]> {
        let outs = matrices
            .iter()
            .map(|matrix| matrix.weights.forward(x))
            .collect::<Result<Vec<_>>>()?;
        outs.try_into()
            .map_err(|_| candle_core::Error::Msg("as many results as matrices".to_owned()))
    }

    fn upload_rope(&self, table: RopeTable) -> Result<DeviceRope> {
        let pairs = table.pairs();
        let upload = |values: &[f32]| Tensor::from_slice(values, (values.len() / pairs, 1, pairs), &self.device);
        Ok(DeviceRope {
            cos: upload(table.cos())?,
            sin: upload(table.sin())?,
            pairs,
        })
    }

    fn rotate(&self, x: Tensor, head_dim: usize, rope: &DeviceRope, style: RopeStyle) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let (heads, pairs) = (width / head_dim, rope.pairs);
        let x = x.reshape((rows, heads, head_dim))?;
        let turned = x.narrow(2, 0, 2 * pairs)?;
        let (a, b) = match style {
            RopeStyle::Halves => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
            RopeStyle::Interleaved => {
                let neighbours = turned.contiguous()?.reshape((rows, heads, pairs, 2))?;
                (neighbours.i((.., .., .., 0))?, neighbours.i((.., .., .., 1))?)
            }
        };
        let low = (a.broadcast_mul(&rope.cos)? - b.broadcast_mul(&rope.sin)?)?;
        let high = (a.broadcast_mul(&rope.sin)? + b.broadcast_mul(&rope.cos)?)?;
        let turned = match style {
            RopeStyle::Halves => Tensor::cat(&[low, high], 2)?,
            RopeStyle::Interleaved => Tensor::stack(&[low, high], 3)?.reshape((rows, heads, 2 * pairs))?,
        };
        let whole = if 2 * pairs == head_dim {
            turned
        } else {
            Tensor::cat(&[turned, x.narrow(2, 2 * pairs, head_dim - 2 * pairs)?], 2)?
        };
        whole.reshape((rows, width))
    }

    fn attend(
        &self,
        heads: &Heads,
        layer: usize,
        [q, k, v]: [Tensor; 3],
        spans: &mut [Span<'_, DeviceCache>],
    ) -> Result<Tensor> {
        let by_head = |x: &Tensor, span: &Span<'_, DeviceCache>| {
            let x = x
                .narrow(0, span.first, span.rows)?
                .reshape((span.rows, heads.kv, heads.dim))?;
            x.transpose(0, 1)?.contiguous()
        };
        let mut outs = Vec::with_capacity(spans.len());
        for span in spans {
            let (k, v) = (by_head(&k, span)?, by_head(&v, span)?);
            let (k, v) = span.caches[layer].append(span.position, &k, &v)?;
            let q = q.narrow(0, span.first, span.rows)?;
            outs.push(self.attend_span(heads, span.position, &q, &k, &v)?);
        }
        Tensor::cat(&outs, 0)
    }

    fn gate(&self, activation: Activation, gate: Tensor, up: Tensor) -> Result<Tensor> {
        let gate = match activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        gate * up
    }

    fn add(&self, x: Tensor, y: Tensor) -> Result<Tensor> {
        x + y
    }

    fn pick(&self, x: Tensor, rows: &[usize]) -> Result<Tensor> {
        if rows.iter().copied().eq(0..x.dim(0)?) {
            return Ok(x);
        }
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        x.index_select(&Tensor::new(rows, &self.device)?, 0)
    }

    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<()> {
        out.extend(x.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}
