//! The per-row operations between products: norms, rotary positions, gates.
//!
//! Written as plain loops and compiled once per level, so that the compiler makes vector code of them.

use rayon::prelude::*;

use crate::Kernels;
use crate::exp::exp;
use crate::level::Level;

/// Elements below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 32 * 1024;
/// Elements that one task handles.
const PIECE: usize = 8 * 1024;
/// Partial sums of a reduction.
const LANES: usize = 16;

/// Defines a function of a level and the given arguments, whose body is compiled for each level.
macro_rules! leveled {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name(level: Level, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $type),*) $(-> $result)? { body($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma,f16c")]
            fn avx512($($arg: $type),*) $(-> $result)? { body($($arg),*) }

            match level {
                // SAFETY: a level is only ever held by `Kernels`, which has asked the processor for it.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}

leveled! {
    fn dot_self(x: &[f32]) -> f32 {
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *sum += x * x;
            }
        }
        sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
    }
}

leveled! {
    fn scale_by(out: &mut [f32], x: &[f32], weight: &[f32], scale: f32) {
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

leveled! {
    fn silu_times(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

leveled! {
    fn gelu_times(gate: &mut [f32], up: &[f32]) {
        // tanh(u) = 1 - 2 / (e^2u + 1), so x * (1 + tanh(u)) / 2 = x / (1 + e^-2u).
        const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
        for (gate, up) in gate.iter_mut().zip(up) {
            let x = *gate;
            let twice_u = TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
            *gate = x / (1.0 + exp(-twice_u)) * up;
        }
    }
}

leveled! {
    /// Turns scores into weights: `x[i] = e^(x[i] - top)`; returns their sum.
    fn exp_minus(x: &mut [f32], top: f32) -> f32 {
        let mut sums = [0.0f32; LANES];
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp(*x - top);
                *sum += *x;
            }
        }
        let mut sum = sums.iter().sum::<f32>();
        for x in rest {
            *x = exp(*x - top);
            sum += *x;
        }
        sum
    }
}

leveled! {
    fn largest(x: &[f32]) -> f32 {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (top, &x) in tops.iter_mut().zip(chunk) {
                *top = if x > *top { x } else { *top };
            }
        }
        tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top })
    }
}

leveled! {
    fn add_to(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

/// The nonlinearity of a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

/// Which elements of a head form the pairs that rotary positions turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: `2i` and `2i + 1`.
    Interleaved,
    /// Across the halves: `i` and `i + n / 2`.
    Halves,
}

/// Cosines and sines of the rows of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTable {
    pairs: usize,
    /// Per row, `pairs` cosines.
    cos: Vec<f32>,
    /// Per row, `pairs` sines.
    sin: Vec<f32>,
}

impl RopeTable {
    /// The angles `position * frequency` for each row's position and each pair's frequency (radians per token).
    pub fn new(positions: &[usize], frequencies: &[f64]) -> Self {
        let (sin, cos) = positions
            .iter()
            .flat_map(|&position| {
                frequencies
                    .iter()
                    .map(move |frequency| (position as f64 * frequency).sin_cos())
            })
            .map(|(sin, cos)| (sin as f32, cos as f32))
            .unzip();
        Self {
            pairs: frequencies.len(),
            cos,
            sin,
        }
    }

    /// Pairs of a head that are turned; the rest of a head stays as it is.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Row-major `[rows, pairs]` cosines.
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Row-major `[rows, pairs]` sines.
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }
}

impl Kernels {
    /// Root-mean-square norm of each group of `weight.len()` elements: `out = x / sqrt(mean(x^2) + epsilon) * weight`.
    ///
    /// # Panics
    /// `x` is not a whole number of groups, or `out` has another length.
    pub fn rms_norm(self, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let width = weight.len();
        assert!(
            x.len() == out.len() && x.len().is_multiple_of(width),
            "x and out hold whole groups"
        );
        let norm = |x: &[f32], out: &mut [f32]| {
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let mean = dot_self(self.level, x) / width as f32;
                scale_by(self.level, out, x, weight, 1.0 / (mean + epsilon).sqrt());
            }
        };
        let piece = (PIECE / width).max(1) * width;
        if x.len() < WORTH_SHARING {
            norm(x, out);
        } else {
            x.par_chunks(piece)
                .zip(out.par_chunks_mut(piece))
                .for_each(|(x, out)| norm(x, out));
        }
    }

    /// `gate = activation(gate) * up`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn gate(self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up go together");
        let apply = |gate: &mut [f32], up: &[f32]| match activation {
            Activation::Silu => silu_times(self.level, gate, up),
            Activation::GeluTanh => gelu_times(self.level, gate, up),
        };
        if gate.len() < WORTH_SHARING {
            apply(gate, up);
        } else {
            gate.par_chunks_mut(PIECE)
                .zip(up.par_chunks(PIECE))
                .for_each(|(gate, up)| apply(gate, up));
        }
    }

    /// `x += y`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn add(self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "the sum's sides have one length");
        add_to(self.level, x, y);
    }

    /// Turns each head of each row by its row's angles.
    ///
    /// # Panics
    /// `x` is not as many rows of whole heads as the table has, or a head is shorter than the pairs to turn.
    pub fn rotate(self, x: &mut [f32], head_dim: usize, table: &RopeTable, style: RopeStyle) {
        if table.pairs == 0 || x.is_empty() {
            return;
        }
        let rows = table.cos.len() / table.pairs;
        assert!(
            x.len().is_multiple_of(rows * head_dim) && head_dim >= 2 * table.pairs,
            "rows hold whole heads"
        );
        let width = x.len() / rows;
        let turn = |(row, x): (usize, &mut [f32])| {
            let cos = &table.cos[row * table.pairs..][..table.pairs];
            let sin = &table.sin[row * table.pairs..][..table.pairs];
            for head in x.chunks_exact_mut(head_dim) {
                match style {
                    RopeStyle::Interleaved => turn_neighbours(self.level, head, cos, sin),
                    RopeStyle::Halves => turn_halves(self.level, head, cos, sin),
                }
            }
        };
        if x.len() < WORTH_SHARING {
            x.chunks_exact_mut(width).enumerate().for_each(turn);
        } else {
            let piece = (PIECE / width).max(1);
            x.par_chunks_exact_mut(width)
                .enumerate()
                .with_min_len(piece)
                .for_each(turn);
        }
    }
}

