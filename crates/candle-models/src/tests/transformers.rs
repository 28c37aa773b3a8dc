//! Each family beside candle-transformers' own implementation of it, on the same weights.

use std::collections::HashMap;
use std::fs::File;

use batch_engine::Output;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3};

use super::tiny::{CONTEXT, HIDDEN, KV_HEADS, LAYERS, QUERY_HEADS, Tiny, VOCAB, WIDTH, WINDOW};
use super::{Sequence, assert_close, reference, text};
use crate::Family;

/// The logits of the last token.
fn theirs(tiny: &Tiny, family: Family, tokens: &[u32]) -> Result<Vec<f32>> {
    let mut tiny = tiny.clone();
    // Its qwen3 computes in halves otherwise.
    tiny.metadata.insert("general.dtype".to_owned(), Value::U32(0));
    let (_folder, path) = tiny.write();
    let mut file = File::open(path)?;
    let content = Content::read(&mut file)?;
    let (device, file) = (Device::Cpu, &mut file);
    let x = Tensor::new(tokens, &device)?.unsqueeze(0)?;
    let logits = match family {
        Family::Llama => quantized_llama::ModelWeights::from_gguf(content, file, &device)?.forward(&x, 0)?,
        Family::Qwen2 => quantized_qwen2::ModelWeights::from_gguf(content, file, &device)?.forward(&x, 0)?,
        Family::Qwen3 => quantized_qwen3::ModelWeights::from_gguf(content, file, &device)?.forward(&x, 0)?,
        Family::Gemma3 => gemma3_logits(&tiny, &x)?,
        Family::Phi3 => quantized_phi3::ModelWeights::from_gguf(false, content, file, &device)?.forward(&x, 0)?,
    };
    logits.flatten_all()?.to_vec1()
}

/// Its gemma3 for GGUF files has another activation than the model, so this is the one for safetensors, which takes
/// only one token at a time on the CPU.
fn gemma3_logits(tiny: &Tiny, x: &Tensor) -> Result<Tensor> {
    let mut model = gemma3::Model::new(false, &gemma3_config(tiny), gemma3_weights(tiny)?)?;
    let len = x.dim(1)?;
    for position in 0..len - 1 {
        model.forward(&x.narrow(1, position, 1)?, position)?;
    }
    model.forward(&x.narrow(1, len - 1, 1)?, len - 1)
}

fn gemma3_config(tiny: &Tiny) -> gemma3::Config {
    gemma3::Config {
        attention_bias: false,
        head_dim: tiny.head_dim(),
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: WIDTH,
        intermediate_size: HIDDEN,
        num_attention_heads: QUERY_HEADS,
        num_hidden_layers: LAYERS,
        num_key_value_heads: KV_HEADS,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_local_base_freq: 10_000.0,
        vocab_size: VOCAB,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: tiny.head_dim(),
        sliding_window: WINDOW,
        sliding_window_pattern: 6,
        max_position_embeddings: CONTEXT,
    }
}

/// The weights under the names of transformers, where norms are stored less one.
fn gemma3_weights(tiny: &Tiny) -> Result<VarBuilder<'static>> {
    const NAMES: [(&str, &str); 16] = [
        ("blk", "model.layers"),
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ];
    let renamed = |part: &str| {
        let name = NAMES.iter().find(|(name, _)| *name == part);
        name.map_or_else(|| part.to_owned(), |(_, name)| (*name).to_owned())
    };
    let mut tensors = HashMap::new();
    for (name, (_, dims, values)) in &tiny.tensors {
        let parts: Vec<String> = name.split('.').map(renamed).collect();
        let shift = if dims.len() == 1 { 1.0 } else { 0.0 };
        let values: Vec<f32> = values.iter().map(|value| value - shift).collect();
        tensors.insert(
            parts.join("."),
            Tensor::from_vec(values, dims.as_slice(), &Device::Cpu)?,
        );
    }
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

fn ours(tiny: &Tiny, tokens: &[u32]) -> Vec<f32> {
    Sequence::new(0..20).feed(&mut *reference(tiny), tokens, Output::Last)
}

#[test]
fn every_family_gives_the_logits_that_candle_transformers_gives() {
    for family in Family::ALL {
        let tiny = Tiny::of(family);
        for len in [1, 9, 150] {
            let tokens = text(len, 3);
            let expected = theirs(&tiny, family, &tokens).expect("logits");
            let what = format!("{family}, {len} tokens");
            assert_close(&ours(&tiny, &tokens), &expected, 1e-4, &what);
        }
    }
}

#[test]
fn quantised_weights_are_multiplied_as_candle_transformers_does() {
    for family in Family::ALL.into_iter().filter(|&family| family != Family::Gemma3) {
        let tiny = Tiny::of(family).with_matrices(GgmlDType::Q8_0);
        let tokens = text(40, 5);
        let expected = theirs(&tiny, family, &tokens).expect("logits");
        assert_close(&ours(&tiny, &tokens), &expected, 1e-3, &family.to_string());
    }
}
