//! `POST /v1/completions`: the request.

use worker_contract::{RESUME_MEMBER, Resume};

use crate::error::InvalidRequest;
use crate::fields::{Fields, Unsupported, nothing};
use crate::generation::{self, Generation, MAX_CHOICES, StreamMode};
use crate::prompts::{Prompt, prompts};
use crate::resume;

/// Most tokens to generate where the request says nothing.
pub const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Most alternatives for each token that a completion may ask for.
pub const MAX_COMPLETION_LOGPROBS: u32 = 5;

/// Most completions that one request may have made: prompts times `best_of`.
pub const MAX_COMPLETIONS: usize = 64;

const UNSUPPORTED: [Unsupported; 1] = [Unsupported::new("suffix", nothing::never)];

/// A valid completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// Which model, as the client names it.
    pub model: String,
    /// What to continue; at least one. The answers to a prompt are numbered after those to the prompts before it.
    pub prompts: Vec<Prompt>,
    /// Most tokens to generate, at least 1; also 0 if the prompt is to be echoed.
    pub max_tokens: u32,
    /// How to generate and answer.
    pub generation: Generation,
    /// Whether the prompt is a part of the answer.
    pub echo: bool,
    /// Whether to tell each token's log probability, and with how many alternatives: 0 to [`MAX_COMPLETION_LOGPROBS`].
    pub logprobs: Option<u32>,
    /// How many completions to make for each prompt, to give the `generation.n` with the highest log probability for each
    /// token: `n` to [`MAX_CHOICES`], more than `n` only without a stream.
    pub best_of: u32,
    /// The stream is another worker's, to be taken up where it stands.
    pub resume: Option<Resume>,
}

impl CompletionRequest {
    /// Parses and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        let mut fields = Fields::of_body(body)?;
        let model = generation::model(&mut fields)?;
        let prompts = prompts("prompt", fields.required("prompt")?, MAX_COMPLETIONS)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let max_tokens = max_tokens(&mut fields, echo)?;
        let generation = Generation::take(&mut fields)?;
        let logprobs = fields.integer_within("logprobs", 0, MAX_COMPLETION_LOGPROBS)?;
        let best_of = best_of(&mut fields, &generation, prompts.len())?;
        let resume = resume::resume(&mut fields, &generation, logprobs)?;
        if resume.is_some() && (prompts.len() > 1 || echo) {
            let reason = "only the answer to one prompt, without `echo`, can be taken up";
            return Err(InvalidRequest::value(RESUME_MEMBER, reason));
        }
        fields.refuse(&UNSUPPORTED)?;
        fields.finish()?;
        Ok(Self {
            model,
            prompts,
            max_tokens,
            generation,
            echo,
            logprobs,
            best_of,
            resume,
        })
    }
}

fn max_tokens(fields: &mut Fields, echo: bool) -> Result<u32, InvalidRequest> {
    match fields.integer("max_tokens")? {
        None => Ok(DEFAULT_COMPLETION_TOKENS),
        Some(0) if echo => Ok(0),
        Some(..=0) => {
            let reason = "must be at least 1, or 0 together with `echo: true`";
            Err(InvalidRequest::value("max_tokens", reason))
        }
        Some(count) => Ok(u32::try_from(count).unwrap_or(u32::MAX)),
    }
}

