//! A step's rows in the forms that matrices are multiplied with.
//!
//! Products with quantised weights want integers: each 32 values of a row are rounded to 8 bits with one scale, which
//! moves a value by at most `max |x| / 254` of its block. The rounding looks at one row alone, so it is the same
//! whatever the row is computed beside.

use crate::elementwise::rms_scale;
use crate::shared::SharedOut;
use crate::{Kernels, Level, Matrix};

/// Values that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Elements below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 32 * 1024;
/// Rows that some kernel may read behind the last one (a tile unit takes 16 at once), and throws away.
const SLACK: usize = 16;

/// A root mean square norm: `x / sqrt(mean(x^2) + epsilon) * weights`.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// One factor per element of a row.
    pub weights: &'a [f32],
    /// Keeps the division finite.
    pub epsilon: f32,
}

/// The forms of rows that a set of matrices wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forms {
    /// 8-bit integers, for quantised weights.
    pub quantised: bool,
    /// f32, for weights in halves.
    pub float: bool,
}

impl Forms {
    /// What these matrices want.
    pub fn of<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> Self {
        matrices.into_iter().fold(Self::default(), |forms, matrix| Self {
            quantised: forms.quantised || matrix.is_quantised(),
            float: forms.float || !matrix.is_quantised(),
        })
    }
}

/// 32 values of one row, rounded: a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q8Block {
    pub(crate) values: [i8; BLOCK],
    /// What one step of `values` is worth; not a number where a value was not finite.
    pub(crate) scale: f32,
    /// `scale` times the sum of `values`.
    pub(crate) scaled_sum: f32,
    /// Where integer sums start so that they become those of weights minus an offset.
    pub(crate) starts: Starts,
}

/// Sums of a block's values times `-offset`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Starts {
    pub(crate) offset_8: i32,
    pub(crate) offset_16: i32,
    pub(crate) offset_128: i32,
    /// Of the first 16 values, and of the others.
    pub(crate) halves_offset_32: [i32; 2],
}

impl Starts {
    #[inline(always)]
    const fn new(first: i32, second: i32) -> Self {
        let sum = first + second;
        Self {
            offset_8: -8 * sum,
            offset_16: -16 * sum,
            offset_128: -128 * sum,
            halves_offset_32: [-32 * first, -32 * second],
        }
    }
}

impl Q8Block {
    const ZERO: Self = Self {
        values: [0; BLOCK],
        scale: 0.0,
        scaled_sum: 0.0,
        starts: Starts::new(0, 0),
    };

    // Plain loops: closures over arrays of this length are called instead of inlined, without the caller's registers.
    #[inline(always)]
    fn quantise(x: &[f32; BLOCK]) -> Self {
        // Without the sign, the order of floats is that of their bits, and what is not a number is above all.
        let mut top = 0;
        for x in x {
            top = top.max(x.to_bits() & 0x7fff_ffff);
        }
        let top = f32::from_bits(top);
        // Below, 127 / top overflows; nothing of such a block would be seen beside any other.
        const NOTHING: f32 = 1e-30;
        if !top.is_finite() {
            return Self {
                scale: f32::NAN,
                scaled_sum: f32::NAN,
                ..Self::ZERO
            };
        }
        if top < NOTHING {
            return Self::ZERO;
        }
        // Adding 1.5 * 2^23 rounds to the nearest integer (ties to even), which the low bits of the sum then hold.
        const ROUND: f32 = 12_582_912.0;
        let inverse = 127.0 / top;
        let (mut values, mut sums) = ([0; BLOCK], [0; 2]);
        let (halves, _none) = x.as_chunks::<{ BLOCK / 2 }>();
        let (rounded, _none) = values.as_chunks_mut::<{ BLOCK / 2 }>();
        for ((x, rounded), sum) in halves.iter().zip(rounded).zip(&mut sums) {
            for (x, rounded) in x.iter().zip(rounded) {
                let whole = (x * inverse + ROUND)
                    .to_bits()
                    .wrapping_sub(ROUND.to_bits())
                    .cast_signed();
                *rounded = whole as i8;
                *sum += whole;
            }
        }
        let scale = top / 127.0;
        Self {
            values,
            scale,
            scaled_sum: scale * (sums[0] + sums[1]) as f32,
            starts: Starts::new(sums[0], sums[1]),
        }
    }
}

/// Consecutive rows that pass over the weights together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// Reusable working memory: a step's rows in the forms that matrices want. Filled by [`Kernels::prepare`].
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    width: usize,
    forms: Forms,
    /// Most rows of a group.
    group_rows: usize,
    /// Groups one after the other; in each, `[block][row of the group]`: what a kernel reads lies in the order in
    /// which it reads.
    blocks: Vec<Q8Block>,
    /// `[row][width]`
    floats: Vec<f32>,
}

impl Activations {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows held.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn forms(&self) -> Forms {
        self.forms
    }

    /// The rows as f32, one after the other.
    pub(crate) fn floats(&self) -> &[f32] {
        &self.floats
    }

