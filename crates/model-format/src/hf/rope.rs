//! Rotary positions of a `config.json`: `rope_theta` with `rope_scaling`, or since transformers 5 `rope_parameters`.

use std::f64::consts::PI;

use super::{Fields, Model, head_dim, integer};
use crate::FormatError;
use crate::value::Value;

/// Rotary base unless the file says otherwise.
const BASE: f64 = 10_000.0;
/// The same of Gemma's layers that see everything.
const GEMMA_BASE: f64 = 1_000_000.0;

/// What the families need to know.
pub(crate) struct Rope {
    /// By GGUF's keys, without the architecture before them.
    pub(crate) metadata: Vec<(&'static str, Value)>,
    /// By GGUF's names.
    pub(crate) tensors: Vec<(&'static str, Vec<f32>)>,
}

/// Where a file says what of its rotary positions.
struct Parameters {
    /// Of the layers that see everything, and of all where the file does not tell them apart.
    global: Fields,
    /// Of the layers with a window.
    local: Option<Fields>,
}

impl Parameters {
    fn of(config: &Fields) -> Result<Self, FormatError> {
        let Some(parameters) = config.object("rope_parameters")? else {
            let global = config.object("rope_scaling")?;
            return Ok(Self {
                global: global.unwrap_or_else(|| Fields::empty("config.json")),
                local: None,
            });
        };
        let by_layer = parameters.object("full_attention")?;
        Ok(match by_layer {
            Some(global) => Self {
                global,
                local: parameters.object("sliding_attention")?,
            },
            None => Self {
                global: parameters,
                local: None,
            },
        })
    }
}

pub(crate) fn translate(config: &Fields, model: Model) -> Result<Rope, FormatError> {
    let Parameters { global, local } = Parameters::of(config)?;
    let number = |key: &str| {
        global
            .number(key)
            .and_then(|found| found.map_or_else(|| config.number(key), |x| Ok(Some(x))))
    };
    let default = if model == Model::Gemma3 { GEMMA_BASE } else { BASE };
    let base = number("rope_theta")?.unwrap_or(default);
    let share = number("partial_rotary_factor")?.unwrap_or(1.0);
    let turned = (head_dim(config, model)? as f64 * share) as usize;
    let mut rope = Rope {
        metadata: vec![
            ("rope.freq_base", Value::Float(base)),
            ("rope.dimension_count", integer(turned)),
        ],
        tensors: Vec::new(),
    };
    if model == Model::Gemma3 {
        let base = match &local {
            Some(local) => local.number("rope_theta")?,
            None => config.number("rope_local_base_freq")?,
        };
        rope.metadata
            .push(("rope.freq_base_swa", Value::Float(base.unwrap_or(BASE))));
        if let Some(local) = local.as_ref().map(kind).transpose()?.filter(|&kind| kind != "default") {
            return Err(FormatError::Unsupported(format!(
                "rotary scaling of type {local:?} is not supported in layers with a window"
            )));
        }
    }
    match kind(&global)? {
        "default" => {}
        "linear" => {
            rope.metadata
                .push(("rope.scaling.type", Value::Text("linear".to_owned())));
            rope.metadata
                .push(("rope.scaling.factor", Value::Float(global.required_number("factor")?)));
        }
        "llama3" => rope
            .tensors
            .push(("rope_freqs.weight", llama3(&global, base, turned / 2)?)),
        "longrope" | "su" => rope.longrope(&global, config, turned / 2)?,
        "yarn" => rope.yarn(&global, config)?,
        other => {
            return Err(FormatError::Unsupported(format!(
                "rotary scaling of type {other:?} is not supported; linear, llama3, longrope and yarn are"
            )));
        }
    }
    Ok(rope)
}

fn kind(parameters: &Fields) -> Result<&str, FormatError> {
    let kind = parameters.text("rope_type")?;
    Ok(kind.or(parameters.text("type")?).unwrap_or("default"))
}

/// By how much each pair is slowed down, as in Meta's reference code of Llama 3.1: slow pairs by the whole factor, fast
/// ones not at all, and a transition between.
fn llama3(parameters: &Fields, base: f64, pairs: usize) -> Result<Vec<f32>, FormatError> {
    let factor = parameters.required_number("factor")?;
    let low = parameters.required_number("low_freq_factor")?;
    let high = parameters.required_number("high_freq_factor")?;
    let trained = parameters.required_count("original_max_position_embeddings")? as f64;
    if high <= low {
        return Err(parameters.wrong("high_freq_factor", "above low_freq_factor"));
    }
    let slowdown = |pair: usize| {
        let wave_length = 2.0 * PI * base.powf(pair as f64 / pairs as f64);
        // 0 where a wave is too long to be seen whole in training, 1 where it is seen often.
        let seen = ((trained / wave_length - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - seen) / factor + seen)
    };
    Ok((0..pairs).map(|pair| slowdown(pair) as f32).collect())
}

impl Rope {
    /// Factors of each pair, one list within the length of the first training and one beyond it.
    fn longrope(&mut self, parameters: &Fields, config: &Fields, pairs: usize) -> Result<(), FormatError> {
        for (key, name) in [
            ("short_factor", "rope_factors_short.weight"),
            ("long_factor", "rope_factors_long.weight"),
        ] {
            let factors = parameters.numbers(key)?.ok_or_else(|| parameters.lacks(key))?;
            if factors.len() != pairs || factors.iter().any(|&factor| factor <= 0.0) {
                return Err(parameters.wrong(key, &format!("a list of {pairs} positive numbers")));
            }
            self.tensors
                .push((name, factors.into_iter().map(|x| x as f32).collect()));
        }
        let whole = config.required_count("max_position_embeddings")? as f64;
        // Phi gives the first length beside its longer one; others give a factor for the only one that they have.
        let (trained, stretch) = match original_length(parameters, config)? {
            Some(trained) => (trained as f64, whole / trained as f64),
            None => (whole, parameters.number("factor")?.unwrap_or(1.0)),
        };
        let magnitude = match parameters.number("attention_factor")? {
            Some(magnitude) => magnitude,
            None if stretch > 1.0 => (1.0 + stretch.ln() / trained.ln()).sqrt(),
            None => 1.0,
        };
        self.metadata.extend([
            ("rope.scaling.type", Value::Text("longrope".to_owned())),
            ("rope.scaling.original_context_length", integer(trained as usize)),
            ("rope.scaling.attn_factor", Value::Float(magnitude)),
        ]);
        Ok(())
    }

    fn yarn(&mut self, parameters: &Fields, config: &Fields) -> Result<(), FormatError> {
        if parameters.flag("truncate")? == Some(false) {
            return Err(FormatError::Unsupported(
                "rotary scaling of type \"yarn\" without truncate is not supported".to_owned(),
            ));
        }
        let factor = parameters.required_number("factor")?;
        let trained = match original_length(parameters, config)? {
            Some(trained) => trained,
            None => config.required_count("max_position_embeddings")?,
        };
        self.metadata.extend([
            ("rope.scaling.type", Value::Text("yarn".to_owned())),
            ("rope.scaling.factor", Value::Float(factor)),
            ("rope.scaling.original_context_length", integer(trained)),
        ]);
        for (key, name) in [
            ("beta_fast", "rope.scaling.yarn_beta_fast"),
            ("beta_slow", "rope.scaling.yarn_beta_slow"),
        ] {
            if let Some(beta) = parameters.number(key)? {
                self.metadata.push((name, Value::Float(beta)));
            }
        }
        let magnitude = |scale: f64| {
            if factor > 1.0 {
                0.1 * scale * factor.ln() + 1.0
            } else {
                1.0
            }
        };
        let asked = match parameters.number("attention_factor")? {
            Some(asked) => Some(asked),
            None => {
                let (scale, all) = (parameters.number("mscale")?, parameters.number("mscale_all_dim")?);
                let both = scale.zip(all).filter(|&(scale, all)| scale != 0.0 && all != 0.0);
                both.map(|(scale, all)| magnitude(scale) / magnitude(all))
            }
        };
        if let Some(asked) = asked {
            // GGUF's factor comes on top of the usual one.
            self.metadata
                .push(("rope.scaling.attn_factor", Value::Float(asked / magnitude(1.0))));
        }
        Ok(())
    }
}

fn original_length(parameters: &Fields, config: &Fields) -> Result<Option<usize>, FormatError> {
    let key = "original_max_position_embeddings";
    let found = match config.count(key)? {
        Some(length) => Some(length),
        None => parameters.count(key)?,
    };
    Ok(found.filter(|&length| length > 0))
}
