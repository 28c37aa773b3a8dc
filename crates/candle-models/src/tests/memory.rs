//! What a header says of a model's memory, beside what the loaded model takes.

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use cpu_kernels::{BLOCK_TOKENS, Format, KvCache, Matrix};
use model_format::{Backend, Facts, KV_BLOCK_TOKENS, TensorType, facts};

use super::options;
use super::repositories::Repository;
use super::tiny::{CONTEXT, HIDDEN, KV_HEADS, LAYERS, QUERY_HEADS, Tiny, VOCAB, WIDTH};
use crate::backend::tensor::Candle;
use crate::load::Files;
use crate::{Family, ModelInfo, load};

#[track_caller]
fn both(path: &Path) -> (Facts, ModelInfo) {
    let facts = facts(path).unwrap_or_else(|error| panic!("{error}"));
    let loaded = load(path, &options(), &mut |_| {});
    (facts, loaded.unwrap_or_else(|error| panic!("{error}")).info)
}

/// The header's figures are the loaded model's, but for the weights, whose sum may be off by `tolerance` bytes.
#[track_caller]
fn assert_alike(path: &Path, tolerance: u64) {
    let (facts, info) = both(path);
    let need = facts.memory(Backend::Cpu);
    let weights = info.weight_bytes as u64;
    assert!(
        need.weight_bytes.abs_diff(weights) <= tolerance,
        "{} bytes of weights, not {weights}",
        need.weight_bytes
    );
    assert_eq!(need.scratch_bytes, info.scratch_bytes as u64);
    assert_eq!(need.kv_bytes_per_token, info.kv_bytes_per_token as u64);
    assert_eq!(facts.family, info.family.to_string());
    assert_eq!(facts.name, info.name);
    assert_eq!(
        [facts.context_length, facts.vocab_size, facts.width].map(|n| n as usize),
        [info.trained_context_length, info.vocab_size, info.hidden_size]
    );
}

#[test]
fn the_header_of_a_gguf_file_says_what_the_loaded_model_takes() {
    for family in Family::ALL {
        for dtype in [
            GgmlDType::F32,
            GgmlDType::F16,
            GgmlDType::BF16,
            GgmlDType::Q4_0,
            GgmlDType::Q4_1,
            GgmlDType::Q5_0,
            GgmlDType::Q5_1,
            GgmlDType::Q8_0,
        ] {
            let (_folder, path) = Tiny::of(family).with_matrices(dtype).write();
            assert_alike(&path, 0);
        }
    }
}

#[test]
fn the_header_of_a_repository_says_what_the_loaded_model_takes() {
    for family in Family::ALL {
        let tiny = Tiny::of(family).with_matrices(GgmlDType::BF16);
        let (_folder, path) = Repository::of(family, &tiny).write_in(2);
        assert_alike(&path, 0);
    }
}

#[test]
fn a_repository_has_the_facts_of_a_gguf_file_with_the_same_weights() {
    for family in Family::ALL {
        let tiny = Tiny::of(family).with_matrices(GgmlDType::F16);
        let (_folder, gguf) = tiny.write();
        let (_other, repository) = Repository::of(family, &tiny).write();
        let (gguf, repository) = (facts(&gguf).expect("a file"), facts(&repository).expect("a folder"));
        assert_eq!(gguf, repository, "{family}");
        let shape = [gguf.layers, gguf.heads, gguf.kv_heads, gguf.hidden, gguf.vocab_size].map(|n| n as usize);
        assert_eq!(shape, [LAYERS, QUERY_HEADS, KV_HEADS, HIDDEN, VOCAB]);
        assert_eq!((gguf.width as usize, gguf.context_length as usize), (WIDTH, CONTEXT));
        assert_eq!(gguf.head_dim as usize, tiny.head_dim());
        assert_eq!((gguf.quantization.as_str(), gguf.chat), ("F16", false));
    }
}

#[test]
fn on_a_gpu_matrices_take_what_they_take_in_the_file() {
    // On the CPU, candle holds these types as it does on a GPU; others it widens.
    for dtype in [GgmlDType::F32, GgmlDType::Q4_1, GgmlDType::Q8_0] {
        let (_folder, path) = Tiny::of(Family::Phi3).with_matrices(dtype).write();
        let files = Files::open(&path).expect("a tiny file");
        let loaded = files.load(Candle::new(Device::Cpu), &options(), &mut |_| {});
        let weights = loaded.expect("a tiny model").info.weight_bytes;
        let need = facts(&path).expect("a header").memory(Backend::Gpu);
        assert_eq!(need.weight_bytes, weights as u64, "{dtype:?}");
    }
}

/// The kernels' formats, and what files call them.
fn types() -> [(Format, TensorType); 11] {
    Format::ALL.map(|format| {
        let named = |dtype: &TensorType| dtype.name() == format.to_string();
        let dtype = TensorType::ALL.into_iter().find(named);
        (format, dtype.unwrap_or_else(|| panic!("{format} is in no file")))
    })
}

#[test]
fn files_and_kernels_agree_about_the_layout_of_every_type() {
    for (format, dtype) in types() {
        assert_eq!(dtype.block_elements(), format.block_elements(), "{dtype}");
        assert_eq!(dtype.block_bytes(), format.block_bytes(), "{dtype}");
    }
}

#[test]
fn files_and_kernels_agree_about_the_size_of_a_packed_matrix() {
    for (format, dtype) in types() {
        for (rows, cols) in [(1, 256), (16, 512), (17, 768), (2047, 1024)] {
            let expected = Matrix::packed_bytes(format, rows, cols) as u64;
            assert_eq!(dtype.packed_bytes(rows as u64, cols as u64), expected, "{dtype}");
        }
    }
}

#[test]
fn a_block_of_the_cache_is_as_large_as_the_header_says_whatever_the_width_of_a_head() {
    assert_eq!(KV_BLOCK_TOKENS, BLOCK_TOKENS as u64);
    for dim in [16, 20, 64, 80, 100] {
        let tiny = Tiny::of(Family::Llama)
            .with("attention.key_length", Value::U32(dim))
            .with("attention.value_length", Value::U32(dim));
        let (_folder, path) = tiny.write();
        let need = facts(&path).expect("a file").memory(Backend::Cpu);
        let block = need.total(KV_BLOCK_TOKENS) - need.total(0);
        let expected = LAYERS * KvCache::bytes_per_block(KV_HEADS, dim as usize);
        assert_eq!(block, expected as u64, "{dim}");
    }
}
