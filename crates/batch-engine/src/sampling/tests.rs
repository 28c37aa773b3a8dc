use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
    Sampler::new(&Sampling {
        temperature,
        top_p,
        seed: Some(seed),
    })
}

fn greedy(logits: &[f32]) -> Result<u32, InvalidLogits> {
    sampler(0.0, 1.0, 0).choose(logits, &mut Scratch::default())
}

/// How often each token is drawn, as shares.
fn shares(logits: &[f32], temperature: f32, top_p: f32, draws: u32) -> Vec<f64> {
    let mut sampler = sampler(temperature, top_p, 7);
    let mut scratch = Scratch::default();
    let mut counts = vec![0_u32; logits.len()];
    for _ in 0..draws {
        counts[sampler.choose(logits, &mut scratch).unwrap() as usize] += 1;
    }
    counts
        .into_iter()
        .map(|count| f64::from(count) / f64::from(draws))
        .collect()
}

fn assert_near(shares: &[f64], expected: &[f64], draws: u32) {
    for (token, (share, expected)) in shares.iter().zip(expected).enumerate() {
        let deviation = (expected * (1.0 - expected) / f64::from(draws)).sqrt();
        assert!(
            (share - expected).abs() <= 5.0 * deviation,
            "token {token}: {share} instead of {expected}"
        );
    }
}

#[test]
fn greedy_takes_the_largest_logit_and_the_lowest_id_among_equals() {
    assert_eq!(greedy(&[0.5, 2.0, -1.0]), Ok(1));
    let mut logits = vec![-3.0; 1000];
    logits[999] = 4.0;
    logits[503] = 4.0;
    assert_eq!(greedy(&logits), Ok(503));
    assert_eq!(greedy(&[f32::NEG_INFINITY, -5.0]), Ok(1));
}

#[test]
fn a_nan_anywhere_is_an_error() {
    for place in [0, 15, 16, 40] {
        let mut logits = vec![1.0; 41];
        logits[place] = f32::NAN;
        assert_eq!(greedy(&logits), Err(InvalidLogits));
        assert_eq!(
            sampler(1.0, 0.9, 0).choose(&logits, &mut Scratch::default()),
            Err(InvalidLogits)
        );
    }
}

#[test]
fn logits_without_a_finite_maximum_are_an_error() {
    assert_eq!(greedy(&[f32::NEG_INFINITY; 20]), Err(InvalidLogits));
    assert_eq!(greedy(&[0.0, f32::INFINITY]), Err(InvalidLogits));
}

#[test]
fn tokens_are_drawn_by_their_probability() {
    let probabilities = [0.5_f64, 0.3, 0.15, 0.05];
    let logits = probabilities.map(|p| p.ln() as f32 + 3.0);
    assert_near(&shares(&logits, 1.0, 1.0, 40_000), &probabilities, 40_000);
}

#[test]
fn the_temperature_divides_the_logits() {
    let logits = [2.0_f32, 1.0, 0.0];
    for temperature in [0.5_f32, 2.0] {
        let weights = logits.map(|logit| f64::from(logit / temperature).exp());
        let total: f64 = weights.iter().sum();
        assert_near(
            &shares(&logits, temperature, 1.0, 40_000),
            &weights.map(|weight| weight / total),
            40_000,
        );
    }
}

#[test]
fn the_nucleus_is_drawn_from_in_proportion_and_nothing_else_is() {
    let logits = [0.15_f64, 0.5, 0.05, 0.3].map(|p| p.ln() as f32);
    // 0.5 + 0.3 reach 0.75.
    assert_near(&shares(&logits, 1.0, 0.75, 40_000), &[0.0, 0.625, 0.0, 0.375], 40_000);
}

#[test]
fn a_wide_nucleus_is_found_as_exactly_as_a_narrow_one() {
    let mut scratch = Scratch::default();
    let logits = vec![1.0; 4096];
    let total = scratch.weigh(&logits, 1.0, 1.0);
    let nucleus = scratch.find_nucleus(0.5, total);
    assert_eq!(
        (nucleus.least_probable.token, nucleus.weight),
        (2047, 2048.0),
        "of equals, the lowest ids are in it"
    );
    let drawn: HashSet<u32> = (0_u16..2048)
        .map(|step| scratch.draw_from_nucleus(&nucleus, f64::from(step) + 0.5))
        .collect();
    assert_eq!(drawn, (0..2048).collect());
}

