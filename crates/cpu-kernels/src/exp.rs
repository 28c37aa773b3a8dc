//! `exp` in plain arithmetic, so that loops over it become vector code.

/// The least and the largest argument that [`exp`] tells apart from what lies beyond.
const LEAST: f32 = -87.0;
const LARGEST: f32 = 88.0;

/// `e^x` within 2.5e-7 relative of the truth for x in -87..=88; clamped outside (0 is returned as about 1e-38).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    exp_inside::<false>(x.clamp(LEAST, LARGEST))
}

/// `e^x` for x in -87..=88, as [`exp`]; anything else outside. FUSED: with fused multiplications and additions, for
/// functions that are compiled for a processor that has them.
#[inline(always)]
pub(crate) fn exp_inside<const FUSED: bool>(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, which the low bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first of which is short enough that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let r = multiply_add::<FUSED>(n, -LN2_LOW, multiply_add::<FUSED>(n, -LN2_HIGH, x));
    // Minimax polynomial for (e^r - 1 - r) / r^2 on -ln2/2..=ln2/2.
    let mut p = 1.987_569_1e-4;
    p = multiply_add::<FUSED>(p, r, 1.398_199_9e-3);
    p = multiply_add::<FUSED>(p, r, 8.333_452e-3);
    p = multiply_add::<FUSED>(p, r, 4.166_579_6e-2);
    p = multiply_add::<FUSED>(p, r, 1.666_666_5e-1);
    p = multiply_add::<FUSED>(p, r, 0.5);
    let e = multiply_add::<FUSED>(p, r * r, r) + 1.0;
    // Times 2^n, by adding n to the exponent.
    f32::from_bits(e.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_library_over_the_whole_range() {
        let mut x = LEAST;
        while x < LARGEST {
            let truth = f64::from(x).exp();
            for ours in [exp(x), exp_inside::<true>(x)] {
                let relative = (f64::from(ours) - truth).abs() / truth;
                assert!(relative < 2.5e-7, "exp({x}) is off by {relative:e}");
            }
            x += 0.003_7;
        }
    }

    #[test]
    fn it_stays_finite_outside_of_the_range() {
        assert!(exp(-1e30) < 2e-38 && exp(-1e30) > 0.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn it_hides_nothing_that_is_not_a_number() {
        assert!(exp(f32::NAN).is_nan());
    }
}
