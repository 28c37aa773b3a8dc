//! What a request changes about the model's logits: a bias on tokens it names, and penalties on tokens that are there.
//!
//! Kept by token, so a choice touches as many logits as there are such tokens, however large the vocabulary is.

use std::collections::HashMap;

use crate::Sampling;

/// Changes to the logits of one sequence.
#[derive(Debug)]
pub(super) struct Adjustments {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// The tokens that are changed, each once.
    tokens: Vec<Adjusted>,
    places: HashMap<u32, usize>,
}

#[derive(Debug, Clone, Copy)]
struct Adjusted {
    token: u32,
    bias: f32,
    in_prompt: bool,
    /// How often it is in the answer.
    generated: u32,
    /// Its logit as the model gave it last.
    original: f32,
}

impl Adjustments {
    pub(super) fn new(prompt: &[u32], sampling: Sampling) -> Self {
        let mut adjustments = Self {
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            tokens: Vec::new(),
            places: HashMap::new(),
        };
        for (token, bias) in sampling.logit_bias {
            let entry = adjustments.entry(token);
            entry.bias = bounded(entry.bias + bias);
        }
        if adjustments.repetition != 1.0 {
            for &token in prompt {
                adjustments.entry(token).in_prompt = true;
            }
        }
        adjustments
    }

    /// Changes the logits.
    pub(super) fn apply(&mut self, logits: &mut [f32]) {
        for adjusted in &mut self.tokens {
            let logit = &mut logits[adjusted.token as usize];
            adjusted.original = *logit;
            if !logit.is_finite() {
                continue;
            }
            let mut value = bounded(*logit + adjusted.bias);
            if adjusted.in_prompt || adjusted.generated > 0 {
                value = bounded(if value > 0.0 {
                    value / self.repetition
                } else {
                    value * self.repetition
                });
            }
            if adjusted.generated > 0 {
                let frequency = bounded(self.frequency * adjusted.generated as f32);
                value = bounded(value - bounded(self.presence + frequency));
            }
            *logit = value;
        }
    }

    /// A changed token's logit before the last [`Self::apply`].
    pub(super) fn original(&self, token: u32) -> Option<f32> {
        self.places.get(&token).map(|&place| self.tokens[place].original)
    }

    /// The answer goes on with `token`.
    pub(super) fn accept(&mut self, token: u32) {
        let penalises = self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0;
        if penalises {
            self.entry(token).generated += 1;
        }
    }

    fn entry(&mut self, token: u32) -> &mut Adjusted {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.tokens.push(Adjusted {
                token,
                bias: 0.0,
                in_prompt: false,
                generated: 0,
                original: 0.0,
            });
            self.tokens.len() - 1
        });
        &mut self.tokens[place]
    }
}

/// Finite, so that an extreme setting does not look like a broken model.
fn bounded(value: f32) -> f32 {
    value.clamp(f32::MIN, f32::MAX)
}
