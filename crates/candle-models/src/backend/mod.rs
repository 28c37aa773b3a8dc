//! What a model family computes with: the fused CPU kernels, or candle on any device.

use cpu_kernels::{Activation, RopeStyle, RopeTable};

use crate::error::LoadError;
use crate::gguf::RawTensor;

pub(crate) mod cpu;
pub(crate) mod tensor;

/// The layers' operations. Rows are the step's tokens; all rows go through every operation together.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Activations: one row per token.
    type Rows: Send;
    /// Weights of a linear layer, `[outputs, inputs]`; also an embedding table, `[tokens, width]`.
    type Matrix: Send + Sync;
    /// Weights of a norm.
    type Vector: Send + Sync;
    /// The rotary angles of a step's rows.
    type Rope;
    /// Keys and values of one sequence in one layer.
    type Cache: Send + Sync;

    fn load_matrix(&self, raw: &RawTensor<'_>) -> Result<Self::Matrix, LoadError>;
    fn load_vector(&self, raw: &RawTensor<'_>) -> Result<Self::Vector, LoadError>;
    /// Bytes that a matrix takes in the device's memory.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// An empty cache.
    fn new_cache(&self, heads: &Heads) -> Self::Cache;
    /// Bytes that one token takes in one layer's cache.
    fn cache_bytes_per_token(&self, heads: &Heads) -> usize;

    /// Runs a step on the backend's own threads.
    fn run<R: Send>(&self, step: impl FnOnce() -> R + Send) -> R;

    /// Rows of the table times `scale`.
    fn embed(&self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> candle_core::Result<Self::Rows>;
    /// Root-mean-square norm of each row, or of each head where the weights are one head wide.
    fn norm(&self, x: &Self::Rows, weights: &Self::Vector, epsilon: f32) -> candle_core::Result<Self::Rows>;
    /// Several linear layers of the same input.
    fn linear<const N: usize>(
        &self,
        x: &Self::Rows,
        matrices: [&Self::Matrix; N],
    ) -> candle_core::Result<[Self::Rows; N]>;
    fn upload_rope(&self, table: RopeTable) -> candle_core::Result<Self::Rope>;
    /// Turns every head of every row.
    fn rotate(
        &self,
        x: Self::Rows,
        head_dim: usize,
        rope: &Self::Rope,
        style: RopeStyle,
    ) -> candle_core::Result<Self::Rows>;
    /// Appends each span's keys and values to its cache of the given layer, then lets its queries attend.
    fn attend(
        &self,
        heads: &Heads,
        layer: usize,
        qkv: [Self::Rows; 3],
        spans: &mut [Span<'_, Self::Cache>],
    ) -> candle_core::Result<Self::Rows>;
    /// `activation(gate) * up`.
    fn gate(&self, activation: Activation, gate: Self::Rows, up: Self::Rows) -> candle_core::Result<Self::Rows>;
    /// `x + y`.
    fn add(&self, x: Self::Rows, y: Self::Rows) -> candle_core::Result<Self::Rows>;
    /// Some of the rows.
    fn pick(&self, x: Self::Rows, rows: &[usize]) -> candle_core::Result<Self::Rows>;
    /// Appends all elements, row by row.
    fn read(&self, x: &Self::Rows, out: &mut Vec<f32>) -> candle_core::Result<()>;
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

/// Consecutive rows of a step that belong to one sequence.
pub(crate) struct Span<'a, C> {
    /// Index of the first row in the step.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Position of the first row in its sequence.
    pub(crate) position: usize,
    /// The sequence's caches, one per layer.
    pub(crate) caches: &'a mut [C],
}
