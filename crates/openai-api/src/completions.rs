//! `POST /v1/completions`: the request.

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, Unsupported, nothing};
use crate::generation::{self, Generation};

/// Most tokens to generate where the request says nothing.
pub const DEFAULT_COMPLETION_TOKENS: u32 = 16;

const UNSUPPORTED: [Unsupported; 4] = [
    Unsupported::new("suffix", nothing::never),
    Unsupported::new("echo", nothing::no),
    Unsupported::new("best_of", nothing::one),
    Unsupported::new("logprobs", nothing::never),
];

/// A valid completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// Which model, as the client names it.
    pub model: String,
    /// What to continue.
    pub prompt: Prompt,
    /// Most tokens to generate, at least 1.
    pub max_tokens: u32,
    /// How to generate and answer.
    pub generation: Generation,
}

/// What to continue: exactly one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// As text.
    Text(String),
    /// As token ids of the model; at least one.
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Parses and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::of_body(body)?;
        let model = generation::model(&mut fields)?;
        let prompt = prompt(fields.required("prompt")?)?;
        let max_tokens = fields.count("max_tokens")?.unwrap_or(DEFAULT_COMPLETION_TOKENS);
        let generation = Generation::take(&mut fields)?;
        fields.refuse(&UNSUPPORTED)?;
        fields.finish()?;
        Ok(Self {
            model,
            prompt,
            max_tokens,
            generation,
        })
    }
}

/// A string, token ids, or an array of exactly one of these.
fn prompt(value: Value) -> Result<Prompt, InvalidRequest> {
    const EXPECTED: &str = "a string, an array of one string, or an array of token ids";
    let mut items = match value {
        Value::String(text) => return Ok(Prompt::Text(text)),
        Value::Array(items) => items,
        other => return Err(InvalidRequest::wrong_type("prompt", EXPECTED, &other)),
    };
    match items.first() {
        None => Err(InvalidRequest::value("prompt", "must not be empty")),
        Some(Value::Number(_)) => tokens("prompt", &items),
        Some(Value::String(_) | Value::Array(_)) if items.len() > 1 => Err(InvalidRequest::unsupported(
            "prompt",
            format_args!(
                "several prompts ({}) are not supported yet; send one request for each",
                items.len()
            ),
        )),
        Some(_) => match items.remove(0) {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(items) if items.is_empty() => Err(InvalidRequest::value("prompt[0]", "must not be empty")),
            Value::Array(items) => tokens("prompt[0]", &items),
            other => Err(InvalidRequest::wrong_type(
                "prompt[0]",
                "a string or a token id",
                &other,
            )),
        },
    }
}

fn tokens(path: &str, items: &[Value]) -> Result<Prompt, InvalidRequest> {
    let ids = items.iter().enumerate().map(|(index, item)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| InvalidRequest::wrong_type(format!("{path}[{index}]"), "a token id", item))
    });
    Ok(Prompt::Tokens(ids.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::InvalidCode;

    fn parse(body: &Value) -> Result<CompletionRequest, InvalidRequest> {
        CompletionRequest::parse(body.to_string().as_bytes())
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = json!({"model": "m", "prompt": "Once"});
        body[name] = value;
        body
    }

    fn refusal(name: &str, value: Value) -> (String, InvalidCode) {
        let error = parse(&with(name, value)).unwrap_err();
        (error.param.clone().expect("names the parameter"), error.code)
    }

    #[test]
    fn a_completion_has_sixteen_tokens_unless_it_says_otherwise() {
        assert_eq!(parse(&with("user", json!("u"))).unwrap().max_tokens, 16);
        assert_eq!(parse(&with("max_tokens", json!(3))).unwrap().max_tokens, 3);
    }

    #[test]
    fn a_prompt_is_a_text_or_tokens_alone_or_in_an_array() {
        for (value, prompt) in [
            (json!("Once"), Prompt::Text("Once".into())),
            (json!(["Once"]), Prompt::Text("Once".into())),
            (json!([1, 2]), Prompt::Tokens(vec![1, 2])),
            (json!([[3]]), Prompt::Tokens(vec![3])),
        ] {
            assert_eq!(parse(&with("prompt", value)).unwrap().prompt, prompt);
        }
    }

    #[test]
    fn what_is_no_prompt_is_refused_by_path() {
        for (value, path, code) in [
            (Value::Null, "prompt", InvalidCode::MissingParameter),
            (json!([]), "prompt", InvalidCode::InvalidValue),
            (json!([[]]), "prompt[0]", InvalidCode::InvalidValue),
            (json!(["a", "b"]), "prompt", InvalidCode::UnsupportedParameter),
            (json!([[1], [2]]), "prompt", InvalidCode::UnsupportedParameter),
            (json!(7), "prompt", InvalidCode::InvalidType),
            (json!([{}]), "prompt[0]", InvalidCode::InvalidType),
            (json!([1, "a"]), "prompt[1]", InvalidCode::InvalidType),
            (json!([1, -1]), "prompt[1]", InvalidCode::InvalidType),
            (json!([[1, 4294967296_u64]]), "prompt[0][1]", InvalidCode::InvalidType),
        ] {
            assert_eq!(refusal("prompt", value), (path.to_owned(), code));
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name_unless_it_asks_for_nothing() {
        for (name, value) in [
            ("echo", json!(false)),
            ("best_of", json!(1)),
            ("suffix", Value::Null),
            ("n", json!(1)),
        ] {
            parse(&with(name, value)).unwrap();
        }
        for (name, value) in [
            ("echo", json!(true)),
            ("best_of", json!(2)),
            ("suffix", json!("x")),
            ("logprobs", json!(0)),
            ("n", json!(2)),
        ] {
            assert_eq!(
                refusal(name, value),
                (name.to_owned(), InvalidCode::UnsupportedParameter)
            );
        }
        assert_eq!(
            refusal("messages", json!([])),
            ("messages".to_owned(), InvalidCode::UnknownParameter)
        );
    }
}
