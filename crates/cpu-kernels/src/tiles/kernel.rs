//! Products of one group of rounded rows with a few strips.

use std::ptr::NonNull;

use half::f16;

use super::lanes::Lanes;
use super::portable::Portable;
use super::{STRIP_ROWS, Tile, TileKind, VECTOR, with_tile};
use crate::Level;
use crate::activations::Q8Block;

/// Strips that lie at equal distances.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strips {
    pub(crate) start: *const u8,
    /// Bytes from one to the next.
    pub(crate) stride: usize,
}

/// Where the results of some strips go: 16 for each strip and row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    pub(crate) start: *mut f32,
    /// Elements from a row to the next.
    pub(crate) row_stride: usize,
    /// Elements from a strip to the next.
    pub(crate) strip_stride: usize,
    /// What is added to each output, at the same distances as the strips.
    pub(crate) bias: Option<NonNull<f32>>,
    /// Whether results are added to what is there.
    pub(crate) add: bool,
}

/// Multiplies a group of rows (its blocks as [`Activations`](crate::Activations) holds them) with strips of
/// `blocks` tiles.
///
/// # Safety
/// The processor has the level, the strips and the group's blocks are of that length, and everything that `Out` names
/// is valid and touched by nobody else.
pub(crate) type StripKernel = unsafe fn(strips: Strips, blocks: usize, x: *const Q8Block, out: Out);

/// Most rows that pass over the weights together in a step of `rows`.
pub(crate) fn group_rows(level: Level, rows: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if super::amx::is_worth(level, rows) {
        return super::amx::ROWS;
    }
    let most = match level {
        Level::Portable | Level::Avx2 | Level::AvxVnni => 4,
        Level::Avx512 | Level::Amx => 12,
    };
    rows.clamp(1, most)
}

/// How many strips a kernel for so many rows takes at once, at most. Processors with a tile unit read several streams
/// faster than one, which matters where rows are so few that memory is the limit; the others read one stream, asked for
/// far ahead, as fast as memory answers at all.
pub(crate) fn strips_at_once(level: Level, rows: usize) -> usize {
    if level == Level::Amx && rows <= 2 { 4 } else { 1 }
}

/// The kernel for a kind of tiles, `rows` in a group and `strips` at once.
///
/// # Panics
/// There is none: rows are more than [`group_rows`], or strips neither 1 nor [`strips_at_once`].
pub(crate) fn kernel(level: Level, kind: TileKind, rows: usize, strips: usize) -> StripKernel {
    macro_rules! choose {
        ($wrapper:ident: $($rows:literal x $strips:literal),*) => {
            match (rows, strips) {
                $(($rows, $strips) => with_tile!(kind, K => $wrapper::<K, $rows, $strips>),)*
                _ => unreachable!("no kernel for {rows} rows and {strips} strips"),
            }
        };
    }
    match level {
        Level::Portable => choose!(portable: 1 x 1, 2 x 1, 3 x 1, 4 x 1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => choose!(avx2: 1 x 1, 2 x 1, 3 x 1, 4 x 1),
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => choose!(avx_vnni: 1 x 1, 2 x 1, 3 x 1, 4 x 1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => choose!(avx512: 1 x 4, 1 x 1, 2 x 4, 2 x 1, 3 x 1, 4 x 1, 5 x 1, 6 x 1, 7 x 1,
            8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("`Kernels` refuses levels that the processor lacks"),
    }
}

/// # Safety
/// As [`StripKernel`].
unsafe fn portable<K: Tile, const R: usize, const S: usize>(
    strips: Strips,
    blocks: usize,
    x: *const Q8Block,
    out: Out,
) {
    // SAFETY: the same contract.
    unsafe { run::<Portable, K, R, S>(strips, blocks, x, out) }
}

/// # Safety
/// As [`StripKernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<K: Tile, const R: usize, const S: usize>(strips: Strips, blocks: usize, x: *const Q8Block, out: Out) {
    // SAFETY: the same contract.
    unsafe { run::<super::x86::Avx2, K, R, S>(strips, blocks, x, out) }
}

/// # Safety
/// As [`StripKernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn avx_vnni<K: Tile, const R: usize, const S: usize>(
    strips: Strips,
    blocks: usize,
    x: *const Q8Block,
    out: Out,
) {
    // SAFETY: the same contract.
    unsafe { run::<super::x86::AvxVnni, K, R, S>(strips, blocks, x, out) }
}

/// # Safety
/// As [`StripKernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512<K: Tile, const R: usize, const S: usize>(strips: Strips, blocks: usize, x: *const Q8Block, out: Out) {
    // SAFETY: the same contract.
    unsafe { run::<super::x86::Avx512, K, R, S>(strips, blocks, x, out) }
}

