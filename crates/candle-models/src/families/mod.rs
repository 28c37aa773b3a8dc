//! The model families: one file each, written once for every backend.

use cpu_kernels::Activation;

use crate::backend::{Backend, Heads, Span};
use crate::error::LoadError;
use crate::gguf::Gguf;
use crate::weights::Weights;

mod gemma3;
mod llama;

pub(crate) use gemma3::Gemma3;
pub(crate) use llama::Llama;

/// A model family that this build can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama and its many relatives: SmolLM2, Mistral, TinyLlama.
    Llama,
    /// Gemma 3, text only.
    Gemma3,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Gemma3];

    /// The name that GGUF files give it in `general.architecture`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Gemma3 => "gemma3",
        }
    }

    pub(crate) fn of(gguf: &Gguf) -> Result<Self, LoadError> {
        let name = gguf.string("general.architecture").unwrap_or("");
        Self::ALL
            .into_iter()
            .find(|family| family.architecture() == name)
            .ok_or_else(|| {
                let supported = Self::ALL.map(Self::architecture).join(", ");
                LoadError::Unsupported(format!(
                    "the model architecture {name:?} is not supported; supported are: {supported}"
                ))
            })
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.architecture())
    }
}

/// One step's rows.
pub(crate) struct Batch<'a, C> {
    pub(crate) tokens: Vec<u32>,
    /// Each row's position in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Rows whose logits are wanted.
    pub(crate) wanted: Vec<usize>,
    /// Cover all rows, in order.
    pub(crate) spans: Vec<Span<'a, C>>,
}

/// A loaded network.
pub(crate) trait Network<B: Backend>: Send + Sync + 'static {
    /// Each layer's attention.
    fn heads(&self) -> Vec<Heads>;

    /// Rows of the embedding table.
    fn vocab_size(&self) -> usize;

    /// The logits of the wanted rows.
    fn forward(&self, backend: &B, batch: &mut Batch<'_, B::Cache>) -> candle_core::Result<B::Rows>;
}

/// A feed-forward layer whose first half is gated.
struct GatedFeedForward<B: Backend> {
    gate: B::Matrix,
    up: B::Matrix,
    down: B::Matrix,
    activation: Activation,
}

impl<B: Backend> GatedFeedForward<B> {
    fn load(
        weights: &mut Weights<'_, B>,
        prefix: &str,
        sizes: (usize, usize),
        activation: Activation,
    ) -> Result<Self, LoadError> {
        let (width, hidden) = sizes;
        Ok(Self {
            gate: weights.matrix(&format!("{prefix}.ffn_gate.weight"), hidden, width)?,
            up: weights.matrix(&format!("{prefix}.ffn_up.weight"), hidden, width)?,
            down: weights.matrix(&format!("{prefix}.ffn_down.weight"), width, hidden)?,
            activation,
        })
    }

    fn forward(&self, backend: &B, x: &B::Rows) -> candle_core::Result<B::Rows> {
        let [gate, up] = backend.linear(x, [&self.gate, &self.up])?;
        let [out] = backend.linear(&backend.gate(self.activation, gate, up)?, [&self.down])?;
        Ok(out)
    }
}

/// The four projections of an attention layer.
struct Projections<B: Backend> {
    query: B::Matrix,
    key: B::Matrix,
    value: B::Matrix,
    output: B::Matrix,
}

impl<B: Backend> Projections<B> {
    fn load(weights: &mut Weights<'_, B>, prefix: &str, width: usize, heads: &Heads) -> Result<Self, LoadError> {
        let (query, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
        Ok(Self {
            query: weights.matrix(&format!("{prefix}.attn_q.weight"), query, width)?,
            key: weights.matrix(&format!("{prefix}.attn_k.weight"), kv, width)?,
            value: weights.matrix(&format!("{prefix}.attn_v.weight"), kv, width)?,
            output: weights.matrix(&format!("{prefix}.attn_output.weight"), width, query)?,
        })
    }
}

/// The embedding table and the output head, which are one matrix where the file has no head of its own.
struct Vocabulary<B: Backend> {
    embeddings: B::Matrix,
    head: Option<B::Matrix>,
    size: usize,
}

impl<B: Backend> Vocabulary<B> {
    fn load(weights: &mut Weights<'_, B>, width: usize) -> Result<Self, LoadError> {
        let size = weights.gguf().rows_of("token_embd.weight")?;
        let embeddings = weights.matrix("token_embd.weight", size, width)?;
        let own_head = weights.gguf().has_tensor("output.weight");
        let head = own_head
            .then(|| weights.matrix("output.weight", size, width))
            .transpose()?;
        Ok(Self { embeddings, head, size })
    }

    fn logits(&self, backend: &B, x: &B::Rows) -> candle_core::Result<B::Rows> {
        let [logits] = backend.linear(x, [self.head.as_ref().unwrap_or(&self.embeddings)])?;
        Ok(logits)
    }
}

/// Far beyond any model: sizes above are damage, and would ask for absurd amounts of memory.
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 13;

/// The head counts of `architecture`; without a stated head size, the width is shared among the query heads.
fn read_heads(gguf: &Gguf, architecture: &str, width: usize) -> Result<Heads, LoadError> {
    let key = |name: &str| format!("{architecture}.attention.{name}");
    let query = gguf.required_count(&key("head_count"))?;
    let kv = gguf.count(&key("head_count_kv")).filter(|&n| n > 0).unwrap_or(query);
    let dim = gguf
        .count(&key("key_length"))
        .filter(|&n| n > 0)
        .unwrap_or(width / query);
    let value_dim = gguf.count(&key("value_length")).unwrap_or(dim);
    if dim == 0 || dim > MAX_HEAD_DIM || query > MAX_HEADS || value_dim != dim || !query.is_multiple_of(kv) {
        return Err(LoadError::Unsupported(format!(
            "{query} query heads over {kv} key heads, {dim} wide keys with {value_dim} wide values, are not supported"
        )));
    }
    Ok(Heads {
        query,
        kv,
        dim,
        scale: 1.0 / (dim as f32).sqrt(),
        window: None,
    })
}

/// The rotary angles per token of `2 * pairs` turned elements, slowed down by a linear scaling factor.
fn rope_frequencies(pairs: usize, base: f32, factor: f64) -> Vec<f64> {
    (0..pairs)
        .map(|pair| f64::from(base).powf(-(pair as f64) / pairs as f64) / factor)
        .collect()
}

/// The linear scaling factor of rotary positions.
fn rope_scaling(gguf: &Gguf, architecture: &str) -> Result<f64, LoadError> {
    let factor = || {
        gguf.float(&format!("{architecture}.rope.scaling.factor"))
            .filter(|&f| f > 0.0)
            .unwrap_or(1.0)
    };
    match gguf.string(&format!("{architecture}.rope.scaling.type")) {
        None | Some("none") => Ok(1.0),
        Some("linear") => Ok(f64::from(factor())),
        Some(other) => Err(LoadError::Unsupported(format!(
            "rotary scaling of type {other:?} is not supported; linear is"
        ))),
    }
}
