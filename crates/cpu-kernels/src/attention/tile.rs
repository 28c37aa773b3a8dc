//! The product that both halves of attention consist of: rows of f32 with a matrix of f16 whose inner dimension goes
//! down. Scores are queries x keys `[head_dim][tokens]`, results are weights x values `[tokens][head_dim]`.

use half::f16;

use super::vector::Vector;

/// Elements from one row to the next of a panel, which is what a product's left side lies in. Constant, so that a row
/// is a fixed distance in the machine code, and not a power of two, so that rows do not compete for a cache set.
pub(super) const PANEL_STRIDE: usize = PANEL_LEN + 16;
/// Elements of a panel's row.
pub(super) const PANEL_LEN: usize = 256;
/// Rows of a panel: what the widest registers take at once.
pub(super) const PANEL_ROWS: usize = 12;

/// Elements of a cache line.
const LINE: usize = 32;
/// Rows below which reading is what takes the time.
const PREFETCH_ROWS: usize = 6;

/// `c[r][..cols] = sum over k of a[r][k] * b[k][..cols]`, or added to what `c` holds.
///
/// An element's sum runs over k in order in a single lane, so it is the same bits whichever rows go with it, however
/// many, and in however many calls the k are cut.
pub(super) struct Product {
    /// `[rows][PANEL_STRIDE]`, of which the first `k` of a row are read.
    pub(super) a: *const f32,
    pub(super) rows: usize,
    /// `[k][b_stride]`
    pub(super) b: *const f16,
    pub(super) b_stride: usize,
    pub(super) k: usize,
    /// `[rows][c_stride]`
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    /// A multiple of 16.
    pub(super) cols: usize,
    /// What the next product will read in the place of `b`: fetched meanwhile, as memory's own prefetching ends with a
    /// page. Need not be readable.
    pub(super) ahead: *const f16,
    /// Whether `c` is added to.
    pub(super) accumulate: bool,
}

/// Does a product.
///
/// # Safety
/// The processor has V's instruction set, which the calling function enables; `a`, `b` and `c` point to as much as
/// [`Product`] says, and nothing else uses `c`.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector>(product: &Product) {
    let mut row = 0;
    while row < product.rows {
        let left = product.rows - row;
        // SAFETY: the rows from `row` on, as many as there are; the rest is the caller's to vouch for.
        row += unsafe {
            match left {
                12.. if V::ROWS >= 12 => rows::<V, 12>(product, row),
                8.. if V::ROWS >= 8 => rows::<V, 8>(product, row),
                7.. if V::ROWS >= 7 => rows::<V, 7>(product, row),
                6.. if V::ROWS >= 6 => rows::<V, 6>(product, row),
                5.. if V::ROWS >= 5 => rows::<V, 5>(product, row),
                4.. => rows::<V, 4>(product, row),
                3 => rows::<V, 3>(product, row),
                2 => rows::<V, 2>(product, row),
                _ => rows::<V, 1>(product, row),
            }
        };
    }
}

/// All columns of R rows; returns R.
#[inline(always)]
unsafe fn rows<V: Vector, const R: usize>(product: &Product, row: usize) -> usize {
    let mut col = 0;
    while col < product.cols {
        let left = (product.cols - col) / V::LANES;
        // SAFETY: columns and rows inside of the product.
        col += V::LANES
            * unsafe {
                if V::WIDE && R <= 6 && left >= 4 {
                    tile::<V, R, 4>(product, row, col)
                } else if left >= 2 {
                    tile::<V, R, 2>(product, row, col)
                } else {
                    tile::<V, R, 1>(product, row, col)
                }
            };
    }
    R
}

/// R rows of N registers; returns N.
#[inline(always)]
unsafe fn tile<V: Vector, const R: usize, const N: usize>(product: &Product, row: usize, col: usize) -> usize {
    // SAFETY: the caller vouches that rows `row..row + R` and columns `col..col + N * LANES` are inside of the product,
    // whose pointers are good for it.
    unsafe {
        let a = product.a.add(row * PANEL_STRIDE);
        let mut b = product.b.add(col);
        let mut ahead = product.ahead.wrapping_add(col);
        let c = product.c.add(row * product.c_stride + col);
        let mut sums = [[V::zero(); N]; R];
        if product.accumulate {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(c.add(r * product.c_stride + n * V::LANES));
                }
            }
        }
        for k in 0..product.k {
            let mut right = [V::zero(); N];
            for (n, right) in right.iter_mut().enumerate() {
                *right = V::load_half(b.add(n * V::LANES));
            }
            if R <= PREFETCH_ROWS {
                for line in 0..(N * V::LANES).div_ceil(LINE) {
                    V::prefetch(ahead.wrapping_add(line * LINE));
                }
                ahead = ahead.wrapping_add(product.b_stride);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = V::splat(*a.add(r * PANEL_STRIDE + k));
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = left.mul_add(right, *sum);
                }
            }
            b = b.wrapping_add(product.b_stride);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                sum.store(c.add(r * product.c_stride + n * V::LANES));
            }
        }
    }
    N
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::vector::Portable;
    use super::*;

    proptest! {
        #[test]
        fn products_of_any_shape_are_the_plain_sums_beside_what_was_there(
            rows in 1usize..30, k in 0usize..=PANEL_LEN, registers in 1usize..9, accumulate in any::<bool>(),
        ) {
            let (cols, b_stride, c_stride) = (registers * 16, registers * 16 + 3, registers * 16 + 5);
            let left = |r: usize, k: usize| ((r * 5 + k * 3) % 13) as f32 - 6.0;
            let right = |k: usize, c: usize| ((k * 7 + c * 11) % 9) as f32 - 4.0;
            let a: Vec<f32> = (0..rows * PANEL_STRIDE).map(|i| left(i / PANEL_STRIDE, i % PANEL_STRIDE)).collect();
            let b: Vec<f16> = (0..k * b_stride).map(|i| f16::from_f32(right(i / b_stride, i % b_stride))).collect();
            let mut c = vec![0.5; rows * c_stride];
            let product = Product {
                a: a.as_ptr(), rows, b: b.as_ptr(), b_stride, k, c: c.as_mut_ptr(), c_stride, cols, ahead: b.as_ptr(), accumulate,
            };
            // SAFETY: the vectors are as long as the product says, and this level needs nothing.
            unsafe { multiply::<Portable>(&product) };
            for r in 0..rows {
                for col in 0..c_stride {
                    let sum: f32 = (0..k).map(|k| left(r, k) * right(k, col)).sum();
                    let truth = if col >= cols { 0.5 } else { sum + if accumulate { 0.5 } else { 0.0 } };
                    prop_assert_eq!(c[r * c_stride + col], truth, "row {}, column {}", r, col);
                }
            }
        }
    }
}
