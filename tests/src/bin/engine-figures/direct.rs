//! The model itself, without a server and without sampling, as llama-bench measures it.

use std::num::NonZeroUsize;
use std::time::Instant;

use batch_engine::{Model, Output, StepInput};
use candle_models::{DeviceSpec, LoadOptions, load};

use crate::{Args, Result};

/// Tokens run through the model, as llama-bench's `-p`, `-n` and `-d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Tokens of a prompt, measured.
    pub(crate) prefill: usize,
    /// Tokens decoded one by one, measured.
    pub(crate) decode: usize,
    /// Tokens in the cache beforehand.
    pub(crate) depth: usize,
}

pub(crate) const DECODE: Work = Work {
    prefill: 0,
    decode: 128,
    depth: 0,
};

pub(crate) const WORKS: [(&str, Work); 3] = [
    ("decode, one stream", DECODE),
    (
        "decode at 2,048 tokens of context",
        Work {
            prefill: 0,
            decode: 64,
            depth: 2_048,
        },
    ),
    (
        "prefill, 512 tokens",
        Work {
            prefill: 512,
            decode: 0,
            depth: 0,
        },
    ),
];

/// Prompt tokens in a step: the engine's own default.
const CHUNK: usize = 256;
/// Tokens that a sequence may have here.
const CONTEXT: usize = 4_096;

/// Our model.
pub(crate) struct Direct {
    model: Box<dyn Model>,
    weight_bytes: usize,
    rows: Vec<f32>,
}

impl Direct {
    pub(crate) fn load(args: &Args) -> Result<Self> {
        let options = LoadOptions {
            max_context: Some(CONTEXT),
            kv_tokens: Some(2 * CONTEXT),
            threads: Some(args.threads),
            ..LoadOptions::new(DeviceSpec::Cpu)
        };
        let loaded = load(&args.model, &options, &mut |_| {}).map_err(|error| format!("load the model: {error}"))?;
        Ok(Self {
            weight_bytes: loaded.info.weight_bytes,
            model: loaded.model,
            rows: Vec::new(),
        })
    }

    pub(crate) fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// Runs the work once and tells its pace.
    pub(crate) fn tokens_per_second(&mut self, work: Work) -> Result<f64> {
        let blocks = self.table(0, work.depth + work.prefill + work.decode + 1);
        // Warms caches and threads, as the peer does.
        self.feed(&blocks, 0, CHUNK, work.depth.max(1))?;
        let (start, measured) = (work.depth, work.prefill + work.decode);
        let begin = Instant::now();
        if work.prefill > 0 {
            self.feed(&blocks, start, CHUNK, work.prefill)?;
        }
        self.feed(&blocks, start + work.prefill, 1, work.decode)?;
        Ok(measured as f64 / begin.elapsed().as_secs_f64())
    }

    /// Decodes 64 tokens of several sequences together; tokens per second of all.
    pub(crate) fn batched_decode(&mut self, sequences: usize) -> Result<f64> {
        const TOKENS: usize = 64;
        let tables: Vec<Vec<u32>> = (0..sequences).map(|index| self.table(index, TOKENS)).collect();
        let begin = Instant::now();
        for position in 0..TOKENS {
            let tokens: Vec<u32> = (0..sequences).map(|index| self.token(position * 7 + index)).collect();
            let inputs: Vec<StepInput<'_>> = (tables.iter().zip(&tokens))
                .map(|(blocks, token)| StepInput {
                    tokens: std::slice::from_ref(token),
                    position,
                    blocks,
                    output: Output::Last,
                })
                .collect();
            self.model
                .step(&inputs, &mut self.rows)
                .map_err(|error| format!("run a step: {error}"))?;
        }
        Ok((TOKENS * sequences) as f64 / begin.elapsed().as_secs_f64())
    }

    /// Feeds `count` tokens from `start` on, `chunk` at a time, asking for logits where the peer does: after each
    /// decoded token and at the end of a prompt.
    fn feed(&mut self, blocks: &[u32], start: usize, chunk: usize, count: usize) -> Result<()> {
        let (mut position, end) = (start, start + count);
        while position < end {
            let size = chunk.min(end - position);
            let tokens: Vec<u32> = (position..position + size).map(|index| self.token(index)).collect();
            let output = if size == 1 || position + size == end {
                Output::Last
            } else {
                Output::Nothing
            };
            let input = StepInput {
                tokens: &tokens,
                position,
                blocks,
                output,
            };
            self.model
                .step(&[input], &mut self.rows)
                .map_err(|error| format!("run a step: {error}"))?;
            position += size;
        }
        Ok(())
    }

    /// A block table for one of several sequences of the same length.
    fn table(&self, index: usize, tokens: usize) -> Vec<u32> {
        let layout = self.model.kv_layout();
        let blocks = tokens.div_ceil(layout.block_tokens);
        (0..blocks).map(|block| (index * blocks + block) as u32).collect()
    }

    /// Tokens without a pattern that a cache would like.
    fn token(&self, index: usize) -> u32 {
        let special = 300.min(self.model.vocab_size() - 1);
        let ordinary = NonZeroUsize::new(self.model.vocab_size() - special).map_or(1, NonZeroUsize::get);
        let mixed = (index as u32).wrapping_mul(2_654_435_761) >> 8;
        (special + mixed as usize % ordinary) as u32
    }
}
