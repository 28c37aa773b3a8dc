//! Products of f32 rows with weights in halves: dot products of every row of one block with every row of another, in
//! register tiles.
//!
//! A tile keeps one accumulator register per (weight row, x row) pair and walks along k once: each register of weights
//! is converted once and used for every x row, each register of x for every weight row. Whatever the tile's shape, one
//! pair's products are summed in the same order, so a row's result does not depend on the rows beside it.

use crate::level::Level;
use crate::simd::{MAX_LANES, Portable, Simd};

/// A 16-bit float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfKind {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

/// A kind as a type, for kernels that are compiled once per kind.
trait Half {
    /// # Safety
    /// As the loads of [`Simd`].
    unsafe fn load<S: Simd>(from: *const u16) -> S::V;
}

struct F16;
struct Bf16;

impl Half for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::V {
        // SAFETY: the same contract.
        unsafe { S::load_f16(from) }
    }
}

impl Half for Bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::V {
        // SAFETY: the same contract.
        unsafe { S::load_bf16(from) }
    }
}

/// Two row-major blocks that share their inner length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    /// `x_rows` rows of `k` elements, `x_stride` apart.
    pub(crate) x: &'a [f32],
    pub(crate) x_rows: usize,
    pub(crate) x_stride: usize,
    /// What `w` is the bits of.
    pub(crate) kind: HalfKind,
    /// `w_rows` rows of `k` elements, `w_stride` apart.
    pub(crate) w: &'a [u16],
    pub(crate) w_rows: usize,
    pub(crate) w_stride: usize,
    pub(crate) k: usize,
}

impl Block<'_> {
    fn check(&self) {
        let fits = |len: usize, rows: usize, stride: usize| {
            rows == 0 || (stride >= self.k && (rows - 1).checked_mul(stride).is_some_and(|n| len >= n + self.k))
        };
        assert!(
            fits(self.x.len(), self.x_rows, self.x_stride),
            "x is shorter than its rows"
        );
        assert!(
            fits(self.w.len(), self.w_rows, self.w_stride),
            "w is shorter than its rows"
        );
    }
}

/// Writes the dot product of x row `i` and w row `j` to `out[i * out_stride + j]`.
///
/// # Panics
/// A block or `out` is shorter than its rows.
pub(crate) fn dot(level: Level, block: &Block<'_>, out: &mut [f32], out_stride: usize) {
    block.check();
    let wanted = match block.x_rows {
        0 => 0,
        rows => (rows - 1) * out_stride + block.w_rows,
    };
    assert!(out.len() >= wanted, "out is shorter than its rows");
    let out = out.as_mut_ptr();
    // SAFETY: a level other than portable is only ever held by `Kernels`, which has asked the processor for it; the
    // block's bounds are checked; every element written lies below `wanted`.
    unsafe {
        match (level, block.kind) {
            (Level::Portable, HalfKind::F16) => run::<Portable, F16>(block, out, out_stride),
            (Level::Portable, HalfKind::Bf16) => run::<Portable, Bf16>(block, out, out_stride),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2 | Level::AvxVnni, HalfKind::F16) => run_avx2::<F16>(block, out, out_stride),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2 | Level::AvxVnni, HalfKind::Bf16) => run_avx2::<Bf16>(block, out, out_stride),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Amx, HalfKind::F16) => run_avx512::<F16>(block, out, out_stride),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512 | Level::Amx, HalfKind::Bf16) => run_avx512::<Bf16>(block, out, out_stride),
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("`Kernels` refuses levels that the processor lacks"),
        }
    }
}

/// # Safety
/// As [`run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<H: Half>(block: &Block<'_>, out: *mut f32, out_stride: usize) {
    // SAFETY: the same contract.
    unsafe { run::<crate::simd::Avx2, H>(block, out, out_stride) }
}

/// # Safety
/// As [`run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn run_avx512<H: Half>(block: &Block<'_>, out: *mut f32, out_stride: usize) {
    // SAFETY: the same contract.
    unsafe { run::<crate::simd::Avx512, H>(block, out, out_stride) }
}

