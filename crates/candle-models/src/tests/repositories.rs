//! Safetensors repositories beside GGUF files of the same weights, and what is refused of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::TensorView;
use ::safetensors::{Dtype, serialize_to_file};
use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use half::{bf16, f16};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use super::tiny::{CONTEXT, KV_HEADS, LAYERS, QUERY_HEADS, Tiny, VOCAB, WIDTH, WINDOW};
use super::{assert_close, feed, options, reference, text};
use crate::backend::tensor::Candle;
use crate::load::Files;
use crate::{DeviceSpec, Family, LoadError, LoadOptions, load};

/// A folder as Hugging Face lays it out, to be changed before it is written.
pub(super) struct Repository {
    config: Json,
    generation: Json,
    tokenizer: Json,
    tokenizer_config: Json,
    /// Type, shape and bytes of each tensor.
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Repository {
    /// The same model as `tiny`, told in Hugging Face's names.
    pub(super) fn of(family: Family, tiny: &Tiny) -> Self {
        let tensors = tiny.tensors.iter().map(|(name, (dtype, dims, values))| {
            let shift = if family == Family::Gemma3 && name.ends_with("norm.weight") {
                1.0
            } else {
                0.0
            };
            let turned = match name.rsplit('.').nth(1).unwrap_or("") {
                "attn_q" if family == Family::Llama => apart(values, QUERY_HEADS),
                "attn_k" if family == Family::Llama => apart(values, KV_HEADS),
                _ => values.clone(),
            };
            let values = turned.iter().map(|value| value - shift);
            let (dtype, bytes): (_, Vec<u8>) = match dtype {
                GgmlDType::BF16 => (
                    Dtype::BF16,
                    values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
                ),
                GgmlDType::F16 => (
                    Dtype::F16,
                    values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
                ),
                _ => (Dtype::F32, values.flat_map(f32::to_le_bytes).collect()),
            };
            (name_of(name, family), (dtype, dims.clone(), bytes))
        });
        Self {
            config: config(family, tiny.head_dim()),
            generation: json!({}),
            tokenizer: byte_tokenizer(),
            tokenizer_config: json!({}),
            tensors: tensors.collect(),
        }
    }

    fn with(mut self, key: &str, value: Json) -> Self {
        self.config[key] = value;
        self
    }

    /// Writes all files into a folder that lives as long as the first result, the weights into so many files.
    pub(super) fn write_in(&self, files: usize) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().to_owned();
        for (name, json) in [
            ("config.json", &self.config),
            ("generation_config.json", &self.generation),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.tokenizer_config),
        ] {
            fs::write(path.join(name), json.to_string()).expect("a written file");
        }
        let tensors = self.tensors.iter().map(|(name, (dtype, dims, bytes))| {
            let view = TensorView::new(*dtype, dims.clone(), bytes).expect("a tensor");
            (name.clone(), view)
        });
        let all: Vec<_> = tensors.collect();
        if files == 1 {
            serialize_to_file(all, None, &path.join("model.safetensors")).expect("a written file");
            return (folder, path);
        }
        let mut places = BTreeMap::new();
        for (nth, piece) in all.chunks(all.len().div_ceil(files)).enumerate() {
            let name = format!("model-{:05}-of-{files:05}.safetensors", nth + 1);
            places.extend(piece.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
            serialize_to_file(piece.to_vec(), None, &path.join(name)).expect("a written file");
        }
        let index = json!({"metadata": {}, "weight_map": places});
        fs::write(path.join("model.safetensors.index.json"), index.to_string()).expect("a written file");
        (folder, path)
    }

    pub(super) fn write(&self) -> (TempDir, PathBuf) {
        self.write_in(1)
    }

    #[track_caller]
    fn refusal(&self) -> String {
        let (_folder, path) = self.write();
        refusal(&path)
    }
}

