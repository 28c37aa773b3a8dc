//! Why a request was not taken.

use crate::request::MAX_LOGPROBS;

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// There is nothing to continue, or to embed. A [resumed](crate::Request::resumed) answer is no prompt.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {context_length}, the answer included: shorten \
         the prompt"
    )]
    ContextLengthExceeded {
        /// The prompt's length in tokens.
        prompt_tokens: usize,
        /// Tokens that prompt and answer may have together.
        context_length: usize,
    },
    /// The text to embed is too long.
    #[error("the text has {tokens} tokens and the context holds {context_length}: shorten or split the text")]
    TextTooLong {
        /// The text's length in tokens.
        tokens: usize,
        /// Tokens that a text may have.
        context_length: usize,
    },
    /// The prompt has a token that the model lacks.
    #[error("the prompt's token {token} is not one of the model's {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Number of tokens the model knows, starting with token 0.
        vocab_size: usize,
    },
    /// [`Sampling::logit_bias`](crate::Sampling::logit_bias) names a token that the model lacks.
    #[error("logit_bias names token {token}, which is not one of the model's {vocab_size}")]
    UnknownBiasToken {
        /// The token.
        token: u32,
        /// Number of tokens the model knows, starting with token 0.
        vocab_size: usize,
    },
    /// A field of [`Sampling`](crate::Sampling) is out of its range.
    #[error("{field} is {value}: it must be {expected}")]
    InvalidSampling {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// [`Request::logprobs`](crate::Request::logprobs) asks for too many alternatives.
    #[error("logprobs asks for {0} alternatives: at most {MAX_LOGPROBS} are told")]
    TooManyLogprobs(usize),
    /// Too many requests wait already.
    #[error("all slots are taken and {limit} requests wait already: try again later")]
    QueueFull {
        /// [`EngineOptions::queue_limit`](crate::EngineOptions::queue_limit)
        limit: usize,
    },
    /// The engine finishes what it has, or has finished.
    #[error("the engine is draining and takes no new requests")]
    Draining,
    /// The model broke, and how.
    #[error("the engine has failed: {0}")]
    Failed(String),
}
