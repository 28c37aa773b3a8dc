//! What is asked of the engine, and what it answers.

/// One prompt to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate. Cut to what the context holds after the prompt. Prompt and answer together are
    /// reserved in the KV cache at admission, so a larger number than needed keeps others waiting.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
}

/// How a token is chosen from the model's logits. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token, the lowest id among equals. Finite, not negative.
    pub temperature: f32,
    /// Draws only from the smallest set of most probable tokens that together have this probability (the nucleus), 0 to
    /// 1. The nucleus has at least one token.
    pub top_p: f32,
    /// The same seed, prompt and settings give the same tokens, whatever else is in the batch. `None` draws a seed.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            seed: None,
        }
    }
}

/// What a [`Generation`](crate::Generation) yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The answer's next token. A token that ends the answer is not part of it.
    Token(u32),
    /// The answer is complete. The last event.
    Finished(FinishReason),
    /// The answer breaks off, and why. The last event.
    Failed(String),
}

/// Why an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    EndOfText,
    /// It has `max_tokens` tokens, or fills the context.
    Length,
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// There is nothing to continue.
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
    /// The prompt has a token that the model lacks.
    #[error("the prompt's token {token} is not one of the model's {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Number of tokens the model knows, starting with token 0.
        vocab_size: usize,
    },
    /// [`Sampling::temperature`] is negative or not finite.
    #[error("the temperature is {0}: it must be a number of 0 or more")]
    InvalidTemperature(f32),
    /// [`Sampling::top_p`] is not in 0 to 1.
    #[error("top_p is {0}: it must be between 0 and 1")]
    InvalidTopP(f32),
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
