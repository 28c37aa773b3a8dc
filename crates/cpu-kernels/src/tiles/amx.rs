//! Products of tiles by the tile unit: 16 rows times 16 outputs, 32 columns in one instruction.
//!
//! A tile with whole bytes is the unit's second operand as it lies in memory; nibbles are unpacked first. The unit gives
//! the exact sum of each block, to which AVX-512 applies the scales in the order that every level keeps.

use std::arch::x86_64::_mm512_store_si512;

use super::kernel::{Out, Part, store};
use super::lanes::Lanes;
use super::x86::Avx512;
use super::{Tile, TileKind, VECTOR, with_tile};
use crate::Level;
use crate::activations::Q8Block;
use crate::amx::{TileShapes, TileUnit};

/// Rows that the unit takes at once.
pub(crate) const ROWS: usize = 16;
/// Rows from which on the unit is worth its set-up and the rows that it computes for nothing.
const WORTH_ROWS: usize = 9;

/// Whether a step of so many rows is the tile unit's.
pub(crate) fn is_worth(level: Level, rows: usize) -> bool {
    level == Level::Amx && rows >= WORTH_ROWS
}

/// Registers 0 and 1 hold sums, 2 and 3 the operands of 32 columns, 4 and 5 those of 16.
pub(crate) const SHAPES: TileShapes =
    TileShapes::new([(16, 64), (16, 64), (16, 32), (8, 64), (16, 16), (4, 64), (0, 0), (0, 0)]);

/// Bytes from a row's block to the next row's.
const BLOCK_STRIDE: usize = size_of::<Q8Block>();

/// What the unit and the vector registers hand to each other for one block.
#[repr(C, align(64))]
struct Exchange {
    /// Unpacked weights.
    weights: [u8; 8 * VECTOR],
    /// Integer sums, of both halves of the columns where those have scales of their own: `[half][row][output]`.
    sums: [[[i32; 16]; ROWS]; 2],
}

impl Exchange {
    const EMPTY: Self = Self {
        weights: [0; 8 * VECTOR],
        sums: [[[0; 16]; ROWS]; 2],
    };
}

/// Multiplies a group of up to [`ROWS`] rows with one strip.
///
/// # Safety
/// As [`StripKernel`](super::kernel::StripKernel) with one strip, and [`ROWS`] blocks are readable from each of the group's
/// first ones on. `unit` is configured with [`SHAPES`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn strip_product<U: TileUnit>(
    unit: &mut U,
    kind: TileKind,
    (strip, blocks): (*const u8, usize),
    (x, rows): (*const Q8Block, usize),
    out: Out,
) {
    // SAFETY: the same contract.
    unsafe { with_tile!(kind, K => run::<U, K>(unit, (strip, blocks), (x, rows), out)) }
}

/// # Safety
/// As [`strip_product`].
#[inline(always)]
unsafe fn run<U: TileUnit, K: Tile>(
    unit: &mut U,
    (strip, blocks): (*const u8, usize),
    (x, rows): (*const Q8Block, usize),
    out: Out,
) {
    // SAFETY: tiles and blocks of rows below `blocks` exist by the caller's promise.
    unsafe {
        let tile = |block: usize| strip.add(block * K::LAYOUT.bytes());
        let mut exchange = [const { Exchange::EMPTY }; 2];
        let mut sums = [Avx512::no_floats(); ROWS];
        multiply_block::<U, K>(unit, tile(0), x, &mut exchange[0]);
        for block in 0..blocks {
            // The unit works on the next block while the vector registers scale this one.
            if block + 1 < blocks {
                let next = x.add((block + 1) * rows);
                multiply_block::<U, K>(unit, tile(block + 1), next, &mut exchange[(block + 1) % 2]);
            }
            scale_block::<K>(tile(block), x.add(block * rows), &exchange[block % 2], &mut sums);
        }
        for (row, &sum) in sums.iter().enumerate().take(rows) {
            store::<Avx512>(sum, out, 0, row);
        }
    }
}