/// # Safety
/// The processor has `S`, `block` is checked, and for every `i < x_rows` and `j < w_rows`, `out + i * out_stride + j` is
/// writable and nobody else touches it meanwhile.
#[inline(always)]
unsafe fn run<S: Simd, H: Half>(block: &Block<'_>, out: *mut f32, out_stride: usize) {
    let most = if S::WIDE { 6 } else { 3 };
    // Groups of even size: 8 rows are 4 + 4, not 6 + 2.
    let groups = block.x_rows.div_ceil(most);
    let mut first = 0;
    for group in 0..groups {
        let rows = (block.x_rows - first).div_ceil(groups - group);
        let x = block.x[first * block.x_stride..].as_ptr();
        // SAFETY: rows `first..first + rows` exist in x and out.
        unsafe {
            let out = out.add(first * out_stride);
            match (S::WIDE, rows) {
                (_, 1) => strip::<S, H, 8, 1>(block, x, out, out_stride),
                (true, 2) => strip::<S, H, 8, 2>(block, x, out, out_stride),
                (true, 3) => strip::<S, H, 8, 3>(block, x, out, out_stride),
                (true, 4) => strip::<S, H, 6, 4>(block, x, out, out_stride),
                (true, 5) => strip::<S, H, 4, 5>(block, x, out, out_stride),
                (true, _) => strip::<S, H, 4, 6>(block, x, out, out_stride),
                (false, 2) => strip::<S, H, 4, 2>(block, x, out, out_stride),
                (false, _) => strip::<S, H, 4, 3>(block, x, out, out_stride),
            }
        }
        first += rows;
    }
}

/// All weight rows against `XR` x rows.
///
/// # Safety
/// As [`run`]; `XR` x rows start at `x`, and `out` is where the first of them goes.
#[inline(always)]
unsafe fn strip<S: Simd, H: Half, const WR: usize, const XR: usize>(
    block: &Block<'_>,
    x: *const f32,
    out: *mut f32,
    out_stride: usize,
) {
    // A tile's rows lie far apart, so that walking through a tile after the other reads `WR` long streams: memory
    // answers several streams faster than one.
    let apart = block.w_rows / WR;
    // SAFETY: the rows `row + r * apart` for r below `WR` exist in w and out, and so do those behind them.
    unsafe {
        for row in 0..apart {
            let w = block.w.as_ptr().add(row * block.w_stride);
            tile::<S, H, WR, XR>(block, (w, apart), x, out.add(row), out_stride);
        }
        for row in apart * WR..block.w_rows {
            let w = block.w.as_ptr().add(row * block.w_stride);
            tile::<S, H, 1, XR>(block, (w, 1), x, out.add(row), out_stride);
        }
    }
}

