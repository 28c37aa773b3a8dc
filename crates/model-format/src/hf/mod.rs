//! A repository's `config.json`, told in the keys of GGUF's metadata, which the families read.
//!
//! What this build would compute differently from what the file asks for is refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use crate::FormatError;
use crate::value::{Array, Value};

mod fields;
mod rope;
pub(crate) mod text;

pub(crate) use fields::Fields;

/// What `config.json` says.
pub(crate) struct Description {
    /// By GGUF's keys.
    pub(crate) metadata: BTreeMap<String, Value>,
    /// Tensors that follow from it, by GGUF's names.
    pub(crate) tensors: Vec<(&'static str, Vec<f32>)>,
    pub(crate) model: Model,
    /// The embeddings give the logits, too.
    pub(crate) tied: bool,
}

/// A kind of model as Hugging Face's libraries tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
    Phi3,
}

impl Model {
    const ALL: [Self; 6] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma3,
        Self::Phi3,
    ];

    fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
        }
    }

    /// What GGUF calls its architecture.
    pub(crate) fn architecture(self) -> &'static str {
        match self {
            Self::Llama | Self::Mistral => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    /// The model of these fields, by the class and the type that they name.
    pub(crate) fn of(config: &Fields) -> Result<Self, FormatError> {
        let class = match config.get("architectures") {
            Some(Json::Array(classes)) => classes.first().and_then(Json::as_str),
            _ => None,
        };
        let model_type = config.text("model_type")?;
        let by_class = |class: &str| Self::ALL.into_iter().find(|model| model.class() == class);
        let by_type = |name: &str| Self::ALL.into_iter().find(|model| model.model_type() == name);
        let (found, name) = match (class, model_type) {
            (Some(class), None) => (by_class(class), class),
            (None, Some(model_type)) => (by_type(model_type), model_type),
            // Classes are borrowed by models of other types, which compute differently.
            (Some(class), Some(model_type)) => match by_class(class) {
                Some(model) if by_type(model_type) != Some(model) => (None, model_type),
                found => (found, class),
            },
            (None, None) => return Err(config.lacks("architectures")),
        };
        found.ok_or_else(|| {
            let supported = Self::ALL.map(Self::class).join(", ");
            FormatError::Unsupported(format!(
                "the model architecture {name:?} is not supported; supported are: {supported}"
            ))
        })
    }
}

/// Reads and translates the `config.json` of `folder`.
pub(crate) fn describe(folder: &Path) -> Result<Description, FormatError> {
    let config = Fields::required(folder, "config.json")?;
    let model = Model::of(&config)?;
    refuse_variants(&config, model)?;
    let mut translation = Translation {
        architecture: model.architecture(),
        metadata: BTreeMap::new(),
    };
    translation.shape(&config, model)?;
    translation.windows(&config, model)?;
    let rope = rope::translate(&config, model)?;
    for (key, value) in rope.metadata {
        translation.set(key, value);
    }
    if model == Model::Gemma3 {
        translation.gemma(&config)?;
    }
    Ok(Description {
        metadata: translation.metadata,
        tensors: rope.tensors,
        model,
        tied: is_tied(&config, model)?,
    })
}

/// Whether the embeddings give the logits, too. Hugging Face's classes leave a field out where it has its default.
pub(crate) fn is_tied(config: &Fields, model: Model) -> Result<bool, FormatError> {
    Ok(config.flag("tie_word_embeddings")?.unwrap_or(model == Model::Gemma3))
}

/// Metadata as it grows.
struct Translation {
    architecture: &'static str,
    metadata: BTreeMap<String, Value>,
}

