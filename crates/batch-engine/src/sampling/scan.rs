//! Passes over a whole row of logits.

use std::cmp::Ordering;

use crate::TokenMask;

/// Values handled side by side, so that the compiler can use vector instructions.
pub(super) const LANES: usize = 16;
/// Logits of which only the largest is looked at first, where the largest of all are sought.
const GROUP: usize = 4 * LANES;

/// The logits name no most probable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite numbers")]
pub(crate) struct InvalidLogits;

/// The largest logit. A token may be excluded by minus infinity; a NaN anywhere, or no finite maximum, is an error.
pub(super) fn maximum(logits: &[f32]) -> Result<f32, InvalidLogits> {
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
pub(super) fn first_at_least(logits: &[f32], max: f32) -> u32 {
    // Without an exit inside a group, so that the compiler can use vector instructions.
    let reaches = |group: &&[f32]| group.iter().fold(false, |found, &logit| found | (logit >= max));
    let before = logits.chunks(GROUP).take_while(|group| !reaches(group)).count() * GROUP;
    let within = logits[before..].iter().position(|&logit| logit >= max);
    (before + within.unwrap_or(0)) as u32
}

/// Excludes the tokens that are not allowed.
pub(super) fn mask(logits: &mut [f32], mask: &TokenMask) {
    for (logits, &word) in logits.chunks_mut(u32::BITS as usize).zip(mask.words()) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranked {
    pub(super) token: u32,
    pub(super) logit: f32,
}

impl Ranked {
    /// The largest logit first, the lowest id among equals.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// Working memory of [`Highest::find`].
#[derive(Debug, Default)]
pub(super) struct Highest {
    found: Vec<Ranked>,
    /// The largest logit of each group.
    maxima: Vec<f32>,
    partitioned: Vec<f32>,
}

impl Highest {
    /// The `count` tokens with the largest logits, in no order. Tokens excluded by minus infinity are left out.
    pub(super) fn find(&mut self, logits: &[f32], count: usize) -> &mut [Ranked] {
        self.found.clear();
        if count == 0 {
            return &mut self.found;
        }
        self.maxima.clear();
        self.maxima.extend(logits.chunks(GROUP).map(largest));
        // `count` groups reach the count-th largest maximum, so `count` tokens do: no other can be among them.
        let mut bound = f32::MIN;
        if count < self.maxima.len() {
            self.partitioned.clone_from(&self.maxima);
            let (_, nth, _) = self
                .partitioned
                .select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
            bound = bound.max(*nth);
        }
        let groups = (0_u32..).step_by(GROUP).zip(logits.chunks(GROUP));
        for ((first, group), _) in groups.zip(&self.maxima).filter(|(_, max)| **max >= bound) {
            let tokens = (first..).zip(group).map(|(token, &logit)| Ranked { token, logit });
            self.found.extend(tokens.filter(|ranked| ranked.logit >= bound));
        }
        if count < self.found.len() {
            self.found.select_nth_unstable_by(count - 1, Ranked::order);
            self.found.truncate(count);
        }
        &mut self.found
    }
}

fn largest(logits: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in logits.chunks(LANES) {
        for (largest, &logit) in largest.iter_mut().zip(chunk) {
            *largest = if logit > *largest { logit } else { *largest };
        }
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

pub(super) fn sum(weights: &[f32]) -> f64 {
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

/// e^x for x <= 0, within 2e-7 of its value; 0 below the smallest normal number. `f32::exp` would be a call for each
/// token, and its last bits differ between systems.
pub(super) fn exp_nonpositive(x: f32) -> f32 {
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
