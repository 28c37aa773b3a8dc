//! What a gateway reads of a body: as little as possible, without building the rest.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::InvalidRequest;

/// What routing needs of a request to any OpenAI endpoint that names a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing<'a> {
    /// Which model, as the client names it; not empty.
    pub model: Cow<'a, str>,
    /// Where that stands in the body, with its quotes.
    pub model_at: Range<usize>,
    /// Whether the answer is to be a stream.
    pub stream: bool,
    /// Where the value stands in the body that the prompt is made of first: `messages`, or else `prompt` or `input`.
    pub prompt_at: Option<Range<usize>>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    messages: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "there")]
    resume: bool,
}

/// That the member is there, whatever it says.
fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|IgnoredAny| true)
}

/// Reads `model` and `stream` of a body and skips the rest, which is for the worker to judge.
///
/// A name that stands twice is refused, so that gateway and worker cannot read different models; and so is `resume`, by
/// which a gateway has one worker go on with what another one began: it would stand twice when that has to be done.
pub fn routing(body: &[u8]) -> Result<Routing<'_>, InvalidRequest> {
    // A struct would also be read from an array.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(InvalidRequest::json("it does not start with `{`"));
    }
    let raw: Raw<'_> = serde_json::from_slice(body).map_err(InvalidRequest::json)?;
    if raw.resume {
        return Err(InvalidRequest::unsupported(
            "resume",
            "is the gateway's own, and no client's; leave it out: a stream whose worker is lost goes on by itself",
        ));
    }
    let Some(name) = raw.model else {
        return Err(InvalidRequest::missing("model"));
    };
    let model = read::<Cow<'_, str>>("model", "a string", name)?;
    if model.is_empty() {
        return Err(InvalidRequest::missing("model"));
    }
    let stream = match raw.stream {
        None => false,
        Some(raw) => read("stream", "a boolean", raw)?,
    };
    let prompt = raw.messages.or(raw.prompt).or(raw.input);
    Ok(Routing {
        model,
        model_at: place(body, name),
        stream,
        prompt_at: prompt.map(|prompt| place(body, prompt)),
    })
}

/// The body with another model in the place of the one that it names; nothing else is touched.
pub fn with_model(body: &[u8], model_at: Range<usize>, model: &str) -> Vec<u8> {
    let mut named = Vec::with_capacity(body.len() + model.len());
    named.extend_from_slice(&body[..model_at.start]);
    named.extend_from_slice(Value::from(model).to_string().as_bytes());
    named.extend_from_slice(&body[model_at.end..]);
    named
}

/// Where a part of the body stands in it.
fn place(body: &[u8], part: &RawValue) -> Range<usize> {
    let part = part.get().as_bytes();
    let start = part.as_ptr().addr() - body.as_ptr().addr();
    start..start + part.len()
}

fn read<'a, T: Deserialize<'a>>(path: &str, expected: &str, raw: &'a RawValue) -> Result<T, InvalidRequest> {
    serde_json::from_str(raw.get()).map_err(|_| match serde_json::from_str(raw.get()) {
        Ok(value) => InvalidRequest::wrong_type(path, expected, &value),
        Err(error) => InvalidRequest::json(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::InvalidCode;

    fn refusal(body: &str) -> (Option<String>, InvalidCode) {
        let error = routing(body.as_bytes()).unwrap_err();
        (error.param, error.code)
    }

    #[test]
    fn model_and_stream_are_read_and_the_rest_is_skipped() {
        let body = r#" {"messages": [{"role": 1}], "stream": true, "model": "org/\u006eame", "top_k": {"x": []}}"#;
        let read = routing(body.as_bytes()).unwrap();
        assert_eq!((&*read.model, read.stream), ("org/name", true));
        assert_eq!(&body[read.model_at], r#""org/\u006eame""#);
        assert_eq!(&body[read.prompt_at.unwrap()], r#"[{"role": 1}]"#);
        assert!(!routing(br#"{"model": "m", "stream": null}"#).unwrap().stream);
        assert!(!routing(br#"{"model": "m"}"#).unwrap().stream);
        let embeddings = br#"{"input": [[1, 2], [3]], "model": "m", "encoding_format": "base64"}"#;
        assert!(!routing(embeddings).unwrap().stream);
    }

    #[test]
    fn a_body_without_a_model_is_refused() {
        let missing = (Some("model".to_owned()), InvalidCode::MissingParameter);
        assert_eq!(refusal("{}"), missing);
        assert_eq!(refusal(r#"{"model": null}"#), missing);
        assert_eq!(refusal(r#"{"model": ""}"#), missing);
    }

    #[test]
    fn what_is_the_gateways_own_is_refused_whatever_it_says() {
        for resume in ["null", "{}", r#"{"id": "x", "created": 1, "tokens": [1]}"#] {
            let body = format!(r#"{{"model": "m", "resume": {resume}}}"#);
            let expected = (Some("resume".to_owned()), InvalidCode::UnsupportedParameter);
            assert_eq!(refusal(&body), expected);
        }
        assert!(routing(br#"{"model": "m", "metadata": {"resume": 1}}"#).is_ok());
    }

    #[test]
    fn the_model_can_be_replaced_and_all_else_stays_byte_for_byte() {
        let body = r#"{ "prompt":"x" ,"model" : "al\u0069as","n":1e0}"#;
        let at = routing(body.as_bytes()).unwrap().model_at;
        let named = with_model(body.as_bytes(), at, "org/\"name\"");
        let expected = r#"{ "prompt":"x" ,"model" : "org/\"name\"","n":1e0}"#;
        assert_eq!(std::str::from_utf8(&named).unwrap(), expected);
    }

    #[test]
    fn a_wrong_type_is_named() {
        assert_eq!(
            refusal(r#"{"model": 1}"#),
            (Some("model".to_owned()), InvalidCode::InvalidType)
        );
        assert_eq!(
            refusal(r#"{"model": "m", "stream": "x"}"#),
            (Some("stream".to_owned()), InvalidCode::InvalidType)
        );
    }

    #[test]
    fn what_is_no_object_or_says_a_thing_twice_is_refused() {
        for body in [
            "",
            "{",
            "[]",
            r#"["m", true]"#,
            "1",
            r#"{"model": "a", "model": "b"}"#,
            r#"{"model": "a"} x"#,
        ] {
            assert_eq!(refusal(body), (None, InvalidCode::InvalidJson), "{body}");
        }
    }
}
