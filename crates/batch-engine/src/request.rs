//! What is asked of the engine, and what it answers.

use std::fmt;
use std::num::NonZeroU32;

use crate::Constraint;

/// Most alternatives that [`Request::logprobs`] may ask for.
pub const MAX_LOGPROBS: usize = 20;

/// One prompt to be continued. The default has no prompt, wants no tokens, and is greedy.
#[derive(Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How many of the last tokens of `prompt` are no prompt, but were generated before under this request: the answer
    /// goes on behind them as if it had never been broken off. Penalties count them as the answer's, a seed stands where
    /// they left it; `max_tokens` and the constraint begin behind them. Less than the whole prompt.
    pub resumed: usize,
    /// Most tokens to generate. Cut to what the context holds after the prompt. Room in the KV cache for prompt and
    /// answer together is reserved at admission, so a larger number than needed keeps others waiting.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Tells each token's log-probability, and those of so many most probable tokens, 0 to [`MAX_LOGPROBS`].
    pub logprobs: Option<usize>,
    /// Tells the log-probabilities of the prompt's tokens, too, with as many alternatives as `logprobs` asks for. The
    /// prompt is run in small chunks and nothing of it is taken from the prefix cache.
    pub prompt_logprobs: bool,
    /// What the answer has to follow. It has accepted the tokens that are `resumed` already.
    pub constraint: Option<Box<dyn Constraint>>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("prompt_tokens", &self.prompt.len())
            .field("resumed", &self.resumed)
            .field("max_tokens", &self.max_tokens)
            .field("sampling", &self.sampling)
            .field("logprobs", &self.logprobs)
            .field("prompt_logprobs", &self.prompt_logprobs)
            .field("is_constrained", &self.constraint.is_some())
            .finish()
    }
}

/// How a token is chosen from the model's logits. The default is greedy.
///
/// The order of operations: `logit_bias`, `repetition_penalty`, `presence_penalty` and `frequency_penalty`, the request's
/// constraint; then, unless the temperature is 0, `temperature`, `top_k`, `min_p`, `typical_p`, `top_p`, each on what the
/// one before has left. At least one token is always left. It is vLLM's order; `typical_p`, which vLLM lacks, stands
/// before `top_p` as in llama.cpp.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token, the lowest id among equals. Finite, not negative.
    pub temperature: f32,
    /// Draws only from so many most probable tokens.
    pub top_k: Option<NonZeroU32>,
    /// Draws only from the smallest set of most probable tokens that together have this probability (the nucleus), 0 to
    /// 1; 1 is off.
    pub top_p: f32,
    /// Draws only from tokens that have at least this share of the most probable one's probability, 0 to 1; 0 is off.
    pub min_p: f32,
    /// Draws only from the smallest set of tokens that together have this probability and whose information is nearest
    /// to the expected one (locally typical sampling, Meister et al. 2022), 0 to 1; 1 is off.
    pub typical_p: f32,
    /// Divides the positive logits of tokens in the prompt or the answer by this, and multiplies the negative ones by it
    /// (Keskar et al. 2019). Finite, above 0; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer. Finite; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it is in the answer. Finite; 0 is off.
    pub frequency_penalty: f32,
    /// Added to these tokens' logits. Finite. For a token named twice, both are added.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed, prompt and settings give the same tokens, whatever else is in the batch. `None` draws a seed.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// What a [`Generation`](crate::Generation) yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The answer's next token. A token that ends the answer is not part of it.
    Token(Token),
    /// The answer is complete. The last event.
    Finished(FinishReason),
    /// The answer breaks off, and why. The last event.
    Failed(String),
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// The token.
    pub id: u32,
    /// There if [`Request::logprobs`] asked for it.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// How probable the model found a token: natural logarithms of its own distribution, before bias, penalties,
/// constraint and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token's log-probability; minus infinity where the model excludes it.
    pub logprob: f32,
    /// The most probable tokens, whether the token is among them or not; most probable first, the lowest id first among
    /// equals.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model, or the constraint, ended it.
    EndOfText,
    /// It has `max_tokens` tokens, or fills the context.
    Length,
}

/// How an embedding is made of its text's hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all tokens'.
    Mean,
    /// The last token's.
    Last,
}