fn best_of(fields: &mut Fields, generation: &Generation, prompts: usize) -> Result<u32, InvalidRequest> {
    let n = generation.n;
    let best_of = fields.integer_within("best_of", 1, MAX_CHOICES)?.unwrap_or(n);
    if best_of < n {
        let reason = format!("must be at least `n`, which is {n}; got {best_of}");
        return Err(InvalidRequest::value("best_of", reason));
    }
    if best_of > n && generation.stream != StreamMode::Off {
        let reason =
            "more completions than `n` cannot be streamed: the best are known at the end only; leave `stream` out";
        return Err(InvalidRequest::value("best_of", reason));
    }
    let completions = prompts * best_of as usize;
    if completions > MAX_COMPLETIONS {
        let reason = format!(
            "a request may have {MAX_COMPLETIONS} completions made, and {prompts} prompts times {best_of} are {completions}; \
             send fewer prompts at a time"
        );
        return Err(InvalidRequest::value("prompt", reason));
    }
    Ok(best_of)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::error::InvalidCode;

    fn parse(body: &Value) -> Result<CompletionRequest, InvalidRequest> {
        CompletionRequest::parse(body.to_string().as_bytes())
    }

    fn with(fields: &Value) -> Value {
        let mut body = json!({"model": "m", "prompt": "Once"});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    }

    fn accepted(fields: &Value) -> CompletionRequest {
        parse(&with(fields)).unwrap_or_else(|error| panic!("{fields}: {error}"))
    }

    fn refusal(fields: &Value) -> (String, InvalidCode) {
        let error = parse(&with(fields)).expect_err(&fields.to_string());
        (error.param.clone().expect("names the parameter"), error.code)
    }

    #[test]
    fn the_smallest_request_has_openais_defaults() {
        let request = accepted(&json!({"user": "u"}));
        assert_eq!(request.prompts, [Prompt::Text("Once".into())]);
        assert_eq!((request.max_tokens, request.best_of, request.generation.n), (16, 1, 1));
        assert_eq!((request.echo, request.logprobs), (false, None));
    }

    #[test]
    fn every_parameter_is_read() {
        let request = accepted(&json!({
            "prompt": ["a", "b"], "max_tokens": 3, "n": 2, "best_of": 4, "echo": true, "logprobs": 5, "top_k": 7, "suffix": null,
        }));
        assert_eq!(request.prompts, [Prompt::Text("a".into()), Prompt::Text("b".into())]);
        assert_eq!((request.max_tokens, request.best_of), (3, 4));
        assert_eq!((request.echo, request.logprobs), (true, Some(5)));
        assert_eq!((request.generation.n, request.generation.top_k), (2, 7));
    }

    #[test]
    fn only_an_echo_may_be_without_new_tokens() {
        assert_eq!(accepted(&json!({"max_tokens": 0, "echo": true})).max_tokens, 0);
        let invalid = ("max_tokens".to_owned(), InvalidCode::InvalidValue);
        assert_eq!(refusal(&json!({"max_tokens": 0})), invalid);
        assert_eq!(refusal(&json!({"max_tokens": -1, "echo": true})), invalid);
    }

    #[test]
    fn best_of_is_n_unless_it_says_otherwise_and_is_never_less() {
        assert_eq!(accepted(&json!({"n": 3})).best_of, 3);
        assert_eq!(accepted(&json!({"n": 2, "best_of": 2, "stream": true})).best_of, 2);
        let invalid = ("best_of".to_owned(), InvalidCode::InvalidValue);
        assert_eq!(refusal(&json!({"n": 3, "best_of": 2})), invalid);
        assert_eq!(refusal(&json!({"best_of": MAX_CHOICES + 1})), invalid);
        assert_eq!(refusal(&json!({"best_of": 2, "stream": true})), invalid);
    }

    #[test]
    fn prompts_times_best_of_are_bounded() {
        let prompts = |count: usize| Value::from(vec!["x"; count]);
        accepted(&json!({"prompt": prompts(MAX_COMPLETIONS)}));
        accepted(&json!({"prompt": prompts(MAX_COMPLETIONS / 4), "n": 4}));
        let invalid = ("prompt".to_owned(), InvalidCode::InvalidValue);
        assert_eq!(refusal(&json!({"prompt": prompts(MAX_COMPLETIONS + 1)})), invalid);
        assert_eq!(
            refusal(&json!({"prompt": prompts(MAX_COMPLETIONS / 4 + 1), "n": 4})),
            invalid
        );
        assert_eq!(
            refusal(&json!({"prompt": prompts(MAX_COMPLETIONS / 4 + 1), "n": 2, "best_of": 4})),
            invalid
        );
    }

    #[test]
    fn a_wrong_value_is_refused_by_name() {
        for (fields, name, code) in [
            (json!({"prompt": null}), "prompt", InvalidCode::MissingParameter),
            (json!({"logprobs": 6}), "logprobs", InvalidCode::InvalidValue),
            (json!({"logprobs": true}), "logprobs", InvalidCode::InvalidType),
            (json!({"echo": 1}), "echo", InvalidCode::InvalidType),
            (json!({"suffix": "x"}), "suffix", InvalidCode::UnsupportedParameter),
            (json!({"messages": []}), "messages", InvalidCode::UnknownParameter),
            (
                json!({"top_logprobs": 2}),
                "top_logprobs",
                InvalidCode::UnknownParameter,
            ),
            (json!({"tools": []}), "tools", InvalidCode::UnknownParameter),
        ] {
            assert_eq!(refusal(&fields), (name.to_owned(), code));
        }
    }
}
