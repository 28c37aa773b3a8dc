//! Products of a step's rows with weight matrices, spread over the pool.

use std::ops::Range;
use std::ptr::NonNull;

use crate::activations::Group;
#[cfg(target_arch = "x86_64")]
use crate::amx::{HardwareUnit, TileUnit};
use crate::halves::{self, Block, HalfKind};
use crate::matrix::Kept;
use crate::shared::SharedOut;
use crate::tiles::{self, Out, STRIP_ROWS, Strips, TILE_COLS, TileKind};
use crate::{Activation, Activations, Forms, Kernels, Level, Matrix};

/// Most matrices that one call multiplies with.
pub const MAX_PRODUCTS: usize = 4;

/// Most rows of a group, on any level.
const MAX_GROUP: usize = 16;
/// Most strips that a kernel takes at once, on any level.
const MAX_STRIPS: usize = 4;
/// Tasks per thread: enough that a thread which starts late or is interrupted is made up for by the others.
const TASKS_PER_THREAD: usize = 8;
/// Weights that stay in a core's own cache while all groups of rows pass by.
const RESIDENT_BYTES: usize = 128 * 1024;
/// Weights below which a task of one group is not worth its claim.
const SMALLEST_TASK_BYTES: usize = 16 * 1024;
/// Multiply-adds below which waking other threads costs more than it saves.
const WORTH_SHARING: usize = 128 * 1024;

/// What happens to the results of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// They replace what is there.
    Set,
    /// They are added to what is there.
    Add,
}

/// One of the matrices that a step's rows are multiplied with.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub weights: &'a Matrix,
    /// What is added to each output.
    pub bias: Option<&'a [f32]>,
    /// Where the results go: as many rows as there are activations, each `weights.rows()` long.
    pub out: &'a mut [f32],
    /// How they go there.
    pub store: Store,
}

impl Kernels {
    /// Multiplies the rows of `x` with every product's matrix, in one parallel region. Weights are read from memory
    /// once for all rows.
    ///
    /// # Panics
    /// There are more than [`MAX_PRODUCTS`], a matrix has not as many columns as `x`, a bias or an output has another
    /// size, or `x` was prepared by kernels of another level or without the form that a matrix wants.
    pub fn multiply(&self, x: &Activations, products: &mut [Product<'_>]) {
        assert!(
            products.len() <= MAX_PRODUCTS,
            "at most {MAX_PRODUCTS} products at once"
        );
        let mut targets = [const { None }; MAX_PRODUCTS];
        for (target, product) in targets.iter_mut().zip(products.iter_mut()) {
            let rows = product.weights.rows();
            check(x, product.weights, product.out.len());
            assert!(
                product.bias.is_none_or(|bias| bias.len() == rows),
                "a bias for each output"
            );
            *target = Some(Target {
                weights: product.weights,
                bias: product.bias,
                add: product.store == Store::Add,
                out: SharedOut::new(product.out),
            });
        }
        let targets = targets.each_ref().map(Option::as_ref);
        let cut = Cut::new(self, x, targets.iter().flatten().map(|target| target.weights));
        let tasks = targets.iter().flatten().map(|target| cut.tasks(target.weights)).sum();
        self.share(&cut, tasks, &|mut task| {
            for target in targets.into_iter().flatten() {
                let of_target = cut.tasks(target.weights);
                if task < of_target {
                    return target.run(&mut Worker::new(self.level(), x), cut.strips(target.weights, task));
                }
                task -= of_target;
            }
        });
    }

    /// The heart of a gated feed-forward layer, `out = activation(gate x) * (up x)`, in one pass over both matrices.
    ///
    /// # Panics
    /// As [`Kernels::multiply`], or the matrices differ in their number of rows.
    pub fn multiply_gated(&self, x: &Activations, gate: &Matrix, up: &Matrix, activation: Activation, out: &mut [f32]) {
        assert_eq!(gate.rows(), up.rows(), "each output has its gate");
        check(x, gate, out.len());
        check(x, up, out.len());
        let out = SharedOut::new(out);
        // Tasks are cut by the gate alone, and take as many strips of both.
        let cut = Cut::new(self, x, [gate]);
        self.share(&cut, cut.tasks(gate), &|task| {
            let mut worker = Worker::new(self.level(), x);
            run_gated(&mut worker, [gate, up], activation, &out, cut.strips(gate, task));
        });
    }

    fn share(&self, cut: &Cut, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        if cut.worth_sharing {
            let threads = self.threads();
            self.pool()
                .for_each(tasks, &|turn| work(task_of_turn(turn, tasks, threads)));
        } else {
            (0..tasks).for_each(work);
        }
    }
}

/// Which task is claimed as the `turn`th: threads that keep pace each get a contiguous part of the weights, so that what
/// a task asks memory for behind its own end is what the same thread multiplies with next.
fn task_of_turn(turn: usize, tasks: usize, threads: usize) -> usize {
    let (part, step) = (turn % threads, turn / threads);
    let (each, larger) = (tasks / threads, tasks % threads);
    part * each + part.min(larger) + step
}

fn check(x: &Activations, weights: &Matrix, out: usize) {
    assert_eq!(
        weights.cols(),
        x.width(),
        "a matrix has as many columns as the rows have elements"
    );
    assert_eq!(out, x.rows() * weights.rows(), "an output fits its product");
    let Forms { quantised, float } = x.forms();
    assert!(
        if weights.is_quantised() { quantised } else { float },
        "the rows are prepared in the matrix's form"
    );
}

/// How matrices are cut into tasks.
struct Cut {
    /// Bytes of weights per task, about.
    task_bytes: usize,
    /// Tasks take a multiple of so many strips.
    at_once: usize,
    worth_sharing: bool,
}

impl Cut {
    fn new<'a>(kernels: &Kernels, x: &Activations, matrices: impl IntoIterator<Item = &'a Matrix>) -> Self {
        let (mut bytes, mut elements) = (0, 0);
        for matrix in matrices {
            bytes += matrix.strips() * matrix.strip_bytes();
            elements += matrix.rows() * matrix.cols();
        }
        let groups = x.groups().max(1);
        let smallest = (SMALLEST_TASK_BYTES / groups).max(1);
        Self {
            task_bytes: (bytes / (kernels.threads() * TASKS_PER_THREAD)).clamp(smallest, RESIDENT_BYTES),
            at_once: if groups == 1 {
                tiles::strips_at_once(kernels.level(), x.rows())
            } else {
                1
            },
            worth_sharing: x.rows() * elements > WORTH_SHARING,
        }
    }

