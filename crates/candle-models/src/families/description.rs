//! What a file says about its network, read in the way that all families share.

use cpu_kernels::{Activation, RopeStyle};

use super::Family;
use super::rope;
use crate::architecture::{Architecture, Heads, LayerShape};
use crate::error::LoadError;
use model_format::{ModelFile, Value};

/// Far beyond any model: sizes above are damage, and would ask for absurd amounts of memory.
const MAX_HEADS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1 << 13;
/// Rotary base unless family or file say otherwise.
const ROPE_BASE: f64 = 10_000.0;

/// Keys that are understood in every family, behind the family's name. All others are refused: they would change the
/// results.
const KEYS: [&str; 25] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
    "vocab_size",
];

/// A file seen as one family's.
pub(super) struct Description<'a> {
    file: &'a ModelFile,
    family: Family,
    rope_base: f64,
    /// Every so many layers one sees everything; `None`: none does, where there is a window at all.
    window_pattern: Option<usize>,
}

impl<'a> Description<'a> {
    /// `own_keys` are understood by the family beside those that all understand.
    ///
    /// # Errors
    /// The file has a key that nobody understands.
    pub(super) fn new(file: &'a ModelFile, family: Family, own_keys: &[&str]) -> Result<Self, LoadError> {
        let description = Self {
            file,
            family,
            rope_base: ROPE_BASE,
            window_pattern: None,
        };
        let prefix = description.key("");
        for key in file.keys() {
            let Some(name) = key.strip_prefix(&prefix) else {
                continue;
            };
            let known = KEYS.contains(&name) || own_keys.contains(&name);
            if !known && !file.value(key).is_some_and(|value| is_neutral(name, value)) {
                return Err(LoadError::Unsupported(if name.starts_with("expert_") {
                    format!("mixtures of experts are not supported: the file has {key}")
                } else {
                    format!("this variant of the {family} family is not supported: the file has {key}")
                }));
            }
        }
        Ok(description)
    }

    /// With another rotary base where the file has none.
    pub(super) fn with_rope_base(self, rope_base: f64) -> Self {
        Self { rope_base, ..self }
    }

    /// With every so many layers seeing everything, unless the file says otherwise.
    pub(super) fn with_window_pattern(self, every: usize) -> Self {
        Self {
            window_pattern: Some(every),
            ..self
        }
    }

