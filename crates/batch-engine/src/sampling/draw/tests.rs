use std::collections::HashSet;
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const SCALE: Scale = Scale {
    max: 1.0,
    temperature: 1.0,
};

fn filters(top_k: u32, min_p: f32, typical_p: f32, top_p: f32) -> Filters {
    Filters::new(&Sampling {
        top_k: NonZeroU32::new(top_k),
        min_p,
        typical_p,
        top_p,
        ..Sampling::default()
    })
}

/// The tokens that the filters leave of these probabilities.
fn left(probabilities: &[f64], filters: &Filters) -> Vec<u32> {
    let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut distribution = Distribution::default();
    let total = distribution.narrow(&logits, &Scale { max, temperature: 1.0 }, filters);
    assert!((total - distribution.total()).abs() < 1e-9);
    distribution
        .candidates
        .iter()
        .map(|candidate| candidate.token)
        .collect()
}

#[test]
fn top_k_leaves_the_most_probable_tokens_and_the_lowest_ids_among_equals() {
    assert_eq!(left(&[0.1, 0.4, 0.2, 0.3], &filters(2, 0.0, 1.0, 1.0)), [1, 3]);
    assert_eq!(left(&[0.2, 0.2, 0.4, 0.2], &filters(2, 0.0, 1.0, 1.0)), [0, 2]);
    assert_eq!(left(&[0.5, 0.5], &filters(9, 0.0, 1.0, 1.0)), [0, 1]);
}

#[test]
fn min_p_is_a_share_of_the_most_probable_tokens_probability() {
    assert_eq!(left(&[0.5, 0.3, 0.15, 0.05], &filters(0, 0.25, 1.0, 1.0)), [0, 1, 2]);
    assert_eq!(left(&[0.5, 0.3, 0.15, 0.05], &filters(3, 0.5, 1.0, 1.0)), [0, 1]);
    assert_eq!(left(&[0.3, 0.7], &filters(0, 1.0, 1.0, 1.0)), [1]);
}

#[test]
fn typical_p_leaves_the_tokens_whose_information_is_nearest_to_the_expected_one() {
    // The entropy is 1.36 nats. The tokens' information: 0.69, 1.61, 2.30, 2.30, 2.30.
    let probabilities = [0.5, 0.2, 0.1, 0.1, 0.1];
    assert_eq!(
        left(&probabilities, &filters(0, 0.0, 0.19, 1.0)),
        [1],
        "the most probable is not the most typical"
    );
    assert_eq!(left(&probabilities, &filters(0, 0.0, 0.21, 1.0)), [0, 1]);
    assert_eq!(left(&probabilities, &filters(0, 0.0, 0.75, 1.0)), [0, 1, 2]);
    assert_eq!(left(&probabilities, &filters(0, 0.0, 0.0, 1.0)), [1], "at least one");
}

#[test]
fn each_filter_works_on_what_the_one_before_has_left() {
    // top_k leaves 0.4, 0.3 and 0.2, of which the first two are 0.78.
    assert_eq!(left(&[0.4, 0.3, 0.2, 0.1], &filters(3, 0.0, 1.0, 0.75)), [0, 1]);
    assert_eq!(left(&[0.4, 0.3, 0.2, 0.1], &filters(0, 0.0, 1.0, 0.75)), [0, 1, 2]);
    // min_p leaves 0.4 and 0.3, of which the first is 0.57.
    assert_eq!(left(&[0.4, 0.3, 0.2, 0.1], &filters(0, 0.7, 1.0, 0.55)), [0]);
}

#[test]
fn a_wide_nucleus_is_found_as_exactly_as_a_narrow_one() {
    let mut distribution = Distribution::default();
    let logits = vec![1.0; 4096];
    let total = distribution.narrow(&logits, &SCALE, &filters(0, 0.0, 1.0, 0.5));
    assert_eq!(total, 2048.0);
    let drawn: HashSet<u32> = (0_u16..2048)
        .map(|step| distribution.draw_from_candidates(f64::from(step) + 0.5))
        .collect();
    assert_eq!(drawn, (0..2048).collect(), "of equals, the lowest ids are in it");
}

