//! How much memory a model takes once it is loaded, by what its header says.

use crate::Facts;
use crate::tensor_type::TensorType;

/// Tokens of one block of the engine's KV cache: it grows by whole blocks.
pub const KV_BLOCK_TOKENS: u64 = 32;
/// Rows, and rows of logits, of a large step: working memory is estimated for them.
const STEP_ROWS: u64 = 320;
const STEP_LOGITS: u64 = 16;
/// Bytes of an f32, and what it takes beside when it is rounded for the products.
const ROW_BYTES: u64 = 4 + 2;
/// Bytes of an f16 and of an f32.
const F16: u64 = 2;
const F32: u64 = 4;
/// Rows and columns of a tile of packed weights.
const TILE_ROWS: u64 = 16;
const TILE_COLS: u64 = 32;
/// Elements to whose multiple a row of values is padded in the cache on the CPU.
const VALUE_ALIGN: u64 = 16;

/// A worker's process without any model: its code, its threads, and what requests leave in the allocator.
const PROCESS_BYTES: u64 = 24 << 20;
/// What the tables for structured output, built at the first request for it, take for each entry of the vocabulary.
const BYTES_PER_TOKEN_OF_VOCABULARY: u64 = 360;
/// A context on a GPU: the driver's own memory, compiled kernels, and the blocks that the allocator keeps.
const GPU_CONTEXT_BYTES: u64 = 512 << 20;

/// What computes with a model: it decides how weights lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// The main processor: matrices are packed for its vector units.
    Cpu,
    /// Any GPU: matrices stay as they lie in the file.
    Gpu,
}

/// Bytes that a loaded model takes on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The weights.
    pub weight_bytes: u64,
    /// What a large step works in, roughly.
    pub scratch_bytes: u64,
    /// The process itself: code, tokenizer, allocator. On a GPU: the context.
    pub overhead_bytes: u64,
    /// One token in the KV cache, in all layers together.
    pub kv_bytes_per_token: u64,
}

impl MemoryNeed {
    pub(crate) fn of(facts: &Facts, on: Backend) -> Self {
        let (weight_bytes, overhead_bytes, kv_bytes_per_token) = match on {
            Backend::Cpu => {
                let vocabulary = u64::from(facts.vocab_size) * BYTES_PER_TOKEN_OF_VOCABULARY;
                (
                    facts.cpu_weight_bytes,
                    PROCESS_BYTES + vocabulary,
                    facts.cpu_kv_bytes_per_token,
                )
            }
            Backend::Gpu => (facts.gpu_weight_bytes, GPU_CONTEXT_BYTES, facts.kv_bytes_per_token),
        };
        let head_dim = u64::from(facts.head_dim);
        let row = RowShape {
            width: facts.width.into(),
            query_width: u64::from(facts.heads) * head_dim,
            kv_width: u64::from(facts.kv_heads) * head_dim,
            hidden: facts.hidden.into(),
            vocab: facts.vocab_size.into(),
        };
        Self {
            weight_bytes,
            scratch_bytes: row.scratch_bytes(),
            overhead_bytes,
            kv_bytes_per_token,
        }
    }

    /// All of it, with a KV cache for `kv_tokens` tokens, which is whole blocks of [`KV_BLOCK_TOKENS`].
    pub fn total(&self, kv_tokens: u64) -> u64 {
        let blocks = kv_tokens.div_ceil(KV_BLOCK_TOKENS);
        self.fixed_bytes()
            .saturating_add(blocks.saturating_mul(self.block_bytes()))
    }

    fn fixed_bytes(&self) -> u64 {
        self.weight_bytes
            .saturating_add(self.scratch_bytes)
            .saturating_add(self.overhead_bytes)
    }

    fn block_bytes(&self) -> u64 {
        self.kv_bytes_per_token.saturating_mul(KV_BLOCK_TOKENS)
    }
}

/// What a row of a step passes through in one layer, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Between the layers.
    pub width: u64,
    /// Queries of all heads.
    pub query_width: u64,
    /// Keys of all heads; values are as wide.
    pub kv_width: u64,
    /// Inside of the feed-forward part.
    pub hidden: u64,
    /// Logits.
    pub vocab: u64,
}

impl RowShape {
    /// Bytes that a large step works in, roughly: all rows of one layer, and the logits.
    pub fn scratch_bytes(&self) -> u64 {
        let attention = self.query_width.saturating_add(self.kv_width).saturating_mul(2);
        let row = self.width.saturating_mul(2).saturating_add(attention);
        let row = row.saturating_add(self.hidden);
        let logits = self.vocab.saturating_mul(STEP_LOGITS * F32);
        row.saturating_mul(STEP_ROWS * ROW_BYTES).saturating_add(logits)
    }
}

impl TensorType {
    /// Bytes of a matrix as the CPU's kernels pack it: quantised types as tiles, which hold the elements' bits, and one or
    /// two halves for each of their rows; everything else as halves.
    pub fn packed_bytes(self, rows: u64, cols: u64) -> u64 {
        let (bits, halves) = match self {
            Self::Q4_0 => (4, 1),
            Self::Q4_1 | Self::Q4K => (4, 2),
            Self::Q5_0 => (5, 1),
            Self::Q5_1 | Self::Q5K => (5, 2),
            Self::Q6K => (6, 2),
            Self::Q8_0 => (8, 1),
            _ => return rows.saturating_mul(cols).saturating_mul(F16),
        };
        let tile = TILE_ROWS * (TILE_COLS * bits / 8 + halves * F16);
        let tiles = rows.div_ceil(TILE_ROWS).saturating_mul(cols / TILE_COLS);
        tiles.saturating_mul(tile)
    }
}

/// Bytes of weights once they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LoadedBytes {
    pub(crate) cpu: u64,
    pub(crate) gpu: u64,
}

impl LoadedBytes {
    /// One more tensor, which takes `bytes` in its file. Vectors are single precision everywhere.
    pub(crate) fn add(&mut self, dims: &[usize], dtype: Option<TensorType>, bytes: u64) {
        let product = |dims: &[usize]| {
            dims.iter()
                .fold(1u64, |product, &dim| product.saturating_mul(dim as u64))
        };
        let (cpu, gpu) = match dims.split_last() {
            Some((&cols, outer)) if !outer.is_empty() => {
                let (rows, cols) = (product(outer), cols as u64);
                // A type that is not known is widened, if it is loaded at all.
                let packed = dtype.unwrap_or(TensorType::F32).packed_bytes(rows, cols);
                (packed, bytes)
            }
            _ => {
                let single = product(dims).saturating_mul(F32);
                (single, single)
            }
        };
        self.cpu = self.cpu.saturating_add(cpu);
        self.gpu = self.gpu.saturating_add(gpu);
    }
}

/// What one token has in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    /// Of all layers together.
    pub(crate) heads: u64,
    pub(crate) key_dim: u32,
    pub(crate) value_dim: u32,
}

impl KvShape {
    /// Bytes of the keys and values, which are f16.
    pub(crate) fn bytes(&self, on: Backend) -> u64 {
        let (key, value) = (u64::from(self.key_dim), u64::from(self.value_dim));
        let value = match on {
            Backend::Cpu => value.next_multiple_of(VALUE_ALIGN),
            Backend::Gpu => value,
        };
        self.heads.saturating_mul((key + value) * F16)
    }
}
