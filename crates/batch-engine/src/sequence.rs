//! A running sequence, and what a step does for it.

use tracing::Span;

use crate::generation::{Outcome, Reply};
use crate::sampling::{Sampler, Scratch};
use crate::shared::Waiting;
use crate::{FinishReason, Model, SequenceId, StepInput};

/// A request that has a slot and a sequence of the model.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) reply: Reply,
    pub(crate) span: Span,
    /// Set when the answer is complete or broken; the sequence is in no further step.
    pub(crate) outcome: Option<Outcome>,
    prompt: Vec<u32>,
    max_tokens: usize,
    sampler: Sampler,
    phase: Phase,
    /// Tokens in its KV cache.
    held: usize,
    generated: usize,
}

/// `Prefill -> Decode`
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The first `done` tokens of the prompt have been fed.
    Prefill { done: usize },
    /// `last` was sampled and has not been fed.
    Decode { last: u32 },
}

/// One sequence's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Its place among the running sequences.
    pub(crate) place: usize,
    /// How many tokens are fed.
    tokens: usize,
    /// Whether the next token is sampled: not while a prompt goes on after this step.
    pub(crate) wants_logits: bool,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, waiting: Waiting) -> Self {
        Self {
            id,
            reply: waiting.reply,
            span: waiting.span,
            outcome: None,
            prompt: waiting.prompt,
            max_tokens: waiting.max_tokens,
            sampler: Sampler::new(&waiting.sampling),
            phase: Phase::Prefill { done: 0 },
            held: 0,
            generated: 0,
        }
    }

    pub(crate) fn reserved(&self) -> usize {
        self.prompt.len() + self.max_tokens
    }

    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn generated(&self) -> usize {
        self.generated
    }

    /// What the model is fed for `share`.
    pub(crate) fn input(&self, share: &Share) -> StepInput<'_> {
        let tokens = match &self.phase {
            Phase::Prefill { done } => &self.prompt[*done..*done + share.tokens],
            Phase::Decode { last } => std::slice::from_ref(last),
        };
        StepInput {
            sequence: self.id,
            tokens,
            wants_logits: share.wants_logits,
        }
    }

    /// The model has taken the input of `share`. Returns how many tokens of the prompt that were.
    pub(crate) fn fed(&mut self, share: &Share) -> usize {
        self.held += share.tokens;
        if let Phase::Prefill { done } = &mut self.phase {
            *done += share.tokens;
            share.tokens
        } else {
            0
        }
    }

    /// Chooses the next token and sends it to the reader. Returns whether one was sent.
    pub(crate) fn choose_next(&mut self, logits: &[f32], scratch: &mut Scratch, model: &dyn Model) -> bool {
        match self.sampler.choose(logits, scratch) {
            Err(error) => {
                self.outcome = Some(Err(error.to_string()));
                false
            }
            Ok(token) if model.is_end(token) => {
                self.outcome = Some(Ok(FinishReason::EndOfText));
                false
            }
            Ok(token) => {
                self.reply.send(token);
                self.phase = Phase::Decode { last: token };
                self.generated += 1;
                if self.generated == self.max_tokens {
                    self.outcome = Some(Ok(FinishReason::Length));
                }
                true
            }
        }
    }
}

/// Composes a step: a token for every decoding sequence whose reader has room, then up to `prefill_chunk` tokens of the
/// prompts, the oldest sequence's first. `running` is in the order of admission.
pub(crate) fn plan(running: &[Sequence], prefill_chunk: usize, shares: &mut Vec<Share>) {
    shares.clear();
    let mut budget = prefill_chunk;
    for (place, sequence) in running.iter().enumerate() {
        match sequence.phase {
            Phase::Decode { .. } if sequence.reply.has_room() => {
                shares.push(Share {
                    place,
                    tokens: 1,
                    wants_logits: true,
                });
            }
            Phase::Prefill { done } if budget > 0 => {
                let left = sequence.prompt.len() - done;
                let tokens = left.min(budget);
                budget -= tokens;
                shares.push(Share {
                    place,
                    tokens,
                    wants_logits: tokens == left,
                });
            }
            Phase::Decode { .. } | Phase::Prefill { .. } => {}
        }
    }
}
