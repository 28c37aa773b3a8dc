//! A network, its backend and its cache: what the engine sees as a model.

use std::collections::HashSet;

use batch_engine::{KvLayout, Model, ModelError, Output, StepInput};
use cpu_kernels::{BLOCK_TOKENS, Span};

use crate::backend::{Backend, Batch, Wanted, What};
use crate::network::Network;

/// Limits that a model keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Tokens that one sequence may hold.
    pub(crate) context_length: usize,
    /// Blocks of the cache.
    pub(crate) kv_blocks: usize,
}

/// Runs steps. It knows no sequences: each input brings its block table.
pub(crate) struct Runner<B: Backend> {
    backend: B,
    network: Network<B>,
    cache: B::Cache,
    limits: Limits,
    end_tokens: HashSet<u32>,
    writers: Writers,
}

impl<B: Backend> Runner<B> {
    pub(crate) fn new(backend: B, network: Network<B>, cache: B::Cache, limits: Limits, end_tokens: &[u32]) -> Self {
        Self {
            backend,
            network,
            cache,
            limits,
            end_tokens: end_tokens.iter().copied().collect(),
            writers: Writers {
                inputs: 0,
                last: vec![0; limits.kv_blocks],
            },
        }
    }

    /// Refuses a step that cannot be run as a whole, before anything changes.
    fn check(&mut self, inputs: &[StepInput<'_>]) -> Result<(), ModelError> {
        let vocab = self.network.architecture.vocab;
        let Limits {
            context_length,
            kv_blocks,
        } = self.limits;
        let first_input = self.writers.inputs + 1;
        for input in inputs {
            if input.tokens.is_empty() {
                return Err(ModelError("an input has no tokens".to_owned()));
            }
            if let Some(token) = input.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(ModelError(format!(
                    "token {token} is not in the vocabulary of {vocab} tokens"
                )));
            }
            let end = input.position.saturating_add(input.tokens.len());
            if end > context_length {
                return Err(ModelError(format!(
                    "a sequence of {end} tokens is longer than the context of {context_length}"
                )));
            }
            let (needed, given) = (end.div_ceil(BLOCK_TOKENS), input.blocks.len());
            let Some(table) = input.blocks.get(..needed) else {
                return Err(ModelError(format!(
                    "a sequence of {end} tokens needs {needed} blocks, its table has {given}"
                )));
            };
            if let Some(block) = table.iter().find(|&&block| block as usize >= kv_blocks) {
                return Err(ModelError(format!(
                    "block {block} is not one of the cache's {kv_blocks} blocks"
                )));
            }
            self.writers
                .enter(table, input.position / BLOCK_TOKENS, first_input)
                .map_err(|block| ModelError(format!("block {block} is in the step twice")))?;
        }
        Ok(())
    }
}

/// Which input was the last to write each block.
struct Writers {
    /// Inputs so far, in all steps.
    inputs: u64,
    /// Number of the input, counted from 1, by block.
    last: Vec<u64>,
}

impl Writers {
    /// Notes the blocks that an input writes, which are those from `first` on in its table. The error is a block that
    /// another input of this step writes too, or that the input has at two places.
    fn enter(&mut self, table: &[u32], first: usize, first_input: u64) -> Result<(), u32> {
        self.inputs += 1;
        let (read, written) = table.split_at(first);
        for &block in written {
            let last = &mut self.last[block as usize];
            if *last >= first_input {
                return Err(block);
            }
            *last = self.inputs;
        }
        let both = read.iter().find(|&&block| self.last[block as usize] == self.inputs);
        both.map_or(Ok(()), |&block| Err(block))
    }
}

/// The inputs as one batch of rows.
fn compose<'a>(inputs: &[StepInput<'a>]) -> Batch<'a> {
    let rows = inputs.iter().map(|input| input.tokens.len()).sum();
    let mut batch = Batch {
        tokens: Vec::with_capacity(rows),
        positions: Vec::with_capacity(rows),
        spans: Vec::with_capacity(inputs.len()),
        wanted: Vec::new(),
    };
    for input in inputs {
        let (first, rows, position) = (batch.tokens.len(), input.tokens.len(), input.position);
        batch.tokens.extend_from_slice(input.tokens);
        batch.positions.extend(position..position + rows);
        batch.spans.push(Span {
            first,
            rows,
            position,
            blocks: input.blocks,
        });
        let (rows, what) = match input.output {
            Output::Nothing => (0..0, What::Logits),
            Output::Last => (first + rows - 1..first + rows, What::Logits),
            Output::All => (first..first + rows, What::Logits),
            Output::Hidden => (first..first + rows, What::Hidden),
        };
        batch.wanted.extend(rows.map(|row| Wanted { row, what }));
    }
    batch
}

impl<B: Backend> Model for Runner<B> {
    fn vocab_size(&self) -> usize {
        self.network.architecture.vocab
    }

    fn hidden_size(&self) -> usize {
        self.network.architecture.width
    }

    fn context_length(&self) -> usize {
        self.limits.context_length
    }

    fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    fn kv_layout(&self) -> KvLayout {
        KvLayout {
            block_tokens: BLOCK_TOKENS,
            blocks: self.limits.kv_blocks,
        }
    }

    fn step(&mut self, inputs: &[StepInput<'_>], rows: &mut Vec<f32>) -> Result<(), ModelError> {
        rows.clear();
        self.check(inputs)?;
        if inputs.is_empty() {
            return Ok(());
        }
        let batch = compose(inputs);
        self.backend
            .forward(&self.network, &mut self.cache, &batch, rows)
            .map_err(|error| ModelError(format!("the step failed: {error}")))
    }
}