    fn strips_per_task(&self, weights: &Matrix) -> usize {
        (self.task_bytes / weights.strip_bytes())
            .max(1)
            .next_multiple_of(self.at_once)
    }

    fn tasks(&self, weights: &Matrix) -> usize {
        weights.strips().div_ceil(self.strips_per_task(weights))
    }

    fn strips(&self, weights: &Matrix, task: usize) -> Range<usize> {
        let per_task = self.strips_per_task(weights);
        task * per_task..((task + 1) * per_task).min(weights.strips())
    }
}

/// Strips that are multiplied at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    first: usize,
    /// Strips from one to the next.
    apart: usize,
    count: usize,
}

impl Batch {
    fn strip(self, index: usize) -> usize {
        self.first + index * self.apart
    }
}

/// Cuts a range into batches of `at_once` strips that lie far apart, so that each is a stream of its own through
/// memory, and a rest of single ones.
fn batches(range: Range<usize>, at_once: usize) -> impl Iterator<Item = Batch> {
    let apart = range.len() / at_once;
    let rest = range.start + apart * at_once..range.end;
    let together = (range.start..range.start + apart).map(move |first| Batch {
        first,
        apart,
        count: at_once,
    });
    together.chain(rest.map(|first| Batch {
        first,
        apart: 1,
        count: 1,
    }))
}

/// A task's own results: of a group of rows, each with the strips of a batch side by side.
#[repr(C, align(64))]
struct Buffer([f32; MAX_GROUP * MAX_STRIPS * STRIP_ROWS]);

impl Buffer {
    const EMPTY: Self = Self([0.0; MAX_GROUP * MAX_STRIPS * STRIP_ROWS]);

    fn out(&mut self, strips: usize) -> Out {
        Out {
            start: self.0.as_mut_ptr(),
            row_stride: strips * STRIP_ROWS,
            strip_stride: STRIP_ROWS,
            bias: None,
            add: false,
        }
    }

