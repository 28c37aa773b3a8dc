//! The llama family: pre-norm blocks, grouped query attention, rotary positions on neighbouring pairs, SiLU gate.

use cpu_kernels::{Activation, RopeStyle, RopeTable};

use super::{Batch, GatedFeedForward, Network, Projections, Vocabulary, read_heads, rope_frequencies, rope_scaling};
use crate::backend::{Backend, Heads};
use crate::error::LoadError;
use crate::weights::Weights;

pub(crate) struct Llama<B: Backend> {
    vocabulary: Vocabulary<B>,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    heads: Heads,
    epsilon: f32,
    frequencies: Vec<f64>,
}

struct Layer<B: Backend> {
    attention_norm: B::Vector,
    attention: Projections<B>,
    feed_forward_norm: B::Vector,
    feed_forward: GatedFeedForward<B>,
}

impl<B: Backend> Llama<B> {
    pub(crate) fn load(weights: &mut Weights<'_, B>) -> Result<Self, LoadError> {
        let gguf = weights.gguf();
        if gguf.count("llama.expert_count").is_some_and(|experts| experts > 0) {
            return Err(LoadError::Unsupported(
                "mixtures of experts are not supported".to_owned(),
            ));
        }
        let width = gguf.required_count("llama.embedding_length")?;
        let hidden = gguf.required_count("llama.feed_forward_length")?;
        let blocks = gguf.required_count("llama.block_count")?;
        let epsilon = gguf.required_float("llama.attention.layer_norm_rms_epsilon")?;
        let heads = read_heads(gguf, "llama", width)?;
        let turned = gguf
            .count("llama.rope.dimension_count")
            .unwrap_or(heads.dim)
            .min(heads.dim);
        let base = gguf.float("llama.rope.freq_base").unwrap_or(10_000.0);
        let mut frequencies = rope_frequencies(turned / 2, base, rope_scaling(gguf, "llama")?);
        if gguf.has_tensor("rope_freqs.weight") {
            // Llama 3.1 slows each pair down by its own factor.
            let factors = gguf.tensor("rope_freqs.weight", &[frequencies.len()])?.to_f32()?;
            frequencies
                .iter_mut()
                .zip(factors)
                .for_each(|(frequency, factor)| *frequency /= f64::from(factor));
        }
        let vocabulary = Vocabulary::load(weights, width)?;
        let layers = (0..blocks).map(|block| {
            let prefix = format!("blk.{block}");
            Ok(Layer {
                attention_norm: weights.vector(&format!("{prefix}.attn_norm.weight"), width)?,
                attention: Projections::load(weights, &prefix, width, &heads)?,
                feed_forward_norm: weights.vector(&format!("{prefix}.ffn_norm.weight"), width)?,
                feed_forward: GatedFeedForward::load(weights, &prefix, (width, hidden), Activation::Silu)?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>, LoadError>>()?;
        let norm = weights.vector("output_norm.weight", width)?;
        Ok(Self {
            vocabulary,
            layers,
            norm,
            heads,
            epsilon,
            frequencies,
        })
    }
}

impl<B: Backend> Network<B> for Llama<B> {
    fn heads(&self) -> Vec<Heads> {
        vec![self.heads; self.layers.len()]
    }

    fn vocab_size(&self) -> usize {
        self.vocabulary.size
    }

    fn forward(&self, backend: &B, batch: &mut Batch<'_, B::Cache>) -> candle_core::Result<B::Rows> {
        let (dim, epsilon) = (self.heads.dim, self.epsilon);
        let rope = backend.upload_rope(RopeTable::new(&batch.positions, &self.frequencies))?;
        let mut x = backend.embed(&self.vocabulary.embeddings, &batch.tokens, 1.0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let attention = &layer.attention;
            let normed = backend.norm(&x, &layer.attention_norm, epsilon)?;
            let [q, k, v] = backend.linear(&normed, [&attention.query, &attention.key, &attention.value])?;
            let q = backend.rotate(q, dim, &rope, RopeStyle::Interleaved)?;
            let k = backend.rotate(k, dim, &rope, RopeStyle::Interleaved)?;
            let mixed = backend.attend(&self.heads, index, [q, k, v], &mut batch.spans)?;
            let [mixed] = backend.linear(&mixed, [&attention.output])?;
            x = backend.add(x, mixed)?;

            let normed = backend.norm(&x, &layer.feed_forward_norm, epsilon)?;
            x = backend.add(x, layer.feed_forward.forward(backend, &normed)?)?;
        }
        let x = backend.pick(x, &batch.wanted)?;
        self.vocabulary.logits(backend, &backend.norm(&x, &self.norm, epsilon)?)
    }
}
