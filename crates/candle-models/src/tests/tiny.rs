//! Makes tiny GGUF files with random weights.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use tempfile::TempDir;

use crate::Family;

pub(super) const WIDTH: usize = 64;
pub(super) const HIDDEN: usize = 96;
pub(super) const QUERY_HEADS: usize = 4;
pub(super) const KV_HEADS: usize = 2;
pub(super) const LAYERS: usize = 7;
pub(super) const CONTEXT: usize = 600;
/// Sliding window of the gemma3 files.
pub(super) const WINDOW: usize = 8;
pub(super) const VOCAB: usize = 256;

/// The content of a file, to be changed before it is written.
#[derive(Clone)]
pub(super) struct Tiny {
    family: Family,
    pub(super) metadata: BTreeMap<String, Value>,
    /// Type, shape and values of each tensor.
    pub(super) tensors: BTreeMap<String, (GgmlDType, Vec<usize>, Vec<f32>)>,
}

impl Tiny {
    /// A model of a family; the vocabulary is the 256 bytes.
    pub(super) fn of(family: Family) -> Self {
        let mut tiny = Self {
            family,
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        tiny.describe();
        tiny.matrix("token_embd.weight", VOCAB, WIDTH);
        tiny.vector("output_norm.weight", WIDTH);
        if !matches!(family, Family::Gemma3 | Family::Qwen3) {
            tiny.matrix("output.weight", VOCAB, WIDTH);
        }
        for layer in 0..LAYERS {
            tiny.layer(&format!("blk.{layer}"));
        }
        tiny
    }

    /// Elements per head: not the width's share where the family has keys of their own length.
    pub(super) fn head_dim(&self) -> usize {
        match self.family {
            Family::Gemma3 | Family::Qwen3 => 32,
            Family::Llama | Family::Qwen2 | Family::Phi3 => WIDTH / QUERY_HEADS,
        }
    }

    fn describe(&mut self) {
        let dim = self.head_dim();
        for (key, value) in [
            ("context_length", CONTEXT),
            ("embedding_length", WIDTH),
            ("feed_forward_length", HIDDEN),
            ("block_count", LAYERS),
            ("attention.head_count", QUERY_HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("attention.key_length", dim),
            ("attention.value_length", dim),
            ("rope.dimension_count", dim),
        ] {
            self.set(key, Value::U32(value as u32));
        }
        self.set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
        self.set("rope.freq_base", Value::F32(10_000.0));
        if self.family == Family::Gemma3 {
            self.set("attention.sliding_window", Value::U32(WINDOW as u32));
        }
        let bytes = (0..VOCAB).map(|byte| Value::String(format!("<0x{byte:02X}>")));
        for (key, value) in [
            ("general.architecture", Value::String(self.family.to_string())),
            ("tokenizer.ggml.model", Value::String("llama".to_owned())),
            ("tokenizer.ggml.tokens", Value::Array(bytes.collect())),
            ("tokenizer.ggml.scores", Value::Array(vec![Value::F32(0.0); VOCAB])),
            ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(6); VOCAB])),
            ("tokenizer.ggml.eos_token_id", Value::U32(3)),
        ] {
            self.metadata.insert(key.to_owned(), value);
        }
    }

    fn layer(&mut self, prefix: &str) {
        let dim = self.head_dim();
        let (query, kv) = (QUERY_HEADS * dim, KV_HEADS * dim);
        let matrices: &[(&str, usize, usize)] = match self.family {
            Family::Phi3 => &[("attn_qkv", query + 2 * kv, WIDTH), ("ffn_up", 2 * HIDDEN, WIDTH)],
            _ => &[
                ("attn_q", query, WIDTH),
                ("attn_k", kv, WIDTH),
                ("attn_v", kv, WIDTH),
                ("ffn_gate", HIDDEN, WIDTH),
                ("ffn_up", HIDDEN, WIDTH),
            ],
        };
        let both = [("attn_output", WIDTH, query), ("ffn_down", WIDTH, HIDDEN)];
        for &(name, rows, cols) in matrices.iter().chain(&both) {
            self.matrix(&format!("{prefix}.{name}.weight"), rows, cols);
        }
        let mut vectors = vec![("attn_norm.weight", WIDTH), ("ffn_norm.weight", WIDTH)];
        match self.family {
            Family::Qwen2 => vectors.extend([("attn_q.bias", query), ("attn_k.bias", kv), ("attn_v.bias", kv)]),
            Family::Qwen3 => vectors.extend([("attn_q_norm.weight", dim), ("attn_k_norm.weight", dim)]),
            Family::Gemma3 => vectors.extend([
                ("attn_q_norm.weight", dim),
                ("attn_k_norm.weight", dim),
                ("post_attention_norm.weight", WIDTH),
                ("post_ffw_norm.weight", WIDTH),
            ]),
            Family::Llama | Family::Phi3 => {}
        }
        for (name, len) in vectors {
            self.vector(&format!("{prefix}.{name}"), len);
        }
    }

    /// Sets a key of the family.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(format!("{}.{key}", self.family), value);
    }

    pub(super) fn with(mut self, key: &str, value: Value) -> Self {
        self.set(key, value);
        self
    }

    /// With fewer layers.
    pub(super) fn with_layers(mut self, layers: usize) -> Self {
        self.set("block_count", Value::U32(layers as u32));
        let dropped: Vec<String> = (layers..LAYERS).map(|layer| format!("blk.{layer}.")).collect();
        self.tensors
            .retain(|name, _| !dropped.iter().any(|prefix| name.starts_with(prefix)));
        self
    }

    pub(super) fn with_tensor(mut self, name: &str, values: Vec<f32>) -> Self {
        let dims = vec![values.len()];
        self.tensors.insert(name.to_owned(), (GgmlDType::F32, dims, values));
        self
    }

    /// With all matrices of another type.
    pub(super) fn with_matrices(mut self, dtype: GgmlDType) -> Self {
        for (kept, dims, _) in self.tensors.values_mut().filter(|(_, dims, _)| dims.len() == 2) {
            assert!(dims[1].is_multiple_of(dtype.block_size()), "whole blocks");
            *kept = dtype;
        }
        self
    }

    /// With the same matrices in f32: what their types rounded stays rounded.
    pub(super) fn dequantised(mut self) -> Self {
        for (dtype, dims, values) in self.tensors.values_mut() {
            let tensor = quantise(*dtype, dims, values).dequantize(&Device::Cpu);
            let tensor = tensor.and_then(|tensor| tensor.flatten_all());
            *values = tensor.and_then(|tensor| tensor.to_vec1()).expect("values");
            *dtype = GgmlDType::F32;
        }
        self
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        let scale = (cols as f32).sqrt().recip();
        let values = self.noise(rows * cols).into_iter().map(|x| x * scale).collect();
        let tensor = (GgmlDType::F32, vec![rows, cols], values);
        self.tensors.insert(name.to_owned(), tensor);
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) {
        let values = self.noise(len).into_iter().map(|x| 1.0 + 0.2 * x).collect();
        self.tensors
            .insert(name.to_owned(), (GgmlDType::F32, vec![len], values));
    }

    /// Values in -1.7..1.7, others for each tensor.
    fn noise(&self, len: usize) -> Vec<f32> {
        let mut state = (self.tensors.len() as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 1.7
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    /// Writes the file into a folder that lives as long as the first result.
    pub(super) fn write(&self) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tiny.gguf");
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, (dtype, dims, values))| (name.as_str(), quantise(*dtype, dims, values)))
            .collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let mut file = File::create(&path).expect("a new file");
        gguf_file::write(&mut file, &metadata, &tensors).expect("a written file");
        (folder, path)
    }
}

fn quantise(dtype: GgmlDType, dims: &[usize], values: &[f32]) -> QTensor {
    let tensor = Tensor::from_slice(values, dims, &Device::Cpu).expect("as many values as the shape has");
    QTensor::quantize(&tensor, dtype).expect("a type for these shapes")
}
