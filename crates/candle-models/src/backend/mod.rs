//! What a network computes with: the fused CPU kernels, or candle on any device.

use cpu_kernels::Span;

use crate::architecture::LayerShape;
use crate::error::LoadError;
use crate::network::Network;
use model_format::{RawTensor, TensorType};

pub(crate) mod cpu;
pub(crate) mod tensor;

/// Holds weights and caches, and runs the whole forward pass.
pub(crate) trait Backend: Send + Sized + 'static {
    /// Weights of a linear layer, `[outputs, inputs]`; also an embedding table, `[tokens, width]`.
    type Matrix: Send + Sync;
    /// Weights of a norm, or a bias.
    type Vector: Send + Sync;
    /// Keys and values of all layers, in blocks of [`cpu_kernels::BLOCK_TOKENS`] tokens.
    type Cache: Send;

    /// Takes a matrix in; the raw bytes may go away afterwards.
    fn load_matrix(&self, raw: &RawTensor<'_>) -> Result<Self::Matrix, LoadError>;
    /// Takes a vector in.
    fn load_vector(&self, raw: &RawTensor<'_>) -> Result<Self::Vector, LoadError>;
    /// Bytes that a matrix takes in the device's memory.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;
    /// Bytes that a matrix of this type and shape would take, to say before it is loaded whether it fits.
    fn expected_matrix_bytes(&self, dtype: TensorType, rows: usize, cols: usize) -> usize;

    /// Bytes that one block takes in all layers together.
    fn kv_bytes_per_block(&self, layers: &[LayerShape]) -> usize;
    /// An empty cache of so many blocks.
    fn new_cache(&self, layers: &[LayerShape], blocks: usize) -> Result<Self::Cache, LoadError>;

    /// Runs the batch, writes its keys and values into the cache, and appends the wanted rows to `out`, in order.
    fn forward(
        &mut self,
        network: &Network<Self>,
        cache: &mut Self::Cache,
        batch: &Batch<'_>,
        out: &mut Vec<f32>,
    ) -> candle_core::Result<()>;
}

/// One step's rows, at least one. They have been checked: tokens are in the vocabulary, block tables are long enough,
/// blocks are in the cache.
pub(crate) struct Batch<'a> {
    /// Each row's token.
    pub(crate) tokens: Vec<u32>,
    /// Each row's position in its sequence.
    pub(crate) positions: Vec<usize>,
    /// Cover all rows, in order.
    pub(crate) spans: Vec<Span<'a>>,
    /// Rows ascending; none of them twice.
    pub(crate) wanted: Vec<Wanted>,
}

/// A row that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Index in the step.
    pub(crate) row: usize,
    pub(crate) what: What,
}

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The vocabulary's logits, after their soft cap.
    Logits,
    /// The row after the last norm.
    Hidden,
}