impl Translation {
    fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(format!("{}.{key}", self.architecture), value);
    }

    fn shape(&mut self, config: &Fields, model: Model) -> Result<(), FormatError> {
        let name = config.text("_name_or_path")?.and_then(|name| name.rsplit('/').next());
        let general = [
            ("general.architecture", Some(self.architecture)),
            ("general.name", name),
        ];
        for (key, text) in general {
            let text = text.filter(|text| !text.is_empty());
            self.metadata
                .extend(text.map(|text| (key.to_owned(), Value::Text(text.to_owned()))));
        }
        let heads = config.required_count("num_attention_heads")?;
        let head_dim = head_dim(config, model)?;
        let counts = [
            ("context_length", config.required_count("max_position_embeddings")?),
            ("embedding_length", config.required_count("hidden_size")?),
            ("feed_forward_length", config.required_count("intermediate_size")?),
            ("block_count", config.required_count("num_hidden_layers")?),
            ("attention.head_count", heads),
            (
                "attention.head_count_kv",
                config.count("num_key_value_heads")?.unwrap_or(heads),
            ),
            ("attention.key_length", head_dim),
            ("attention.value_length", head_dim),
        ];
        for (key, value) in counts {
            self.set(key, integer(value));
        }
        let epsilon = config.required_number("rms_norm_eps")?;
        self.set("attention.layer_norm_rms_epsilon", Value::Float(epsilon));
        Ok(())
    }

    /// Which layers see how far back.
    fn windows(&mut self, config: &Fields, model: Model) -> Result<(), FormatError> {
        let layers = config.required_count("num_hidden_layers")?;
        let window = config.count("sliding_window")?;
        let pattern = match model {
            Model::Llama => return Ok(()),
            Model::Mistral | Model::Phi3 => None,
            Model::Qwen2 | Model::Qwen3 => {
                if config.flag("use_sliding_window")? != Some(true) {
                    return Ok(());
                }
                let full = config.count("max_window_layers")?.unwrap_or(layers);
                Some(layer_types(config, layers)?.unwrap_or_else(|| (0..layers).map(|layer| layer >= full).collect()))
            }
            Model::Gemma3 => {
                let every = config.count("sliding_window_pattern")?;
                let every = every.or(config.count("_sliding_window_pattern")?).filter(|&n| n > 0);
                let every = every.unwrap_or(GEMMA_PATTERN);
                let sees_all = |layer: usize| (layer + 1).is_multiple_of(every);
                Some(
                    layer_types(config, layers)?.unwrap_or_else(|| (0..layers).map(|layer| !sees_all(layer)).collect()),
                )
            }
        };
        if let Some(window) = window {
            self.set("attention.sliding_window", integer(window));
            if let Some(pattern) = pattern {
                let pattern = pattern.into_iter().map(Value::Flag).collect();
                self.set("attention.sliding_window_pattern", Value::Array(Array::of(pattern)));
            }
        }
        Ok(())
    }

    fn gemma(&mut self, config: &Fields) -> Result<(), FormatError> {
        let scalar = config.required_number("query_pre_attn_scalar")?;
        self.set("attention.scale", Value::Float(scalar.powf(-0.5)));
        if let Some(cap) = config.number("final_logit_softcapping")? {
            self.set("final_logit_softcapping", Value::Float(cap));
        }
        Ok(())
    }
}

/// Every sixth layer of Gemma 3 sees everything, unless the file says otherwise.
const GEMMA_PATTERN: usize = 6;

/// Elements per head.
pub(crate) fn head_dim(config: &Fields, model: Model) -> Result<usize, FormatError> {
    if let Some(dim) = config.count("head_dim")? {
        return Ok(dim);
    }
    if matches!(model, Model::Qwen3 | Model::Gemma3) {
        return Err(config.lacks("head_dim"));
    }
    let heads = config.required_count("num_attention_heads")?;
    Ok(config.required_count("hidden_size")? / heads)
}

/// For each layer whether it has a window, where the file says it layer by layer.
fn layer_types(config: &Fields, layers: usize) -> Result<Option<Vec<bool>>, FormatError> {
    let Some(types) = config.get("layer_types") else {
        return Ok(None);
    };
    let types = types.as_array().filter(|types| types.len() == layers);
    let types = types.ok_or_else(|| config.wrong("layer_types", &format!("a list of {layers} names")))?;
    let has_window = |name: &Json| match name.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(FormatError::Unsupported(format!(
            "layers of type {name} are not supported; full_attention and sliding_attention are"
        ))),
    };
    types.iter().map(has_window).collect::<Result<_, _>>().map(Some)
}

/// Refuses what would change the results and is not implemented.
fn refuse_variants(config: &Fields, model: Model) -> Result<(), FormatError> {
    let refuse = |what: String| Err(FormatError::Unsupported(format!("{what} are not supported")));
    for key in ["quantization_config", "compression_config"] {
        if let Some(quantization) = config.get(key) {
            let method = quantization["quant_method"].as_str().unwrap_or("unknown");
            return refuse(format!(
                "weights of a safetensors repository quantised by {method:?} ({key})"
            ));
        }
    }
    for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
        if config.count(key)?.is_some_and(|experts| experts > 0) {
            return refuse(format!("mixtures of experts ({key})"));
        }
    }
    // The last one is of Gemma 2; Gemma 3's own code reads it, but does not use it.
    for key in ["use_bidirectional_attention", "use_mrope", "attn_logit_softcapping"] {
        if config.get(key).is_some_and(|value| *value != Json::Bool(false)) {
            return refuse(format!("models with {key}"));
        }
    }
    let (keys, expected) = match model {
        Model::Gemma3 => (["hidden_activation", "hidden_act"], "gelu_pytorch_tanh"),
        _ => (["hidden_act"; 2], "silu"),
    };
    let activation = config.text(keys[0])?.or(config.text(keys[1])?).unwrap_or(expected);
    if activation != expected {
        let (architecture, key) = (model.class(), keys[0]);
        return refuse(format!(
            "{architecture} models with {key} {activation:?} rather than {expected:?}"
        ));
    }
    Ok(())
}

/// A count as metadata has it.
pub(crate) fn integer(count: usize) -> Value {
    Value::Integer(count as i128)
}
