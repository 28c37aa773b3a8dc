//! Softmax of a piece of a row, and how pieces are put together.

use std::ops::Range;

use crate::elementwise::{leveled, softcapped};
use crate::exp::{exp, exp_inside};

/// Partial sums of a reduction.
const LANES: usize = 16;
/// A weight is `e^LEAST` or nothing. So a weight times an f16 that is not 0 is never rounded to 0, and adding up weighted
/// values gives the same bits, the sign of a zero included, whether or not tokens of weight 0 are among them.
const LEAST: f32 = -80.0;

/// What attending to some tokens gives: the weights' exponents are relative to `top`, and the values' weighted sum is
/// kept beside it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Weights {
    /// The largest score; minus infinity if no token is seen.
    pub(super) top: f32,
    /// The sum of the weights; 0 if no token is seen.
    pub(super) sum: f32,
}

impl Weights {
    /// Of no token.
    pub(super) const NONE: Self = Self {
        top: f32::NEG_INFINITY,
        sum: 0.0,
    };
}

/// Turns a row's scores into weights: `e^(score - top)` for the tokens `seen`, 0 for the others. The scores of tokens
/// that are not seen may be anything.
///
/// The row starts at a fixed place of the segment's lanes, so that the sum's order depends on the tokens' positions only.
/// FUSED: as in [`exp_inside`].
#[inline(always)]
pub(super) fn weigh<const FUSED: bool>(
    scores: &mut [[f32; LANES]],
    seen: Range<usize>,
    softcap: Option<f32>,
) -> Weights {
    let flat = scores.as_flattened_mut();
    if seen.is_empty() {
        flat.fill(0.0);
        return Weights::NONE;
    }
    flat[..seen.start].fill(f32::NEG_INFINITY);
    flat[seen.end..].fill(f32::NEG_INFINITY);
    if let Some(cap) = softcap {
        let inverse = 1.0 / cap;
        for score in &mut flat[seen] {
            *score = softcapped(*score, cap, inverse);
        }
    }
    let mut tops = [f32::NEG_INFINITY; LANES];
    for chunk in scores.iter() {
        for (top, &score) in tops.iter_mut().zip(chunk) {
            *top = if score > *top { score } else { *top };
        }
    }
    let top = across(tops, |a, b| if b > a { b } else { a });
    let mut sums = [0.0f32; LANES];
    for chunk in scores.iter_mut() {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            let below = *score - top;
            // Neither comparison hides a NaN.
            let weight = exp_inside::<FUSED>(if below < LEAST { LEAST } else { below });
            *score = if *score == f32::NEG_INFINITY { 0.0 } else { weight };
            *sum += *score;
        }
    }
    Weights {
        top,
        sum: across(sums, |a, b| a + b),
    }
}

/// Brings the lanes together, half with half.
#[inline(always)]
fn across(mut lanes: [f32; LANES], both: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = both(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

leveled! {
    /// Adds what attending to the tokens after those of `so_far` gave.
    fn merge(so_far: &mut Weights, mixed: &mut [f32], next: Weights, next_mixed: &[f32]) {
        if next.sum == 0.0 {
            return;
        }
        if so_far.sum == 0.0 {
            *so_far = next;
            mixed.copy_from_slice(next_mixed);
            return;
        }
        let top = if next.top > so_far.top { next.top } else { so_far.top };
        let (fade, next_fade) = (exp(so_far.top - top), exp(next.top - top));
        so_far.top = top;
        so_far.sum = so_far.sum * fade + next.sum * next_fade;
        for (mixed, next) in mixed.iter_mut().zip(next_mixed) {
            *mixed = *mixed * fade + next * next_fade;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin() * 3.0).collect()
    }

    #[test]
    fn weights_are_the_exponentials_of_the_seen_scores_and_nothing_else() {
        let scores = wave(64);
        for (seen, softcap) in [(0..64, None), (5..33, None), (17..18, Some(2.0)), (0..60, Some(0.5))] {
            let mut row: Vec<[f32; 16]> = scores.as_chunks().0.to_vec();
            row.as_flattened_mut()[..seen.start].fill(f32::NAN);
            row.as_flattened_mut()[seen.end..].fill(f32::NAN);
            let weights = weigh::<false>(&mut row, seen.clone(), softcap);
            let capped = |x: f32| {
                softcap.map_or(f64::from(x), |cap| {
                    f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh()
                })
            };
            let mut sum = 0.0;
            for (i, weight) in row.as_flattened().iter().enumerate() {
                let truth = if seen.contains(&i) {
                    (capped(scores[i]) - f64::from(weights.top)).exp()
                } else {
                    0.0
                };
                sum += truth;
                assert!(
                    (f64::from(*weight) - truth).abs() < 1e-6,
                    "{i}: {weight} is not {truth}"
                );
            }
            assert!((f64::from(weights.sum) - sum).abs() < 1e-5 * sum);
        }
    }

    #[test]
    fn a_row_that_sees_nothing_weighs_nothing() {
        let mut row = [[f32::NAN; 16]; 2];
        assert_eq!(weigh::<false>(&mut row, 7..7, None), Weights::NONE);
        assert_eq!(row, [[0.0; 16]; 2]);
    }

    #[test]
    fn a_score_that_is_not_a_number_is_not_hidden() {
        let mut row = [[1.0; 16]; 2];
        row[1][3] = f32::NAN;
        assert!(weigh::<false>(&mut row, 0..32, None).sum.is_nan());
    }

    #[test]
    fn merging_nothing_changes_nothing_and_merging_into_nothing_copies() {
        let some = Weights { top: 1.5, sum: 3.0 };
        let (mut so_far, mut mixed) = (Weights::NONE, [0.0, 0.0]);
        merge(Level::Portable, &mut so_far, &mut mixed, Weights::NONE, &[9.0, 9.0]);
        assert_eq!((so_far, mixed), (Weights::NONE, [0.0, 0.0]));
        merge(Level::Portable, &mut so_far, &mut mixed, some, &[1.0, -2.0]);
        merge(Level::Portable, &mut so_far, &mut mixed, Weights::NONE, &[9.0, 9.0]);
        assert_eq!((so_far, mixed), (some, [1.0, -2.0]));
    }

    #[test]
    fn merging_weighs_both_sides_by_their_tops() {
        let (mut so_far, mut mixed) = (Weights { top: 2.0, sum: 1.0 }, [4.0]);
        merge(
            Level::Portable,
            &mut so_far,
            &mut mixed,
            Weights { top: 1.0, sum: 3.0 },
            &[8.0],
        );
        let fade = (-1.0f32).exp();
        assert_eq!(so_far.top, 2.0);
        assert!((so_far.sum - (1.0 + 3.0 * fade)).abs() < 1e-6);
        assert!((mixed[0] - (4.0 + 8.0 * fade)).abs() < 1e-5);
    }
}
