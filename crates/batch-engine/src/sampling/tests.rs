use std::num::NonZeroU32;

use proptest::prelude::*;

use super::scan::exp_nonpositive;
use super::*;

fn sampler_of(sampling: Sampling) -> Sampler {
    Sampler::new(&[], sampling, None, None)
}

fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
    sampler_of(Sampling {
        temperature,
        top_p,
        seed: Some(seed),
        ..Sampling::default()
    })
}

/// The next token; none of them ends the answer.
fn choose(sampler: &mut Sampler, logits: &[f32], scratch: &mut Scratch) -> Result<u32, SamplingError> {
    match sampler.choose(&mut logits.to_vec(), &|_| false, scratch)? {
        Choice::Token(token) => Ok(token.id),
        Choice::End => panic!("no token ends the answer"),
    }
}

fn scratch() -> Scratch {
    Scratch::new(0)
}

const INVALID: Result<u32, SamplingError> = Err(SamplingError::InvalidLogits(InvalidLogits));

fn greedy(logits: &[f32]) -> Result<u32, SamplingError> {
    choose(&mut sampler(0.0, 1.0, 0), logits, &mut scratch())
}

/// The greedy answer to these logits, again and again.
fn greedy_tokens(prompt: &[u32], sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(prompt, sampling, None, None);
    let mut scratch = scratch();
    (0..count)
        .map(|_| choose(&mut sampler, logits, &mut scratch).unwrap())
        .collect()
}

/// How often each token is drawn, as shares.
fn shares(logits: &[f32], temperature: f32, top_p: f32, draws: u32) -> Vec<f64> {
    let mut sampler = sampler(temperature, top_p, 7);
    let mut scratch = scratch();
    let mut counts = vec![0_u32; logits.len()];
    for _ in 0..draws {
        counts[choose(&mut sampler, logits, &mut scratch).unwrap() as usize] += 1;
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
        assert_eq!(greedy(&logits), INVALID);
        assert_eq!(choose(&mut sampler(1.0, 0.9, 0), &logits, &mut scratch()), INVALID);
    }
}

