//! What both endpoints say about how to generate and how to answer.

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, Unsupported, nothing};

/// Most stop texts of a request.
pub const MAX_STOPS: usize = 4;

/// Longest stop text in bytes.
pub const MAX_STOP_BYTES: usize = 1_024;

/// Parameters that are accepted and have no effect on the answer: they label or file a request for OpenAI's own
/// bookkeeping.
pub const ACCEPTED_WITHOUT_EFFECT: [&str; 6] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
];

const UNSUPPORTED: [Unsupported; 4] = [
    Unsupported::new("n", nothing::one),
    Unsupported::new("presence_penalty", nothing::zero),
    Unsupported::new("frequency_penalty", nothing::zero),
    Unsupported::new("logit_bias", nothing::empty),
];

/// How to choose tokens, when to end, and how to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// 0 to 2; 0 is greedy. Default 1.
    pub temperature: f32,
    /// Nucleus, 0 to 1; 0 leaves only the most probable token, as greedy does. Default 1.
    pub top_p: f32,
    /// Makes sampling repeatable. A negative seed is taken by its bits.
    pub seed: Option<u64>,
    /// Texts that end the answer and are never part of it: at most [`MAX_STOPS`], none empty.
    pub stop: Vec<String>,
    /// How to answer.
    pub stream: StreamMode,
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
        let generation = Self {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            seed: seed(fields)?,
            stop: stop(fields)?,
            stream: stream(fields)?,
        };
        accept_without_effect(fields)?;
        fields.refuse(&UNSUPPORTED)?;
        Ok(generation)
    }
}

/// The model's name, which both endpoints require.
pub(crate) fn model(fields: &mut Fields) -> Result<String, InvalidRequest> {
    fields
        .string("model")?
        .filter(|model| !model.is_empty())
        .ok_or_else(|| InvalidRequest::missing("model"))
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

fn stream(fields: &mut Fields) -> Result<StreamMode, InvalidRequest> {
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
            options.refuse(&[Unsupported::new("include_obfuscation", nothing::no)])?;
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

fn accept_without_effect(fields: &mut Fields) -> Result<(), InvalidRequest> {
    for name in ACCEPTED_WITHOUT_EFFECT {
        match name {
            "store" => drop(fields.boolean(name)?),
            "metadata" => {
                if let Some(value) = fields.take(name)
                    && !value.is_object()
                {
                    return Err(InvalidRequest::wrong_type(name, "an object", &value));
                }
            }
            _ => drop(fields.string(name)?),
        }
    }
    Ok(())
}