#[track_caller]
fn refusal(path: &Path) -> String {
    match load(path, &options(), &mut |_| {}) {
        Ok(_) => panic!("the repository should be refused"),
        Err(error) => error.to_string(),
    }
}

/// Rows of each head whose pairs are neighbours, as llama.cpp's converter leaves them, back to pairs across the halves.
fn apart(values: &[f32], heads: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(WIDTH).collect();
    let dim = rows.len() / heads;
    let row = |row: usize| {
        let (head, within) = (row / dim, row % dim);
        let (half, pair) = (within / (dim / 2), within % (dim / 2));
        rows[head * dim + 2 * pair + half]
    };
    (0..rows.len()).flat_map(row).copied().collect()
}

/// What Hugging Face calls a tensor of GGUF.
fn name_of(gguf: &str, family: Family) -> String {
    let Some((layer, rest)) = gguf.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match gguf {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            "output.weight" => "lm_head.weight",
            other => panic!("{other} has no name"),
        }
        .to_owned();
    };
    let (module, kind) = rest.split_once('.').expect("a kind");
    let module = match (module, family) {
        ("attn_q", _) => "self_attn.q_proj",
        ("attn_k", _) => "self_attn.k_proj",
        ("attn_v", _) => "self_attn.v_proj",
        ("attn_qkv", _) => "self_attn.qkv_proj",
        ("attn_output", _) => "self_attn.o_proj",
        ("attn_q_norm", _) => "self_attn.q_norm",
        ("attn_k_norm", _) => "self_attn.k_norm",
        ("ffn_gate", _) => "mlp.gate_proj",
        ("ffn_up", Family::Phi3) => "mlp.gate_up_proj",
        ("ffn_up", _) => "mlp.up_proj",
        ("ffn_down", _) => "mlp.down_proj",
        ("attn_norm", _) => "input_layernorm",
        ("post_attention_norm", Family::Gemma3)
        | ("ffn_norm", Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Phi3) => "post_attention_layernorm",
        ("ffn_norm", Family::Gemma3) => "pre_feedforward_layernorm",
        ("post_ffw_norm", _) => "post_feedforward_layernorm",
        (other, _) => panic!("{other} has no name"),
    };
    format!("model.layers.{layer}.{module}.{kind}")
}

/// What [`Tiny`] describes, as `transformers` writes it.
fn config(family: Family, head_dim: usize) -> Json {
    let (class, model_type) = match family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text"),
        Family::Phi3 => ("Phi3ForCausalLM", "phi3"),
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": QUERY_HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": head_dim,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "vocab_size": VOCAB,
        "hidden_act": "silu",
        "tie_word_embeddings": family == Family::Qwen3,
        "eos_token_id": 3,
    });
    if family == Family::Gemma3 {
        let fields = config.as_object_mut().expect("an object");
        fields.remove("hidden_act");
        fields.remove("tie_word_embeddings");
        fields.extend([
            ("hidden_activation".to_owned(), json!("gelu_pytorch_tanh")),
            ("sliding_window".to_owned(), json!(WINDOW)),
            ("query_pre_attn_scalar".to_owned(), json!(head_dim)),
            ("rope_local_base_freq".to_owned(), json!(10_000.0)),
        ]);
    }
    config
}

/// The 256 bytes, as [`Tiny`] has them.
fn byte_tokenizer() -> Json {
    let vocab: BTreeMap<String, usize> = (0..VOCAB).map(|byte| (format!("<0x{byte:02X}>"), byte)).collect();
    json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
    })
}

/// The logits after a prompt that crosses cache blocks and windows, then after single tokens.
fn logits(path: &Path) -> Vec<Vec<f32>> {
    let files = Files::open(path).unwrap_or_else(|error| panic!("{error}"));
    let loaded = files.load(Candle::new(Device::Cpu), &options(), &mut |_| {});
    let mut model = loaded.unwrap_or_else(|error| panic!("{error}")).model;
    let prompt = text(72, 1);
    feed(&mut *model, &[&prompt[..70], &prompt[70..71], &prompt[71..]])
}

