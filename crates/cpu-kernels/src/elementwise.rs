//! The per-row operations between products: norms, sums, activations, caps.
//!
//! Written as plain loops and compiled once per level, so that the compiler makes vector code of them. No level changes
//! the order of an element's arithmetic, so all levels agree bit for bit.

use crate::exp::exp;
use crate::level::Level;
use crate::shared::SharedOut;
use crate::{Kernels, RmsNorm};

/// Elements below which a dispatch costs more than it saves.
const WORTH_SHARING: usize = 32 * 1024;
/// Elements that one task handles.
const PIECE: usize = 8 * 1024;
/// Partial sums of a reduction.
const LANES: usize = 16;

/// Defines a function of a level and the given arguments, whose body is compiled for each instruction set. What the
/// body calls must be `#[inline(always)]` to be compiled for it, too.
macro_rules! leveled {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name(level: $crate::level::Level, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) $(-> $result)? { body($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            fn avx512($($arg: $type),*) $(-> $result)? { body($($arg),*) }

            match level {
                // SAFETY: a level is only ever held by `Kernels`, which has asked the processor for it.
                #[cfg(target_arch = "x86_64")]
                $crate::level::Level::Avx2 | $crate::level::Level::AvxVnni => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::level::Level::Avx512 | $crate::level::Level::Amx => unsafe { avx512($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use leveled;

/// The nonlinearity of a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// GELU by its tanh approximation: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// GELU: `x / 2 * (1 + erf(x / sqrt(2)))`, within `2e-7 * (1 + |x|)`.
    Gelu,
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    // tanh(u) = 1 - 2 / (e^2u + 1), so x * (1 + tanh(u)) / 2 = x / (1 + e^-2u).
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let twice_u = TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-twice_u))
}

/// With `erf` by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, whose error is below 1.5e-7.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    // 1 - erf(z)
    let rest = p * t * exp(-z * z);
    let half = 0.5 * x.abs() * rest;
    // erf is odd: x / 2 * (1 + erf(|x|...)) is x - half for x > 0 and -half else.
    x.max(0.0) - half
}

/// `cap * tanh(x / cap)`, given the cap's inverse, within `2e-7 * cap`.
#[inline(always)]
pub(crate) fn softcapped(x: f32, cap: f32, inverse: f32) -> f32 {
    // tanh(u) = 1 - 2 / (e^2u + 1)
    cap * (1.0 - 2.0 / (exp(2.0 * x * inverse) + 1.0))
}

/// `1 / sqrt(mean(x^2) + epsilon)`, the squares summed in the lanes of their places.
#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

/// The norm of one row, in its place.
#[inline(always)]
pub(crate) fn rms_norm_in_place(x: &mut [f32], norm: RmsNorm<'_>) {
    let scale = inverse_rms(x, norm.epsilon);
    for (x, weight) in x.iter_mut().zip(norm.weights) {
        *x = *x * scale * weight;
    }
}

leveled! {
    /// `1 / sqrt(mean(x^2) + epsilon)`: what an RMS norm multiplies a row by, before its weights.
    fn rms_scale(x: &[f32], epsilon: f32) -> f32 {
        inverse_rms(x, epsilon)
    }
}

leveled! {
    fn add_normed_row(x: &mut [f32], y: &[f32], norm: RmsNorm<'_>) {
        let scale = inverse_rms(y, norm.epsilon);
        for ((x, y), weight) in x.iter_mut().zip(y).zip(norm.weights) {
            *x += y * scale * weight;
        }
    }
}

leveled! {
    fn silu_times(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = silu(*gate) * up;
        }
    }
}

leveled! {
    fn gelu_tanh_times(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = gelu_tanh(*gate) * up;
        }
    }
}

leveled! {
    fn gelu_times(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = gelu(*gate) * up;
        }
    }
}

