//! Whole models, small enough to be made up: each family beside candle-transformers', the two backends beside each
//! other, batches beside single sequences, and files that are not what they should be.

use batch_engine::{Model, Output, StepInput};
use candle_core::Device;

use crate::backend::tensor::Candle;
use crate::load::Files;
use crate::{DeviceSpec, LoadOptions, load};

mod backends;
mod files;
mod memory;
mod positions;
mod repositories;
mod steps;
mod tiny;
mod transformers;

use tiny::Tiny;

/// Blocks of the models' caches.
const BLOCKS: usize = 64;

fn options() -> LoadOptions {
    LoadOptions {
        kv_tokens: Some(BLOCKS * cpu_kernels::BLOCK_TOKENS),
        ..LoadOptions::new(DeviceSpec::Cpu)
    }
}

/// The model on the fused CPU path.
fn fused(tiny: &Tiny) -> Box<dyn Model> {
    let (_folder, path) = tiny.write();
    load(&path, &options(), &mut |_| {}).expect("a tiny model").model
}

/// The same by candle's own operations.
fn reference(tiny: &Tiny) -> Box<dyn Model> {
    let (_folder, path) = tiny.write();
    let files = Files::open(&path).expect("a tiny file");
    let loaded = files.load(Candle::new(Device::Cpu), &options(), &mut |_| {});
    loaded.expect("a tiny model").model
}

fn text(len: usize, seed: u32) -> Vec<u32> {
    (0..len as u32)
        .map(|i| (i * i * 7 + i * 13 + seed * 31) % 256)
        .collect()
}

/// A sequence and the blocks that it may use.
#[derive(Clone)]
struct Sequence {
    blocks: Vec<u32>,
    len: usize,
}

impl Sequence {
    fn new(blocks: impl IntoIterator<Item = u32>) -> Self {
        Self {
            blocks: blocks.into_iter().collect(),
            len: 0,
        }
    }

    /// Its next tokens as an input.
    fn input<'a>(&'a self, tokens: &'a [u32], output: Output) -> StepInput<'a> {
        StepInput {
            tokens,
            position: self.len,
            blocks: &self.blocks,
            output,
        }
    }

    /// The rows that the model gives for its next tokens, alone.
    fn feed(&mut self, model: &mut dyn Model, tokens: &[u32], output: Output) -> Vec<f32> {
        let mut rows = Vec::new();
        let input = self.input(tokens, output);
        model.step(&[input], &mut rows).expect("a step");
        self.len += tokens.len();
        rows
    }
}

/// The logits after each piece of one sequence.
fn feed(model: &mut dyn Model, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut sequence = Sequence::new(0..20);
    pieces
        .iter()
        .map(|piece| sequence.feed(model, piece, Output::Last))
        .collect()
}

/// The largest difference, as a share of the largest value that is expected.
fn difference(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |top, x| top.max(x.abs()));
    let differences = actual.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0f32, |worst, x| if x.is_nan() { f32::NAN } else { worst.max(x) });
    assert!(scale > 0.0, "something is expected");
    worst / scale
}

#[track_caller]
fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    let difference = difference(actual, expected);
    assert!(
        difference <= tolerance,
        "{what}: off by {difference} of the largest value"
    );
}