#[track_caller]
fn assert_same(tiny: &Tiny, repository: &Path, what: &str) {
    let (_folder, gguf) = tiny.write();
    for (ours, theirs) in logits(repository).iter().zip(logits(&gguf)) {
        assert_close(ours, &theirs, 1e-5, what);
    }
}

#[test]
fn every_family_gives_the_logits_that_it_gives_from_a_gguf_file() {
    for family in Family::ALL {
        let tiny = Tiny::of(family);
        let (_folder, path) = Repository::of(family, &tiny).write();
        assert_same(&tiny, &path, &family.to_string());
    }
}

#[test]
fn weights_in_halves_and_in_several_files_are_the_same_weights() {
    for (family, dtype) in [(Family::Llama, GgmlDType::BF16), (Family::Phi3, GgmlDType::F16)] {
        let tiny = Tiny::of(family).with_matrices(dtype);
        let (_folder, path) = Repository::of(family, &tiny).write_in(3);
        assert_same(&tiny, &path, &family.to_string());
    }
}

#[test]
fn the_fused_path_takes_repositories_too() {
    let tiny = Tiny::of(Family::Llama);
    let (_folder, path) = Repository::of(Family::Llama, &tiny).write();
    let mut model = load(&path, &options(), &mut |_| {}).expect("a model").model;
    let tokens = text(40, 2);
    let ours = feed(&mut *model, &[&tokens]);
    let theirs = feed(&mut *reference(&tiny), &[&tokens]);
    assert_close(&ours[0], &theirs[0], 0.01, "in halves");
}

#[test]
fn rotary_scaling_is_that_of_gguf_files() {
    let llama = |scaling: Json| {
        let tiny = Tiny::of(Family::Llama);
        Repository::of(Family::Llama, &tiny).with("rope_scaling", scaling)
    };
    let (_folder, path) = llama(json!({"type": "linear", "factor": 4.0})).write();
    let linear = Tiny::of(Family::Llama)
        .with("rope.scaling.type", Value::String("linear".to_owned()))
        .with("rope.scaling.factor", Value::F32(4.0));
    assert_same(&linear, &path, "linear");

    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 150, "beta_fast": 16});
    let (_folder, path) = llama(yarn).write();
    let yarn = Tiny::of(Family::Llama)
        .with("rope.scaling.type", Value::String("yarn".to_owned()))
        .with("rope.scaling.factor", Value::F32(4.0))
        .with("rope.scaling.yarn_beta_fast", Value::F32(16.0))
        .with("rope.scaling.original_context_length", Value::U32(150));
    assert_same(&yarn, &path, "yarn");

    // Eight pairs, which make 40 to 0.004 turns over 256 tokens: fast, between and slow ones.
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    });
    let (_folder, path) = llama(llama3).write();
    let turns = |pair: i32| 256.0 / (std::f64::consts::TAU * 10f64.powf(f64::from(pair) / 2.0));
    let factors = (0..8).map(|pair| match turns(pair) {
        turns if turns >= 4.0 => 1.0,
        turns if turns <= 1.0 => 8.0,
        turns => (1.0 / ((4.0 - turns) / 3.0 / 8.0 + (turns - 1.0) / 3.0)) as f32,
    });
    let llama3 = Tiny::of(Family::Llama).with_tensor("rope_freqs.weight", factors.collect());
    assert_same(&llama3, &path, "llama3");
}