leveled! {
    fn add_to(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

leveled! {
    /// `x = cap * tanh(x / cap)`.
    fn softcap_slice(x: &mut [f32], cap: f32) {
        let inverse = 1.0 / cap;
        for x in x {
            *x = softcapped(*x, cap, inverse);
        }
    }
}

impl Activation {
    /// `gate = activation(gate) * up`.
    pub(crate) fn gate(self, level: Level, gate: &mut [f32], up: &[f32]) {
        match self {
            Self::Silu => silu_times(level, gate, up),
            Self::GeluTanh => gelu_tanh_times(level, gate, up),
            Self::Gelu => gelu_times(level, gate, up),
        }
    }
}

impl Kernels {
    /// `x += y`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "the sum's sides have one length");
        self.in_pieces(x, PIECE, |first, x| add_to(self.level, x, &y[first..][..x.len()]));
    }

    /// `x += rms_norm(y)`, for each row of `width` elements.
    ///
    /// # Panics
    /// The lengths differ, or are not a whole number of rows, or the norm has not `width` weights.
    pub fn add_normed(&self, x: &mut [f32], y: &[f32], width: usize, norm: RmsNorm<'_>) {
        assert_eq!(x.len(), y.len(), "the sum's sides have one length");
        assert_eq!(
            norm.weights.len(),
            width,
            "the norm has a weight for each element of a row"
        );
        assert!(x.len().is_multiple_of(width), "x holds whole rows");
        let rows = (PIECE / width).max(1) * width;
        self.in_pieces(x, rows, |first, x| {
            let y = &y[first..][..x.len()];
            for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                add_normed_row(self.level, x, y, norm);
            }
        });
    }

    /// `x = cap * tanh(x / cap)`, within `2e-7 * cap`.
    pub fn softcap(&self, x: &mut [f32], cap: f32) {
        self.in_pieces(x, PIECE, |_first, x| softcap_slice(self.level, x, cap));
    }

    /// Calls `work(offset, piece)` on pieces of `x` that are `length` long, the last one shorter; shared among threads
    /// when `x` is long.
    fn in_pieces(&self, x: &mut [f32], length: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        if x.len() < WORTH_SHARING {
            work(0, x);
            return;
        }
        let len = x.len();
        let shared = SharedOut::new(x);
        self.pool.for_each(len.div_ceil(length), &|piece| {
            let first = piece * length;
            let length = length.min(len - first);
            // SAFETY: the pieces of different tasks do not overlap, and `window` checks that this one is inside.
            let x = unsafe { std::slice::from_raw_parts_mut(shared.window(first, length), length) };
            work(first, x);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    /// Lengths below and above what is shared among threads, no multiples of anything.
    const LENGTHS: [usize; 2] = [1_003, 70_001];

    fn kernels() -> impl Iterator<Item = Kernels> {
        Level::ALL
            .into_iter()
            .filter(|level| level.is_available())
            .map(|level| Kernels::new(level, NonZeroUsize::MIN.saturating_add(1)).expect("two threads"))
    }

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin() * 6.0).collect()
    }

    #[track_caller]
    fn assert_close(left: &[f32], right: impl IntoIterator<Item = f64>) {
        let mut right = right.into_iter();
        for (i, left) in left.iter().enumerate() {
            let right = right.next().expect("as many on both sides");
            assert!(
                (f64::from(*left) - right).abs() <= 2e-6 * (1.0 + right.abs()),
                "element {i}: {left} is not {right}"
            );
        }
    }

    #[test]
    fn sums_are_added_in_place() {
        for kernels in kernels() {
            for len in LENGTHS {
                let (mut x, y) = (wave(len), vec![1.0; len]);
                kernels.add(&mut x, &y);
                assert_close(&x, wave(len).into_iter().map(|x| f64::from(x) + 1.0));
            }
        }
    }

    #[test]
    fn a_normed_sum_divides_each_row_by_its_root_mean_square() {
        for kernels in kernels() {
            for (rows, width) in [(3, 37), (700, 65), (3, 20_000)] {
                let (mut x, y, weights) = (vec![0.5; rows * width], wave(rows * width), wave(width));
                let norm = RmsNorm {
                    weights: &weights,
                    epsilon: 1e-5,
                };
                kernels.add_normed(&mut x, &y, width, norm);
                let truth = y.chunks(width).flat_map(|y| {
                    let mean = y.iter().map(|&y| f64::from(y).powi(2)).sum::<f64>() / width as f64;
                    let scale = 1.0 / (mean + 1e-5).sqrt();
                    y.iter()
                        .zip(&weights)
                        .map(move |(&y, &w)| 0.5 + f64::from(y) * scale * f64::from(w))
                });
                assert_close(&x, truth);
            }
        }
    }

    #[test]
    fn a_row_s_scale_is_the_inverse_of_its_root_mean_square() {
        let x = wave(577);
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 577.0;
        for kernels in kernels() {
            assert_close(&[rms_scale(kernels.level, &x, 1e-6)], [1.0 / (mean + 1e-6).sqrt()]);
        }
    }

    #[test]
    fn a_capped_value_stays_below_the_cap_and_small_ones_stay_themselves() {
        for kernels in kernels() {
            for len in LENGTHS {
                let mut x = wave(len);
                x[0] = 1e9;
                x[1] = -1e9;
                kernels.softcap(&mut x, 3.0);
                assert_eq!(x[..2], [3.0, -3.0]);
                assert_close(
                    &x[2..],
                    wave(len).into_iter().skip(2).map(|x| 3.0 * (f64::from(x) / 3.0).tanh()),
                );
            }
        }
    }

    /// The error function by its Maclaurin series, which for such small arguments loses nothing.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn gates_follow_their_formulas() {
        let (x, up) = (wave(10_007), vec![2.0; 10_007]);
        let gelu_tanh =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
        let formulas: [(Activation, &dyn Fn(f64) -> f64); 3] = [
            (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
            (Activation::GeluTanh, &gelu_tanh),
            (Activation::Gelu, &|x| 0.5 * x * (1.0 + erf(x / 2.0f64.sqrt()))),
        ];
        for kernels in kernels() {
            for (activation, formula) in formulas {
                let mut gate = x.clone();
                activation.gate(kernels.level, &mut gate, &up);
                assert_close(&gate, x.iter().map(|&x| formula(f64::from(x)) * 2.0));
            }
        }
    }

    #[test]
    fn gates_go_to_their_limits_far_out() {
        for kernels in kernels() {
            for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
                let mut gate = [1e4, -1e4, 0.0];
                activation.gate(kernels.level, &mut gate, &[1.0; 3]);
                assert_eq!((gate[0], gate[2]), (1e4, 0.0), "{activation:?}");
                assert!(gate[1].abs() < 1e-30, "{activation:?}: {}", gate[1]);
            }
        }
    }
}