/// Repeats a statement for each row below a constant. A loop over so much is not unrolled by the compiler, and would
/// keep sums in memory.
macro_rules! for_each_row {
    ($row:ident < $rows:ident => $body:expr) => {
        for_each_row!(@ $row < $rows => $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $row:ident < $rows:ident => $body:expr; $($index:literal)*) => {
        $(if $index < $rows {
            let $row = $index;
            $body;
        })*
    };
}

/// Registers that make up the 16 rows of a strip, at most.
const MAX_PARTS: usize = 2;
/// How far ahead of its use a tile is asked for, all strips that are read at once taken together: as much as a core can
/// have under way.
const PREFETCH_BYTES: usize = 10 * 1024;

/// # Safety
/// As [`StripKernel`], and the processor has `L`.
#[inline(always)]
unsafe fn run<L: Lanes, K: Tile, const R: usize, const S: usize>(
    strips: Strips,
    blocks: usize,
    x: *const Q8Block,
    out: Out,
) {
    let parts = STRIP_ROWS / L::LANES;
    // Where registers are few, several rows pass over the parts of a strip one after the other.
    let at_once = if R <= 2 { parts } else { 1 };
    // SAFETY: all reads stay in the strips and the group by the caller's promise, all writes in `out`.
    unsafe {
        for first in (0..parts).step_by(at_once) {
            let mut x = x;
            let mut sums = [[[L::no_floats(); R]; MAX_PARTS]; S];
            for block in 0..blocks {
                for (s, sums) in sums.iter_mut().enumerate() {
                    let tile = strips.start.add(s * strips.stride + block * K::LAYOUT.bytes());
                    for line in 0..K::LAYOUT.bytes().div_ceil(64) {
                        L::prefetch(tile.wrapping_add(PREFETCH_BYTES / S + line * 64));
                    }
                    for (part, sums) in sums.iter_mut().enumerate().take(at_once) {
                        let at = Part::<L, K>::new(tile, first + part);
                        if L::WIDE && R > 2 {
                            at.many_rows(x, sums);
                        } else {
                            at.few_rows(x, sums);
                        }
                    }
                }
                x = x.add(R);
            }
            for (s, sums) in sums.iter().enumerate() {
                for (part, sums) in sums.iter().enumerate().take(at_once) {
                    let col = s * out.strip_stride + (first + part) * L::LANES;
                    for_each_row!(row < R => store::<L>(sums[row], out, col, row));
                }
            }
        }
    }
}

/// Writes the results of a row that belong `col` elements behind the start of the output.
///
/// # Safety
/// As [`StripKernel`], and the processor has `L`.
#[inline(always)]
pub(super) unsafe fn store<L: Lanes>(sum: L::Floats, out: Out, col: usize, row: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let to = out.start.add(row * out.row_stride + col);
        let mut sum = sum;
        if let Some(bias) = out.bias {
            sum = L::add(sum, L::load_floats(bias.as_ptr().add(col)));
        }
        if out.add {
            sum = L::add(L::load_floats(to), sum);
        }
        L::store(sum, to);
    }
}

/// The rows of a tile that fill one register.
pub(super) struct Part<L: Lanes, K: Tile> {
    /// The first byte of these rows in the tile's first vector.
    vectors: *const u8,
    scale: L::Floats,
    second: L::Floats,
    kind: std::marker::PhantomData<K>,
}

