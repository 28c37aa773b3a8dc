//! Rotary positions, their scalings, and windows: what a family makes of a file, against the papers' formulas.

use candle_core::quantized::gguf_file::Value;

use super::tiny::{CONTEXT, Tiny};
use super::{assert_close, feed, fused, reference, text};
use crate::Family;
use crate::architecture::{Architecture, RopeSpec};
use model_format::ModelFile;

/// What a family makes of a file, for sequences of at most `longest` tokens.
fn describe(tiny: &Tiny, longest: usize) -> Architecture {
    let (_folder, path) = tiny.write();
    let file = ModelFile::gguf(&path).expect("a tiny file");
    let family = Family::of(&file).expect("a family");
    family.describe(&file, longest).expect("a description")
}

fn rope(tiny: &Tiny) -> RopeSpec {
    describe(tiny, CONTEXT).ropes.swap_remove(0)
}

#[track_caller]
fn assert_frequencies(actual: &RopeSpec, expected: &[f64], magnitude: f64) {
    assert_eq!(actual.frequencies.len(), expected.len());
    for (actual, expected) in actual.frequencies.iter().zip(expected) {
        assert!((actual / expected - 1.0).abs() < 1e-6, "{actual}, not {expected}");
    }
    assert!(
        (f64::from(actual.magnitude) - magnitude).abs() < 1e-6,
        "{}",
        actual.magnitude
    );
}

/// `base ^ (-2 pair / turned)`
fn unscaled(turned: usize, base: f64) -> Vec<f64> {
    let pairs = 0..turned / 2;
    pairs
        .map(|pair| base.powf(-2.0 * pair as f64 / turned as f64))
        .collect()
}

fn scaling(tiny: Tiny, kind: &str, factor: f32) -> Tiny {
    tiny.with("rope.scaling.type", Value::String(kind.to_owned()))
        .with("rope.scaling.factor", Value::F32(factor))
}

#[test]
fn without_scaling_each_pair_turns_by_its_power_of_the_base() {
    let tiny = Tiny::of(Family::Llama).with("rope.freq_base", Value::F32(500_000.0));
    assert_frequencies(&rope(&tiny), &unscaled(16, 500_000.0), 1.0);
    let partial = tiny.with("rope.dimension_count", Value::U32(8));
    assert_frequencies(&rope(&partial), &unscaled(8, 500_000.0), 1.0);
}

#[test]
fn linear_scaling_slows_all_pairs_down_and_is_meant_where_only_a_factor_stands() {
    let slowed: Vec<f64> = unscaled(16, 10_000.0).iter().map(|f| f / 4.0).collect();
    let tiny = Tiny::of(Family::Llama);
    assert_frequencies(&rope(&scaling(tiny.clone(), "linear", 4.0)), &slowed, 1.0);
    assert_frequencies(
        &rope(&tiny.clone().with("rope.scaling.factor", Value::F32(4.0))),
        &slowed,
        1.0,
    );
    assert_frequencies(
        &rope(&tiny.clone().with("rope.scale_linear", Value::F32(4.0))),
        &slowed,
        1.0,
    );
    assert_frequencies(&rope(&scaling(tiny, "none", 4.0)), &unscaled(16, 10_000.0), 1.0);
}

#[test]
fn llama_3_s_factors_slow_each_pair_down_by_its_own() {
    let factors: Vec<f32> = (1..=8).map(|n| n as f32).collect();
    let slowed = unscaled(16, 10_000.0);
    let slowed: Vec<f64> = slowed.iter().zip(&factors).map(|(f, &by)| f / f64::from(by)).collect();
    let tiny = Tiny::of(Family::Llama).with_tensor("rope_freqs.weight", factors);
    assert_frequencies(&rope(&tiny), &slowed, 1.0);
}

#[test]
fn yarn_keeps_fast_pairs_slows_slow_ones_and_ramps_between() {
    let original = 400.0;
    let tiny = scaling(Tiny::of(Family::Qwen3), "yarn", 4.0)
        .with("rope.scaling.original_context_length", Value::U32(original as u32));
    // Section 3.2 of the paper, with the bounds as indices of dimensions as its code has them.
    let (dims, base) = (32.0f64, 10_000.0f64);
    let dimension_of = |turns: f64| dims * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln());
    let (low, high) = (dimension_of(32.0).floor(), dimension_of(1.0).ceil());
    assert_eq!((low, high), (1.0, 8.0), "both bounds lie within the 16 pairs");
    let expected: Vec<f64> = unscaled(32, base)
        .iter()
        .enumerate()
        .map(|(pair, frequency)| {
            let interpolated = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / 4.0 * interpolated + frequency * (1.0 - interpolated)
        })
        .collect();
    let magnitude = 0.1 * 4.0f64.ln() + 1.0;
    assert_frequencies(&rope(&tiny), &expected, magnitude);
    assert_eq!(expected[1], unscaled(32, base)[1]);
    assert_eq!(expected[8], unscaled(32, base)[8] / 4.0);
    let stated = tiny.with("rope.scaling.attn_factor", Value::F32(0.5));
    assert_frequencies(&rope(&stated), &expected, 0.5 * magnitude);
}

