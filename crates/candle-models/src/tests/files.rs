use std::fs;
use std::path::Path;

use batch_engine::Pooling;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::tiny::{LAYERS, Tiny, WIDTH};
use crate::{DeviceSpec, Family, LoadError, LoadOptions, LoadedModel, load};

fn open(path: &Path) -> Result<LoadedModel, LoadError> {
    load(path, &LoadOptions::new(DeviceSpec::Cpu), &mut |_| {})
}

#[track_caller]
fn refusal(tiny: &Tiny) -> String {
    let (_folder, path) = tiny.write();
    match open(&path) {
        Ok(_) => panic!("the file should be refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_facts_about_a_model_come_from_its_file() {
    let mut tiny = Tiny::of(Family::Llama);
    tiny.metadata
        .insert("general.name".to_owned(), Value::String("Tiny".to_owned()));
    let (_folder, path) = tiny.write();
    let mut shares = Vec::new();
    let loaded = load(&path, &LoadOptions::new(DeviceSpec::Cpu), &mut |share| {
        shares.push(share);
    })
    .expect("a model");
    assert_eq!(loaded.info.family.to_string(), "llama");
    assert_eq!(loaded.info.name.as_deref(), Some("Tiny"));
    assert_eq!((loaded.info.trained_context_length, loaded.info.vocab_size), (600, 256));
    let info = &loaded.info;
    assert_eq!((info.hidden_size, info.pooling), (WIDTH, Pooling::Mean));
    assert_eq!(info.kv_bytes_per_token, LAYERS * (WIDTH / 2) * 2 * 2);
    assert_eq!((info.kv_block_tokens, info.kv_tokens % 32), (32, 0));
    assert_eq!(info.kv_bytes, info.kv_tokens * info.kv_bytes_per_token);
    assert!(info.weight_bytes > 0 && info.scratch_bytes > 0);
    assert!(loaded.chat_template.is_none());
    assert!(
        shares.is_sorted() && shares.last() == Some(&1.0),
        "progress rises to the end"
    );
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
    let (folder, path) = Tiny::of(Family::Gemma3).write();
    let whole = fs::read(&path).expect("the file");
    let cut = folder.path().join("cut.gguf");
    let header = 20_000;
    let data = (header..whole.len()).step_by(whole.len() / 16);
    for len in (0..header).step_by(97).chain(data) {
        fs::write(&cut, &whole[..len]).expect("a cut file");
        assert!(open(&cut).is_err(), "{len} of {} bytes", whole.len());
    }
}

#[test]
fn a_file_with_any_byte_of_its_header_changed_loads_or_is_refused_and_never_panics() {
    let (folder, path) = Tiny::of(Family::Llama).write();
    let whole = fs::read(&path).expect("the file");
    let changed = folder.path().join("changed.gguf");
    for at in (0..4000).step_by(61) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xFF;
        fs::write(&changed, &bytes).expect("a changed file");
        drop(open(&changed));
    }
}

#[test]
fn what_is_no_gguf_file_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("page.gguf");
    fs::write(&path, "<html>not found</html>").expect("a file");
    assert!(matches!(open(&path), Err(LoadError::NotGguf(_))));
    assert!(matches!(
        open(&folder.path().join("absent.gguf")),
        Err(LoadError::Unreadable { .. })
    ));
    assert!(open(folder.path()).is_err(), "a folder without a model");
}

#[test]
fn an_unknown_architecture_is_refused_by_name_with_what_is_supported() {
    let mut tiny = Tiny::of(Family::Llama);
    tiny.metadata
        .insert("general.architecture".to_owned(), Value::String("mamba".to_owned()));
    assert_eq!(
        refusal(&tiny),
        "the model architecture \"mamba\" is not supported; supported are: llama, qwen2, qwen3, gemma3, phi3"
    );
}

#[test]
fn a_tensor_of_a_type_that_is_not_supported_is_named_with_the_types_that_are() {
    let (_folder, path) = Tiny::of(Family::Llama).with_matrices(GgmlDType::Q4_0).write();
    let mut bytes = fs::read(&path).expect("the file");
    // Behind the name: the number of dimensions, both of them, and the type; Q4_0 and IQ4_NL are equally large.
    let name = b"blk.0.attn_k.weight";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .expect("the tensor");
    let number = at + name.len() + 4 + 2 * 8;
    assert_eq!(bytes[number], 2);
    bytes[number] = 20;
    fs::write(&path, bytes).expect("a changed file");
    let error = open(&path).err().expect("a type that is not supported").to_string();
    assert!(
        error.starts_with("tensor blk.0.attn_k.weight is of type IQ4_NL, which is not supported; take a file of F16")
    );
}

#[test]
fn a_missing_tensor_is_named() {
    let mut tiny = Tiny::of(Family::Gemma3);
    tiny.tensors.remove("blk.3.attn_k_norm.weight");
    assert_eq!(
        refusal(&tiny),
        "the model file is damaged: tensor blk.3.attn_k_norm.weight is missing"
    );
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let mut tiny = Tiny::of(Family::Llama);
    tiny.vector("blk.0.attn_q.weight", WIDTH);
    assert!(refusal(&tiny).contains("tensor blk.0.attn_q.weight has the shape [64], not [64, 64]"));
}

#[test]
fn a_tensor_that_the_family_has_no_place_for_is_refused_rather_than_ignored() {
    let mut tiny = Tiny::of(Family::Llama);
    tiny.vector("blk.0.attn_q.bias", WIDTH);
    assert!(refusal(&tiny).contains("its tensor blk.0.attn_q.bias has no place in the model"));
}

