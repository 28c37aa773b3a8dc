//! Candle's own operations, on any device that candle knows: quantised matrices stay as they lie in the file, keys and
//! values lie in blocks. On the CPU everything else is f32: the reference that the fused path is tested against.

use candle_core::quantized::QMatMul;
use candle_core::{D, DType, Device, IndexOp, Module, Result, Tensor};
use cpu_kernels::{Activation, BLOCK_TOKENS, RopeStyle, Span};

use super::{Backend, Batch, What};
use crate::architecture::{Architecture, Heads, LayerShape, RopeSpec};
use crate::candle_tensor::CandleTensor;
use crate::error::LoadError;
use crate::network::{Layer, Network};
use model_format::{RawTensor, TensorType};

/// A candle device.
pub(crate) struct Candle {
    device: Device,
}

/// A matrix and the bytes it takes.
pub(crate) struct DeviceMatrix {
    weights: Weights,
    bytes: usize,
}

enum Weights {
    Quantised(QMatMul),
    Dense(Tensor),
}

/// One layer's keys and values, both `[blocks * BLOCK_TOKENS, kv heads, head dim]`.
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// Cosines and sines of a step's rows, `[rows, 1, pairs]`.
struct Angles {
    cos: Tensor,
    sin: Tensor,
    pairs: usize,
}

/// What one span's rows see: tokens of the sequence from some block on.
struct Reach {
    /// Those blocks, `[blocks]`.
    table: Tensor,
    /// Tokens of the first block that are not seen.
    skipped: usize,
    tokens: usize,
    /// 0 where a row sees a token, minus infinity where not, `[rows, tokens]`; `None`: all rows see all.
    mask: Option<Tensor>,
}

impl Candle {
    pub(crate) fn new(device: Device) -> Self {
        Self { device }
    }

    /// Keys and values are halves where memory is scarce.
    fn kv_dtype(&self) -> DType {
        if self.device.is_cpu() { DType::F32 } else { DType::F16 }
    }

    fn angles(&self, rope: &RopeSpec, positions: &[usize]) -> Result<Angles> {
        let pairs = rope.frequencies.len();
        let upload = |part: fn(f64) -> f64| {
            let angles = positions.iter().flat_map(|&position| {
                rope.frequencies
                    .iter()
                    .map(move |frequency| position as f64 * frequency)
            });
            let values: Vec<f32> = angles
                .map(|angle| (part(angle) * f64::from(rope.magnitude)) as f32)
                .collect();
            Tensor::from_vec(values, (positions.len(), 1, pairs), &self.device)
        };
        Ok(Angles {
            cos: upload(f64::cos)?,
            sin: upload(f64::sin)?,
            pairs,
        })
    }

    fn reach(&self, span: &Span<'_>, window: Option<usize>) -> Result<Reach> {
        let end = span.position + span.rows;
        let from = window.map_or(0, |window| (span.position + 1).saturating_sub(window));
        let first_block = from / BLOCK_TOKENS;
        let table = &span.blocks[first_block..end.div_ceil(BLOCK_TOKENS)];
        let sees = |at: usize, token: usize| token <= at && window.is_none_or(|window| at - token < window);
        let mask = || {
            let mask: Vec<f32> = (span.position..end)
                .flat_map(|at| (from..end).map(move |token| (at, token)))
                .map(|(at, token)| if sees(at, token) { 0.0 } else { f32::NEG_INFINITY })
                .collect();
            Tensor::from_vec(mask, (span.rows, end - from), &self.device)
        };
        Ok(Reach {
            table: Tensor::new(table, &self.device)?,
            skipped: from - first_block * BLOCK_TOKENS,
            tokens: end - from,
            mask: (span.rows > 1).then(mask).transpose()?,
        })
    }

    fn select(&self, x: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        x.index_select(&Tensor::new(rows, &self.device)?, 0)
    }
}

impl Backend for Candle {
    type Matrix = DeviceMatrix;
    type Vector = Tensor;
    /// One per layer.
    type Cache = Vec<LayerCache>;