impl<L: Lanes, K: Tile> Part<L, K> {
    /// # Safety
    /// The processor has `L`, and a tile of kind `K` starts at the pointer. That holds for the methods, too.
    #[inline(always)]
    pub(super) unsafe fn new(tile: *const u8, part: usize) -> Self {
        let layout = K::LAYOUT;
        // SAFETY: the caller's promise; a part has `LANES` of the 16 scales.
        unsafe {
            let halves = |at: usize| L::load_halves(tile.add(at).cast::<f16>().add(part * L::LANES));
            Self {
                vectors: tile.add(part * 4 * L::LANES),
                scale: halves(layout.scales()),
                second: if layout.minimum || layout.half_scales {
                    halves(layout.second())
                } else {
                    L::no_floats()
                },
                kind: std::marker::PhantomData,
            }
        }
    }

    /// Vectors `2 * pair` and `2 * pair + 1`.
    #[inline(always)]
    pub(super) unsafe fn pair(&self, pair: usize) -> [L::Bytes; 2] {
        // SAFETY: these bytes are the tile's.
        unsafe {
            let Some(planes) = K::LAYOUT.planes else {
                return [
                    L::load(self.vectors.add(2 * pair * VECTOR)),
                    L::load(self.vectors.add((2 * pair + 1) * VECTOR)),
                ];
            };
            let both = L::load(self.vectors.add(pair * VECTOR));
            let mut vectors = [L::low_nibbles(both), L::high_nibbles(both)];
            for plane in 0..planes {
                let bits = L::load(self.vectors.add((4 + plane) * VECTOR));
                for (odd, vector) in vectors.iter_mut().enumerate() {
                    *vector = L::with_bit(*vector, bits, (2 * pair + odd) as u32, (4 + plane) as u32);
                }
            }
            vectors
        }
    }

    /// Where the integer sum of the columns starts that `half` (all, without half scales) stands for.
    #[inline(always)]
    pub(super) unsafe fn start(x: *const Q8Block, half: usize) -> L::Ints {
        let layout = K::LAYOUT;
        // SAFETY: the caller vouches for the block.
        unsafe {
            let starts = &raw const (*x).starts;
            match layout.offset {
                0 => L::no_ints(),
                8 => L::splat_int(&raw const (*starts).offset_8),
                16 => L::splat_int(&raw const (*starts).offset_16),
                32 => L::splat_int(&raw const (*starts).halves_offset_32[half]),
                _ if L::SIGNED_BYTES => L::no_ints(),
                _ => L::splat_int(&raw const (*starts).offset_128),
            }
        }
    }

    /// Adds an integer sum of `half` to a row's sum.
    #[inline(always)]
    pub(super) unsafe fn finish(&self, ints: L::Ints, half: usize, x: *const Q8Block, sum: &mut L::Floats) {
        let layout = K::LAYOUT;
        // SAFETY: the caller vouches for the block.
        unsafe {
            let scale = if layout.half_scales && half == 1 {
                self.second
            } else {
                self.scale
            };
            let scale = L::multiply(scale, L::splat_float(&raw const (*x).scale));
            *sum = L::fma(L::to_floats(ints), scale, *sum);
            if layout.minimum {
                *sum = L::fma(self.second, L::splat_float(&raw const (*x).scaled_sum), *sum);
            }
        }
    }

    /// One block of each row: weights are unpacked pair by pair, as one goes through the columns.
    #[inline(always)]
    unsafe fn few_rows<const R: usize>(&self, x: *const Q8Block, sums: &mut [L::Floats; R]) {
        let halves = if K::LAYOUT.half_scales { 2 } else { 1 };
        let two_chains = L::WIDE;
        // SAFETY: the caller vouches for `R` blocks.
        unsafe {
            for half in 0..halves {
                let mut ints = [[L::no_ints(); 2]; R];
                for (row, ints) in ints.iter_mut().enumerate() {
                    ints[0] = Self::start(x.add(row), half);
                }
                for pair in half * 2..4 / halves + half * 2 {
                    let weights = self.pair(pair);
                    for (row, ints) in ints.iter_mut().enumerate() {
                        let values = (&raw const (*x.add(row)).values).cast::<i8>();
                        let x = [L::group(values.add(8 * pair)), L::group(values.add(8 * pair + 4))];
                        if K::LAYOUT.planes.is_none() {
                            ints[0] = L::dot_bytes(ints[0], weights[0], x[0]);
                            ints[1] = L::dot_bytes(ints[1], weights[1], x[1]);
                        } else if two_chains {
                            ints[0] = L::dot(ints[0], weights[0], x[0]);
                            ints[1] = L::dot(ints[1], weights[1], x[1]);
                        } else {
                            ints[0] = L::dot_pair(ints[0], weights, x);
                        }
                    }
                }
                for (row, (ints, sum)) in ints.into_iter().zip(&mut *sums).enumerate() {
                    let ints = if two_chains || K::LAYOUT.planes.is_none() {
                        L::add_ints(ints[0], ints[1])
                    } else {
                        ints[0]
                    };
                    self.finish(ints, half, x.add(row), sum);
                }
            }
        }
    }

