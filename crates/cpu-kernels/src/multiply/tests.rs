use proptest::prelude::*;

use super::*;
use crate::testing::{Numbers, kernels, meaning, raw};
use crate::{Format, RmsNorm};

fn format() -> impl Strategy<Value = Format> {
    prop::sample::select(&Format::ALL[..])
}

/// Some activations: a few large values among small ones, as models have them, and one row of nothing.
fn rows_of(x_rows: usize, cols: usize, numbers: &mut Numbers) -> Vec<f32> {
    let mut x = numbers.floats(x_rows * cols);
    for x in x.iter_mut().step_by(37) {
        *x *= 30.0;
    }
    x[x_rows / 2 * cols..][..cols / 2].fill(0.0);
    x
}

fn prepared(kernels: &Kernels, x: &[f32], cols: usize) -> Activations {
    let mut activations = Activations::new();
    let forms = Forms {
        quantised: cols.is_multiple_of(32),
        float: true,
    };
    kernels.prepare(x, cols, None, forms, &mut activations);
    activations
}

fn product(kernels: &Kernels, x: &[f32], weights: &Matrix) -> Vec<f32> {
    let x = prepared(kernels, x, weights.cols());
    let mut out = vec![f32::NAN; x.rows() * weights.rows()];
    let product = Product {
        weights,
        bias: None,
        out: &mut out,
        store: Store::Set,
    };
    kernels.multiply(&x, &mut [product]);
    out
}

