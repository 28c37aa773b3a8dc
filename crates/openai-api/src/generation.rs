//! What chats and completions say about how to generate and how to answer.

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::Fields;
use crate::ignored;

/// Most stop texts of a request.
pub const MAX_STOPS: usize = 4;

/// Longest stop text in bytes.
pub const MAX_STOP_BYTES: usize = 1_024;

/// Most answers to one prompt. They are computed side by side, so each takes a slot of the engine.
pub const MAX_CHOICES: u32 = 16;

/// Most tokens that `logit_bias` may name.
pub const MAX_LOGIT_BIASES: usize = 1_024;

/// Largest `repetition_penalty`.
pub const MAX_REPETITION_PENALTY: f32 = 10.0;

/// Largest bias of a token, in either direction.
const MAX_BIAS: f64 = 100.0;

/// How to choose tokens, when to end, and how to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// 0 to 2; 0 is greedy. Default 1.
    pub temperature: f32,
    /// Nucleus, 0 to 1; 0 leaves only the most probable token, as greedy does. Default 1: off.
    pub top_p: f32,
    /// How many of the most probable tokens are left; 0, the default, is off. A request may also say -1 for off.
    pub top_k: u32,
    /// The share of the most probable token's probability that others need, 0 to 1. Default 0: off.
    pub min_p: f32,
    /// Locally typical sampling: the probability mass that is left, above 0 and at most 1. Default 1: off.
    pub typical_p: f32,
    /// Above 0 and at most [`MAX_REPETITION_PENALTY`]: what the logits of tokens that were seen are divided by (multiplied,
    /// where negative). Default 1: off.
    pub repetition_penalty: f32,
    /// -2 to 2: subtracted from the logits of tokens that were generated before. Default 0: off.
    pub presence_penalty: f32,
    /// -2 to 2: the same for each time that a token was generated. Default 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens, -100 to 100: in order of their ids, each once, at most [`MAX_LOGIT_BIASES`].
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes sampling repeatable. A negative seed is taken by its bits.
    pub seed: Option<u64>,
    /// Texts that end the answer and are never part of it: at most [`MAX_STOPS`], none empty.
    pub stop: Vec<String>,
    /// How many answers to give to each prompt, 1 to [`MAX_CHOICES`]. Default 1.
    pub n: u32,
    /// How to answer.
    pub stream: StreamMode,
    /// Names of the parameters that ask for something and have no effect.
    pub ignored: Vec<&'static str>,
}

/// Whether the answer comes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamMode {
    /// One JSON object.
    Off,
    /// Server-sent events.
    On {
        /// Whether a chunk with the usage precedes `[DONE]`.
        include_usage: bool,
    },
}

impl Generation {
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, InvalidRequest> {
        let mut ignored = ignored::take(fields, &ignored::OF_ALL)?;
        Ok(Self {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            top_k: top_k(fields)?,
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
            typical_p: fields.positive_number("typical_p", 1.0)?.unwrap_or(1.0),
            repetition_penalty: fields
                .positive_number("repetition_penalty", MAX_REPETITION_PENALTY.into())?
                .unwrap_or(1.0),
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            logit_bias: logit_bias(fields)?,
            seed: seed(fields)?,
            stop: stop(fields)?,
            n: fields.integer_within("n", 1, MAX_CHOICES)?.unwrap_or(1),
            stream: stream(fields, &mut ignored)?,
            ignored,
        })
    }
}

/// The model's name, which all endpoints require.
pub(crate) fn model(fields: &mut Fields) -> Result<String, InvalidRequest> {
    fields
        .string("model")?
        .filter(|model| !model.is_empty())
        .ok_or_else(|| InvalidRequest::missing("model"))
}