#[test]
fn long_rope_has_factors_and_the_magnitude_of_the_stretch() {
    let (short, long) = ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [1.0, 1.5, 2.0, 3.0, 5.0, 8.0]);
    let tiny = Tiny::of(Family::Phi3);
    let repository = Repository::of(Family::Phi3, &tiny)
        .with("original_max_position_embeddings", json!(150))
        .with("partial_rotary_factor", json!(0.75))
        .with(
            "rope_scaling",
            json!({"type": "longrope", "short_factor": short, "long_factor": long}),
        );
    let (_folder, path) = repository.write();
    let magnitude = (1.0 + 4f32.ln() / 150f32.ln()).sqrt();
    let tiny = tiny
        .with("rope.dimension_count", Value::U32(12))
        .with("rope.scaling.type", Value::String("longrope".to_owned()))
        .with("rope.scaling.attn_factor", Value::F32(magnitude))
        .with("rope.scaling.original_context_length", Value::U32(150))
        .with_tensor("rope_factors_short.weight", short.map(|x| x as f32).to_vec())
        .with_tensor("rope_factors_long.weight", long.map(|x| x as f32).to_vec());
    assert_same(&tiny, &path, "longrope");
}

#[test]
fn rotary_positions_as_transformers_5_writes_them_are_understood() {
    let tiny = Tiny::of(Family::Gemma3).with("rope.freq_base", Value::F32(5e5));
    let mut repository = Repository::of(Family::Gemma3, &tiny).with(
        "rope_parameters",
        json!({
            "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        }),
    );
    let fields = repository.config.as_object_mut().expect("an object");
    fields.retain(|key, _| key != "rope_theta" && key != "rope_local_base_freq");
    let (_folder, path) = repository.write();
    assert_same(&tiny, &path, "by layer type");

    let tiny = Tiny::of(Family::Qwen3).with("rope.freq_base", Value::F32(1e6));
    let mut repository = Repository::of(Family::Qwen3, &tiny);
    repository.config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1_000_000.0});
    let (_folder, path) = repository.write();
    assert_same(&tiny, &path, "for all layers");
}

#[test]
fn windows_are_those_of_the_layers_that_have_them() {
    let mistral = Tiny::of(Family::Llama).with("attention.sliding_window", Value::U32(8));
    let repository = Repository::of(Family::Llama, &mistral)
        .with("architectures", json!(["MistralForCausalLM"]))
        .with("model_type", json!("mistral"))
        .with("sliding_window", json!(8));
    let (_folder, path) = repository.write();
    assert_same(&mistral, &path, "in all layers");

    // Qwen names a window that it does not use.
    let qwen = Tiny::of(Family::Qwen2);
    let unused = Repository::of(Family::Qwen2, &qwen)
        .with("sliding_window", json!(8))
        .with("use_sliding_window", json!(false));
    let (_folder, path) = unused.write();
    assert_same(&qwen, &path, "in no layer");
    let windowed = |layer: usize| Value::Bool(layer >= 4);
    let used = unused
        .with("use_sliding_window", json!(true))
        .with("max_window_layers", json!(4));
    let qwen = qwen.with("attention.sliding_window", Value::U32(8)).with(
        "attention.sliding_window_pattern",
        Value::Array((0..LAYERS).map(windowed).collect()),
    );
    let (_folder, path) = used.write();
    assert_same(&qwen, &path, "in the last layers");

    let kind = |layer| {
        if layer == 2 {
            "full_attention"
        } else {
            "sliding_attention"
        }
    };
    let types: Vec<_> = (0..LAYERS).map(kind).collect();
    let gemma = Tiny::of(Family::Gemma3).with(
        "attention.sliding_window_pattern",
        Value::Array((0..LAYERS).map(|layer| Value::Bool(layer != 2)).collect()),
    );
    let (_folder, path) = Repository::of(Family::Gemma3, &gemma)
        .with("layer_types", json!(types))
        .write();
    assert_same(&gemma, &path, "layer by layer");
}