    /// The blocks of a group: `[block][row of the group]`, and [`SLACK`] readable ones behind.
    pub(crate) fn blocks(&self, group: Group) -> &[Q8Block] {
        let row = self.width / BLOCK;
        &self.blocks[group.first * row..][..group.rows * row + SLACK]
    }

    /// How many groups the rows are divided into.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(self.group_rows.max(1))
    }

    /// One of them: sizes differ by one at most.
    pub(crate) fn group(&self, index: usize) -> Group {
        let (all, groups) = (self.rows, self.groups());
        let (each, larger) = (all / groups, all % groups);
        Group {
            first: index * each + index.min(larger),
            rows: each + usize::from(index < larger),
        }
    }

    fn group_of(&self, row: usize) -> Group {
        let (each, larger) = (self.rows / self.groups(), self.rows % self.groups());
        let in_larger = larger * (each + 1);
        self.group(if row < in_larger {
            row / (each + 1)
        } else {
            larger + (row - in_larger) / each
        })
    }

    fn shape(&mut self, rows: usize, width: usize, forms: Forms, group_rows: usize) {
        (self.rows, self.width, self.forms, self.group_rows) = (rows, width, forms, group_rows);
        if forms.quantised {
            self.blocks.resize(rows * (width / BLOCK) + SLACK, Q8Block::ZERO);
        }
        if forms.float {
            self.floats.resize(rows * width, 0.0);
        }
    }
}

impl Kernels {
    /// Fills `out` with the rows of `x` (`width` elements each), normed first if asked, in the given forms.
    ///
    /// # Panics
    /// `x` holds no whole rows, the norm has another width, or the quantised form is asked for and `width` is not a
    /// multiple of 32.
    pub fn prepare(&self, x: &[f32], width: usize, norm: Option<RmsNorm<'_>>, forms: Forms, out: &mut Activations) {
        assert!(width > 0 && x.len().is_multiple_of(width), "x holds whole rows");
        assert!(
            !forms.quantised || width.is_multiple_of(BLOCK),
            "quantised rows are whole blocks of 32"
        );
        assert!(
            norm.is_none_or(|norm| norm.weights.len() == width),
            "a norm is as wide as a row"
        );
        let rows = x.len() / width;
        out.shape(rows, width, forms, crate::tiles::group_rows(self.level(), rows));
        // Moved out so that tasks may write them while they read the rest.
        let (mut blocks, mut floats) = (std::mem::take(&mut out.blocks), std::mem::take(&mut out.floats));
        {
            let (blocks, floats) = (SharedOut::new(&mut blocks), SharedOut::new(&mut floats));
            let one = |row: usize| {
                let x = &x[row * width..][..width];
                let norm = norm.map(|norm| (norm.weights, rms_scale(self.level(), x, norm.epsilon)));
                if forms.float {
                    // SAFETY: this task alone writes this row's floats; `window` checks that they exist.
                    let out = unsafe { std::slice::from_raw_parts_mut(floats.window(row * width, width), width) };
                    write_floats(x, norm, out);
                }
                if forms.quantised {
                    let (group, per_row) = (out.group_of(row), width / BLOCK);
                    let first = group.first * per_row + (row - group.first);
                    // SAFETY: a group's blocks are its rows' alone, and of those this row's are every `group.rows`th
                    // from `first` on, up to the end of the group.
                    unsafe {
                        let to = blocks.window(first, (per_row - 1) * group.rows + 1);
                        quantise_row(self.level(), x, norm, to, group.rows);
                    }
                }
            };
            if x.len() < WORTH_SHARING {
                (0..rows).for_each(one);
            } else {
                self.pool().for_each(rows, &one);
            }
        }
        (out.blocks, out.floats) = (blocks, floats);
    }
}

fn write_floats(x: &[f32], norm: Option<(&[f32], f32)>, out: &mut [f32]) {
    match norm {
        None => out.copy_from_slice(x),
        Some((weights, scale)) => {
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weights) {
                *out = x * scale * weight;
            }
        }
    }
}