#[test]
fn every_token_of_a_large_vocabulary_can_be_drawn() {
    let mut distribution = Distribution::default();
    let logits = vec![1.0; 3 * BLOCK + 5];
    distribution.weigh(&logits, 1.0, 1.0);
    for token in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK + 4] {
        assert_eq!(distribution.draw_from_all(token as f64 + 0.5), token as u32);
    }
}

/// The filters as their definitions have them, in double precision; `None` where a token is so near to a limit that
/// rounding decides.
fn reference(logits: &[f32], temperature: f32, settings: (u32, f32, f32, f32)) -> Option<Vec<u32>> {
    let (top_k, min_p, typical_p, top_p) = settings;
    let scaled = |logit: &f32| (f64::from(*logit) / f64::from(temperature)).exp();
    let mut left: Vec<(u32, f64)> = (0..).zip(logits.iter().map(scaled)).filter(|(_, p)| *p > 0.0).collect();
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let normalise = |left: &mut Vec<(u32, f64)>| {
        let total: f64 = left.iter().map(|(_, p)| p).sum();
        left.iter_mut().for_each(|(_, p)| *p /= total);
    };
    if top_k > 0 {
        left.truncate(top_k as usize);
    }
    let limit = left[0].1 * f64::from(min_p);
    if left
        .iter()
        .any(|(_, p)| min_p > 0.0 && *p < left[0].1 && (p / limit - 1.0).abs() < 1e-4)
    {
        return None;
    }
    left.retain(|(_, p)| *p >= limit);
    normalise(&mut left);
    // The first ones that together reach a probability.
    let first = |left: &mut Vec<(u32, f64)>, mass: f32| {
        let mut before = 0.0;
        let mut count = 0;
        for (_, p) in left.iter() {
            if count > 0 && (before - f64::from(mass)).abs() < 1e-4 {
                return None;
            }
            if count > 0 && before >= f64::from(mass) {
                break;
            }
            before += p;
            count += 1;
        }
        left.truncate(count);
        Some(())
    };
    if typical_p < 1.0 {
        let entropy: f64 = left.iter().map(|(_, p)| -p * p.ln()).sum();
        let distance = |p: f64| (-p.ln() - entropy).abs();
        left.sort_by(|a, b| distance(a.1).total_cmp(&distance(b.1)).then(a.0.cmp(&b.0)));
        if left
            .windows(2)
            .any(|pair| (distance(pair[0].1) - distance(pair[1].1)).abs() < 1e-4)
        {
            return None;
        }
        first(&mut left, typical_p)?;
        normalise(&mut left);
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if top_p < 1.0 {
        first(&mut left, top_p)?;
    }
    let mut tokens: Vec<u32> = left.into_iter().map(|(token, _)| token).collect();
    tokens.sort_unstable();
    Some(tokens)
}

proptest! {
    #[test]
    fn what_the_filters_leave_is_what_their_definitions_say(
        logits in prop::collection::vec(prop_oneof![8 => -8.0_f32..8.0, 1 => Just(f32::NEG_INFINITY)], 1..300)
            .prop_filter("a maximum", |logits| logits.iter().any(|logit| logit.is_finite())),
        temperature in 0.3_f32..2.0,
        top_k in prop_oneof![Just(0_u32), 1..40_u32],
        min_p in prop_oneof![Just(0.0_f32), 0.0..0.5_f32],
        typical_p in prop_oneof![Just(1.0_f32), 0.05..1.0_f32],
        top_p in prop_oneof![Just(1.0_f32), 0.05..1.0_f32],
    ) {
        let filters = filters(top_k, min_p, typical_p, top_p);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected = reference(&logits, temperature, (top_k, min_p, typical_p, top_p));
        prop_assume!(!filters.are_off() && expected.is_some());
        let mut distribution = Distribution::default();
        distribution.narrow(&logits, &Scale { max, temperature }, &filters);
        let tokens: Vec<u32> = distribution.candidates.iter().map(|candidate| candidate.token).collect();
        prop_assert_eq!(Some(tokens), expected);
    }
}