#[test]
fn tied_embeddings_give_the_logits_whatever_head_lies_beside_them() {
    let mut tiny = Tiny::of(Family::Llama);
    let repository = Repository::of(Family::Llama, &tiny).with("tie_word_embeddings", json!(true));
    tiny.tensors.remove("output.weight");
    let (_folder, path) = repository.write();
    assert_same(&tiny, &path, "tied");

    let mut untied = repository.with("tie_word_embeddings", json!(false));
    untied.tensors.remove("lm_head.weight");
    assert!(untied.refusal().contains("tensor lm_head.weight is missing"));
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let llama = || Repository::of(Family::Llama, &Tiny::of(Family::Llama));
    for (key, value, said) in [
        (
            "architectures",
            json!(["MixtralForCausalLM"]),
            "\"MixtralForCausalLM\" is not supported; supported are: Llama",
        ),
        ("model_type", json!("minicpm"), "\"minicpm\" is not supported"),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "quantised by \"gptq\"",
        ),
        ("num_local_experts", json!(8), "mixtures of experts (num_local_experts)"),
        ("hidden_act", json!("relu"), "hidden_act \"relu\""),
        (
            "use_bidirectional_attention",
            json!(true),
            "models with use_bidirectional_attention",
        ),
        (
            "attn_logit_softcapping",
            json!(50.0),
            "models with attn_logit_softcapping",
        ),
        (
            "rope_scaling",
            json!({"type": "dynamic", "factor": 2.0}),
            "rotary scaling of type \"dynamic\"",
        ),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling lacks factor"),
        ("rope_scaling", json!("linear"), "rope_scaling is not an object"),
        ("hidden_size", json!("64"), "config.json: hidden_size is not a count"),
        ("rms_norm_eps", Json::Null, "config.json lacks rms_norm_eps"),
        (
            "num_attention_heads",
            json!(0),
            "config.json: num_attention_heads is not positive",
        ),
    ] {
        let said_of_it = llama().with(key, value).refusal();
        assert!(said_of_it.contains(said), "{key}: {said_of_it}");
    }
    let gemma = Repository::of(Family::Gemma3, &Tiny::of(Family::Gemma3));
    let chunked = gemma.with("layer_types", json!(vec!["chunked_attention"; LAYERS]));
    assert!(chunked.refusal().contains("layers of type \"chunked_attention\""));
}

#[test]
fn tensors_of_unknown_names_and_types_are_refused_by_name() {
    let llama = || Repository::of(Family::Llama, &Tiny::of(Family::Llama));
    let mut biased = llama().with("attention_bias", json!(true));
    let bias = (Dtype::F32, vec![WIDTH], vec![0; WIDTH * 4]);
    biased
        .tensors
        .insert("model.layers.0.self_attn.o_proj.bias".to_owned(), bias.clone());
    assert!(
        biased
            .refusal()
            .contains("its tensor blk.0.attn_output.bias has no place")
    );
    let mut adapted = llama();
    adapted.tensors.insert("model.layers.0.lora_A.weight".to_owned(), bias);
    assert!(
        adapted
            .refusal()
            .contains("its tensor model.layers.0.lora_A.weight has no place")
    );
    let mut integers = llama();
    let tensor = integers.tensors.get_mut("model.norm.weight").expect("a norm");
    *tensor = (Dtype::I8, vec![WIDTH], vec![0; WIDTH]);
    assert!(integers.refusal().contains("tensor model.norm.weight is of type I8"));
    let mut derived = llama();
    let frequencies = (Dtype::F32, vec![8], vec![0; 32]);
    derived
        .tensors
        .insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), frequencies);
    let (_folder, path) = derived.write();
    assert!(Files::open(&path).is_ok(), "what follows from the config is not needed");
}

#[test]
fn missing_files_are_named() {
    let repository = Repository::of(Family::Llama, &Tiny::of(Family::Llama));
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let (_folder, path) = repository.write();
        fs::remove_file(path.join(name)).expect("the file");
        assert!(refusal(&path).contains(name));
    }
    let (_folder, path) = repository.write_in(2);
    fs::remove_file(path.join("model-00002-of-00002.safetensors")).expect("the file");
    assert!(refusal(&path).contains("model-00002-of-00002.safetensors"));
}

