//! Log-probabilities of the model's own distribution.

use super::scan::{Highest, LANES, Ranked, exp_nonpositive};
use crate::TokenLogprobs;

/// Logits whose exponentials are summed in single precision.
const BLOCK: usize = 8 * LANES;

/// What log-probabilities are told of: a row of logits, as the model gave it.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// The logarithm of the sum of all logits' exponentials: what a logit is above its log-probability.
    normaliser: f64,
    top: Vec<Ranked>,
    highest: Highest,
}

impl Summary {
    /// Looks at a row, whose largest logit is `max`.
    pub(super) fn take(&mut self, logits: &[f32], max: f32, alternatives: usize) {
        let total: f64 = logits
            .chunks(BLOCK)
            .map(|block| f64::from(exponentials(block, max)))
            .sum();
        self.normaliser = f64::from(max) + total.ln();
        let top = self.highest.find(logits, alternatives);
        top.sort_unstable_by(Ranked::order);
        self.top.clear();
        self.top.extend_from_slice(top);
    }

    /// What is told of a token with this logit.
    pub(super) fn of(&self, logit: f32) -> TokenLogprobs {
        let logprob = |logit: f32| (f64::from(logit) - self.normaliser) as f32;
        TokenLogprobs {
            logprob: logprob(logit),
            top: self
                .top
                .iter()
                .map(|ranked| (ranked.token, logprob(ranked.logit)))
                .collect(),
        }
    }
}

fn exponentials(logits: &[f32], max: f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    for chunk in logits.chunks(LANES) {
        for (sum, &logit) in sums.iter_mut().zip(chunk) {
            *sum += exp_nonpositive(logit - max);
        }
    }
    sums.iter().sum()
}