/// Rounds a row, its blocks `stride` apart.
///
/// # Safety
/// `out` is valid for writes of one block at every multiple of `stride` below `x.len() / 32 * stride`, and nobody else
/// touches those.
unsafe fn quantise_row(level: Level, x: &[f32], norm: Option<(&[f32], f32)>, out: *mut Q8Block, stride: usize) {
    #[inline(always)]
    unsafe fn body(x: &[f32], norm: Option<(&[f32], f32)>, out: *mut Q8Block, stride: usize) {
        let (chunks, _none) = x.as_chunks::<BLOCK>();
        for (index, x) in chunks.iter().enumerate() {
            let block = match norm {
                None => Q8Block::quantise(x),
                Some((weights, scale)) => {
                    let weights = &weights[index * BLOCK..][..BLOCK];
                    let mut normed = [0.0; BLOCK];
                    for ((normed, x), weight) in normed.iter_mut().zip(x).zip(weights) {
                        *normed = x * scale * weight;
                    }
                    Q8Block::quantise(&normed)
                }
            };
            // SAFETY: the caller's promise.
            unsafe { out.add(index * stride).write(block) };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(x: &[f32], norm: Option<(&[f32], f32)>, out: *mut Q8Block, stride: usize) {
        // SAFETY: the same contract.
        unsafe { body(x, norm, out, stride) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
    unsafe fn avx512(x: &[f32], norm: Option<(&[f32], f32)>, out: *mut Q8Block, stride: usize) {
        // SAFETY: the same contract.
        unsafe { body(x, norm, out, stride) }
    }

    // SAFETY: the caller's promise; a level is only ever held by `Kernels`, which has asked the processor for it.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::AvxVnni => avx2(x, norm, out, stride),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => avx512(x, norm, out, stride),
            _ => body(x, norm, out, stride),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounded_values_are_within_half_a_step_of_the_values(
            values in prop::array::uniform32(-1e6f32..1e6), power in -30i32..10,
        ) {
            let x = values.map(|x| x * 10f32.powi(power));
            let top = x.iter().fold(0.0, |top: f32, x| top.max(x.abs()));
            let block = Q8Block::quantise(&x);
            for (x, &value) in x.iter().zip(&block.values) {
                let error = (f64::from(block.scale) * f64::from(value) - f64::from(*x)).abs();
                prop_assert!(error <= f64::from(top) * (1.0 / 254.0 + 1e-6) + 1e-30, "{x} became {value} of {}", block.scale);
            }
            let halves = [0, 16].map(|first| block.values[first..first + 16].iter().map(|&v| i32::from(v)).sum::<i32>());
            let sum = halves[0] + halves[1];
            prop_assert_eq!(block.scaled_sum, block.scale * sum as f32);
            prop_assert_eq!(block.starts.offset_8, -8 * sum);
            prop_assert_eq!(block.starts.offset_16, -16 * sum);
            prop_assert_eq!(block.starts.offset_128, -128 * sum);
            prop_assert_eq!(block.starts.halves_offset_32, halves.map(|half| -32 * half));
        }

        #[test]
        fn groups_are_even_and_hold_each_row_once(rows in 0usize..400, group_rows in 1usize..17) {
            let mut activations = Activations::new();
            activations.shape(rows, 32, Forms::default(), group_rows);
            let groups: Vec<Group> = (0..activations.groups()).map(|index| activations.group(index)).collect();
            let mut next = 0;
            for group in &groups {
                prop_assert_eq!(group.first, next);
                prop_assert!(group.rows <= group_rows && group.rows >= rows / groups.len());
                for row in next..next + group.rows {
                    prop_assert_eq!(activations.group_of(row), *group);
                }
                next += group.rows;
            }
            prop_assert_eq!(next, rows);
        }
    }

    #[test]
    fn every_level_rounds_to_the_same_bits_serially_and_in_parallel() {
        let (rows, width) = (70, 1024);
        let mut numbers = crate::testing::Numbers::new(9);
        let (x, weights) = (numbers.floats(rows * width), numbers.floats(width));
        assert!(x.len() > WORTH_SHARING);
        let forms = Forms {
            quantised: true,
            float: true,
        };
        for kernels in crate::testing::kernels(3) {
            let norm = RmsNorm {
                weights: &weights,
                epsilon: 1e-5,
            };
            let (mut together, mut alone) = (Activations::new(), Activations::new());
            kernels.prepare(&x, width, Some(norm), forms, &mut together);
            for (row, x) in x.chunks_exact(width).enumerate() {
                kernels.prepare(x, width, Some(norm), forms, &mut alone);
                assert_eq!(alone.floats(), &together.floats()[row * width..][..width]);
                let (one, group) = (alone.blocks(alone.group(0)), together.group_of(row));
                for (index, block) in one.iter().enumerate().take(width / BLOCK) {
                    let same = &together.blocks(group)[index * group.rows + row - group.first];
                    assert_eq!(block.values, same.values, "{} row {row}", kernels.level());
                    assert_eq!(block.scale.to_bits(), same.scale.to_bits());
                }
            }
        }
    }

    #[test]
    fn memory_is_kept_from_step_to_step() {
        let kernels = crate::testing::kernels(1).next().expect("one level at least");
        let mut activations = Activations::new();
        let forms = Forms {
            quantised: true,
            float: true,
        };
        kernels.prepare(&[1.0; 64 * 8], 64, None, forms, &mut activations);
        let (blocks, floats) = (activations.blocks.as_ptr(), activations.floats.as_ptr());
        for rows in [1, 8, 3] {
            kernels.prepare(&vec![1.0; 64 * rows], 64, None, forms, &mut activations);
            assert_eq!(activations.rows(), rows);
            assert_eq!(
                (activations.blocks.as_ptr(), activations.floats.as_ptr()),
                (blocks, floats)
            );
        }
    }
}
