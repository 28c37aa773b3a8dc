//! Products of activations with weight matrices, spread over the rayon pool.

use rayon::prelude::*;

use crate::shared::SharedOut;
use crate::tile::{Block, dot_raw};
use crate::{HalfMatrix, Kernels};

/// One of the matrices that a set of rows is multiplied with.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub weights: &'a HalfMatrix,
    /// Where the results go: as many rows as x has, each `weights.rows()` long.
    pub out: &'a mut [f32],
}

/// Weight bytes that stay in a core's own cache while all x rows pass by.
const RESIDENT_BYTES: usize = 128 * 1024;
/// Pieces per thread: enough that a thread which starts late or is interrupted is made up for by the others.
const PIECES_PER_THREAD: usize = 4;
/// Multiply-adds below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 64 * 1024;

struct Task<'a> {
    product: usize,
    weights: &'a HalfMatrix,
    first: usize,
    rows: usize,
}

impl Kernels {
    /// Multiplies the rows of `x` with every product's matrix, in one parallel region: the weights are read once for
    /// all rows.
    ///
    /// # Panics
    /// The matrices' column counts differ, `x` is not a whole number of rows, or an output has another size.
    pub fn multiply(self, x: &[f32], products: &mut [Product<'_>]) {
        let Some(first) = products.first() else { return };
        let k = first.weights.cols();
        assert_eq!(x.len() % k, 0, "x holds whole rows");
        let x_rows = x.len() / k;
        for product in products.iter() {
            assert_eq!(product.weights.cols(), k, "the products share their inner length");
            assert_eq!(
                product.out.len(),
                x_rows * product.weights.rows(),
                "an output fits its product"
            );
        }
        let threads = if self.is_worth_sharing(x_rows, products) {
            rayon::current_num_threads()
        } else {
            1
        };
        let tasks = plan(products, x_rows, threads);
        let outs: Vec<SharedOut<'_>> = products.iter_mut().map(|product| SharedOut::new(product.out)).collect();
        let run = |task: &Task<'_>| {
            let n = task.weights.rows();
            let block = Block {
                x,
                x_rows,
                x_stride: k,
                w: &task.weights.data()[task.first * k..][..task.rows * k],
                w_rows: task.rows,
                w_stride: k,
                k,
            };
            let reach = if x_rows == 0 { 0 } else { (x_rows - 1) * n + task.rows };
            // SAFETY: this task alone writes the columns `first..first + rows` of its product's output: the plan's
            // ranges do not overlap. `window` checks that they are inside.
            unsafe { dot_raw(self.level, &block, outs[task.product].window(task.first, reach), n) }
        };
        if threads == 1 {
            tasks.iter().for_each(run);
        } else {
            tasks.par_iter().with_max_len(1).for_each(run);
        }
    }

    fn is_worth_sharing(self, x_rows: usize, products: &[Product<'_>]) -> bool {
        let weights: usize = products
            .iter()
            .map(|product| product.weights.rows() * product.weights.cols())
            .sum();
        x_rows * weights > WORTH_SHARING
    }
}

/// Cuts the products' weight rows into tasks that do not overlap and together cover everything.
fn plan<'a>(products: &[Product<'a>], x_rows: usize, threads: usize) -> Vec<Task<'a>> {
    let total: usize = products.iter().map(|product| product.weights.rows()).sum();
    let mut most = if threads == 1 {
        total
    } else {
        total.div_ceil(threads * PIECES_PER_THREAD)
    };
    if x_rows > 1 {
        let row_bytes = products.first().map_or(1, |product| product.weights.cols() * 2);
        most = most.min(RESIDENT_BYTES / row_bytes);
    }
    // Whole tiles of every shape: 8, 6 and 4 rows high.
    let most = most.next_multiple_of(24);
    let mut tasks = Vec::with_capacity(total / most + products.len());
    for (index, product) in products.iter().enumerate() {
        let weights: &'a HalfMatrix = product.weights;
        for first in (0..weights.rows()).step_by(most) {
            tasks.push(Task {
                product: index,
                weights,
                first,
                rows: most.min(weights.rows() - first),
            });
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Level;

    fn matrix(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f32 + Sync) -> HalfMatrix {
        HalfMatrix::from_rows::<std::io::Error>(rows, cols, |first, piece| {
            for (r, row) in piece.chunks_mut(cols).enumerate() {
                row.iter_mut()
                    .enumerate()
                    .for_each(|(c, out)| *out = value(first + r, c));
            }
            Ok(())
        })
        .expect("memory for a small matrix")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn products_of_any_shape_equal_the_plain_sums(x_rows in 0usize..40, n in 1usize..300, m in 1usize..80, k in 1usize..150) {
            let value = |r: usize, c: usize| ((r * 31 + c * 17) % 15) as f32 - 7.0;
            let x: Vec<f32> = (0..x_rows * k).map(|i| ((i * 13) % 11) as f32 - 5.0).collect();
            let (a, b) = (matrix(n, k, value), matrix(m, k, |r, c| value(c, r)));
            for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
                let kernels = Kernels::with_level(level).expect("available");
                let (mut out_a, mut out_b) = (vec![f32::NAN; x_rows * n], vec![f32::NAN; x_rows * m]);
                kernels.multiply(&x, &mut [
                    Product { weights: &a, out: &mut out_a },
                    Product { weights: &b, out: &mut out_b },
                ]);
                for i in 0..x_rows {
                    for j in 0..n {
                        let sum: f32 = (0..k).map(|c| x[i * k + c] * value(j, c)).sum();
                        prop_assert_eq!(out_a[i * n + j], sum);
                    }
                    for j in 0..m {
                        let sum: f32 = (0..k).map(|c| x[i * k + c] * value(c, j)).sum();
                        prop_assert_eq!(out_b[i * m + j], sum);
                    }
                }
            }
        }
    }

    #[test]
    fn a_matrix_is_filled_in_pieces_and_read_back_by_row() {
        let m = matrix(130, 3, |r, c| (r * 3 + c) as f32);
        assert_eq!((m.rows(), m.cols(), m.bytes()), (130, 3, 780));
        assert_eq!(
            m.row(129).iter().map(|h| h.to_f32()).collect::<Vec<_>>(),
            [387.0, 388.0, 389.0]
        );
    }

    #[test]
    fn an_error_while_filling_is_the_matrix_s_error() {
        let result = HalfMatrix::from_rows(100, 4, |first, _piece| {
            if first == 64 {
                Err(std::io::Error::other("cut"))
            } else {
                Ok(())
            }
        });
        assert_eq!(result.expect_err("the second piece fails").to_string(), "cut");
    }
}
