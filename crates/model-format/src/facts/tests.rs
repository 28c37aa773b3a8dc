use std::fs;

use ::safetensors::{Dtype, serialize, tensor::TensorView};
use proptest::prelude::{Just, Strategy, any, prop, proptest};
use proptest::{prop_assert, prop_oneof};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::KV_BLOCK_TOKENS;

/// A GGUF file as bytes.
#[derive(Clone)]
struct Gguf {
    metadata: Vec<Vec<u8>>,
    tensors: Vec<(&'static str, Vec<u64>, u32)>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Gguf {
    fn new(architecture: &str) -> Self {
        let file = Self {
            metadata: Vec::new(),
            tensors: Vec::new(),
        };
        file.text("general.architecture", architecture)
    }

    /// A llama with 4 layers.
    fn llama() -> Self {
        Self::new("llama")
            .text("general.name", "Small")
            .count("llama.block_count", 4)
            .count("llama.context_length", 2048)
            .count("llama.embedding_length", 512)
            .count("llama.feed_forward_length", 1024)
            .count("llama.attention.head_count", 8)
            .count("llama.attention.head_count_kv", 2)
            .tensor("token_embd.weight", &[1000, 512], TensorType::Q4K)
            .tensor("output.weight", &[1000, 512], TensorType::Q6K)
            .tensor("blk.0.ffn_up.weight", &[1024, 512], TensorType::Q4K)
            .tensor("output_norm.weight", &[512], TensorType::F32)
    }

    fn with(mut self, key: &str, value: &[u8]) -> Self {
        self.metadata.push([string(key).as_slice(), value].concat());
        self
    }

    fn text(self, key: &str, text: &str) -> Self {
        self.with(key, &[&[8, 0, 0, 0], string(text).as_slice()].concat())
    }

    fn count(self, key: &str, count: u32) -> Self {
        self.with(key, &[[4, 0, 0, 0], count.to_le_bytes()].concat())
    }

    fn counts(self, key: &str, counts: &[u32]) -> Self {
        let mut value = [9u32.to_le_bytes(), 4u32.to_le_bytes()].concat();
        value.extend((counts.len() as u64).to_le_bytes());
        counts.iter().for_each(|count| value.extend(count.to_le_bytes()));
        self.with(key, &value)
    }

    /// Dimensions outermost first.
    fn tensor(mut self, name: &'static str, dims: &[u64], dtype: TensorType) -> Self {
        let number = (0..100).find(|&number| TensorType::of_number(number) == Some(dtype));
        self.tensors.push((name, dims.to_vec(), number.expect("a number")));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        self.metadata.iter().for_each(|value| bytes.extend(value));
        let mut data = 0;
        for (name, dims, number) in &self.tensors {
            bytes.extend(string(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            dims.iter().rev().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(number.to_le_bytes());
            bytes.extend((data as u64).to_le_bytes());
            let dtype = TensorType::of_number(*number).expect("a type");
            let dims: Vec<usize> = dims.iter().map(|&dim| dim as usize).collect();
            let size = dtype.tensor_bytes(&dims).expect("whole blocks");
            data += size.next_multiple_of(32);
        }
        let start = bytes.len().next_multiple_of(32);
        bytes.resize(start + data, 0);
        bytes
    }

    fn facts(&self) -> Result<Facts, FormatError> {
        facts_of(&self.bytes())
    }
}

fn facts_of(bytes: &[u8]) -> Result<Facts, FormatError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).expect("a file");
    facts(&path)
}

#[test]
fn a_gguf_file_s_header_says_what_it_is() {
    let facts = Gguf::llama().facts().expect("a header");
    let (q4, q6) = ((1000 + 1024) * 512, 1000 * 512);
    assert_eq!(
        facts,
        Facts {
            family: "llama".to_owned(),
            name: Some("Small".to_owned()),
            parameters: q4 + q6 + 512,
            layers: 4,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            context_length: 2048,
            vocab_size: 1000,
            width: 512,
            hidden: 1024,
            quantization: "Q4_K".to_owned(),
            weight_bytes: q4 / 256 * 144 + q6 / 256 * 210 + 512 * 4,
            // 1000 rows are packed as 1008.
            cpu_weight_bytes: (1008 + 1024) * 512 / 512 * 320 + 1008 * 512 / 512 * 448 + 512 * 4,
            gpu_weight_bytes: q4 / 256 * 144 + q6 / 256 * 210 + 512 * 4,
            kv_bytes_per_token: 4 * 2 * 64 * 2 * 2,
            cpu_kv_bytes_per_token: 4 * 2 * 64 * 2 * 2,
            chat: false,
        }
    );
    let chat = Gguf::llama().text("tokenizer.chat_template", "{{ messages }}").facts();
    assert!(chat.expect("a header").chat);
}

#[test]
fn an_architecture_that_nobody_knows_has_facts_too() {
    let mamba = Gguf::new("mamba")
        .count("mamba.block_count", 24)
        .count("mamba.attention.head_count", 0)
        .tensor("blk.0.ssm_in.weight", &[64, 32], TensorType::F16);
    let facts = mamba.facts().expect("a header");
    assert_eq!((facts.family.as_str(), facts.layers, facts.heads), ("mamba", 24, 0));
    assert_eq!((facts.kv_bytes_per_token, facts.parameters), (0, 64 * 32));
    let experts = Gguf::new("moe").tensor("blk.0.ffn_up_exps.weight", &[8, 32, 256], TensorType::Iq4Xs);
    let facts = experts.facts().expect("a header");
    assert_eq!(
        (facts.parameters, facts.quantization.as_str()),
        (8 * 32 * 256, "IQ4_XS")
    );
    assert_eq!(facts.weight_bytes, 8 * 32 * 136);
    assert_eq!(facts.cpu_weight_bytes, 8 * 32 * 256 * 2, "kept as halves, if at all");
}

#[test]
fn a_mixture_of_types_has_the_name_that_its_file_gives_it() {
    let with = |number| {
        let file = Gguf::llama().count("general.file_type", number);
        file.facts().expect("a header").quantization
    };
    assert_eq!(with(15), "Q4_K_M");
    assert_eq!(with(999), "Q4_K", "a number of later files: the type of most weights");
}

#[test]
fn numbers_that_differ_from_layer_to_layer_are_added_up() {
    let facts = Gguf::new("decilm")
        .count("decilm.block_count", 3)
        .counts("decilm.attention.head_count", &[8, 0, 16])
        .counts("decilm.attention.head_count_kv", &[8, 0, 4])
        .count("decilm.attention.key_length", 24)
        .count("decilm.attention.value_length", 20)
        .tensor("token_embd.weight", &[10, 32], TensorType::F32)
        .facts()
        .expect("a header");
    assert_eq!((facts.heads, facts.kv_heads), (16, 8));
    assert_eq!(facts.kv_bytes_per_token, 12 * (24 + 20) * 2);
    assert_eq!(facts.cpu_kv_bytes_per_token, 12 * (24 + 32) * 2);
}

#[test]
fn what_has_no_facts_is_refused_by_name() {
    let refusal = |file: &Gguf| file.facts().expect_err("a refusal").to_string();
    let nothing = Gguf {
        metadata: Vec::new(),
        tensors: Vec::new(),
    };
    assert!(refusal(&nothing).contains("its metadata lacks general.architecture"));
    assert_eq!(refusal(&Gguf::new("llama")), "the model has no weights");
    let wrong = Gguf::new("llama").text("llama.block_count", "four");
    assert!(refusal(&wrong).contains("llama.block_count is neither a count nor a list of counts"));
    let page = facts_of(b"<html>not found</html>").expect_err("no model");
    assert!(matches!(page, FormatError::NotGguf(_)));
    let folder = tempfile::tempdir().expect("a folder");
    let error = facts(folder.path()).expect_err("an empty folder").to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn memory_grows_by_whole_blocks() {
    let need = Gguf::llama().facts().expect("a header").memory(Backend::Cpu);
    assert!(need.scratch_bytes > 0 && need.overhead_bytes > 0);
    let block = KV_BLOCK_TOKENS * need.kv_bytes_per_token;
    assert_eq!(need.total(1), need.total(KV_BLOCK_TOKENS));
    assert_eq!(need.total(KV_BLOCK_TOKENS + 1), need.total(0) + 2 * block);
}

proptest! {
    #[test]
    fn any_bytes_behind_the_magic_are_an_error_and_no_panic(
        counts in prop::array::uniform2(prop_oneof![0u64..4, any::<u64>()]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        counts.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        bytes.extend(rest);
        prop_assert!(facts_of(&bytes).is_err());
    }

    #[test]
    fn a_file_changed_or_cut_anywhere_in_its_header_never_panics(
        changes in prop::collection::vec((0usize..700, any::<u8>()), 0..4),
        len in prop_oneof![Just(usize::MAX), 0usize..2000],
    ) {
        let mut bytes = Gguf::llama().counts("llama.attention.head_count_kv.x", &[1, 2]).bytes();
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate(len);
        if let Ok(facts) = facts_of(&bytes) {
            for backend in [Backend::Cpu, Backend::Gpu] {
                let need = facts.memory(backend);
                prop_assert!(need.total(u64::MAX) >= need.total(0));
            }
        }
    }

    #[test]
    fn a_safetensors_header_of_any_bytes_is_an_error_and_no_panic(
        length in prop_oneof![0u64..200, any::<u64>()],
        rest in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            r#"\{"a":\{"dtype":"(F32|BF16|I8)","shape":\[[0-9]{1,20}(,[0-9]{1,20})?\],"data_offsets":\[0,[0-9]{1,20}\]\}\}"#
                .prop_map(String::into_bytes),
        ],
        fits: bool,
    ) {
        let length = if fits { rest.len() as u64 } else { length };
        let bytes = [&length.to_le_bytes(), rest.as_slice()].concat();
        if let Ok(header) = Header::read("x", bytes.as_slice(), bytes.len()) {
            let all: usize = header.tensors().map(|(_, info)| info.data_offsets.1).max().unwrap_or(0);
            prop_assert!(all <= bytes.len(), "nothing lies outside of the file");
        }
    }
}

/// A folder with a `config.json` and tensors of 2 bytes per element.
fn repository(config: &Json, tensors: &[(&str, &[usize], Dtype)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
    let zeros = vec![0; 1 << 16];
    let views = tensors.iter().map(|&(name, shape, dtype)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (
            name,
            TensorView::new(dtype, shape.to_vec(), &zeros[..bytes]).expect("a tensor"),
        )
    });
    let bytes = serialize(views, None).expect("a file's bytes");
    fs::write(folder.path().join("model.safetensors"), bytes).expect("a file");
    folder
}

#[test]
fn a_folder_of_a_model_that_nobody_knows_has_facts_too() {
    let config = json!({
        "architectures": ["OtherForConditionalGeneration"],
        "model_type": "other",
        "_name_or_path": "someone/Other-1B",
        "text_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
                        "max_position_embeddings": 128, "intermediate_size": 96, "num_key_value_heads": 1},
    });
    let tensors: [(&str, &[usize], _); 3] = [
        ("language_model.embed.weight", &[100, 64], Dtype::BF16),
        ("vision.patch.weight", &[8, 3, 2, 2], Dtype::F8_E4M3),
        ("scale", &[], Dtype::F32),
    ];
    let folder = repository(&config, &tensors);
    fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").expect("a file");
    let facts = facts(folder.path()).expect("a model");
    assert_eq!(
        (facts.family.as_str(), facts.name.as_deref()),
        ("other", Some("Other-1B"))
    );
    assert_eq!(
        (facts.layers, facts.heads, facts.kv_heads, facts.head_dim),
        (2, 4, 1, 16)
    );
    assert_eq!(
        (facts.width, facts.hidden, facts.vocab_size, facts.context_length),
        (64, 96, 100, 128)
    );
    assert_eq!((facts.parameters, facts.weight_bytes), (6400 + 96 + 1, 12_800 + 96 + 4));
    assert_eq!((facts.quantization.as_str(), facts.chat), ("BF16", true));
    assert_eq!(facts.cpu_weight_bytes, 12_800 + 96 * 2 + 4);
    assert_eq!(facts.kv_bytes_per_token, 2 * 16 * 2 * 2);
}

#[test]
fn a_tied_head_that_lies_beside_the_embeddings_does_not_count() {
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": true});
    let tensors: [(&str, &[usize], _); 2] = [
        ("model.embed_tokens.weight", &[100, 64], Dtype::F16),
        ("lm_head.weight", &[100, 64], Dtype::F16),
    ];
    let facts = facts(repository(&config, &tensors).path()).expect("a model");
    assert_eq!((facts.parameters, facts.vocab_size), (6400, 100));
}

#[test]
fn a_folder_with_a_damaged_file_names_it() {
    let config = json!({"model_type": "llama"});
    let folder = repository(&config, &[("model.embed_tokens.weight", &[10, 8], Dtype::F16)]);
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).expect("the file");
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).expect("a cut file");
        let error = facts(folder.path()).expect_err("a cut file").to_string();
        assert!(error.contains("model.safetensors"), "{len}: {error}");
    }
}
