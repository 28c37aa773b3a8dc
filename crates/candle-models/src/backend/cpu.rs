//! The fused CPU path: weights as the file rounds them, activations rounded to 8 bits for each product, f16 keys and
//! values in blocks. All rows of a step go through each layer together; a step allocates nothing once it has been as
//! large before.

use std::borrow::Cow;
use std::num::NonZeroUsize;

use cpu_kernels::{
    Activations, AttentionScratch, AttentionShape, Format, Forms, Kernels, KvCache, Matrix, Product, Qkv, RmsNorm,
    RopeTable, Store,
};

use super::{Backend, Batch, Wanted, What};
use crate::architecture::{Architecture, LayerShape};
use crate::candle_tensor::CandleTensor;
use crate::error::LoadError;
use crate::network::{Layer, Network};
use model_format::{RawTensor, TensorType};

/// Kernels, the threads they run on, and a step's working memory.
pub(crate) struct Cpu {
    kernels: Kernels,
    scratch: Scratch,
}

/// A step's rows on their way. Kept between steps for its memory.
#[derive(Default)]
struct Scratch {
    /// `[rows, width]`: what the layers add to.
    x: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// What the attention gives, `[rows, query heads * head dim]`.
    mixed: Vec<f32>,
    /// `[rows, hidden]`
    gated: Vec<f32>,
    /// Half a layer's result, where a norm comes before it is added.
    branch: Vec<f32>,
    /// One per kind of rotary positions.
    ropes: Vec<RopeTable>,
    activations: Activations,
    attention: AttentionScratch,
}

impl Cpu {
    /// Kernels on so many threads; `None`: as many as the process may run on.
    pub(crate) fn new(threads: Option<NonZeroUsize>) -> Result<Self, LoadError> {
        let threads = match threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?,
        };
        let kernels = Kernels::from_env(threads)?;
        tracing::debug!(level = %kernels.level(), threads, "fused cpu path");
        Ok(Self {
            kernels,
            scratch: Scratch::default(),
        })
    }
}

/// The kernels' name of a type that they multiply with as it is.
fn format(dtype: TensorType) -> Option<Format> {
    Some(match dtype {
        TensorType::F32 => Format::F32,
        TensorType::F16 => Format::F16,
        TensorType::Bf16 => Format::Bf16,
        TensorType::Q4_0 => Format::Q4_0,
        TensorType::Q4_1 => Format::Q4_1,
        TensorType::Q5_0 => Format::Q5_0,
        TensorType::Q5_1 => Format::Q5_1,
        TensorType::Q8_0 => Format::Q8_0,
        TensorType::Q4K => Format::Q4K,
        TensorType::Q5K => Format::Q5K,
        TensorType::Q6K => Format::Q6K,
        _ => return None,
    })
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    /// One per layer.
    type Cache = Vec<KvCache>;

    fn load_matrix(&self, raw: &RawTensor<'_>) -> Result<Matrix, LoadError> {
        let &[rows, cols] = raw.dims.as_slice() else {
            return Err(LoadError::Damaged(format!("tensor {} is not a matrix", raw.name)));
        };
        let (format, data) = match format(raw.dtype) {
            Some(format) => (format, Cow::Borrowed(raw.data)),
            // Rare types are kept as halves.
            None => {
                let values = raw.to_f32()?;
                (
                    Format::F32,
                    values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                )
            }
        };
        Matrix::pack(&self.kernels, format, rows, cols, &data)
            .map_err(|error| LoadError::Damaged(format!("tensor {}: {error}", raw.name)))
    }

    fn load_vector(&self, raw: &RawTensor<'_>) -> Result<Vec<f32>, LoadError> {
        Ok(raw.to_f32()?)
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn expected_matrix_bytes(&self, dtype: TensorType, rows: usize, cols: usize) -> usize {
        Matrix::packed_bytes(format(dtype).unwrap_or(Format::F32), rows, cols)
    }

    fn kv_bytes_per_block(&self, layers: &[LayerShape]) -> usize {
        let bytes = |layer: &LayerShape| KvCache::bytes_per_block(layer.heads.kv, layer.heads.dim);
        layers.iter().map(bytes).sum()
    }

    fn new_cache(&self, layers: &[LayerShape], blocks: usize) -> Result<Vec<KvCache>, LoadError> {
        let caches = layers
            .iter()
            .map(|layer| KvCache::new(layer.heads.kv, layer.heads.dim, blocks));
        Ok(caches.collect::<Result<_, _>>()?)
    }

    fn forward(
        &mut self,
        network: &Network<Self>,
        cache: &mut Vec<KvCache>,
        batch: &Batch<'_>,
        out: &mut Vec<f32>,
    ) -> candle_core::Result<()> {
        let Self { kernels, scratch } = self;
        let mut pass = Pass {
            kernels,
            scratch,
            architecture: &network.architecture,
            rows: batch.tokens.len(),
        };
        pass.embed(network, batch);
        for (index, (layer, cache)) in network.layers.iter().zip(cache).enumerate() {
            pass.attend(layer, index, cache, batch);
            if index + 1 == network.layers.len() {
                // From here on no row looks at another: those that nobody asks for have done their part.
                pass.keep(&batch.wanted, network.architecture.layers[index].heads.query_width());
            }
            pass.mix(layer, &network.architecture.layers[index]);
            pass.feed_forward(layer);
        }
        pass.finish(network, &batch.wanted, out);
        Ok(())
    }
}

/// One step's way through the layers.
struct Pass<'a> {
    kernels: &'a Kernels,
    scratch: &'a mut Scratch,
    architecture: &'a Architecture,
    /// Rows still on their way.
    rows: usize,
}

