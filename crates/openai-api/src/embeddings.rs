//! `POST /v1/embeddings`: the request and the answer.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::InvalidRequest;
use crate::fields::Fields;
use crate::generation;
use crate::ignored;
use crate::prompts::{Prompt, prompts};
use crate::response::Object;

/// Most inputs of a request, as at OpenAI.
pub const MAX_EMBEDDING_INPUTS: usize = 2_048;

/// A valid request for embeddings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingRequest {
    /// Which model, as the client names it.
    pub model: String,
    /// What to embed: 1 to [`MAX_EMBEDDING_INPUTS`], none of them empty.
    pub inputs: Vec<Prompt>,
    /// How to write the vectors.
    pub encoding_format: EncodingFormat,
    /// How many values each vector is to have, at least 1; see [`check_width`](Self::check_width).
    pub dimensions: Option<usize>,
    /// Names of the parameters that ask for something and have no effect.
    pub ignored: Vec<&'static str>,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncodingFormat {
    /// As a list of numbers.
    Float,
    /// As base64 of its values: 32-bit floats, least significant byte first.
    Base64,
}

impl EmbeddingRequest {
    /// Parses and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::of_body(body)?;
        let model = generation::model(&mut fields)?;
        let input = fields.required("input")?;
        let is_list = input.is_array();
        let inputs = prompts("input", input, MAX_EMBEDDING_INPUTS)?;
        if let Some(index) = inputs.iter().position(|input| *input == Prompt::Text(String::new())) {
            let path = if is_list {
                format!("input[{index}]")
            } else {
                "input".to_owned()
            };
            return Err(InvalidRequest::value(path, "must not be empty"));
        }
        let encoding_format = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => EncodingFormat::Float,
            Some("base64") => EncodingFormat::Base64,
            Some(other) => {
                let reason = format!("must be one of float, base64; got `{other}`");
                return Err(InvalidRequest::value("encoding_format", reason));
            }
        };
        let dimensions = fields.count("dimensions")?.map(|count| count as usize);
        let ignored = ignored::take(&mut fields, &ignored::OF_EMBEDDINGS)?;
        fields.finish()?;
        Ok(Self {
            model,
            inputs,
            encoding_format,
            dimensions,
            ignored,
        })
    }

    /// Refuses other `dimensions` than the model's own: cutting a vector keeps its meaning only with models that were
    /// trained for it.
    pub fn check_width(&self, width: usize) -> Result<(), InvalidRequest> {
        match self.dimensions {
            Some(asked) if asked != width => {
                let reason = format!(
                    "this model's embeddings have {width} values and cannot be cut to {asked}; leave `dimensions` out"
                );
                Err(InvalidRequest::value("dimensions", reason))
            }
            _ => Ok(()),
        }
    }
}

/// Answer to `POST /v1/embeddings`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingList {
    /// Always `list`.
    pub object: Object,
    /// One for each input, in order.
    pub data: Vec<Embedding>,
    /// The model that made them.
    pub model: Arc<str>,
    /// What it took.
    pub usage: EmbeddingUsage,
}

/// The vector of an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// Always `embedding`.
    pub object: Object,
    /// Number of the input.
    pub index: u32,
    /// The vector.
    pub embedding: Vector,
}

/// A vector as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vector {
    /// See [`EncodingFormat::Float`].
    Float(Vec<f32>),
    /// See [`EncodingFormat::Base64`].
    Base64(String),
}

/// Tokens of a request for embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingUsage {
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
    /// The same: nothing is generated.
    pub total_tokens: u32,
}

impl EmbeddingList {
    /// An answer with the vectors of all inputs, in order, and the tokens of all inputs.
    pub fn new(model: Arc<str>, vectors: Vec<Vec<f32>>, format: EncodingFormat, prompt_tokens: u32) -> Self {
        let data = (0..).zip(vectors).map(|(index, values)| Embedding {
            object: Object::Embedding,
            index,
            embedding: Vector::new(values, format),
        });
        Self {
            object: Object::List,
            data: data.collect(),
            model,
            usage: EmbeddingUsage {
                prompt_tokens,
                total_tokens: prompt_tokens,
            },
        }
    }
}

