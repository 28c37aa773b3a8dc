//! What the engine asks of a model.

use std::fmt;

/// A model that runs parts of several sequences in one step. The engine owns it on one OS thread.
///
/// It remembers nothing of a sequence but what lies in KV blocks: each input names the blocks that hold, or take, its
/// sequence's keys and values. A token's row must not depend on what else is in the batch, on how the tokens before it
/// were cut into steps, nor on which sequence has written their blocks, beyond rounding.
pub trait Model: Send + 'static {
    /// Number of logits per token.
    fn vocab_size(&self) -> usize;

    /// Number of values in a token's hidden state.
    fn hidden_size(&self) -> usize;

    /// Longest sequence in tokens, prompt and answer together.
    fn context_length(&self) -> usize;

    /// Whether this token ends an answer.
    fn is_end(&self, token: u32) -> bool;

    /// The room for keys and values. Does not change.
    fn kv_layout(&self) -> KvLayout;

    /// Runs all inputs in one forward pass: writes the keys and values of their tokens into their blocks, and appends to
    /// `rows` (which is cleared first), for each input in order, what its `output` asks for.
    fn step(&mut self, inputs: &[StepInput<'_>], rows: &mut Vec<f32>) -> Result<(), ModelError>;
}

/// The room for keys and values: blocks `0..blocks`, each for `block_tokens` consecutive tokens of a sequence, in all
/// layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Tokens per block, at least one.
    pub block_tokens: usize,
    /// Number of blocks, fewer than 2^32 - 1.
    pub blocks: usize,
}

impl KvLayout {
    /// Tokens that all blocks together hold.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.block_tokens.saturating_mul(self.blocks)
    }
}

/// One sequence's share of a step: a chunk of its prompt (prefill), or its last token (decode).
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// One token or more, at `position` and the positions after it.
    pub tokens: &'a [u32],
    /// Tokens of the sequence that lie in its blocks already.
    pub position: usize,
    /// The sequence's block table: position `p` is in block `blocks[p / block_tokens]`. Has room for `tokens`, too.
    /// Blocks before the one of `position` may be shared with other inputs; those that `tokens` fall into are not.
    pub blocks: &'a [u32],
    /// What is wanted of `tokens`.
    pub output: Output,
}

/// What a step returns for an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Nothing; the prompt goes on.
    Nothing,
    /// `vocab_size` logits of the last token.
    Last,
    /// `vocab_size` logits of each token.
    All,
    /// `hidden_size` values of each token: its hidden state after the last norm, before the head.
    Hidden,
}

/// Why a model could not run a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError(pub String);

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ModelError {}
