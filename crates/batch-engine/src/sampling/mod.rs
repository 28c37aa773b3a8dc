//! Chooses a token from logits.
//!
//! The order of operations is that of [`Sampling`]: `adjust` (bias and penalties), the constraint's mask, then `draw`
//! (temperature and filters). Log-probabilities are told of the logits as the model gave them.
//!
//! Only basic arithmetic decides, which all processors round alike, and the generator is a documented, portable one:
//! the same logits and seed give the same token everywhere.

mod adjust;
mod draw;
mod logprobs;
mod scan;

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::step_loop::panic_text;
use crate::{Constraint, ConstraintError, Sampling, Token, TokenLogprobs, TokenMask};
use adjust::Adjustments;
use draw::{Distribution, Filters};
use logprobs::Summary;
use scan::InvalidLogits;

/// Chooses the tokens of one sequence.
pub(crate) struct Sampler {
    adjustments: Adjustments,
    constraint: Option<Box<dyn Constraint>>,
    temperature: f32,
    filters: Filters,
    rng: Xoshiro256PlusPlus,
    /// Asked for, with so many alternatives.
    logprobs: Option<usize>,
}

/// How an answer goes on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Choice {
    Token(Token),
    /// It is complete.
    End,
}

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SamplingError {
    #[error(transparent)]
    InvalidLogits(#[from] InvalidLogits),
    #[error("the constraint failed: {0}")]
    Constraint(#[from] ConstraintError),
    #[error("the constraint allows no token")]
    NothingAllowed,
}

/// Working memory of [`Sampler::choose`], shared by all sequences.
#[derive(Debug)]
pub(crate) struct Scratch {
    mask: TokenMask,
    summary: Summary,
    distribution: Distribution,
}

impl Scratch {
    pub(crate) fn new(vocab_size: usize) -> Self {
        Self {
            mask: TokenMask::new(vocab_size),
            summary: Summary::default(),
            distribution: Distribution::default(),
        }
    }

    /// How probable the model finds `token`, and so many most probable alternatives.
    pub(crate) fn logprobs(
        &mut self,
        logits: &[f32],
        token: u32,
        alternatives: usize,
    ) -> Result<TokenLogprobs, InvalidLogits> {
        self.summary.take(logits, scan::maximum(logits)?, alternatives);
        Ok(self.summary.of(logits[token as usize]))
    }
}

impl Sampler {
    /// A sampler that has not been asked yet.
    pub(crate) fn new(
        prompt: &[u32],
        sampling: Sampling,
        logprobs: Option<usize>,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self {
            temperature: sampling.temperature,
            filters: Filters::new(&sampling),
            adjustments: Adjustments::new(prompt, sampling),
            constraint,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            logprobs,
        }
    }

    /// Goes to where it stood when it had chosen these tokens; the constraint is there already.
    pub(crate) fn resume(&mut self, answer: &[u32]) {
        for &token in answer {
            self.adjustments.accept(token);
            if self.temperature != 0.0 {
                draw::skip(&mut self.rng);
            }
        }
    }

    /// The next token; from now on it is part of the answer. Changes `logits`. Draws exactly one number unless greedy.
    pub(crate) fn choose(
        &mut self,
        logits: &mut [f32],
        is_end: &dyn Fn(u32) -> bool,
        scratch: &mut Scratch,
    ) -> Result<Choice, SamplingError> {
        if let Some(constraint) = &mut self.constraint {
            scratch.mask.disallow_all();
            guarded(|| constraint.allowed(&mut scratch.mask))?;
            if !scratch.mask.iter().any(|token| !is_end(token)) {
                let may_end = scratch.mask.iter().next().is_some();
                return if may_end {
                    Ok(Choice::End)
                } else {
                    Err(SamplingError::NothingAllowed)
                };
            }
        }
        if let Some(alternatives) = self.logprobs {
            scratch.summary.take(logits, scan::maximum(logits)?, alternatives);
        }
        self.adjustments.apply(logits);
        if self.constraint.is_some() {
            scan::mask(logits, &scratch.mask);
        }
        let max = scan::maximum(logits)?;
        let id = if self.temperature == 0.0 {
            scan::first_at_least(logits, max)
        } else {
            let distribution = &mut scratch.distribution;
            distribution.draw(logits, max, self.temperature, &self.filters, &mut self.rng)
        };
        if is_end(id) {
            return Ok(Choice::End);
        }
        let logprobs = self.logprobs.map(|_| {
            let logit = self.adjustments.original(id).unwrap_or(logits[id as usize]);
            Box::new(scratch.summary.of(logit))
        });
        self.adjustments.accept(id);
        if let Some(constraint) = &mut self.constraint {
            guarded(|| constraint.accept(id))?;
        }
        Ok(Choice::Token(Token { id, logprobs }))
    }
}

/// Asks a constraint. That it panics is its own request's failure only: it is not asked again.
fn guarded(ask: impl FnOnce() -> Result<(), ConstraintError>) -> Result<(), ConstraintError> {
    catch_unwind(AssertUnwindSafe(ask))
        .unwrap_or_else(|panic| Err(ConstraintError::new(format!("it panicked: {}", panic_text(&*panic)))))
}

#[cfg(test)]
mod tests;
