//! Draws a token by its probability, from all tokens or from those that the filters leave.

use std::cmp::Ordering;

use rand::Rng;
use rand::rngs::Xoshiro256PlusPlus;

use super::scan::{Highest, LANES, exp_nonpositive, sum};
use crate::Sampling;

/// Tokens whose weights are summed together. A draw goes over the sums first.
const BLOCK: usize = 64 * LANES;

/// Which tokens may be drawn; each filter works on what the one before has left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filters {
    top_k: Option<usize>,
    min_p: f32,
    typical_p: f32,
    top_p: f32,
}

impl Filters {
    pub(super) fn new(sampling: &Sampling) -> Self {
        Self {
            top_k: sampling.top_k.map(|count| count.get() as usize),
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            top_p: sampling.top_p,
        }
    }

    fn are_off(&self) -> bool {
        self.top_k.is_none() && self.min_p <= 0.0 && self.typical_p >= 1.0 && self.top_p >= 1.0
    }
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// In proportion to its probability; the most probable token has 1.
    weight: f32,
    token: u32,
    /// The logarithm of the weight.
    log_weight: f32,
}

/// Working memory of [`Distribution::draw`].
#[derive(Debug, Default)]
pub(super) struct Distribution {
    /// A weight for each token, in proportion to its probability; the most probable one has 1.
    weights: Vec<f32>,
    /// The sum of each [`BLOCK`] of weights.
    block_sums: Vec<f64>,
    /// Tokens that may be drawn, in order of ids.
    candidates: Vec<Candidate>,
    /// The same, partly ordered.
    partitioned: Vec<Candidate>,
    highest: Highest,
}

/// Draws the number that choosing a token takes.
pub(super) fn skip(rng: &mut Xoshiro256PlusPlus) {
    rng.next_u64();
}