    /// What a group has written.
    fn written(&mut self, rows: usize, strips: usize) -> &mut [[f32; STRIP_ROWS]] {
        let (each, _none) = self.0.as_chunks_mut();
        &mut each[..rows * strips]
    }
}

/// One product of a call.
struct Target<'a> {
    weights: &'a Matrix,
    bias: Option<&'a [f32]>,
    add: bool,
    out: SharedOut<'a, f32>,
}

impl Target<'_> {
    fn run(&self, worker: &mut Worker<'_>, range: Range<usize>) {
        let rows = self.weights.rows();
        let whole = range.start..range.end.min(rows / STRIP_ROWS);
        for group in worker.groups() {
            for batch in batches(whole.clone(), worker.strips_at_once(group)) {
                let last = batch.strip(batch.count - 1);
                let (first, reach) = (batch.first * STRIP_ROWS, (last - batch.first + 1) * STRIP_ROWS);
                let bias = self.bias.map(|bias| NonNull::from(&bias[first..first + reach]).cast());
                // SAFETY: this task alone touches the columns of its range; `window` checks that they exist up to the
                // last column of the last row. Whole strips have 16 columns each, and so has the bias.
                unsafe {
                    let len = (group.rows - 1) * rows + reach;
                    let start = self.out.window(group.first * rows + first, len);
                    let strip_stride = batch.apart * STRIP_ROWS;
                    let out = Out {
                        start,
                        row_stride: rows,
                        strip_stride,
                        bias,
                        add: self.add,
                    };
                    worker.multiply(self.weights, group, batch, out);
                }
            }
            if whole.end < range.end {
                self.run_cut_strip(worker, group, whole.end);
            }
        }
    }

    /// The last strip of a matrix whose rows are no multiple of 16.
    fn run_cut_strip(&self, worker: &mut Worker<'_>, group: Group, strip: usize) {
        let (first, rows) = (strip * STRIP_ROWS, self.weights.rows());
        let mut buffer = Buffer::EMPTY;
        let batch = Batch {
            first: strip,
            apart: 1,
            count: 1,
        };
        // SAFETY: the buffer has room for 16 rows of a strip.
        unsafe { worker.multiply(self.weights, group, batch, buffer.out(1)) };
        for (row, sums) in buffer.written(group.rows, 1).iter().enumerate() {
            // SAFETY: this task alone touches the columns of its range, which ends with the row.
            let out = unsafe {
                let start = self.out.window((group.first + row) * rows + first, rows - first);
                std::slice::from_raw_parts_mut(start, rows - first)
            };
            for (col, (out, &sum)) in out.iter_mut().zip(sums).enumerate() {
                let sum = self.bias.map_or(sum, |bias| sum + bias[first + col]);
                *out = if self.add { *out + sum } else { sum };
            }
        }
    }
}

fn run_gated(
    worker: &mut Worker<'_>,
    [gate, up]: [&Matrix; 2],
    activation: Activation,
    out: &SharedOut<'_, f32>,
    range: Range<usize>,
) {
    let rows = gate.rows();
    let (mut gates, mut ups) = (Buffer::EMPTY, Buffer::EMPTY);
    for group in worker.groups() {
        for batch in batches(range.clone(), worker.strips_at_once(group)) {
            // SAFETY: the buffers have room for a group's rows of the most strips at once.
            unsafe {
                worker.multiply(gate, group, batch, gates.out(batch.count));
                worker.multiply(up, group, batch, ups.out(batch.count));
            }
            let (gates, ups) = (
                gates.written(group.rows, batch.count),
                ups.written(group.rows, batch.count),
            );
            activation.gate(worker.level, gates.as_flattened_mut(), ups.as_flattened());
            for (index, gates) in gates.iter().enumerate() {
                let (row, first) = (
                    group.first + index / batch.count,
                    batch.strip(index % batch.count) * STRIP_ROWS,
                );
                let len = STRIP_ROWS.min(rows - first);
                // SAFETY: this task alone touches the columns of its strips; `window` checks that they exist.
                let out = unsafe { std::slice::from_raw_parts_mut(out.window(row * rows + first, len), len) };
                out.copy_from_slice(&gates[..len]);
            }
        }
    }
}

/// One task's hands: the rows, and the thread's tile unit where that is used.
struct Worker<'a> {
    level: Level,
    x: &'a Activations,
    #[cfg(target_arch = "x86_64")]
    unit: Option<HardwareUnit>,
}