#[test]
fn rotary_scaling_that_is_not_supported_is_refused_by_name() {
    let mut tiny = Tiny::of(Family::Llama);
    tiny.set("rope.scaling.type", Value::String("dynamic".to_owned()));
    assert!(refusal(&tiny).contains("rotary scaling of type \"dynamic\""));
}

#[test]
fn keys_that_nobody_understands_are_refused_by_name() {
    for (key, value, reason) in [
        ("expert_count", Value::U32(8), "mixtures of experts are not supported"),
        ("logit_scale", Value::F32(0.5), "the file has llama.logit_scale"),
        (
            "attention.causal",
            Value::Bool(false),
            "the file has llama.attention.causal",
        ),
        (
            "final_logit_softcapping",
            Value::F32(30.0),
            "llama.final_logit_softcapping",
        ),
        ("pooling_type", Value::U32(2), "llama.pooling_type is not supported"),
        (
            "rope.dimension_count",
            Value::U32(7),
            "rotary positions over 7 of 16 elements",
        ),
        (
            "rope.scaling.factor",
            Value::F32(-1.0),
            "llama.rope.scaling.factor is not a positive number",
        ),
        ("block_count", Value::U32(u32::MAX), "it has 4294967295 layers but"),
        (
            "attention.head_count_kv",
            Value::Array(vec![Value::U32(2); LAYERS]),
            "llama.attention.head_count_kv is not one positive integer",
        ),
        (
            "attention.sliding_window_pattern",
            Value::Array(vec![Value::Bool(true); 2]),
            "neither a number nor one truth value for each of the 7 layers",
        ),
    ] {
        let error = refusal(&Tiny::of(Family::Llama).with(key, value));
        assert!(error.contains(reason), "{error}");
    }
    let mut part = Tiny::of(Family::Llama);
    part.metadata.insert("split.count".to_owned(), Value::U16(3));
    assert!(refusal(&part).contains("one of 3 parts"));
}

#[test]
fn keys_that_switch_nothing_on_are_no_reason_to_refuse() {
    let tiny = Tiny::of(Family::Llama)
        .with("expert_count", Value::U32(0))
        .with("attention.causal", Value::Bool(true))
        .with("vocab_size", Value::U32(256))
        .with("pooling_type", Value::U32(3));
    let (_folder, path) = tiny.write();
    assert_eq!(open(&path).expect("a model").info.pooling, Pooling::Last);
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_its_weights_are_read() {
    let (_folder, path) = Tiny::of(Family::Qwen2).write();
    let options = LoadOptions {
        memory_limit: Some(1 << 16),
        ..LoadOptions::new(DeviceSpec::Cpu)
    };
    let result = load(&path, &options, &mut |_| panic!("a weight was read"));
    assert!(matches!(result, Err(LoadError::Memory(_))));
}

#[test]
fn a_tokenizer_that_is_not_supported_is_refused_by_name() {
    let mut tiny = Tiny::of(Family::Llama);
    tiny.metadata
        .insert("tokenizer.ggml.model".to_owned(), Value::String("bert".to_owned()));
    assert!(refusal(&tiny).contains("tokenizers of type \"bert\" are not supported"));
}

#[test]
fn a_file_s_template_and_special_tokens_serve_chat() {
    let mut tiny = Tiny::of(Family::Llama);
    let mut set = |key: &str, value| tiny.metadata.insert(key.to_owned(), value);
    let mut tokens: Vec<Value> = (0..253).map(|byte| Value::String(format!("<0x{byte:02X}>"))).collect();
    tokens.extend(["<s>", "<end_of_turn>", "hi"].map(|text| Value::String(text.to_owned())));
    let mut kinds = vec![Value::I32(6); 253];
    kinds.extend([3, 3, 4].map(Value::I32));
    set("tokenizer.ggml.tokens", Value::Array(tokens));
    set("tokenizer.ggml.token_type", Value::Array(kinds));
    set("tokenizer.ggml.bos_token_id", Value::U32(253));
    set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    set(
        "tokenizer.chat_template",
        Value::String("{{ bos_token }}{{ messages[0].content }}<end_of_turn>".to_owned()),
    );
    let (_folder, path) = tiny.write();
    let loaded = open(&path).expect("a model");
    let messages = [serde_json::json!({"role": "user", "content": "hi!"})];
    let rendered = loaded
        .chat_template
        .expect("a template")
        .render(&messages, None, true)
        .expect("a conversation");
    assert_eq!(rendered, "<s>hi!<end_of_turn>");
    let tokenizer = loaded.tokenizer;
    assert_eq!(
        tokenizer.encode_chat(&rendered),
        Ok(vec![253, 255, 33, 254]),
        "BOS is not doubled"
    );
    assert_eq!(
        tokenizer.encode_chat("!"),
        Ok(vec![253, 33]),
        "BOS is added where it is missing"
    );
    assert_eq!(
        tokenizer.encode("<s>", false, false),
        Ok(b"<s>".map(u32::from).to_vec()),
        "a client's text stays text"
    );
    assert_eq!(tokenizer.decode(&[253, 255, 33, 254]), "hi!");
    assert_eq!(tokenizer.end_tokens(), [3, 254]);
    let mut decoder = tokenizer.decoder();
    let streamed = [0xC3, 253, 0xA9, 0xE2].map(|token| decoder.push(token));
    assert_eq!(streamed, [None, None, Some("é".to_owned()), None]);
    assert_eq!(decoder.finish(), Some("\u{FFFD}".to_owned()));
}
