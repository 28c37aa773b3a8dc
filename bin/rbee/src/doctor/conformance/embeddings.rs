//! Texts as vectors.

use serde_json::{Value, json};

use super::subject::Subject;
use super::wire::{field, saw, tokens};
use super::{Check, Verdict, Wrong, check, ensure, shown};

/// Both forms hold 32-bit numbers; the text of one has fewer digits.
const TOLERANCE: f64 = 1e-5;

pub(super) const CHECKS: &[Check] = &[
    check!("a vector for each text", vectors),
    check!("base64, as the Python client asks", base64),
];

fn vector(answer: &Value, index: usize) -> Result<Vec<f64>, Wrong> {
    let vector = &answer["data"][index]["embedding"];
    let numbers = vector
        .as_array()
        .and_then(|list| list.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    numbers
        .filter(|numbers| !numbers.is_empty())
        .ok_or_else(|| Wrong::Fail(format!("data[{index}].embedding is {}", shown(vector))))
}

async fn vectors(subject: &Subject) -> Verdict {
    let answer = subject.embedding().await?;
    field(answer, "object", "list")?;
    let data = answer["data"].as_array().into_iter().flatten();
    let indexes: Vec<_> = data.map(|entry| entry["index"].as_u64()).collect();
    ensure(indexes == [Some(0), Some(1)], || {
        format!("2 texts gave the indexes {indexes:?}")
    })?;
    let (one, other) = (vector(answer, 0)?, vector(answer, 1)?);
    ensure(one.len() == other.len() && one != other, || {
        "two texts have the same vector, or vectors of different lengths".to_owned()
    })?;
    ensure(tokens(answer, "prompt_tokens")? > 0, || {
        "usage.prompt_tokens is 0".to_owned()
    })?;
    saw(format!("{} dimensions", one.len()))
}

async fn base64(subject: &Subject) -> Verdict {
    let wanted = vector(subject.embedding().await?, 0)?;
    let fields = json!({"input": ["a llama"], "encoding_format": "base64"});
    let answer = subject.post("/v1/embeddings", fields).await?.success()?;
    let text = &answer["data"][0]["embedding"];
    let found = text.as_str().and_then(floats);
    let found = found.ok_or_else(|| Wrong::Fail(format!("data[0].embedding is {}", shown(text))))?;
    let is_same = found.len() == wanted.len()
        && found
            .iter()
            .zip(&wanted)
            .all(|(found, wanted)| (f64::from(*found) - wanted).abs() < TOLERANCE);
    ensure(is_same, || {
        "the numbers are not those of encoding_format float".to_owned()
    })?;
    saw("same numbers")
}

/// Little-endian 32-bit numbers in base64.
fn floats(text: &str) -> Option<Vec<f32>> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    rest.is_empty()
        .then(|| numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