/// How far a product of one row of weights and one of activations may be from the exact one. A weight is its scale's
/// part plus a minimum of at most `minimum`. With `e` for the greatest relative error of a rounding:
/// - products of scales (or minima) and their factors, and f32 weights, are rounded to f16: `e = 2^-11` of both parts,
///   and below f16's normal numbers `2^-25` for each of up to 63 steps;
/// - an activation is rounded to one of 127 steps of its block's largest: by half a step, and `1e-6` of the largest for
///   the f32 arithmetic that finds the step;
/// - sums are rounded to f32, `e = 2^-24`, at most twice for each product of a scale or minimum with a block's sum, and
///   lane by lane where weights are halves: fewer than `k / 4 + 16` times, each time by `e` of less than all parts' sum.
fn allowed_error(format: Format, x: &[f32], w: &[f32]) -> f64 {
    let minimum = match format {
        Format::Q4_1 | Format::Q5_1 => 0.5,
        Format::Q4K | Format::Q5K => 0.01 * 63.0,
        _ => 0.0,
    };
    let is_rounded = matches!(format, Format::Q4K | Format::Q5K | Format::Q6K | Format::F32);
    let (mut error, mut parts) = (0.0, 0.0);
    for (x, w) in x.chunks(32).zip(w.chunks(32)) {
        let top = x.iter().fold(0.0, |top: f64, x| top.max(f64::from(x.abs())));
        let x_error = if format.is_quantised() {
            top * (1.0 / 254.0 + 1e-6)
        } else {
            0.0
        };
        for (x, w) in x.iter().zip(w) {
            let (x, w) = (f64::from(x.abs()), f64::from(w.abs()) + 2.0 * minimum);
            let w_error = if is_rounded {
                w * 2f64.powi(-11) + 63.0 * 2f64.powi(-25)
            } else {
                0.0
            };
            error += w_error * (x + x_error) + x_error * w;
            parts += (x + x_error) * (w + w_error);
        }
    }
    error + parts * (x.len() as f64 / 4.0 + 16.0) * 2f64.powi(-24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_product_is_that_of_the_dequantised_weights_within_the_rounding_of_activations(
        format in format(), rows in 1usize..70, blocks in 1usize..5, x_rows in 1usize..6, seed: u64,
    ) {
        let cols = blocks * format.block_elements().max(11);
        let mut numbers = Numbers::new(seed);
        let raw = raw(format, rows, cols, &mut numbers);
        let (w, x) = (meaning(format, &raw), rows_of(x_rows, cols, &mut numbers));
        for kernels in kernels(1) {
            let weights = Matrix::pack(&kernels, format, rows, cols, &raw).unwrap();
            let out = product(&kernels, &x, &weights);
            for (i, x) in x.chunks_exact(cols).enumerate() {
                for (j, w) in w.chunks_exact(cols).enumerate() {
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let error = (f64::from(out[i * rows + j]) - exact).abs();
                    let allowed = allowed_error(format, x, w);
                    prop_assert!(error <= allowed, "{} {format} {i},{j}: off by {error}, allowed {allowed}", kernels.level());
                }
            }
        }
    }

    #[test]
    fn a_row_s_result_has_the_same_bits_at_every_level_but_the_portable_one_in_any_company_on_any_threads(
        format in format(), rows in 1usize..150, blocks in 1usize..8, x_rows in 1usize..40, threads in 1usize..4, seed: u64,
    ) {
        let cols = blocks * format.block_elements().max(32);
        let mut numbers = Numbers::new(seed);
        let raw = raw(format, rows, cols, &mut numbers);
        let x = rows_of(x_rows, cols, &mut numbers);
        let mut first: Option<Vec<u32>> = None;
        for kernels in kernels(threads) {
            let weights = Matrix::pack(&kernels, format, rows, cols, &raw).unwrap();
            let bits = |x: &[f32]| product(&kernels, x, &weights).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let together = bits(&x);
            for (row, x) in x.chunks_exact(cols).enumerate() {
                prop_assert_eq!(&bits(x)[..], &together[row * rows..][..rows], "{} row {} alone", kernels.level(), row);
            }
            if format.is_quantised() && kernels.level() != Level::Portable {
                let first = first.get_or_insert_with(|| together.clone());
                prop_assert_eq!(&together, &*first, "{}", kernels.level());
            }
        }
    }

    #[test]
    fn bias_and_addition_come_after_the_sum_in_one_call_for_several_matrices(
        formats in prop::array::uniform3(format()), rows in prop::array::uniform3(1usize..90), x_rows in 1usize..30, seed: u64,
    ) {
        let cols = 256;
        let mut numbers = Numbers::new(seed);
        let x = rows_of(x_rows, cols, &mut numbers);
        for kernels in kernels(2) {
            let weights: Vec<Matrix> = formats.iter().zip(rows).map(|(&format, rows)| {
                Matrix::pack(&kernels, format, rows, cols, &raw(format, rows, cols, &mut numbers)).unwrap()
            }).collect();
            let biases: Vec<Vec<f32>> = rows.iter().map(|&rows| numbers.floats(rows)).collect();
            let before: Vec<Vec<f32>> = rows.iter().map(|&rows| numbers.floats(rows * x_rows)).collect();
            let mut after = before.clone();
            let mut products: Vec<Product<'_>> = weights.iter().zip(&biases).zip(&mut after).enumerate().map(|(i, ((weights, bias), out))| Product {
                weights,
                bias: (i != 1).then_some(&bias[..]),
                out,
                store: if i == 0 { Store::Set } else { Store::Add },
            }).collect();
            kernels.multiply(&prepared(&kernels, &x, cols), &mut products);
            for i in 0..3 {
                let plain = product(&kernels, &x, &weights[i]);
                for (at, &sum) in plain.iter().enumerate() {
                    let sum = if i == 1 { sum } else { sum + biases[i][at % rows[i]] };
                    let sum = if i == 0 { sum } else { before[i][at] + sum };
                    prop_assert_eq!(after[i][at], sum, "{} matrix {} element {}", kernels.level(), i, at);
                }
            }
        }
    }

    #[test]
    fn a_gated_product_is_both_products_and_the_activation(
        formats in prop::array::uniform2(format()), rows in 1usize..150, x_rows in 1usize..30, threads in 1usize..3, seed: u64,
    ) {
        let cols = 256;
        let mut numbers = Numbers::new(seed);
        let x = rows_of(x_rows, cols, &mut numbers);
        for kernels in kernels(threads) {
            let [gate, up] = formats.map(|format| {
                Matrix::pack(&kernels, format, rows, cols, &raw(format, rows, cols, &mut numbers)).unwrap()
            });
            let mut out = vec![f32::NAN; x_rows * rows];
            kernels.multiply_gated(&prepared(&kernels, &x, cols), &gate, &up, Activation::Silu, &mut out);
            let mut expected = product(&kernels, &x, &gate);
            Activation::Silu.gate(kernels.level(), &mut expected, &product(&kernels, &x, &up));
            prop_assert_eq!(out, expected, "{}", kernels.level());
        }
    }

    #[test]
    fn a_matrix_gives_its_rows_back(format in format(), rows in 1usize..40, blocks in 1usize..4, seed: u64) {
        let cols = blocks * format.block_elements().max(5);
        let raw = raw(format, rows, cols, &mut Numbers::new(seed));
        let kernels = kernels(1).next().unwrap();
        let weights = Matrix::pack(&kernels, format, rows, cols, &raw).unwrap();
        prop_assert_eq!((weights.rows(), weights.cols()), (rows, cols));
        let mut row = vec![f32::NAN; cols];
        for (index, expected) in meaning(format, &raw).chunks_exact(cols).enumerate() {
            weights.row_to_f32(index, &mut row);
            for (out, &expected) in row.iter().zip(expected) {
                // Factors of scales and minima are multiplied out and rounded to f16: 63 steps of each at most.
                let allowed = match format {
                    Format::Q4K | Format::Q5K | Format::Q6K => 2f32.powi(-11) * (expected.abs() + 2.0 * 0.01 * 63.0),
                    Format::F32 => 2f32.powi(-11) * expected.abs() + 1e-7,
                    _ => 0.0,
                };
                prop_assert!((out - expected).abs() <= allowed, "{format} row {index}: {out} for {expected}");
            }
        }
    }
}