/// Factors of 2 for short texts and of 3 for long ones, of a model for 600 tokens that began with 100.
fn longrope() -> Tiny {
    Tiny::of(Family::Phi3)
        .with("rope.scaling.original_context_length", Value::U32(100))
        .with_tensor("rope_factors_short.weight", vec![2.0; 8])
        .with_tensor("rope_factors_long.weight", vec![3.0; 8])
}

#[test]
fn longrope_has_other_factors_for_sequences_beyond_the_original_context() {
    let by = |factor: f64| -> Vec<f64> { unscaled(16, 10_000.0).iter().map(|f| f / factor).collect() };
    let magnitude = (1.0 + 6.0f64.ln() / 100.0f64.ln()).sqrt();
    let tiny = longrope();
    assert_frequencies(&describe(&tiny, 100).ropes[0], &by(2.0), magnitude);
    assert_frequencies(&describe(&tiny, 101).ropes[0], &by(3.0), magnitude);
    let stated = tiny.with("rope.scaling.attn_factor", Value::F32(1.25));
    assert_frequencies(&rope(&stated), &by(3.0), 1.25);
}

#[test]
fn longrope_with_equal_factors_is_linear_scaling_with_scores_times_the_magnitude_squared() {
    let long = longrope().with("rope.scaling.attn_factor", Value::F32(1.25));
    let scale = 1.25f32.powi(2) / 4.0;
    let linear = scaling(Tiny::of(Family::Phi3), "linear", 3.0).with("attention.scale", Value::F32(scale));
    let prompt = text(120, 2);
    let ours = feed(&mut *reference(&long), &[&prompt]);
    assert_close(
        &ours[0],
        &feed(&mut *reference(&linear), &[&prompt])[0],
        1e-4,
        "longrope",
    );
}

#[test]
fn gemma_s_windows_have_a_base_of_their_own_which_is_never_scaled() {
    let tiny = scaling(Tiny::of(Family::Gemma3), "linear", 8.0);
    let tiny = tiny.with("rope.freq_base", Value::F32(1_000_000.0));
    let gemma = describe(&tiny, CONTEXT);
    let slowed: Vec<f64> = unscaled(32, 1_000_000.0).iter().map(|f| f / 8.0).collect();
    assert_frequencies(&gemma.ropes[0], &slowed, 1.0);
    assert_frequencies(&gemma.ropes[1], &unscaled(32, 10_000.0), 1.0);
    let seen: Vec<_> = gemma
        .layers
        .iter()
        .map(|layer| (layer.heads.window, layer.rope))
        .collect();
    let windowed = (Some(super::tiny::WINDOW), 1);
    assert_eq!(seen, [[windowed; 5].as_slice(), &[(None, 0), windowed]].concat());
}

#[test]
fn the_layers_with_a_window_are_those_that_the_file_says() {
    let windows = |tiny: &Tiny| -> Vec<bool> {
        let layers = describe(tiny, CONTEXT).layers;
        layers.iter().map(|layer| layer.heads.window.is_some()).collect()
    };
    let qwen = Tiny::of(Family::Qwen2).with("attention.sliding_window", Value::U32(16));
    assert_eq!(windows(&Tiny::of(Family::Qwen2)), [false; 7]);
    assert_eq!(windows(&qwen), [true; 7]);
    let every_third = qwen.clone().with("attention.sliding_window_pattern", Value::U32(3));
    assert_eq!(windows(&every_third), [true, true, false, true, true, false, true]);
    let stated = [false, true, true, false, false, false, true];
    let flags = Value::Array(stated.map(Value::Bool).to_vec());
    assert_eq!(windows(&qwen.with("attention.sliding_window_pattern", flags)), stated);
}

#[test]
fn a_window_of_n_tokens_reaches_n_tokens_the_newest_included() {
    // Of one layer, so that nothing reaches farther by way of another.
    let tiny = Tiny::of(Family::Llama)
        .with_layers(1)
        .with("attention.sliding_window", Value::U32(40));
    let prompt = text(100, 4);
    for mut model in [fused(&tiny), reference(&tiny)] {
        let logits = feed(&mut *model, &[&prompt]);
        let mut with_other = |at: usize| {
            let mut prompt = prompt.clone();
            prompt[at] ^= 1;
            feed(&mut *model, &[&prompt])
        };
        assert!(with_other(59) == logits, "the 41st token from the end is out of sight");
        assert!(with_other(60) != logits, "the 40th is seen");
    }
}

#[test]
fn a_soft_cap_bends_the_logits() {
    let tiny = Tiny::of(Family::Gemma3);
    let prompt = text(20, 1);
    let plain = feed(&mut *reference(&tiny), &[&prompt]);
    let capped = feed(
        &mut *reference(&tiny.with("final_logit_softcapping", Value::F32(2.0))),
        &[&prompt],
    );
    let expected: Vec<f32> = plain[0].iter().map(|logit| 2.0 * (logit / 2.0).tanh()).collect();
    assert_close(&capped[0], &expected, 1e-5, "capped");
}
