//! What a gateway reads of a body: as little as possible, without building the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::InvalidRequest;

/// What routing needs of a request to any OpenAI endpoint that names a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// Which model, as the client names it; not empty.
    pub model: String,
    /// Whether the answer is to be a stream.
    pub stream: bool,
}

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
}

/// Reads `model` and `stream` of a body and skips the rest, which is for the worker to judge.
///
/// A name that stands twice is refused, so that gateway and worker cannot read different models.
pub fn routing(body: &[u8]) -> Result<Routing, InvalidRequest> {
    // A struct would also be read from an array.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(InvalidRequest::json("it does not start with `{`"));
    }
    let raw: Raw<'_> = serde_json::from_slice(body).map_err(InvalidRequest::json)?;
    let model = match raw.model {
        None => return Err(InvalidRequest::missing("model")),
        Some(raw) => read::<Cow<'_, str>>("model", "a string", raw)?.into_owned(),
    };
    if model.is_empty() {
        return Err(InvalidRequest::missing("model"));
    }
    let stream = match raw.stream {
        None => false,
        Some(raw) => read("stream", "a boolean", raw)?,
    };
    Ok(Routing { model, stream })
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
        let expected = Routing {
            model: "org/name".into(),
            stream: true,
        };
        assert_eq!(routing(body.as_bytes()).unwrap(), expected);
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