    pub(super) fn file(&self) -> &'a ModelFile {
        self.file
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.architecture())
    }

    pub(super) fn string(&self, name: &str) -> Option<&'a str> {
        self.file.string(&self.key(name))
    }

    pub(super) fn required_count(&self, name: &str) -> Result<usize, LoadError> {
        Ok(self.file.required_count(&self.key(name))?)
    }

    /// A count that may be missing, but not something else.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>, LoadError> {
        let key = self.key(name);
        match self.file.value(&key) {
            None => Ok(None),
            Some(_) => self.file.count(&key).map(Some).ok_or_else(|| {
                LoadError::Unsupported(format!(
                    "this variant of the {} family is not supported: {key} is not one positive integer",
                    self.family
                ))
            }),
        }
    }

    /// A positive number that may be missing; zero counts as missing.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>, LoadError> {
        let key = self.key(name);
        match self.file.value(&key).map(Value::as_float) {
            None | Some(Some(0.0)) => Ok(None),
            Some(Some(x)) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            Some(_) => Err(LoadError::Damaged(format!("{key} is not a positive number"))),
        }
    }

    /// The network of the plain decoder: what a family's own description starts from.
    pub(super) fn decoder(&self, longest: usize) -> Result<Architecture, LoadError> {
        let file = self.file;
        let width = self.required_count("embedding_length")?;
        let context_length = self.required_count("context_length")?;
        let heads = self.heads(width)?;
        let turned = self.count("rope.dimension_count")?.unwrap_or(heads.dim);
        if turned == 0 || turned > heads.dim || !turned.is_multiple_of(2) {
            return Err(LoadError::Unsupported(format!(
                "rotary positions over {turned} of {} elements per head are not supported",
                heads.dim
            )));
        }
        let base = self.positive("rope.freq_base")?.unwrap_or(self.rope_base);
        let rope = rope::scaled(self, rope::plain(turned / 2, base), base, context_length, longest)?;
        let epsilon = file.required_float(&self.key("attention.layer_norm_rms_epsilon"))?;
        Ok(Architecture {
            family: self.family,
            width,
            hidden: self.required_count("feed_forward_length")?,
            vocab: file.rows_of("token_embd.weight")?,
            context_length,
            epsilon: epsilon as f32,
            embedding_scale: 1.0,
            activation: Activation::Silu,
            layers: self.layers(heads)?,
            ropes: vec![rope],
            rope_style: RopeStyle::Halves,
            qkv_bias: false,
            qk_norm: false,
            post_norms: false,
            fused_qkv: false,
            fused_gate_up: false,
            logit_softcap: None,
            attention_softcap: None,
        })
    }

    /// The head counts; without a stated head size, the width is shared among the query heads.
    fn heads(&self, width: usize) -> Result<Heads, LoadError> {
        let query = self.required_count("attention.head_count")?;
        let kv = self.count("attention.head_count_kv")?.unwrap_or(query);
        let dim = self.count("attention.key_length")?.unwrap_or(width / query);
        let value_dim = self.count("attention.value_length")?.unwrap_or(dim);
        let sensible = (1..=MAX_HEAD_DIM).contains(&dim) && query <= MAX_HEADS && kv > 0 && query.is_multiple_of(kv);
        if !sensible || value_dim != dim {
            return Err(LoadError::Unsupported(format!(
                "{query} query heads over {kv} key heads, {dim} wide keys with {value_dim} wide values, are not supported"
            )));
        }
        let scale = self.positive("attention.scale")?;
        Ok(Heads {
            query,
            kv,
            dim,
            scale: scale.unwrap_or_else(|| (dim as f64).sqrt().recip()) as f32,
            window: None,
        })
    }

    /// All layers, those with a sliding window marked.
    fn layers(&self, heads: Heads) -> Result<Vec<LayerShape>, LoadError> {
        let blocks = self.required_count("block_count")?;
        let tensors = self.file.tensors().count();
        if blocks > tensors {
            return Err(LoadError::Damaged(format!(
                "it has {blocks} layers but {tensors} tensors"
            )));
        }
        let window = self.count("attention.sliding_window")?.filter(|&window| window > 0);
        let key = self.key("attention.sliding_window_pattern");
        let windowed: Vec<bool> = match (self.file.flags(&key), self.file.value(&key)) {
            (Some(flags), _) if flags.len() == blocks => flags,
            (None, None) => (0..blocks).map(|block| !sees_all(block, self.window_pattern)).collect(),
            (None, Some(value)) if value.as_count().is_some() => {
                let every = value.as_count().filter(|&every| every > 0);
                (0..blocks).map(|block| !sees_all(block, every)).collect()
            }
            _ => {
                return Err(LoadError::Damaged(format!(
                    "{key} is neither a number nor one truth value for each of the {blocks} layers"
                )));
            }
        };
        let shape = |windowed: bool| LayerShape {
            heads: Heads {
                window: window.filter(|_| windowed),
                ..heads
            },
            rope: 0,
        };
        Ok(windowed.into_iter().map(shape).collect())
    }
}

fn sees_all(block: usize, every: Option<usize>) -> bool {
    every.is_some_and(|every| (block + 1).is_multiple_of(every))
}

/// Whether a key that is not understood switches nothing on.
fn is_neutral(name: &str, value: &Value) -> bool {
    match name {
        "expert_count" | "expert_used_count" | "rope.scaling.yarn_log_multiplier" => value.as_float() == Some(0.0),
        "rope.scaling.yarn_ext_factor" => value.as_float() == Some(1.0),
        "attention.causal" => *value == Value::Flag(true),
        _ => false,
    }
}
