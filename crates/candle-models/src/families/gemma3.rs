//! Gemma 3: norms before and after each half of a block, normed queries and keys, rotary positions across the halves,
//! GELU gate, scaled embeddings; most layers see a sliding window and use a rotary base of their own.

use cpu_kernels::{Activation, RopeStyle, RopeTable};

use super::{Batch, GatedFeedForward, Network, Projections, Vocabulary, read_heads, rope_frequencies, rope_scaling};
use crate::backend::{Backend, Heads};
use crate::error::LoadError;
use crate::gguf::Gguf;
use crate::weights::Weights;

/// Every sixth layer sees everything, unless the file says otherwise.
const WINDOW_PATTERN: usize = 6;
/// Rotary base of the layers with a window, unless the file says otherwise.
const WINDOW_ROPE_BASE: f32 = 10_000.0;
/// Layers of the 27B model, which scales its scores by the width per head.
const LAYERS_OF_27B: usize = 62;

pub(crate) struct Gemma3<B: Backend> {
    vocabulary: Vocabulary<B>,
    embedding_scale: f32,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    epsilon: f32,
    /// Rotary frequencies of the layers that see everything.
    global_frequencies: Vec<f64>,
    /// Rotary frequencies of the layers with a window.
    window_frequencies: Vec<f64>,
}

struct Layer<B: Backend> {
    heads: Heads,
    attention_norm: B::Vector,
    attention: Projections<B>,
    query_norm: B::Vector,
    key_norm: B::Vector,
    attention_post_norm: B::Vector,
    feed_forward_norm: B::Vector,
    feed_forward: GatedFeedForward<B>,
    feed_forward_post_norm: B::Vector,
}

impl<B: Backend> Gemma3<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>) -> Result<Self, LoadError> {
        let gguf = weights.gguf();
        refuse_softcaps(gguf)?;
        let width = gguf.required_count("gemma3.embedding_length")?;
        let hidden = gguf.required_count("gemma3.feed_forward_length")?;
        let blocks = gguf.required_count("gemma3.block_count")?;
        let epsilon = gguf.required_float("gemma3.attention.layer_norm_rms_epsilon")?;
        let window = gguf.required_count("gemma3.attention.sliding_window")?;
        let pattern = gguf.count("gemma3.attention.sliding_window_pattern").filter(|&n| n > 0);
        let pattern = pattern.unwrap_or(WINDOW_PATTERN);
        let mut heads = read_heads(gguf, "gemma3", width)?;
        if blocks == LAYERS_OF_27B {
            heads.scale = 1.0 / ((width / heads.query) as f32).sqrt();
        }
        let base = gguf.float("gemma3.rope.freq_base").unwrap_or(1_000_000.0);
        let window_base = gguf.float("gemma3.rope.freq_base_swa").unwrap_or(WINDOW_ROPE_BASE);
        let global_frequencies = rope_frequencies(heads.dim / 2, base, rope_scaling(gguf, "gemma3")?);
        let window_frequencies = rope_frequencies(heads.dim / 2, window_base, 1.0);

        let vocabulary = Vocabulary::load(weights, width)?;
        let layers = (0..blocks).map(|block| {
            let prefix = format!("blk.{block}");
            let sees_everything = (block + 1).is_multiple_of(pattern);
            let heads = Heads {
                window: (!sees_everything).then_some(window),
                ..heads
            };
            let activation = Activation::GeluTanh;
            let mut norm = |name: &str, len| weights.vector(&format!("{prefix}.{name}.weight"), len);
            Ok(Layer {
                heads,
                attention_norm: norm("attn_norm", width)?,
                query_norm: norm("attn_q_norm", heads.dim)?,
                key_norm: norm("attn_k_norm", heads.dim)?,
                attention_post_norm: norm("post_attention_norm", width)?,
                feed_forward_norm: norm("ffn_norm", width)?,
                feed_forward_post_norm: norm("post_ffw_norm", width)?,
                attention: Projections::load(weights, &prefix, width, &heads)?,
                feed_forward: GatedFeedForward::load(weights, &prefix, (width, hidden), activation)?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>, LoadError>>()?;
        let norm = weights.vector("output_norm.weight", width)?;
        let embedding_scale = (width as f32).sqrt();
        Ok(Self {
            vocabulary,
            embedding_scale,
            layers,
            norm,
            epsilon,
            global_frequencies,
            window_frequencies,
        })
    }
}

/// Gemma 3 has no soft caps; a file that asks for them would be answered wrongly.
fn refuse_softcaps(gguf: &Gguf) -> Result<(), LoadError> {
    for key in ["gemma3.final_logit_softcapping", "gemma3.attn_logit_softcapping"] {
        if gguf.float(key).is_some_and(|cap| cap > 0.0) {
            return Err(LoadError::Unsupported(format!(
                "{key} is not supported in the gemma3 family"
            )));
        }
    }
    Ok(())
}

impl<B: Backend> Network<B> for Gemma3<B> {
    fn heads(&self) -> Vec<Heads> {
        self.layers.iter().map(|layer| layer.heads).collect()
    }

    fn vocab_size(&self) -> usize {
        self.vocabulary.size
    }

    fn forward(&self, backend: &B, batch: &mut Batch<'_, B::Cache>) -> candle_core::Result<B::Rows> {
        let epsilon = self.epsilon;
        let global_rope = backend.upload_rope(RopeTable::new(&batch.positions, &self.global_frequencies))?;
        let window_rope = backend.upload_rope(RopeTable::new(&batch.positions, &self.window_frequencies))?;
        let mut x = backend.embed(&self.vocabulary.embeddings, &batch.tokens, self.embedding_scale)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (attention, dim) = (&layer.attention, layer.heads.dim);
            let rope = if layer.heads.window.is_some() {
                &window_rope
            } else {
                &global_rope
            };
            let normed = backend.norm(&x, &layer.attention_norm, epsilon)?;
            let [q, k, v] = backend.linear(&normed, [&attention.query, &attention.key, &attention.value])?;
            let q = backend.norm(&q, &layer.query_norm, epsilon)?;
            let k = backend.norm(&k, &layer.key_norm, epsilon)?;
            let q = backend.rotate(q, dim, rope, RopeStyle::Halves)?;
            let k = backend.rotate(k, dim, rope, RopeStyle::Halves)?;
            let mixed = backend.attend(&layer.heads, index, [q, k, v], &mut batch.spans)?;
            let [mixed] = backend.linear(&mixed, [&attention.output])?;
            x = backend.add(x, backend.norm(&mixed, &layer.attention_post_norm, epsilon)?)?;

            let normed = backend.norm(&x, &layer.feed_forward_norm, epsilon)?;
            let out = layer.feed_forward.forward(backend, &normed)?;
            x = backend.add(x, backend.norm(&out, &layer.feed_forward_post_norm, epsilon)?)?;
        }
        let x = backend.pick(x, &batch.wanted)?;
        self.vocabulary.logits(backend, &backend.norm(&x, &self.norm, epsilon)?)
    }
}