/// All formats' largest weights and activations: integers that sum to what 16 bits do not hold.
#[test]
fn nothing_saturates() {
    for format in Format::ALL.into_iter().filter(|format| format.is_quantised()) {
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let (rows, cols) = (16, 256);
            let mut raw = raw(format, rows, cols, &mut Numbers::new(1));
            let scales = match format {
                Format::Q6K => 192..210,
                Format::Q4K | Format::Q5K => 0..16,
                Format::Q4_1 | Format::Q5_1 => 0..4,
                _ => 0..2,
            };
            for block in raw.chunks_exact_mut(format.block_bytes()) {
                for (at, out) in block.iter_mut().enumerate() {
                    if !scales.contains(&at) {
                        *out = byte;
                    }
                }
            }
            let w = meaning(format, &raw);
            for sign in [-1.0, 1.0] {
                let x = vec![sign; cols];
                for kernels in kernels(1) {
                    let weights = Matrix::pack(&kernels, format, rows, cols, &raw).unwrap();
                    let out = product(&kernels, &x, &weights);
                    for (out, w) in out.iter().zip(w.chunks_exact(cols)) {
                        let exact: f64 = w.iter().map(|w| f64::from(*w * sign)).sum();
                        let allowed = allowed_error(format, &x, w);
                        let error = (f64::from(*out) - exact).abs();
                        assert!(
                            error <= allowed,
                            "{} {format} {byte:x}: {out} for {exact}",
                            kernels.level()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_norm_comes_before_the_rounding() {
    let (rows, cols) = (3, 64);
    let mut numbers = Numbers::new(7);
    let (x, weights) = (numbers.floats(rows * cols), numbers.floats(cols));
    let normed: Vec<f32> = x
        .chunks_exact(cols)
        .flat_map(|x| {
            let scale = crate::elementwise::rms_scale(Level::Portable, x, 1e-6);
            x.iter().zip(&weights).map(move |(x, weight)| x * scale * weight)
        })
        .collect();
    for kernels in kernels(1) {
        let raw = raw(Format::Q8_0, 20, cols, &mut Numbers::new(3));
        let matrix = Matrix::pack(&kernels, Format::Q8_0, 20, cols, &raw).unwrap();
        let mut activations = Activations::new();
        let norm = RmsNorm {
            weights: &weights,
            epsilon: 1e-6,
        };
        kernels.prepare(
            &x,
            cols,
            Some(norm),
            Forms {
                quantised: true,
                float: true,
            },
            &mut activations,
        );
        assert_eq!(activations.floats(), normed, "{}", kernels.level());
        let mut out = vec![0.0; rows * 20];
        kernels.multiply(
            &activations,
            &mut [Product {
                weights: &matrix,
                bias: None,
                out: &mut out,
                store: Store::Set,
            }],
        );
        assert_eq!(out, product(&kernels, &normed, &matrix), "{}", kernels.level());
    }
}

#[test]
fn what_is_no_number_spoils_its_own_row_only() {
    let cols = 64;
    for kernels in kernels(1) {
        let raw = raw(Format::Q4_1, 16, cols, &mut Numbers::new(3));
        let weights = Matrix::pack(&kernels, Format::Q4_1, 16, cols, &raw).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![0.5; 3 * cols];
            x[cols + 40] = bad;
            let out = product(&kernels, &x, &weights);
            assert!(out[..16].iter().chain(&out[32..]).all(|value| value.is_finite()));
            assert!(
                out[16..32].iter().all(|value| value.is_nan()),
                "{} {bad}",
                kernels.level()
            );
        }
    }
}

#[test]
fn no_rows_give_no_results() {
    for kernels in kernels(2) {
        let raw = raw(Format::Q4_0, 16, 32, &mut Numbers::new(3));
        let weights = Matrix::pack(&kernels, Format::Q4_0, 16, 32, &raw).unwrap();
        assert!(product(&kernels, &[], &weights).is_empty());
        kernels.multiply_gated(
            &prepared(&kernels, &[], 32),
            &weights,
            &weights,
            Activation::Silu,
            &mut [],
        );
    }
}

#[test]
fn batches_cover_a_range_once_in_streams_far_apart() {
    for (range, at_once) in [(3..25, 4), (0..3, 4), (5..5, 4), (2..9, 1)] {
        let mut strips: Vec<usize> = batches(range.clone(), at_once)
            .flat_map(|batch| (0..batch.count).map(move |index| batch.strip(index)))
            .collect();
        strips.sort_unstable();
        assert_eq!(strips, range.collect::<Vec<_>>());
    }
    let first = batches(0..40, 4).next();
    assert_eq!(
        first,
        Some(Batch {
            first: 0,
            apart: 10,
            count: 4
        })
    );
}

#[test]
fn turns_give_each_task_once_and_each_thread_neighbours() {
    for (tasks, threads) in [(0, 2), (1, 2), (7, 2), (16, 3), (5, 8), (9, 1)] {
        let of_turns: Vec<usize> = (0..tasks).map(|turn| task_of_turn(turn, tasks, threads)).collect();
        for (turn, &task) in of_turns.iter().enumerate().skip(threads) {
            assert_eq!(task, of_turns[turn - threads] + 1, "{tasks} tasks, {threads} threads");
        }
        let mut sorted = of_turns.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..tasks).collect::<Vec<_>>());
    }
}