fn top_k(fields: &mut Fields) -> Result<u32, InvalidRequest> {
    match fields.integer("top_k")? {
        None | Some(-1) => Ok(0),
        Some(k @ 0..) => Ok(u32::try_from(k).unwrap_or(u32::MAX)),
        Some(k) => Err(InvalidRequest::value(
            "top_k",
            format_args!("must be at least 1, or -1 or 0 for all tokens; got {k}"),
        )),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, InvalidRequest> {
    const PATH: &str = "logit_bias";
    let map = match fields.take(PATH) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => {
            let expected = "an object of biases by token id";
            return Err(InvalidRequest::wrong_type(PATH, expected, &other));
        }
    };
    if map.len() > MAX_LOGIT_BIASES {
        let reason = format!("at most {MAX_LOGIT_BIASES} tokens, got {}", map.len());
        return Err(InvalidRequest::value(PATH, reason));
    }
    let biases = map.into_iter().map(|(key, value)| bias(&key, &value));
    let mut biases: Vec<_> = biases.collect::<Result<_, _>>()?;
    biases.sort_unstable_by_key(|&(token, _)| token);
    Ok(biases)
}

fn bias(key: &str, value: &Value) -> Result<(u32, f32), InvalidRequest> {
    // Only the one usual way to write a number, so that no two keys mean the same token.
    let token = key.parse::<u32>().ok().filter(|token| token.to_string() == key);
    let Some(token) = token else {
        let reason = format!("`{key}` is not a token id: send whole numbers as keys");
        return Err(InvalidRequest::value("logit_bias", reason));
    };
    let path = || format!("logit_bias.{token}");
    match value.as_f64() {
        None => Err(InvalidRequest::wrong_type(path(), "a number", value)),
        Some(bias) if bias.abs() <= MAX_BIAS => Ok((token, bias as f32)),
        Some(bias) => Err(InvalidRequest::value(
            path(),
            format_args!("must be between -{MAX_BIAS} and {MAX_BIAS}, got {bias}"),
        )),
    }
}

fn seed(fields: &mut Fields) -> Result<Option<u64>, InvalidRequest> {
    let Some(value) = fields.take("seed") else {
        return Ok(None);
    };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some)
        .ok_or_else(|| InvalidRequest::wrong_type("seed", "an integer of 64 bits", &value))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, InvalidRequest> {
    const EXPECTED: &str = "a string or an array of strings";
    let texts = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![("stop".to_owned(), text)],
        Some(Value::Array(items)) => {
            if items.len() > MAX_STOPS {
                let reason = format!("at most {MAX_STOPS} stop texts, got {}", items.len());
                return Err(InvalidRequest::value("stop", reason));
            }
            let texts = items.into_iter().enumerate().map(|(index, item)| match item {
                Value::String(text) => Ok((format!("stop[{index}]"), text)),
                other => Err(InvalidRequest::wrong_type(format!("stop[{index}]"), "a string", &other)),
            });
            texts.collect::<Result<_, _>>()?
        }
        Some(other) => return Err(InvalidRequest::wrong_type("stop", EXPECTED, &other)),
    };
    texts
        .into_iter()
        .map(|(path, text)| match text.len() {
            0 => Err(InvalidRequest::value(path, "a stop text must not be empty")),
            1..=MAX_STOP_BYTES => Ok(text),
            length => Err(InvalidRequest::value(
                path,
                format_args!("a stop text may have at most {MAX_STOP_BYTES} bytes, this one has {length}"),
            )),
        })
        .collect()
}

fn stream(fields: &mut Fields, ignored: &mut Vec<&'static str>) -> Result<StreamMode, InvalidRequest> {
    let on = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = match fields.take("stream_options") {
        None => false,
        Some(_) if !on => {
            let reason = "is only allowed together with `stream: true`";
            return Err(InvalidRequest::value("stream_options", reason));
        }
        Some(value) => {
            let mut options = Fields::of_value("stream_options", value)?;
            let include_usage = options.boolean("include_usage")?.unwrap_or(false);
            // It would hide the length of chunks from those who listen to encrypted streams.
            if options.boolean("include_obfuscation")?.unwrap_or(false) {
                ignored.push("stream_options.include_obfuscation");
            }
            options.finish()?;
            include_usage
        }
    };
    Ok(if on {
        StreamMode::On { include_usage }
    } else {
        StreamMode::Off
    })
}