leveled! {
    fn turn_neighbours(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}

leveled! {
    fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = head.split_at_mut(cos.len());
        for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
            let (a, b) = (*low, *high);
            *low = a * cos - b * sin;
            *high = a * sin + b * cos;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> impl Iterator<Item = Kernels> {
        Level::ALL
            .into_iter()
            .filter_map(|level| Kernels::with_level(level).ok())
    }

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin() * 3.0).collect()
    }

    #[track_caller]
    fn assert_close(left: &[f32], right: &[f64]) {
        assert_eq!(left.len(), right.len());
        for (i, (l, r)) in left.iter().zip(right).enumerate() {
            assert!(
                (f64::from(*l) - r).abs() <= 2e-6 * (1.0 + r.abs()),
                "element {i}: {l} is not {r}"
            );
        }
    }

    #[test]
    fn the_norm_divides_each_group_by_its_root_mean_square() {
        for kernels in kernels() {
            // The second size is shared among threads.
            for (groups, width) in [(3, 37), (700, 64)] {
                let (x, weight) = (wave(groups * width), wave(width));
                let mut out = vec![0.0; x.len()];
                kernels.rms_norm(&x, &weight, 1e-5, &mut out);
                let truth: Vec<f64> = x
                    .chunks(width)
                    .flat_map(|x| {
                        let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / width as f64;
                        let scale = 1.0 / (mean + 1e-5).sqrt();
                        x.iter()
                            .zip(&weight)
                            .map(move |(x, w)| f64::from(*x) * scale * f64::from(*w))
                    })
                    .collect();
                assert_close(&out, &truth);
            }
        }
    }

    #[test]
    fn the_gates_follow_their_formulas() {
        let x = wave(40_000);
        let up = wave(40_000);
        for kernels in kernels() {
            let mut silu = x.clone();
            kernels.gate(Activation::Silu, &mut silu, &up);
            let truth = |f: fn(f64) -> f64| -> Vec<f64> {
                x.iter()
                    .zip(&up)
                    .map(|(x, up)| f(f64::from(*x)) * f64::from(*up))
                    .collect()
            };
            assert_close(&silu, &truth(|x| x / (1.0 + (-x).exp())));
            let mut gelu = x.clone();
            kernels.gate(Activation::GeluTanh, &mut gelu, &up);
            let tanh =
                |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            assert_close(&gelu, &truth(tanh));
        }
    }

    #[test]
    fn rotation_turns_each_pair_by_its_angle_and_leaves_the_rest_of_a_head() {
        let frequencies = [0.5, 0.25];
        let table = RopeTable::new(&[0, 3], &frequencies);
        // Two rows of two heads of six elements: four turned, two left.
        let x = wave(24);
        for kernels in kernels() {
            for (style, pairs) in [
                (RopeStyle::Interleaved, [(0, 1), (2, 3)]),
                (RopeStyle::Halves, [(0, 2), (1, 3)]),
            ] {
                let mut turned = x.clone();
                kernels.rotate(&mut turned, 6, &table, style);
                let mut truth: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                for head in [12, 18] {
                    for ((a, b), frequency) in pairs.into_iter().zip(frequencies) {
                        let (sin, cos) = (3.0 * frequency).sin_cos();
                        let (l, r) = (f64::from(x[head + a]), f64::from(x[head + b]));
                        truth[head + a] = l * cos - r * sin;
                        truth[head + b] = l * sin + r * cos;
                    }
                }
                assert_close(&turned, &truth);
            }
        }
    }

    #[test]
    fn softmax_pieces_agree_with_the_plain_ones() {
        let x = wave(53);
        for kernels in kernels() {
            let top = largest(kernels.level, &x);
            assert_eq!(top, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut weights = x.clone();
            let sum = exp_minus(kernels.level, &mut weights, top);
            let truth: Vec<f64> = x.iter().map(|&x| f64::from(x - top).exp()).collect();
            assert_close(&weights, &truth);
            assert_close(&[sum], &[truth.iter().sum()]);
        }
    }
}
