//! Makes tiny GGUF files with random weights.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use tempfile::TempDir;

pub(super) const WIDTH: usize = 32;
const HIDDEN: usize = 64;
const HEAD: usize = 16;
const QUERY_HEADS: usize = 4;
const KV_HEADS: usize = 2;
pub(super) const LAYERS: usize = 7;
pub(super) const CONTEXT: usize = 600;
/// Sliding window of the gemma3 files.
const WINDOW: usize = 8;

/// The content of a file, to be changed before it is written.
pub(super) struct Tiny {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, QTensor>,
}

impl Tiny {
    pub(super) fn llama() -> Self {
        let mut tiny = Self::common("llama");
        tiny.metadata
            .insert("llama.rope.dimension_count".to_owned(), Value::U32(HEAD as u32));
        tiny.matrix("output.weight", 256, WIDTH);
        tiny
    }

    pub(super) fn gemma3() -> Self {
        let mut tiny = Self::common("gemma3");
        tiny.metadata
            .insert("gemma3.attention.sliding_window".to_owned(), Value::U32(WINDOW as u32));
        for layer in 0..LAYERS {
            for (name, len) in [
                ("attn_q_norm", HEAD),
                ("attn_k_norm", HEAD),
                ("post_attention_norm", WIDTH),
                ("post_ffw_norm", WIDTH),
            ] {
                tiny.vector(&format!("blk.{layer}.{name}.weight"), len);
            }
        }
        tiny
    }

    /// What both families have; the vocabulary is the 256 bytes.
    fn common(architecture: &str) -> Self {
        let mut tiny = Self {
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        for (key, value) in [
            ("context_length", CONTEXT),
            ("embedding_length", WIDTH),
            ("feed_forward_length", HIDDEN),
            ("block_count", LAYERS),
            ("attention.head_count", QUERY_HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("attention.key_length", HEAD),
            ("attention.value_length", HEAD),
        ] {
            tiny.metadata
                .insert(format!("{architecture}.{key}"), Value::U32(value as u32));
        }
        tiny.metadata.insert(
            format!("{architecture}.attention.layer_norm_rms_epsilon"),
            Value::F32(1e-5),
        );
        let bytes = (0..256).map(|byte| Value::String(format!("<0x{byte:02X}>"))).collect();
        for (key, value) in [
            ("general.architecture", Value::String(architecture.to_owned())),
            ("tokenizer.ggml.model", Value::String("llama".to_owned())),
            ("tokenizer.ggml.tokens", Value::Array(bytes)),
            ("tokenizer.ggml.scores", Value::Array(vec![Value::F32(0.0); 256])),
            ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(6); 256])),
            ("tokenizer.ggml.eos_token_id", Value::U32(3)),
        ] {
            tiny.metadata.insert(key.to_owned(), value);
        }
        tiny.matrix("token_embd.weight", 256, WIDTH);
        tiny.vector("output_norm.weight", WIDTH);
        for layer in 0..LAYERS {
            let (query, kv) = (QUERY_HEADS * HEAD, KV_HEADS * HEAD);
            for (name, rows, cols) in [
                ("attn_q", query, WIDTH),
                ("attn_k", kv, WIDTH),
                ("attn_v", kv, WIDTH),
                ("attn_output", WIDTH, query),
                ("ffn_gate", HIDDEN, WIDTH),
                ("ffn_up", HIDDEN, WIDTH),
                ("ffn_down", WIDTH, HIDDEN),
            ] {
                tiny.matrix(&format!("blk.{layer}.{name}.weight"), rows, cols);
            }
            tiny.vector(&format!("blk.{layer}.attn_norm.weight"), WIDTH);
            tiny.vector(&format!("blk.{layer}.ffn_norm.weight"), WIDTH);
        }
        tiny
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        let scale = (cols as f32).sqrt().recip();
        let values = self.noise(rows * cols).into_iter().map(|x| x * scale).collect();
        self.insert(name, values, &[rows, cols]);
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) {
        let values = self.noise(len).into_iter().map(|x| 1.0 + 0.2 * x).collect();
        self.insert(name, values, &[len]);
    }

    fn insert(&mut self, name: &str, values: Vec<f32>, dims: &[usize]) {
        let tensor = Tensor::from_vec(values, dims, &Device::Cpu).expect("as many values as the shape has");
        let tensor = QTensor::quantize(&tensor, GgmlDType::F32).expect("f32 is kept as it is");
        self.tensors.insert(name.to_owned(), tensor);
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
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let mut file = File::create(&path).expect("a new file");
        gguf_file::write(&mut file, &metadata, &tensors).expect("a written file");
        (folder, path)
    }
}
