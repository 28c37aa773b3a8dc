//! `POST /v1/infer`: a prompt in, a stream of tokens out. For programs of the house; people use the OpenAI endpoints.

use serde::{Deserialize, Serialize};

/// Body of `POST /v1/infer`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InferRequest {
    /// Text that is continued as it stands; no chat template is applied.
    pub prompt: String,
    /// Most tokens to generate; left out: what the context still holds, within a slot's share of the
    /// KV cache.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// 0 is greedy; at most 2.
    #[serde(default)]
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens whose probabilities reach this sum; above 0, at most 1.
    #[serde(default = "one")]
    pub top_p: f32,
    /// Makes sampling repeatable.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Texts that end the answer, at most 4; never part of it.
    #[serde(default)]
    pub stop: Vec<String>,
}

fn one() -> f32 {
    1.0
}

/// One `data:` line of the answer's stream. The last one is `done` or `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum InferEvent {
    /// More text: whole characters, of one or more tokens.
    Token {
        /// The text.
        text: String,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish_reason: FinishReason,
        /// What it took.
        usage: InferUsage,
    },
    /// The answer broke off.
    Error {
        /// What happened.
        error: shared_contract::ErrorObject,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop text was reached.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InferUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, the end token not counted.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were found in the prefix cache and not computed again.
    #[serde(default)]
    pub cached_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_knows_no_prefix_cache_has_cached_nothing() {
        let told =
            r#"{"type": "done", "finish_reason": "stop", "usage": {"prompt_tokens": 6, "completion_tokens": 7}}"#;
        let InferEvent::Done { usage, .. } = serde_json::from_str(told).unwrap() else {
            panic!("{told}")
        };
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens),
            (6, 7, 0)
        );
    }
}