impl Pass<'_> {
    fn norm<'w>(&self, weights: &'w [f32]) -> RmsNorm<'w> {
        RmsNorm {
            weights,
            epsilon: self.architecture.epsilon,
        }
    }

    /// Embeddings and rotary angles of all rows.
    fn embed(&mut self, network: &Network<Cpu>, batch: &Batch<'_>) {
        let (width, scale) = (self.architecture.width, self.architecture.embedding_scale);
        let Scratch { x, ropes, .. } = &mut *self.scratch;
        x.resize(self.rows * width, 0.0);
        for (&token, row) in batch.tokens.iter().zip(x.chunks_exact_mut(width)) {
            network.embeddings.row_to_f32(token as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|value| *value *= scale);
            }
        }
        ropes.resize_with(self.architecture.ropes.len(), RopeTable::new);
        for (table, rope) in ropes.iter_mut().zip(&self.architecture.ropes) {
            table.fill(&batch.positions, &rope.frequencies, rope.magnitude);
        }
    }

    /// Queries, keys and values; the attention over them.
    fn attend(&mut self, layer: &Layer<Cpu>, index: usize, cache: &mut KvCache, batch: &Batch<'_>) {
        let (rows, width) = (self.rows, self.architecture.width);
        let LayerShape { heads, rope } = self.architecture.layers[index];
        let norm = self.norm(&layer.attention_norm);
        let [query_norm, key_norm] =
            [&layer.query_norm, &layer.key_norm].map(|norm| norm.as_deref().map(|w| self.norm(w)));
        let s = &mut *self.scratch;
        let matrices = [&layer.query, &layer.key, &layer.value];
        self.kernels
            .prepare(&s.x, width, Some(norm), Forms::of(matrices), &mut s.activations);
        s.queries.resize(rows * heads.query_width(), 0.0);
        s.keys.resize(rows * heads.kv_width(), 0.0);
        s.values.resize(rows * heads.kv_width(), 0.0);
        s.mixed.resize(rows * heads.query_width(), 0.0);
        let biases = layer.biases.as_ref();
        let bias = |index: usize| biases.map(|biases| biases[index].as_slice());
        let outs = [&mut s.queries, &mut s.keys, &mut s.values];
        let mut index = 0;
        let mut products = outs.map(|out| {
            let product = Product {
                weights: matrices[index],
                bias: bias(index),
                out,
                store: Store::Set,
            };
            index += 1;
            product
        });
        self.kernels.multiply(&s.activations, &mut products);
        let shape = AttentionShape {
            heads: heads.query,
            kv_heads: heads.kv,
            head_dim: heads.dim,
            scale: heads.scale,
            window: heads.window,
            softcap: self.architecture.attention_softcap,
            query_norm,
            key_norm,
            style: self.architecture.rope_style,
        };
        let qkv = Qkv {
            q: &mut s.queries,
            k: &mut s.keys,
            v: &s.values,
        };
        self.kernels.attend(
            &shape,
            &s.ropes[rope],
            qkv,
            cache,
            &batch.spans,
            &mut s.attention,
            &mut s.mixed,
        );
    }

    /// Drops all rows but the wanted ones, which are ascending.
    fn keep(&mut self, wanted: &[Wanted], mixed_width: usize) {
        if wanted.len() == self.rows {
            return;
        }
        let width = self.architecture.width;
        for (row, wanted) in wanted.iter().enumerate() {
            let copy = |rows: &mut Vec<f32>, width: usize| {
                rows.copy_within(wanted.row * width..(wanted.row + 1) * width, row * width);
            };
            copy(&mut self.scratch.x, width);
            copy(&mut self.scratch.mixed, mixed_width);
        }
        self.rows = wanted.len();
        self.scratch.x.truncate(self.rows * width);
        self.scratch.mixed.truncate(self.rows * mixed_width);
    }

    /// The attention's last product.
    fn mix(&mut self, layer: &Layer<Cpu>, shape: &LayerShape) {
        let width = shape.heads.query_width();
        let s = &mut *self.scratch;
        self.kernels
            .prepare(&s.mixed, width, None, Forms::of([&layer.output]), &mut s.activations);
        self.add(&layer.output, layer.attention_post_norm.as_deref());
    }

    fn feed_forward(&mut self, layer: &Layer<Cpu>) {
        let (width, hidden) = (self.architecture.width, self.architecture.hidden);
        let norm = self.norm(&layer.feed_forward_norm);
        let s = &mut *self.scratch;
        let forms = Forms::of([&layer.gate, &layer.up]);
        self.kernels.prepare(&s.x, width, Some(norm), forms, &mut s.activations);
        s.gated.resize(self.rows * hidden, 0.0);
        let activation = self.architecture.activation;
        self.kernels
            .multiply_gated(&s.activations, &layer.gate, &layer.up, activation, &mut s.gated);
        self.kernels
            .prepare(&s.gated, hidden, None, Forms::of([&layer.down]), &mut s.activations);
        self.add(&layer.down, layer.feed_forward_post_norm.as_deref());
    }

    /// Adds the product with what is prepared to the rows, normed first if there is a norm.
    fn add(&mut self, weights: &Matrix, post_norm: Option<&[f32]>) {
        let norm = post_norm.map(|weights| self.norm(weights));
        let s = &mut *self.scratch;
        let (out, store) = match norm {
            None => (&mut s.x, Store::Add),
            Some(_) => {
                s.branch.resize(s.x.len(), 0.0);
                (&mut s.branch, Store::Set)
            }
        };
        let product = Product {
            weights,
            bias: None,
            out,
            store,
        };
        self.kernels.multiply(&s.activations, &mut [product]);
        if let Some(norm) = norm {
            self.kernels
                .add_normed(&mut s.x, &s.branch, self.architecture.width, norm);
        }
    }

    /// Appends what is asked of the rows, all of which are wanted.
    fn finish(&mut self, network: &Network<Cpu>, wanted: &[Wanted], out: &mut Vec<f32>) {
        let (width, vocab) = (self.architecture.width, self.architecture.vocab);
        let norm = self.norm(&network.norm);
        let s = &mut *self.scratch;
        let mut x = s.x.as_slice();
        for run in wanted.chunk_by(|a, b| a.what == b.what) {
            let (rows, behind) = x.split_at(run.len() * width);
            x = behind;
            let start = out.len();
            match run[0].what {
                What::Hidden => {
                    out.resize(start + rows.len(), 0.0);
                    self.kernels.add_normed(&mut out[start..], rows, width, norm);
                }
                What::Logits => {
                    let head = network.head();
                    self.kernels
                        .prepare(rows, width, Some(norm), Forms::of([head]), &mut s.activations);
                    out.resize(start + run.len() * vocab, 0.0);
                    let product = Product {
                        weights: head,
                        bias: None,
                        out: &mut out[start..],
                        store: Store::Set,
                    };
                    self.kernels.multiply(&s.activations, &mut [product]);
                    if let Some(cap) = self.architecture.logit_softcap {
                        self.kernels.softcap(&mut out[start..], cap);
                    }
                }
            }
        }
    }
}