#[test]
fn logits_without_a_finite_maximum_are_an_error() {
    assert_eq!(greedy(&[f32::NEG_INFINITY; 20]), INVALID);
    assert_eq!(greedy(&[0.0, f32::INFINITY]), INVALID);
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
fn a_tiny_temperature_is_greedy() {
    let logits = [1.0, 1.001, 0.5];
    assert_eq!(choose(&mut sampler(1e-40, 1.0, 3), &logits, &mut scratch()), Ok(1));
}

#[test]
fn what_a_seed_gives_stays_the_same_in_every_version() {
    let logits: Vec<f32> = (0_u16..50).map(|token| f32::from(token * 7 % 50) / 10.0).collect();
    let mut scratch = scratch();
    let mut wide = sampler(1.0, 1.0, 42);
    let mut narrow = sampler(0.8, 0.9, 42);
    let wide: Vec<u32> = (0..8)
        .map(|_| choose(&mut wide, &logits, &mut scratch).unwrap())
        .collect();
    let narrow: Vec<u32> = (0..8)
        .map(|_| choose(&mut narrow, &logits, &mut scratch).unwrap())
        .collect();
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

#[test]
fn penalties_are_off_by_default() {
    assert_eq!(greedy_tokens(&[1], Sampling::default(), &[1.0, 1.0], 3), [0, 0, 0]);
}

#[test]
fn the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones_of_prompt_and_answer() {
    let penalised = |logits: &[f32], prompt: &[u32]| {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        let mut logits = logits.to_vec();
        Adjustments::new(prompt, sampling).apply(&mut logits);
        logits
    };
    assert_eq!(
        penalised(&[3.0, -3.0, 3.0], &[0, 1, 0]),
        [1.5, -6.0, 3.0],
        "once, however often it is there"
    );
    let sampling = Sampling {
        repetition_penalty: 1.5,
        ..Sampling::default()
    };
    assert_eq!(greedy_tokens(&[0], sampling, &[3.0, 2.5, 2.2], 3), [1, 2, 0]);
}

#[test]
fn the_presence_penalty_counts_once_and_the_frequency_penalty_each_time_in_the_answer_only() {
    let presence = Sampling {
        presence_penalty: 1.0,
        ..Sampling::default()
    };
    assert_eq!(greedy_tokens(&[0, 0], presence, &[3.0, 2.5, 0.0], 4), [0, 1, 0, 0]);
    let frequency = Sampling {
        frequency_penalty: 1.0,
        ..Sampling::default()
    };
    assert_eq!(greedy_tokens(&[0, 0], frequency, &[3.0, 2.5, 0.0], 5), [0, 1, 0, 1, 0]);
    let reward = Sampling {
        presence_penalty: -2.0,
        ..Sampling::default()
    };
    assert_eq!(greedy_tokens(&[], reward, &[3.0, 2.9], 3), [0, 0, 0]);
}

#[test]
fn the_bias_comes_before_the_penalties() {
    let sampling = Sampling {
        logit_bias: vec![(0, 1.0), (1, 2.0), (0, 2.0)],
        repetition_penalty: 2.0,
        ..Sampling::default()
    };
    let mut logits = [-1.0, -1.0, 5.0];
    Adjustments::new(&[0, 2], sampling).apply(&mut logits);
    assert_eq!(logits, [1.0, 1.0, 2.5]);
}

#[test]
fn extreme_settings_choose_a_token_all_the_same() {
    let sampling = Sampling {
        logit_bias: vec![(0, f32::MAX), (1, f32::MIN), (2, f32::MAX)],
        repetition_penalty: f32::MIN_POSITIVE,
        frequency_penalty: f32::MAX,
        temperature: 1.0,
        seed: Some(1),
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(&[0, 1, 2], sampling, None, None);
    let logits = [9.0, -9.0, f32::NEG_INFINITY, 1.0];
    let mut scratch = scratch();
    for _ in 0..5 {
        assert!(
            choose(&mut sampler, &logits, &mut scratch).unwrap() != 2,
            "an excluded token stays excluded"
        );
    }
}

#[test]
fn a_token_that_ends_the_answer_is_not_part_of_it() {
    let choice = sampler(0.0, 1.0, 0).choose(&mut [0.0, 1.0], &|token| token == 1, &mut scratch());
    assert_eq!(choice, Ok(Choice::End));
}

#[test]
fn top_k_of_one_is_greedy() {
    let mut sampler = sampler_of(Sampling {
        temperature: 2.0,
        top_k: NonZeroU32::new(1),
        ..Sampling::default()
    });
    assert_eq!(choose(&mut sampler, &[1.0, 3.0, 2.9], &mut scratch()), Ok(1));
}

#[test]
fn the_most_probable_tokens_of_a_large_vocabulary_are_found() {
    let logits: Vec<f32> = (0..5000_u32).map(|token| (token * 7919 % 5003) as f32).collect();
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let known = scratch().logprobs(&logits, 5, 20).unwrap();
    let ids = |top: &[(u32, f32)]| top.iter().map(|(token, _)| *token).collect::<Vec<_>>();
    assert_eq!(ids(&known.top), ids(&ranked[..20]));
}

#[test]
fn log_probabilities_sum_up_to_one_in_a_large_vocabulary() {
    let logits: Vec<f32> = (0..50_003_u32)
        .map(|token| (token * 7919 % 4001) as f32 / 500.0)
        .collect();
    let mut scratch = scratch();
    let known = scratch.logprobs(&logits, 0, 0).unwrap();
    let exact: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    assert!((f64::from(known.logprob) - (f64::from(logits[0]) - exact)).abs() < 1e-5);
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
        let mut scratch = scratch();
        let mut sampler = sampler(temperature, top_p, seed);
        for _ in 0..10 {
            let token = choose(&mut sampler, &logits, &mut scratch).unwrap() as usize;
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
        let token = choose(&mut sampler(temperature, top_p, seed), &logits, &mut scratch());
        prop_assert_eq!(token, greedy(&logits));
    }

    #[test]
    fn a_token_depends_on_nothing_that_was_sampled_for_others(
        logits in any_logits().prop_filter("a maximum", |logits| has_a_finite_maximum(logits)),
        others in any_logits(),
        top_p in 0.1_f32..=1.0,
        seed: u64,
    ) {
        let alone = choose(&mut sampler(1.0, top_p, seed), &logits, &mut scratch());
        let mut scratch = scratch();
        let _ = choose(&mut sampler(0.7, 0.8, 1), &others, &mut scratch);
        prop_assert_eq!(choose(&mut sampler(1.0, top_p, seed), &logits, &mut scratch), alone);
    }
}
