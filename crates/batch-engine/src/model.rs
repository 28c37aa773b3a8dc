//! What the engine asks of a model.

use std::fmt;

/// A model that runs several sequences in one step. The engine owns it on one OS thread.
///
/// Each open sequence has its own KV cache and its own position: feeding tokens appends to the cache. A sequence's
/// logits must not depend on what else is in the batch beyond rounding.
pub trait Model: Send + 'static {
    /// Number of logits per token.
    fn vocab_size(&self) -> usize;

    /// Longest sequence in tokens, prompt and answer together.
    fn context_length(&self) -> usize;

    /// Tokens that all KV caches together can hold.
    fn kv_capacity(&self) -> usize;

    /// Whether this token ends an answer.
    fn is_end(&self, token: u32) -> bool;

    /// Opens an empty sequence that will never hold more than `max_tokens` tokens.
    fn open(&mut self, max_tokens: usize) -> Result<SequenceId, ModelError>;

    /// Ends a sequence and frees its KV cache. Unknown ids are ignored.
    fn close(&mut self, sequence: SequenceId);

    /// Runs all inputs in one forward pass. For every input with `wants_logits`, in order, appends the
    /// `vocab_size()` logits of its last token to `logits` (which is cleared first).
    fn step(&mut self, inputs: &[StepInput<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError>;
}

/// Names an open sequence of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// One sequence's share of a step: a chunk of its prompt (prefill), or its last token (decode).
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// The sequence.
    pub sequence: SequenceId,
    /// One token or more; appended to the sequence's KV cache.
    pub tokens: &'a [u32],
    /// Whether the last token's logits are wanted.
    pub wants_logits: bool,
}

/// Why a model could not open a sequence or run a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError(pub String);

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ModelError {}
