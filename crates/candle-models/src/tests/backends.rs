//! The fused CPU path beside candle's operations in f32.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::tiny::Tiny;
use super::{assert_close, feed, fused, reference, text};
use crate::Family;

/// The prompt crosses cache blocks and many windows; then single tokens follow, then a few more at once.
#[track_caller]
fn assert_alike(tiny: &Tiny, tolerance: f32, what: &str) {
    let prompt = text(300, 1);
    let pieces = [&prompt[..270], &prompt[270..271], &prompt[271..272], &prompt[272..300]];
    let ours = feed(&mut *fused(tiny), &pieces);
    let theirs = feed(&mut *reference(&tiny.clone().dequantised()), &pieces);
    for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_close(ours, theirs, tolerance, &format!("{what}, piece {index}"));
    }
}

#[test]
fn weights_that_are_not_quantised_differ_by_the_rounding_to_halves() {
    for family in Family::ALL {
        for dtype in [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16] {
            assert_alike(
                &Tiny::of(family).with_matrices(dtype),
                0.01,
                &format!("{family}, {dtype:?}"),
            );
        }
    }
}

#[test]
fn quantised_weights_differ_by_the_rounding_of_activations_to_8_bits() {
    for family in Family::ALL {
        for dtype in [GgmlDType::Q8_0, GgmlDType::Q5_1, GgmlDType::Q4_0] {
            assert_alike(
                &Tiny::of(family).with_matrices(dtype),
                0.05,
                &format!("{family}, {dtype:?}"),
            );
        }
    }
}

#[test]
fn soft_caps_windows_partial_rotation_and_magnitudes_are_the_same_in_both() {
    let gemma = Tiny::of(Family::Gemma3)
        .with("final_logit_softcapping", Value::F32(3.0))
        .with("attn_logit_softcapping", Value::F32(0.5));
    assert_alike(&gemma, 0.01, "soft caps");
    let mistral = Tiny::of(Family::Llama).with("attention.sliding_window", Value::U32(40));
    assert_alike(&mistral, 0.01, "windows in all layers");
    let phi = Tiny::of(Family::Phi3)
        .with("rope.dimension_count", Value::U32(12))
        .with("rope.scaling.attn_factor", Value::F32(1.2))
        .with_tensor("rope_factors_short.weight", vec![1.0; 6])
        .with_tensor("rope_factors_long.weight", vec![1.0, 1.5, 2.0, 3.0, 5.0, 8.0])
        .with("rope.scaling.original_context_length", Value::U32(100));
    assert_alike(&phi, 0.01, "partial rotation with a magnitude");
    let yarn = Tiny::of(Family::Qwen2)
        .with("rope.scaling.type", Value::String("yarn".to_owned()))
        .with("rope.scaling.factor", Value::F32(4.0))
        .with("rope.scaling.original_context_length", Value::U32(150));
    assert_alike(&yarn, 0.01, "yarn");
}