/// The integer sums of one block.
///
/// # Safety
/// As [`strip_product`], for the tile and the group's blocks at the pointers.
#[inline(always)]
unsafe fn multiply_block<U: TileUnit, K: Tile>(
    unit: &mut U,
    tile: *const u8,
    x: *const Q8Block,
    exchange: &mut Exchange,
) {
    // SAFETY: 8 vectors of weights, 16 rows of values and the sums are as long as the registers' shapes ask for.
    unsafe {
        let weights = if K::LAYOUT.planes.is_none() {
            tile
        } else {
            let part = Part::<Avx512, K>::new(tile, 0);
            for pair in 0..4 {
                for (odd, vector) in part.pair(pair).into_iter().enumerate() {
                    let to = exchange.weights.as_mut_ptr().add((2 * pair + odd) * VECTOR);
                    _mm512_store_si512(to.cast(), vector);
                }
            }
            exchange.weights.as_ptr()
        };
        let values = (&raw const (*x).values).cast::<u8>();
        let [first, second] = &mut exchange.sums;
        unit.zero::<0>();
        if K::LAYOUT.half_scales {
            unit.zero::<1>();
            unit.load::<4>(values, BLOCK_STRIDE);
            unit.load::<5>(weights, VECTOR);
            unit.multiply::<0, 4, 5>();
            unit.store::<0>(first.as_mut_ptr().cast(), VECTOR);
            unit.load::<4>(values.add(16), BLOCK_STRIDE);
            unit.load::<5>(weights.add(4 * VECTOR), VECTOR);
            unit.multiply::<1, 4, 5>();
            unit.store::<1>(second.as_mut_ptr().cast(), VECTOR);
        } else {
            unit.load::<2>(values, BLOCK_STRIDE);
            unit.load::<3>(weights, VECTOR);
            unit.multiply::<0, 2, 3>();
            unit.store::<0>(first.as_mut_ptr().cast(), VECTOR);
        }
    }
}

/// Adds the scaled sums of one block to the rows' sums.
///
/// # Safety
/// As [`multiply_block`].
#[inline(always)]
unsafe fn scale_block<K: Tile>(
    tile: *const u8,
    x: *const Q8Block,
    exchange: &Exchange,
    sums: &mut [<Avx512 as Lanes>::Floats; ROWS],
) {
    let halves = if K::LAYOUT.half_scales { 2 } else { 1 };
    // SAFETY: as the caller's.
    unsafe {
        let part = Part::<Avx512, K>::new(tile, 0);
        for (row, sum) in sums.iter_mut().enumerate() {
            let x = x.add(row);
            for half in 0..halves {
                let products = Avx512::load(exchange.sums[half][row].as_ptr().cast());
                let start = Part::<Avx512, K>::start(x, half);
                part.finish(Avx512::add_ints(start, products), half, x, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::amx::EmulatedUnit;
    use crate::testing::{Numbers, raw};
    use crate::{Activations, Format, Forms, Kernels, Matrix, Product, Store};

    #[test]
    fn the_tile_unit_gives_the_bits_of_the_vector_registers() {
        if !Level::Avx512.is_available() {
            return;
        }
        let kernels = Kernels::new(Level::Avx512, NonZeroUsize::MIN).expect("the level is available");
        for format in Format::ALL.into_iter().filter(|format| format.is_quantised()) {
            for rows in [1, 5, 9, 12] {
                let (outputs, cols) = (48, 768);
                let mut numbers = Numbers::new(rows as u64);
                let raw = raw(format, outputs, cols, &mut numbers);
                let matrix = Matrix::pack(&kernels, format, outputs, cols, &raw).expect("a matrix");
                let mut x = Activations::new();
                let forms = Forms {
                    quantised: true,
                    float: false,
                };
                kernels.prepare(&numbers.floats(rows * cols), cols, None, forms, &mut x);
                let mut by_vectors = vec![0.0; rows * outputs];
                let product = Product {
                    weights: &matrix,
                    bias: None,
                    out: &mut by_vectors,
                    store: Store::Set,
                };
                kernels.multiply(&x, &mut [product]);

                let mut by_tiles = vec![0.0f32; rows * outputs];
                // SAFETY: the emulation is always there.
                let mut unit = unsafe { EmulatedUnit::configured(&SHAPES) };
                let kind = TileKind::of(format).expect("quantised formats are tiles");
                for strip in 0..outputs / 16 {
                    let tiles = matrix.tiles()[strip * matrix.strip_bytes()..].as_ptr();
                    let start = by_tiles[strip * 16..].as_mut_ptr();
                    let out = Out {
                        start,
                        row_stride: outputs,
                        strip_stride: 16,
                        bias: None,
                        add: false,
                    };
                    let group = x.group(0);
                    // SAFETY: the processor has AVX-512; strip, group and output are as long as they should be.
                    unsafe {
                        let x = x.blocks(group).as_ptr();
                        strip_product(&mut unit, kind, (tiles, cols / 32), (x, group.rows), out);
                    }
                }
                assert_eq!(by_tiles, by_vectors, "{format}, {rows} rows");
            }
        }
    }
}