/// `WR` weight rows, `apart` rows from each other, against `XR` x rows.
///
/// # Safety
/// As [`run`]; the first weight row starts at `w`, `XR` x rows at `x`.
#[inline(always)]
unsafe fn tile<S: Simd, H: Half, const WR: usize, const XR: usize>(
    block: &Block<'_>,
    (w, apart): (*const u16, usize),
    x: *const f32,
    out: *mut f32,
    out_stride: usize,
) {
    let w_step = apart * block.w_stride;
    // What follows in memory is what the caller multiplies with next.
    let ahead = block.w_rows * block.w_stride;
    // SAFETY: all reads stay below k in rows that exist, by the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); XR]; WR];
        let whole = block.k - block.k % S::LANES;
        let mut i = 0;
        while i < whole {
            let mut xs = [S::zero(); XR];
            for (j, xs) in xs.iter_mut().enumerate() {
                *xs = S::load(x.add(j * block.x_stride + i));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let w = w.add(r * w_step + i);
                S::prefetch(w.wrapping_add(ahead));
                let weights = H::load::<S>(w);
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(weights, xs[j], *sum);
                }
            }
            i += S::LANES;
        }
        if i < block.k {
            let rest = block.k - i;
            for (r, sums) in sums.iter_mut().enumerate() {
                let mut weights = [0; MAX_LANES];
                std::ptr::copy_nonoverlapping(w.add(r * w_step + i), weights.as_mut_ptr(), rest);
                let weights = H::load::<S>(weights.as_ptr());
                for (j, sum) in sums.iter_mut().enumerate() {
                    let mut xs = [0.0f32; MAX_LANES];
                    std::ptr::copy_nonoverlapping(x.add(j * block.x_stride + i), xs.as_mut_ptr(), rest);
                    *sum = S::fma(weights, S::load(xs.as_ptr()), *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                *out.add(j * out_stride + r * apart) = S::sum(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    /// Values whose products and sums of a few hundred are exact in f32: small integers.
    fn exact(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) % 17) as f32 - 8.0
            })
            .collect()
    }

    fn number(kind: HalfKind, bits: u16) -> f32 {
        match kind {
            HalfKind::F16 => f16::from_bits(bits).to_f32(),
            HalfKind::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    fn bits(kind: HalfKind, value: f32) -> u16 {
        match kind {
            HalfKind::F16 => f16::from_f32(value).to_bits(),
            HalfKind::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    fn kind() -> impl Strategy<Value = HalfKind> {
        prop_oneof![Just(HalfKind::F16), Just(HalfKind::Bf16)]
    }

    fn plain(block: &Block<'_>, i: usize, j: usize) -> f32 {
        (0..block.k)
            .map(|n| block.x[i * block.x_stride + n] * number(block.kind, block.w[j * block.w_stride + n]))
            .sum()
    }

    proptest! {
        #[test]
        fn every_level_equals_the_plain_sum_for_any_shape(
            x_rows in 0usize..14, w_rows in 0usize..20, k in 0usize..70, pad in 0usize..3, seed: u64, kind in kind(),
        ) {
            let stride = k + pad;
            let x = exact(x_rows * stride + k, seed);
            let w: Vec<u16> = exact(w_rows * stride + k, !seed).into_iter().map(|w| bits(kind, w)).collect();
            let block = Block { x: &x, x_rows, x_stride: stride, kind, w: &w, w_rows, w_stride: stride, k };
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let mut out = vec![f32::NAN; x_rows * (w_rows + 1)];
                dot(level, &block, &mut out, w_rows + 1);
                for i in 0..x_rows {
                    for j in 0..w_rows {
                        prop_assert_eq!(out[i * (w_rows + 1) + j], plain(&block, i, j), "{} at {},{}", level, i, j);
                    }
                    prop_assert!(out[i * (w_rows + 1) + w_rows].is_nan(), "the gap between rows is untouched");
                }
            }
        }

        #[test]
        fn a_row_s_result_does_not_depend_on_its_neighbours(
            rows in 2usize..20, w_rows in 1usize..30, k in 1usize..200, kind in kind(), values in prop::collection::vec(-2.0f32..2.0, 4000),
        ) {
            let x = &values[..rows * k % 2000 + 2000];
            let x: Vec<f32> = (0..rows * k).map(|i| x[i % x.len()]).collect();
            let w: Vec<u16> = (0..w_rows * k).map(|i| bits(kind, values[(i * 7) % values.len()])).collect();
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let all = Block { x: &x, x_rows: rows, x_stride: k, kind, w: &w, w_rows, w_stride: k, k };
                let mut together = vec![0.0; rows * w_rows];
                dot(level, &all, &mut together, w_rows);
                for row in 0..rows {
                    let one = Block { x: &x[row * k..], x_rows: 1, ..all };
                    let mut alone = vec![0.0; w_rows];
                    dot(level, &one, &mut alone, w_rows);
                    prop_assert_eq!(&alone, &together[row * w_rows..][..w_rows], "{} row {}", level, row);
                }
            }
        }
    }
}