    fn load_matrix(&self, raw: &RawTensor<'_>) -> std::result::Result<DeviceMatrix, LoadError> {
        let weights = match raw.to_dense(&self.device) {
            Some(dense) if self.device.is_cpu() => Weights::Dense(dense?.to_dtype(DType::F32)?),
            Some(dense) => Weights::Dense(dense?),
            None => Weights::Quantised(QMatMul::from_qtensor(raw.to_qtensor(&self.device)?)?),
        };
        let bytes = match &weights {
            Weights::Quantised(_) => raw.data.len(),
            Weights::Dense(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        };
        Ok(DeviceMatrix { weights, bytes })
    }

    fn load_vector(&self, raw: &RawTensor<'_>) -> std::result::Result<Tensor, LoadError> {
        Ok(Tensor::from_vec(raw.to_f32()?, raw.dims.as_slice(), &self.device)?)
    }

    fn matrix_bytes(&self, matrix: &DeviceMatrix) -> usize {
        matrix.bytes
    }

    fn expected_matrix_bytes(&self, dtype: TensorType, rows: usize, cols: usize) -> usize {
        let widened = self.device.is_cpu() && dtype.block_elements() == 1;
        let kept = if widened { TensorType::F32 } else { dtype };
        kept.tensor_bytes(&[rows, cols]).unwrap_or(0)
    }

    fn kv_bytes_per_block(&self, layers: &[LayerShape]) -> usize {
        let values = |layer: &LayerShape| 2 * BLOCK_TOKENS * layer.heads.kv_width();
        layers.iter().map(values).sum::<usize>() * self.kv_dtype().size_in_bytes()
    }

    fn new_cache(&self, layers: &[LayerShape], blocks: usize) -> std::result::Result<Vec<LayerCache>, LoadError> {
        let cache = |layer: &LayerShape| {
            let shape = (blocks * BLOCK_TOKENS, layer.heads.kv, layer.heads.dim);
            Ok(LayerCache {
                keys: Tensor::zeros(shape, self.kv_dtype(), &self.device)?,
                values: Tensor::zeros(shape, self.kv_dtype(), &self.device)?,
            })
        };
        layers.iter().map(cache).collect()
    }

    fn forward(
        &mut self,
        network: &Network<Self>,
        cache: &mut Vec<LayerCache>,
        batch: &Batch<'_>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let architecture = &network.architecture;
        let angles = architecture
            .ropes
            .iter()
            .map(|rope| self.angles(rope, &batch.positions));
        let angles = angles.collect::<Result<Vec<_>>>()?;
        let windows = reaches(self, &architecture.layers, &batch.spans)?;
        let ids = Tensor::new(batch.tokens.as_slice(), &self.device)?;
        let mut x = (network.embeddings.rows(&ids)? * f64::from(architecture.embedding_scale))?;
        for (index, (layer, cache)) in network.layers.iter().zip(cache).enumerate() {
            let shape = &architecture.layers[index];
            let attention = Attention {
                architecture,
                layer,
                heads: &shape.heads,
                angles: &angles[shape.rope],
            };
            let [q, k, v] = attention.project(&x)?;
            cache.write(&batch.spans, &k, &v)?;
            let mut mixed = attention.mix(&q, cache, &batch.spans, windows.of(shape.heads.window))?;
            if index + 1 == network.layers.len() && batch.wanted.len() < batch.tokens.len() {
                // From here on no row looks at another: those that nobody asks for have done their part.
                if batch.wanted.is_empty() {
                    return Ok(());
                }
                mixed = self.select(&mixed, batch.wanted.iter().map(|wanted| wanted.row))?;
                x = self.select(&x, batch.wanted.iter().map(|wanted| wanted.row))?;
            }
            let mixed = layer.output.multiply(&mixed)?;
            x = (x + post_norm(mixed, layer.attention_post_norm.as_ref(), architecture.epsilon)?)?;
            let fed = feed_forward(architecture, layer, &x)?;
            x = (x + post_norm(fed, layer.feed_forward_post_norm.as_ref(), architecture.epsilon)?)?;
        }
        let x = norm(&x, &network.norm, architecture.epsilon)?;
        let mut first = 0;
        for run in batch.wanted.chunk_by(|a, b| a.what == b.what) {
            let rows = x.narrow(0, first, run.len())?;
            first += run.len();
            let rows = match run[0].what {
                What::Hidden => rows,
                What::Logits => softcap(network.head().multiply(&rows)?, architecture.logit_softcap)?,
            };
            out.extend(rows.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }
}

impl DeviceMatrix {
    /// Rows of an embedding table.
    fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Weights::Quantised(weights) => weights.embedding(ids),
            Weights::Dense(weights) => weights.index_select(ids, 0)?.to_dtype(DType::F32),
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Weights::Quantised(weights) => weights.forward(x),
            Weights::Dense(weights) => x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(DType::F32),
        }
    }
}

impl LayerCache {
    /// Puts the rows of all spans at their places, `[rows, kv heads, head dim]` each.
    fn write(&self, spans: &[Span<'_>], k: &Tensor, v: &Tensor) -> Result<()> {
        let dtype = self.keys.dtype();
        let (k, v) = (k.to_dtype(dtype)?, v.to_dtype(dtype)?);
        for span in spans {
            let (mut row, end) = (span.first, span.first + span.rows);
            while row < end {
                let position = span.position + row - span.first;
                let slot = position % BLOCK_TOKENS;
                let rows = (BLOCK_TOKENS - slot).min(end - row);
                let at = span.blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + slot;
                self.keys.slice_set(&k.narrow(0, row, rows)?, 0, at)?;
                self.values.slice_set(&v.narrow(0, row, rows)?, 0, at)?;
                row += rows;
            }
        }
        Ok(())
    }
}

impl Reach {
    /// The seen tokens of a layer's keys or values, `[kv heads, tokens, head dim]`.
    fn gather(&self, stored: &Tensor) -> Result<Tensor> {
        let (slots, heads, dim) = stored.dims3()?;
        let blocks = stored.reshape((slots / BLOCK_TOKENS, BLOCK_TOKENS, heads, dim))?;
        let seen = blocks.index_select(&self.table, 0)?.reshape(((), heads, dim))?;
        let seen = seen.narrow(0, self.skipped, self.tokens)?.to_dtype(DType::F32)?;
        seen.transpose(0, 1)?.contiguous()
    }
}

/// For each kind of window, what the spans see.
struct Windows(Vec<(Option<usize>, Vec<Reach>)>);

impl Windows {
    fn of(&self, window: Option<usize>) -> &[Reach] {
        let found = self.0.iter().find(|(of, _)| *of == window);
        found.map_or(&[], |(_, reaches)| reaches.as_slice())
    }
}

fn reaches(candle: &Candle, layers: &[LayerShape], spans: &[Span<'_>]) -> Result<Windows> {
    let mut windows = Windows(Vec::new());
    for LayerShape { heads, .. } in layers {
        if windows.of(heads.window).is_empty() {
            let reaches = spans.iter().map(|span| candle.reach(span, heads.window));
            windows.0.push((heads.window, reaches.collect::<Result<_>>()?));
        }
    }
    Ok(windows)
}

/// One layer's attention.
struct Attention<'a> {
    architecture: &'a Architecture,
    layer: &'a Layer<Candle>,
    heads: &'a Heads,
    angles: &'a Angles,
}

impl Attention<'_> {
    /// Queries, keys and values, normed and turned, `[rows, heads, head dim]` each.
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (layer, heads) = (self.layer, self.heads);
        let x = norm(x, &layer.attention_norm, self.architecture.epsilon)?;
        let project = |index: usize, matrix: &DeviceMatrix, heads_of: usize| {
            let rows = matrix.multiply(&x)?;
            let rows = match &layer.biases {
                Some(biases) => rows.broadcast_add(&biases[index])?,
                None => rows,
            };
            rows.reshape(((), heads_of, heads.dim))
        };
        let q = project(0, &layer.query, heads.query)?;
        let k = project(1, &layer.key, heads.kv)?;
        let v = project(2, &layer.value, heads.kv)?;
        let turn = |x: Tensor, weights: Option<&Tensor>| {
            let x = match weights {
                Some(weights) => norm(&x, weights, self.architecture.epsilon)?,
                None => x,
            };
            self.angles.turn(&x, self.architecture.rope_style)
        };
        Ok([
            turn(q, layer.query_norm.as_ref())?,
            turn(k, layer.key_norm.as_ref())?,
            v,
        ])
    }