    /// One block of each row: all weights of the tile stay unpacked in registers while the rows pass.
    #[inline(always)]
    unsafe fn many_rows<const R: usize>(&self, x: *const Q8Block, sums: &mut [L::Floats; R]) {
        // SAFETY: the caller vouches for `R` blocks.
        unsafe {
            let weights = [self.pair(0), self.pair(1), self.pair(2), self.pair(3)];
            for_each_row!(row < R => self.one_row(&weights, x.add(row), &mut sums[row]));
        }
    }

    /// One block of a row.
    #[inline(always)]
    unsafe fn one_row(&self, weights: &[[L::Bytes; 2]; 4], x: *const Q8Block, sum: &mut L::Floats) {
        let halves = if K::LAYOUT.half_scales { 2 } else { 1 };
        let pairs = 4 / halves;
        // SAFETY: the caller vouches for the block.
        unsafe {
            let values = (&raw const (*x).values).cast::<i8>();
            for half in 0..halves {
                let mut ints = Self::start(x, half);
                for (pair, &[even, odd]) in weights.iter().enumerate().skip(half * pairs).take(pairs) {
                    ints = L::dot_bytes(ints, even, L::group(values.add(8 * pair)));
                    ints = L::dot_bytes(ints, odd, L::group(values.add(8 * pair + 4)));
                }
                self.finish(ints, half, x, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::testing::{Numbers, raw};
    use crate::{Activations, Format, Forms, Kernels, Matrix};

    #[test]
    fn strips_that_are_multiplied_at_once_give_the_bits_of_single_ones() {
        if !Level::Avx512.is_available() {
            return;
        }
        let kernels = Kernels::new(Level::Avx512, NonZeroUsize::MIN).expect("the level is available");
        let (outputs, cols) = (64, 768);
        for format in Format::ALL.into_iter().filter(|format| format.is_quantised()) {
            for rows in [1, 2] {
                let mut numbers = Numbers::new(rows as u64);
                let raw = raw(format, outputs, cols, &mut numbers);
                let matrix = Matrix::pack(&kernels, format, outputs, cols, &raw).expect("a matrix");
                let mut x = Activations::new();
                let forms = Forms {
                    quantised: true,
                    float: false,
                };
                kernels.prepare(&numbers.floats(rows * cols), cols, None, forms, &mut x);
                let kind = TileKind::of(format).expect("quantised formats are tiles");
                let [together, apart] = [strips_at_once(Level::Amx, rows), 1].map(|at_once| {
                    let mut results = vec![0.0f32; rows * outputs];
                    for first in (0..outputs / STRIP_ROWS).step_by(at_once) {
                        let strips = Strips {
                            start: matrix.tiles()[first * matrix.strip_bytes()..].as_ptr(),
                            stride: matrix.strip_bytes(),
                        };
                        let out = Out {
                            start: results[first * STRIP_ROWS..].as_mut_ptr(),
                            row_stride: outputs,
                            strip_stride: STRIP_ROWS,
                            bias: None,
                            add: false,
                        };
                        let run = kernel(Level::Avx512, kind, rows, at_once);
                        // SAFETY: the processor has AVX-512; `at_once` strips, and results for them, are there.
                        unsafe { run(strips, cols / 32, x.blocks(x.group(0)).as_ptr(), out) };
                    }
                    results
                });
                assert_eq!(together, apart, "{format}, {rows} rows");
            }
        }
    }
}