impl Distribution {
    /// A token, where the largest of the logits is `max`. Draws exactly one number.
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        max: f32,
        temperature: f32,
        filters: &Filters,
        rng: &mut Xoshiro256PlusPlus,
    ) -> u32 {
        // 53 random bits: every value of [0, 1) that an f64 of this spacing has.
        let position = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        if filters.are_off() {
            let total = self.weigh(logits, max, temperature);
            return self.draw_from_all(position * total);
        }
        let total = self.narrow(logits, &Scale { max, temperature }, filters);
        self.draw_from_candidates(position * total)
    }

    /// Makes those tokens the candidates that the filters leave. Returns the sum of their weights.
    fn narrow(&mut self, logits: &[f32], scale: &Scale, filters: &Filters) -> f64 {
        let mut total = match filters.top_k {
            Some(count) => self.find_highest(logits, scale, count, filters.min_p),
            None => self.find_probable(logits, scale, filters),
        };
        if filters.typical_p < 1.0 {
            total = self.keep_typical(f64::from(filters.typical_p), total);
        }
        if filters.top_p < 1.0 {
            total = self.keep_smallest_set(f64::from(filters.top_p) * total, most_probable_first);
        }
        total
    }

    /// Fills `weights` and returns their sum.
    fn weigh(&mut self, logits: &[f32], max: f32, temperature: f32) -> f64 {
        let scale = Scale { max, temperature };
        self.weights.clear();
        self.weights
            .extend(logits.iter().map(|&logit| exp_nonpositive(scale.log_weight(logit))));
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
        let tokens = (first as u32..).zip(weights).map(|(token, &weight)| (token, weight));
        walk(tokens.filter(|(_, weight)| *weight > 0.0), point)
    }

    /// The candidate at which the running sum of weights, in order of ids, exceeds `point`.
    fn draw_from_candidates(&self, point: f64) -> u32 {
        walk(
            self.candidates
                .iter()
                .map(|candidate| (candidate.token, candidate.weight)),
            point,
        )
    }

    /// Makes the `count` most probable tokens the candidates, as far as `min_p` leaves them. Returns the sum of their
    /// weights. Weighs no others.
    fn find_highest(&mut self, logits: &[f32], scale: &Scale, count: usize, min_p: f32) -> f64 {
        self.candidates.clear();
        let found = self.highest.find(logits, count);
        found.sort_unstable_by_key(|ranked| ranked.token);
        let candidates = found.iter().map(|ranked| scale.candidate(ranked.token, ranked.logit));
        self.candidates
            .extend(candidates.filter(|candidate| candidate.weight > 0.0 && candidate.weight >= min_p));
        self.total()
    }

    /// Makes the tokens that `min_p` leaves the candidates, without those that `top_p` is sure to drop. Returns the sum
    /// of the weights of all that `min_p` leaves.
    fn find_probable(&mut self, logits: &[f32], scale: &Scale, filters: &Filters) -> f64 {
        let total = self.weigh(logits, scale.max, scale.temperature);
        // All tokens below this weight together have less than `1 - top_p`, so the nucleus is complete without them.
        // Not so where another filter comes before it.
        let only_top_p = filters.min_p <= 0.0 && filters.typical_p >= 1.0;
        let negligible = if only_top_p {
            (1.0 - f64::from(filters.top_p)) * total / self.weights.len() as f64
        } else {
            0.0
        };
        self.candidates.clear();
        self.candidates.extend(
            (0_u32..)
                .zip(&self.weights)
                .filter(|(_, weight)| **weight > 0.0 && **weight >= filters.min_p && f64::from(**weight) >= negligible)
                .map(|(token, &weight)| Candidate {
                    weight,
                    token,
                    log_weight: scale.log_weight(logits[token as usize]),
                }),
        );
        if only_top_p { total } else { self.total() }
    }

    /// Keeps the smallest set of candidates that together have the probability `typical_p` and whose information is
    /// nearest to the expected one. Returns the sum of their weights.
    ///
    /// A token's information is the total's logarithm less its log-weight, and the expected information is the total's
    /// logarithm less the expected log-weight: their distance is that of the log-weights.
    fn keep_typical(&mut self, typical_p: f64, total: f64) -> f64 {
        let weighed = |candidate: &Candidate| f64::from(candidate.weight) * f64::from(candidate.log_weight);
        let expected = self.candidates.iter().map(weighed).sum::<f64>() / total;
        let distance = |candidate: &Candidate| (f64::from(candidate.log_weight) - expected).abs();
        self.keep_smallest_set(typical_p * total, |a, b| {
            distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token))
        })
    }

    /// Keeps the first candidates, by this total order, whose weights reach `mass`; at least one. Returns the sum of
    /// their weights.
    fn keep_smallest_set(&mut self, mass: f64, order: impl Fn(&Candidate, &Candidate) -> Ordering) -> f64 {
        self.partitioned.clone_from(&self.candidates);
        // Halves the tokens among which the last one of the set is, until it is the only one.
        let mut rest = self.partitioned.as_mut_slice();
        let mut before = 0.0;
        while rest.len() > 1 {
            let middle = rest.len() / 2;
            rest.select_nth_unstable_by(middle, &order);
            let (upper, lower) = rest.split_at_mut(middle);
            let weight: f64 = upper.iter().map(|candidate| f64::from(candidate.weight)).sum();
            rest = if before + weight >= mass {
                upper
            } else {
                before += weight;
                lower
            };
        }
        let last = rest[0];
        self.candidates.retain(|candidate| order(candidate, &last).is_le());
        before + f64::from(last.weight)
    }

    fn total(&self) -> f64 {
        self.candidates
            .iter()
            .map(|candidate| f64::from(candidate.weight))
            .sum()
    }
}

/// From logits to weights.
#[derive(Debug, Clone, Copy)]
struct Scale {
    max: f32,
    temperature: f32,
}

impl Scale {
    fn log_weight(&self, logit: f32) -> f32 {
        // A division, because the inverse of a tiny temperature is infinite.
        (logit - self.max) / self.temperature
    }

    fn candidate(&self, token: u32, logit: f32) -> Candidate {
        let log_weight = self.log_weight(logit);
        Candidate {
            weight: exp_nonpositive(log_weight),
            token,
            log_weight,
        }
    }
}

/// The token at which the running sum of weights exceeds `point`; the last one where rounding lets it pass.
fn walk(tokens: impl Iterator<Item = (u32, f32)>, mut point: f64) -> u32 {
    let mut drawn = 0;
    for (token, weight) in tokens {
        drawn = token;
        if point < f64::from(weight) {
            break;
        }
        point -= f64::from(weight);
    }
    drawn
}

/// A total order, so that equal weights do not depend on how the sort works.
fn most_probable_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

#[cfg(test)]
mod tests;