    /// What all rows take from the tokens they see, `[rows, query heads * head dim]`.
    fn mix(&self, q: &Tensor, cache: &LayerCache, spans: &[Span<'_>], reaches: &[Reach]) -> Result<Tensor> {
        let mixed = spans.iter().zip(reaches).map(|(span, reach)| {
            let q = q.narrow(0, span.first, span.rows)?;
            self.mix_span(&q, reach, &reach.gather(&cache.keys)?, &reach.gather(&cache.values)?)
        });
        Tensor::cat(&mixed.collect::<Result<Vec<_>>>()?, 0)
    }

    fn mix_span(&self, q: &Tensor, reach: &Reach, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let &Heads {
            query, kv, dim, scale, ..
        } = self.heads;
        let (rows, group) = (q.dim(0)?, query / kv);
        // The query heads that share a key head become rows of one product.
        let q = q.reshape((rows, kv, group, dim))?.permute((1, 2, 0, 3))?.contiguous()?;
        let q = (q.reshape((kv, group * rows, dim))? * f64::from(scale))?;
        let scores = softcap(q.matmul(&k.t()?)?, self.architecture.attention_softcap)?;
        let scores = scores.reshape((kv, group, rows, reach.tokens))?;
        let scores = match &reach.mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mixed = weights.reshape((kv, group * rows, reach.tokens))?.matmul(v)?;
        let mixed = mixed.reshape((kv, group, rows, dim))?.permute((2, 0, 1, 3))?;
        mixed.contiguous()?.reshape((rows, query * dim))
    }
}

impl Angles {
    /// Turns every head of `[rows, heads, head dim]`.
    fn turn(&self, x: &Tensor, style: RopeStyle) -> Result<Tensor> {
        let (rows, heads, dim) = x.dims3()?;
        let pairs = self.pairs;
        let turned = x.narrow(2, 0, 2 * pairs)?;
        let (a, b) = match style {
            RopeStyle::Halves => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
            RopeStyle::Interleaved => {
                let neighbours = turned.contiguous()?.reshape((rows, heads, pairs, 2))?;
                (neighbours.i((.., .., .., 0))?, neighbours.i((.., .., .., 1))?)
            }
        };
        let low = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let high = (a.broadcast_mul(&self.sin)? + b.broadcast_mul(&self.cos)?)?;
        let turned = match style {
            RopeStyle::Halves => Tensor::cat(&[low, high], 2)?,
            RopeStyle::Interleaved => Tensor::stack(&[low, high], 3)?.reshape((rows, heads, 2 * pairs))?,
        };
        if 2 * pairs == dim {
            return Ok(turned);
        }
        Tensor::cat(&[turned, x.narrow(2, 2 * pairs, dim - 2 * pairs)?], 2)
    }
}

fn feed_forward(architecture: &Architecture, layer: &Layer<Candle>, x: &Tensor) -> Result<Tensor> {
    let x = norm(x, &layer.feed_forward_norm, architecture.epsilon)?;
    let gate = layer.gate.multiply(&x)?;
    let gate = match architecture.activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Gelu => gate.gelu_erf()?,
    };
    layer.down.multiply(&(gate * layer.up.multiply(&x)?)?)
}

/// Root-mean-square norm over the last dimension.
fn norm(x: &Tensor, weights: &Tensor, epsilon: f32) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weights)
}

fn post_norm(x: Tensor, weights: Option<&Tensor>, epsilon: f32) -> Result<Tensor> {
    match weights {
        Some(weights) => norm(&x, weights, epsilon),
        None => Ok(x),
    }
}

fn softcap(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap.map(f64::from) {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}