#[test]
fn an_index_never_leads_out_of_the_folder() {
    let (_folder, path) = Repository::of(Family::Llama, &Tiny::of(Family::Llama)).write_in(2);
    for name in ["../model.safetensors", "/etc/passwd", "config.json"] {
        let index = json!({"weight_map": {"model.norm.weight": name}});
        fs::write(path.join("model.safetensors.index.json"), index.to_string()).expect("a written file");
        assert!(
            refusal(&path).contains("which is no safetensors file of the folder"),
            "{name}"
        );
    }
}

#[test]
fn files_that_are_cut_or_changed_anywhere_are_errors_and_never_panics() {
    let repository = Repository::of(Family::Gemma3, &Tiny::of(Family::Gemma3).with_layers(1));
    let (_folder, path) = repository.with("num_hidden_layers", json!(1)).write();
    let open = |path: &Path| load(path, &LoadOptions::new(DeviceSpec::Cpu), &mut |_| {}).map(|_| ());
    assert!(open(&path).is_ok());
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let whole = fs::read(path.join(name)).expect("the file");
        let header = whole.len().min(1500);
        for len in (0..header).step_by(97).chain((header..whole.len()).step_by(4001)) {
            fs::write(path.join(name), &whole[..len]).expect("a cut file");
            assert!(open(&path).is_err(), "{len} of {} bytes of {name}", whole.len());
        }
        for at in (0..header).step_by(31) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x15;
            fs::write(path.join(name), &bytes).expect("a changed file");
            drop(open(&path));
        }
        fs::write(path.join(name), &whole).expect("the file");
    }
}

#[test]
fn answers_end_where_the_model_or_its_generation_config_says() {
    let mut repository = Repository::of(Family::Llama, &Tiny::of(Family::Llama));
    repository.generation = json!({"eos_token_id": [7, 9, 4_000_000]});
    repository.tokenizer_config = json!({"eos_token": {"content": "<0x0B>"}, "bos_token": null});
    let (_folder, path) = repository.write();
    let loaded = load(&path, &options(), &mut |_| {}).expect("a model");
    assert_eq!(loaded.tokenizer.end_tokens(), [3, 7, 9, 11]);
    assert_eq!(
        (loaded.tokenizer.bos_token(), loaded.tokenizer.eos_token()),
        (None, Some("<0x0B>"))
    );
    let ends = [3, 4, 7, 9, 11].map(|token| loaded.model.is_end(token));
    assert_eq!(ends, [true, false, true, true, true]);
}

#[test]
fn the_chat_template_is_the_one_of_its_file_or_the_default_one_of_the_config() {
    let mut repository = Repository::of(Family::Llama, &Tiny::of(Family::Llama));
    let source = |repository: &Repository, file: Option<&str>| {
        let (_folder, path) = repository.write();
        if let Some(file) = file {
            fs::write(path.join("chat_template.jinja"), file).expect("a written file");
        }
        let files = Files::open(&path)?;
        let loaded = files.load(Candle::new(Device::Cpu), &options(), &mut |_| {})?;
        Ok::<_, LoadError>(loaded.chat_template.map(|template| template.source().to_owned()))
    };
    let found = |repository: &Repository, file| source(repository, file).expect("a model");
    assert_eq!(found(&repository, None), None);
    repository.tokenizer_config = json!({"chat_template": "plain"});
    assert_eq!(found(&repository, None).as_deref(), Some("plain"));
    assert_eq!(found(&repository, Some("file")).as_deref(), Some("file"));
    let named = |name: &str| json!({"name": name, "template": format!("the {name} one")});
    repository.tokenizer_config = json!({"chat_template": [named("tool_use"), named("default")]});
    assert_eq!(found(&repository, None).as_deref(), Some("the default one"));
    repository.tokenizer_config = json!({"chat_template": 7});
    assert!(source(&repository, None).is_err());
}