#[test]
fn every_token_of_a_large_vocabulary_can_be_drawn() {
    let mut scratch = Scratch::default();
    let logits = vec![1.0; 3 * BLOCK + 5];
    scratch.weigh(&logits, 1.0, 1.0);
    for token in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 3 * BLOCK + 4] {
        assert_eq!(scratch.draw_from_all(token as f64 + 0.5), token as u32);
    }
}

#[test]
fn a_tiny_temperature_is_greedy() {
    let logits = [1.0, 1.001, 0.5];
    assert_eq!(sampler(1e-40, 1.0, 3).choose(&logits, &mut Scratch::default()), Ok(1));
}

#[test]
fn what_a_seed_gives_stays_the_same_in_every_version() {
    let logits: Vec<f32> = (0_u16..50).map(|token| f32::from(token * 7 % 50) / 10.0).collect();
    let mut scratch = Scratch::default();
    let mut wide = sampler(1.0, 1.0, 42);
    let mut narrow = sampler(0.8, 0.9, 42);
    let wide: Vec<u32> = (0..8).map(|_| wide.choose(&logits, &mut scratch).unwrap()).collect();
    let narrow: Vec<u32> = (0..8).map(|_| narrow.choose(&logits, &mut scratch).unwrap()).collect();
    assert_eq!(wide, [41, 14, 49, 34, 39, 28, 7, 28]);
    assert_eq!(narrow, [35, 14, 49, 33, 35, 27, 7, 28]);
}

#[test]
fn the_exponential_is_exact_to_the_last_bits() {
    for step in 0_u16..=43_500 {
        let x = -f32::from(step) / 500.0;
        let exact = f64::from(x).exp();
        let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
        assert!(error < 2e-7, "e^{x} is off by {error}");
    }
    assert_eq!(exp_nonpositive(0.0), 1.0);
    assert_eq!(exp_nonpositive(-1000.0), 0.0);
    assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
}

prop_compose! {
    fn any_logits()(
        logits in prop::collection::vec(prop_oneof![8 => -20.0_f32..20.0, 1 => Just(5.0), 1 => Just(f32::NEG_INFINITY)], 1..600)
    ) -> Vec<f32> {
        logits
    }
}

fn has_a_finite_maximum(logits: &[f32]) -> bool {
    logits.iter().any(|logit| logit.is_finite())
}

proptest! {
    #[test]
    fn a_sampled_token_is_always_in_the_nucleus(
        logits in any_logits().prop_filter("a maximum", |logits| has_a_finite_maximum(logits)),
        temperature in 0.05_f32..3.0,
        top_p in 0.0_f32..=1.0,
        seed: u64,
    ) {
        let mut scratch = Scratch::default();
        let mut sampler = sampler(temperature, top_p, seed);
        for _ in 0..10 {
            let token = sampler.choose(&logits, &mut scratch).unwrap() as usize;
            prop_assert!(logits[token].is_finite());
            // Reference: the more probable tokens, in double precision, do not make up top_p without it.
            let weights: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) / f64::from(temperature)).exp()).collect();
            let before: f64 = weights.iter().filter(|weight| **weight > weights[token]).sum();
            prop_assert!(before / weights.iter().sum::<f64>() <= f64::from(top_p) + 1e-5);
        }
    }

    #[test]
    fn a_tiny_top_p_is_greedy(
        logits in any_logits().prop_filter("a maximum", |logits| has_a_finite_maximum(logits)),
        temperature in 0.5_f32..1.5,
        top_p in 0.0_f32..1e-3,
        seed: u64,
    ) {
        let token = sampler(temperature, top_p, seed).choose(&logits, &mut Scratch::default());
        prop_assert_eq!(token, greedy(&logits));
    }

    #[test]
    fn a_token_depends_on_nothing_that_was_sampled_for_others(
        logits in any_logits().prop_filter("a maximum", |logits| has_a_finite_maximum(logits)),
        others in any_logits(),
        top_p in 0.1_f32..=1.0,
        seed: u64,
    ) {
        let alone = sampler(1.0, top_p, seed).choose(&logits, &mut Scratch::default());
        let mut scratch = Scratch::default();
        let _ = sampler(0.7, 0.8, 1).choose(&others, &mut scratch);
        prop_assert_eq!(sampler(1.0, top_p, seed).choose(&logits, &mut scratch), alone);
    }
}