impl Vector {
    /// A vector with these values, written as asked for.
    pub fn new(values: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Float(values),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::InvalidCode;

    fn parse(body: &Value) -> Result<EmbeddingRequest, InvalidRequest> {
        EmbeddingRequest::parse(body.to_string().as_bytes())
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = json!({"model": "m", "input": "Hi"});
        body[name] = value;
        body
    }

    #[test]
    fn the_smallest_request_asks_for_numbers_of_the_models_own_width() {
        let expected = EmbeddingRequest {
            model: "m".to_owned(),
            inputs: vec![Prompt::Text("Hi".to_owned())],
            encoding_format: EncodingFormat::Float,
            dimensions: None,
            ignored: vec!["user"],
        };
        assert_eq!(parse(&with("user", json!("u"))).unwrap(), expected);
    }

    #[test]
    fn every_parameter_is_read() {
        let request = parse(&json!({
            "model": "m", "input": [[1], [2, 3]], "encoding_format": "base64", "dimensions": 8, "user": null,
        }));
        let expected = EmbeddingRequest {
            model: "m".to_owned(),
            inputs: vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
            encoding_format: EncodingFormat::Base64,
            dimensions: Some(8),
            ignored: vec![],
        };
        assert_eq!(request.unwrap(), expected);
    }

    #[test]
    fn what_is_not_valid_is_refused_by_path() {
        let many = Value::from(vec!["x"; MAX_EMBEDDING_INPUTS + 1]);
        for (name, value, path, code) in [
            ("model", Value::Null, "model", InvalidCode::MissingParameter),
            ("input", Value::Null, "input", InvalidCode::MissingParameter),
            ("input", json!(""), "input", InvalidCode::InvalidValue),
            ("input", json!(["a", ""]), "input[1]", InvalidCode::InvalidValue),
            ("input", json!([]), "input", InvalidCode::InvalidValue),
            ("input", many, "input", InvalidCode::InvalidValue),
            ("input", json!({"text": "a"}), "input", InvalidCode::InvalidType),
            (
                "encoding_format",
                json!("int8"),
                "encoding_format",
                InvalidCode::InvalidValue,
            ),
            ("encoding_format", json!(1), "encoding_format", InvalidCode::InvalidType),
            ("dimensions", json!(0), "dimensions", InvalidCode::InvalidValue),
            ("dimensions", json!("8"), "dimensions", InvalidCode::InvalidType),
            ("user", json!(1), "user", InvalidCode::InvalidType),
            ("stream", json!(true), "stream", InvalidCode::UnknownParameter),
            ("temperature", json!(0), "temperature", InvalidCode::UnknownParameter),
        ] {
            let error = parse(&with(name, value)).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(path), code), "{error}");
        }
    }

    #[test]
    fn other_dimensions_than_the_models_own_are_refused() {
        parse(&with("user", json!("u"))).unwrap().check_width(576).unwrap();
        let asked = parse(&with("dimensions", json!(256))).unwrap();
        asked.check_width(256).unwrap();
        let error = asked.check_width(576).unwrap_err();
        assert_eq!(
            (error.param.as_deref(), error.code),
            (Some("dimensions"), InvalidCode::InvalidValue)
        );
        assert!(error.message.contains("576 values"), "{error}");
    }

    #[test]
    fn an_answer_has_openais_shape() {
        let answer = EmbeddingList::new(
            "m".into(),
            vec![vec![0.5, -1.0], vec![0.1, 2.0]],
            EncodingFormat::Float,
            7,
        );
        let expected = json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
                {"object": "embedding", "index": 1, "embedding": [0.1, 2.0]},
            ],
            "model": "m",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        });
        let written = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), expected);
        assert_eq!(serde_json::from_str::<EmbeddingList>(&written).unwrap(), answer);
    }

    #[test]
    fn base64_is_what_pythons_array_of_floats_reads() {
        // base64.b64encode(array.array("f", [0.5, -1.0, 1e-3]).tobytes()) on a little-endian machine
        let vector = Vector::new(vec![0.5, -1.0, 1e-3], EncodingFormat::Base64);
        assert_eq!(vector, Vector::Base64("AAAAPwAAgL9vEoM6".to_owned()));
    }

    proptest! {
        #[test]
        fn base64_keeps_every_bit(bits in prop::collection::vec(any::<u32>(), 0..40)) {
            let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let Vector::Base64(text) = Vector::new(values, EncodingFormat::Base64) else {
                panic!("not base64")
            };
            let bytes = STANDARD.decode(text).unwrap();
            let read: Vec<u32> = bytes.chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect();
            prop_assert_eq!(read, bits);
        }
    }
}
