//! What all families are: one pre-norm decoder with options. A family describes itself; the backends compute.

use cpu_kernels::{Activation, RopeStyle};

use crate::families::Family;

/// A network's shape and constants.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Architecture {
    pub(crate) family: Family,
    /// Elements of a token's row between the layers.
    pub(crate) width: usize,
    /// Elements inside of the feed-forward part.
    pub(crate) hidden: usize,
    /// Rows of the embedding table; logits per token.
    pub(crate) vocab: usize,
    /// Tokens that the model was made for.
    pub(crate) context_length: usize,
    /// Of all root-mean-square norms.
    pub(crate) epsilon: f32,
    /// Factor on the embeddings.
    pub(crate) embedding_scale: f32,
    /// Of the feed-forward part's gate.
    pub(crate) activation: Activation,
    pub(crate) layers: Vec<LayerShape>,
    /// What [`LayerShape::rope`] points into.
    pub(crate) ropes: Vec<RopeSpec>,
    pub(crate) rope_style: RopeStyle,
    /// Queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// Queries and keys are normed per head, before they are turned.
    pub(crate) qk_norm: bool,
    /// Both halves of a layer are normed again before they are added.
    pub(crate) post_norms: bool,
    /// Queries, keys and values are one matrix in the file.
    pub(crate) fused_qkv: bool,
    /// Gate and up are one matrix in the file, the gate first.
    pub(crate) fused_gate_up: bool,
    /// `cap * tanh(logit / cap)`.
    pub(crate) logit_softcap: Option<f32>,
    /// The same for the scores of the attention, after their scaling.
    pub(crate) attention_softcap: Option<f32>,
}

/// One layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LayerShape {
    pub(crate) heads: Heads,
    /// Index of its rotary positions.
    pub(crate) rope: usize,
}

/// How a layer's attention is cut into heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    /// Divides `query`.
    pub(crate) kv: usize,
    /// Elements per head, the same for keys and values.
    pub(crate) dim: usize,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// Tokens that a token sees, itself included; `None`: all before it.
    pub(crate) window: Option<usize>,
}

/// Rotary positions, every scaling applied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeSpec {
    /// Angle per token of each pair; pairs beyond them pass unturned.
    pub(crate) frequencies: Vec<f64>,
    /// Factor on cosines and sines.
    pub(crate) magnitude: f32,
}

impl Heads {
    /// Elements of a row's queries.
    pub(crate) fn query_width(&self) -> usize {
        self.query * self.dim
    }

    /// Elements of a row's keys, and of its values.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv * self.dim
    }
}