impl<'a> Worker<'a> {
    fn new(level: Level, x: &'a Activations) -> Self {
        Self {
            level,
            x,
            #[cfg(target_arch = "x86_64")]
            unit: tiles::amx::is_worth(level, x.rows()).then(|| {
                // SAFETY: `Kernels` has the level only where the unit is there and permitted.
                unsafe { HardwareUnit::configured(&tiles::amx::SHAPES) }
            }),
        }
    }

    fn groups(&self) -> impl Iterator<Item = Group> + use<'a> {
        let x = self.x;
        (0..x.groups()).map(|index| x.group(index))
    }

    fn strips_at_once(&self, group: Group) -> usize {
        tiles::strips_at_once(self.level, group.rows)
    }

    /// Multiplies a group of rows with a batch of strips.
    ///
    /// # Safety
    /// `out` has room for [`STRIP_ROWS`] results of each of the group's rows and the batch's strips (only the existing
    /// ones of a cut strip of halves), which nobody else touches, and its bias as many.
    unsafe fn multiply(&mut self, weights: &Matrix, group: Group, batch: Batch, out: Out) {
        // SAFETY: the caller's promise.
        unsafe {
            match weights.kept() {
                Kept::Tiles(kind) => self.multiply_tiles(weights, kind, group, batch, out),
                Kept::Halves(kind) => self.multiply_halves(weights, kind, group, batch, out),
            }
        }
    }

    /// # Safety
    /// As [`Self::multiply`].
    unsafe fn multiply_tiles(&mut self, weights: &Matrix, kind: TileKind, group: Group, batch: Batch, out: Out) {
        let strip_bytes = weights.strip_bytes();
        let last = batch.strip(batch.count - 1);
        let strips = &weights.tiles()[batch.first * strip_bytes..(last + 1) * strip_bytes];
        let strips = Strips {
            start: strips.as_ptr(),
            stride: batch.apart * strip_bytes,
        };
        let (blocks, x) = (weights.cols() / TILE_COLS, self.x.blocks(group).as_ptr());
        #[cfg(target_arch = "x86_64")]
        if let Some(unit) = &mut self.unit {
            debug_assert_eq!(batch.count, 1, "the unit takes one strip at a time");
            // SAFETY: as below; the level that has the unit has AVX-512, and activations have 16 readable blocks more.
            return unsafe { tiles::amx::strip_product(unit, kind, (strips.start, blocks), (x, group.rows), out) };
        }
        let kernel = tiles::kernel(self.level, kind, group.rows, batch.count);
        // SAFETY: a level is only ever held by `Kernels`, which has asked the processor for it. The strips exist,
        // checked by the slice above; the group's blocks exist and are as many as the matrix has: `check` compared the
        // widths; the rest is the caller's promise.
        unsafe { kernel(strips, blocks, x, out) }
    }

    /// # Safety
    /// As [`Self::multiply`].
    unsafe fn multiply_halves(&self, weights: &Matrix, kind: HalfKind, group: Group, batch: Batch, out: Out) {
        let k = weights.cols();
        for index in 0..batch.count {
            let first = batch.strip(index) * STRIP_ROWS;
            let w_rows = STRIP_ROWS.min(weights.rows() - first);
            let block = Block {
                x: &self.x.floats()[group.first * k..][..group.rows * k],
                x_rows: group.rows,
                x_stride: k,
                kind,
                w: &weights.halves()[first * k..][..w_rows * k],
                w_rows,
                w_stride: k,
                k,
            };
            let mut sums = [0.0; MAX_GROUP * STRIP_ROWS];
            halves::dot(self.level, &block, &mut sums, STRIP_ROWS);
            for (row, sums) in sums.as_chunks::<STRIP_ROWS>().0.iter().enumerate().take(group.rows) {
                for (col, &sum) in sums.iter().enumerate().take(w_rows) {
                    let col = index * out.strip_stride + col;
                    // SAFETY: the caller's promise.
                    unsafe {
                        let to = out.start.add(row * out.row_stride + col);
                        let sum = out.bias.map_or(sum, |bias| sum + *bias.as_ptr().add(col));
                        *to = if out.add { *to + sum } else { sum };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
