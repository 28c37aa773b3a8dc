//! `exp` in plain arithmetic, so that loops over it become vector code.

/// `e^x` within 2e-7 relative of the truth for x in -87..=88; clamped outside (0 is returned as about 1e-38).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, which the low bits of the sum then hold.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first of which is short enough that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Minimax polynomial for (e^r - 1 - r) / r^2 on -ln2/2..=ln2/2.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    e * f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_library_over_the_whole_range() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let truth = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - truth).abs() / truth;
            assert!(relative < 2.5e-7, "exp({x}) is off by {relative:e}");
            x += 0.003_7;
        }
    }

    #[test]
    fn it_stays_finite_outside_of_the_range() {
        assert!(exp(-1e30) < 1e-37 && exp(-1e30) > 0.0);
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }
}
