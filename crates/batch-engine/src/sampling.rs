//! Chooses a token from logits.
//!
//! Only basic arithmetic decides, which all processors round alike, and the generator is a documented, portable one:
//! the same logits and seed give the same token everywhere.

use std::cmp::Ordering;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

use crate::Sampling;

/// Values handled side by side, so that the compiler can use vector instructions.
const LANES: usize = 16;
/// Tokens whose weights are summed together. A draw goes over the sums first.
const BLOCK: usize = 64 * LANES;

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    rng: Xoshiro256PlusPlus,
}

/// Working memory of [`Sampler::choose`], shared by all sequences.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// A weight for each token, in proportion to its probability; the most probable one has 1.
    weights: Vec<f32>,
    /// The sum of each [`BLOCK`] of weights.
    block_sums: Vec<f64>,
    /// Tokens that may be in the nucleus, in order of ids.
    candidates: Vec<Candidate>,
    /// The same, partly ordered by weight.
    partitioned: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    weight: f32,
    token: u32,
}

/// The logits name no most probable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite numbers")]
pub(crate) struct InvalidLogits;

impl Sampler {
    pub(crate) fn new(sampling: &Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        }
    }

    /// The next token. Draws exactly one number unless greedy.
    pub(crate) fn choose(&mut self, logits: &[f32], scratch: &mut Scratch) -> Result<u32, InvalidLogits> {
        let max = maximum(logits)?;
        if self.temperature == 0.0 {
            return Ok(first_at_least(logits, max));
        }
        let total = scratch.weigh(logits, max, self.temperature);
        // 53 random bits: every value of [0, 1) that an f64 of this spacing has.
        let position = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        if self.top_p >= 1.0 {
            return Ok(scratch.draw_from_all(position * total));
        }
        let nucleus = scratch.find_nucleus(f64::from(self.top_p), total);
        Ok(scratch.draw_from_nucleus(&nucleus, position * nucleus.weight))
    }
}

/// The smallest set of most probable tokens that together reach a probability.
#[derive(Debug, Clone, Copy)]
struct Nucleus {
    least_probable: Candidate,
    /// The sum of its tokens' weights.
    weight: f64,
}

impl Scratch {
    /// Fills `weights` and returns their sum.
    fn weigh(&mut self, logits: &[f32], max: f32, temperature: f32) -> f64 {
        self.weights.clear();
        // A division, because the inverse of a tiny temperature is infinite.
        self.weights
            .extend(logits.iter().map(|logit| exp_nonpositive((logit - max) / temperature)));
        self.block_sums.clear();
        self.block_sums.extend(self.weights.chunks(BLOCK).map(sum));
        self.block_sums.iter().sum()
    }

    /// The token at which the running sum of all weights, in order of ids, exceeds `point`.
    fn draw_from_all(&self, mut point: f64) -> u32 {
        let mut block = 0;
        for (index, &sum) in self.block_sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
            block = index;
            if point < sum {
                break;
            }
            point -= sum;
        }
        let first = block * BLOCK;
        let weights = &self.weights[first..self.weights.len().min(first + BLOCK)];
        let tokens = (first as u32..)
            .zip(weights)
            .map(|(token, &weight)| Candidate { weight, token });
        draw(tokens.filter(|candidate| candidate.weight > 0.0), point)
    }

    /// The nucleus of probability `top_p`, where all weights sum up to `total`.
    fn find_nucleus(&mut self, top_p: f64, total: f64) -> Nucleus {
        // All tokens below this weight together have less than `1 - top_p`, so the nucleus is complete without them.
        let negligible = (1.0 - top_p) * total / self.weights.len() as f64;
        self.candidates.clear();
        self.candidates.extend(
            (0_u32..)
                .zip(&self.weights)
                .filter(|(_, weight)| f64::from(**weight) >= negligible)
                .map(|(token, &weight)| Candidate { weight, token }),
        );
        self.partitioned.clone_from(&self.candidates);

        // Halves the tokens among which the last one of the nucleus is, until it is the only one.
        let mut rest = self.partitioned.as_mut_slice();
        let mut more_probable = 0.0;
        while rest.len() > 1 {
            let middle = rest.len() / 2;
            rest.select_nth_unstable_by(middle, most_probable_first);
            let (upper, lower) = rest.split_at_mut(middle);
            let weight: f64 = upper.iter().map(|candidate| f64::from(candidate.weight)).sum();
            rest = if more_probable + weight >= top_p * total {
                upper
            } else {
                more_probable += weight;
                lower
            };
        }
        let least_probable = rest[0];
        Nucleus {
            least_probable,
            weight: more_probable + f64::from(least_probable.weight),
        }
    }

    /// The token at which the running sum of the nucleus's weights, in order of ids, exceeds `point`.
    fn draw_from_nucleus(&self, nucleus: &Nucleus, point: f64) -> u32 {
        let is_member = |candidate: &Candidate| most_probable_first(candidate, &nucleus.least_probable).is_le();
        draw(self.candidates.iter().copied().filter(is_member), point)
    }
}

/// The candidate at which the running sum of weights exceeds `point`; the last one where rounding lets it pass.
fn draw(candidates: impl Iterator<Item = Candidate>, mut point: f64) -> u32 {
    let mut drawn = 0;
    for candidate in candidates {
        drawn = candidate.token;
        if point < f64::from(candidate.weight) {
            break;
        }
        point -= f64::from(candidate.weight);
    }
    drawn
}

fn sum(weights: &[f32]) -> f64 {
    let chunks = weights.chunks_exact(LANES);
    let mut sums = [0.0_f64; LANES];
    for (sum, weight) in sums.iter_mut().zip(chunks.remainder()) {
        *sum = f64::from(*weight);
    }
    for chunk in chunks {
        for (sum, weight) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*weight);
        }
    }
    sums.iter().sum()
}

/// A total order, so that equal weights do not depend on how the sort works.
fn most_probable_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// The largest logit. A token may be excluded by minus infinity; a NaN anywhere, or no finite maximum, is an error.
fn maximum(logits: &[f32]) -> Result<f32, InvalidLogits> {
    let chunks = logits.chunks_exact(LANES);
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut nan = [0_u32; LANES];
    let rest = chunks.remainder();
    for chunk in chunks.chain(std::iter::once(rest)) {
        for ((largest, nan), &logit) in largest.iter_mut().zip(&mut nan).zip(chunk) {
            *largest = if logit > *largest { logit } else { *largest };
            *nan |= u32::from(logit.is_nan());
        }
    }
    let max = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if nan != [0; LANES] || !max.is_finite() {
        Err(InvalidLogits)
    } else {
        Ok(max)
    }
}

/// The lowest id whose logit reaches `max`, which is the largest of them.
fn first_at_least(logits: &[f32], max: f32) -> u32 {
    (0_u32..)
        .zip(logits)
        .find(|(_, logit)| **logit >= max)
        .map_or(0, |(token, _)| token)
}

/// e^x for x <= 0, within 2e-7 of its value; 0 below the smallest normal number. `f32::exp` would be a call for each
/// token, and its last bits differ between systems.
fn exp_nonpositive(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which is then found in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has few bits, so that its product with a whole number is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let bounded = if x < -87.0 { -87.0 } else { x };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUND;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits());
    let whole = rounded - ROUND;
    let r = (bounded - whole * LN_2_HIGH) - whole * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + factor;
    }
    let power_of_two = f32::from_bits(exponent.wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { series * power_of_two }
}

#[cfg(test)]
mod tests;
