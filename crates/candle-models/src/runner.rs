//! Sequences and their caches around a network: what the engine sees as a model.

use std::collections::{HashMap, HashSet};

use batch_engine::{Model, ModelError, SequenceId, StepInput};

use crate::backend::{Backend, Heads, Span};
use crate::families::{Batch, Network};

/// Limits that a model keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Tokens that one sequence may hold.
    pub(crate) context_length: usize,
    /// Tokens that all open sequences may hold together.
    pub(crate) kv_tokens: usize,
}

/// A network, its backend and the open sequences.
pub(crate) struct Runner<B: Backend, N: Network<B>> {
    backend: B,
    network: N,
    heads: Vec<Heads>,
    limits: Limits,
    end_tokens: HashSet<u32>,
    sequences: HashMap<SequenceId, Sequence<B::Cache>>,
    /// Sum of the open sequences' `max_tokens`.
    promised: usize,
    next_id: u64,
}

struct Sequence<C> {
    /// One per layer.
    caches: Vec<C>,
    /// Tokens in the caches.
    len: usize,
    max_tokens: usize,
}

impl<B: Backend, N: Network<B>> Runner<B, N> {
    pub(crate) fn new(backend: B, network: N, limits: Limits, end_tokens: &[u32]) -> Self {
        let heads = network.heads();
        let end_tokens = end_tokens.iter().copied().collect();
        Self {
            backend,
            network,
            heads,
            limits,
            end_tokens,
            sequences: HashMap::new(),
            promised: 0,
            next_id: 0,
        }
    }

    /// Refuses a step that cannot be run as a whole, before anything changes.
    fn check(&self, inputs: &[StepInput<'_>]) -> Result<(), ModelError> {
        let mut seen = HashSet::with_capacity(inputs.len());
        for input in inputs {
            let id = input.sequence.0;
            let Some(sequence) = self.sequences.get(&input.sequence) else {
                return Err(ModelError(format!("sequence {id} is not open")));
            };
            if !seen.insert(input.sequence) {
                return Err(ModelError(format!("sequence {id} is in the step twice")));
            }
            if input.tokens.is_empty() {
                return Err(ModelError(format!("sequence {id} has no tokens in the step")));
            }
            if sequence.len + input.tokens.len() > sequence.max_tokens {
                let max = sequence.max_tokens;
                return Err(ModelError(format!(
                    "sequence {id} would grow beyond the {max} tokens it was opened for"
                )));
            }
            let vocab = self.network.vocab_size();
            if let Some(token) = input.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(ModelError(format!(
                    "token {token} is not in the vocabulary of {vocab} tokens"
                )));
            }
        }
        Ok(())
    }

    /// Runs the checked inputs on their sequences, which are taken out of the map meanwhile.
    fn run(
        &self,
        inputs: &[StepInput<'_>],
        taken: &mut [(SequenceId, Sequence<B::Cache>)],
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        let mut batch = Batch {
            tokens: Vec::new(),
            positions: Vec::new(),
            wanted: Vec::new(),
            spans: Vec::new(),
        };
        for (input, (_, sequence)) in inputs.iter().zip(taken) {
            let (first, rows, position) = (batch.tokens.len(), input.tokens.len(), sequence.len);
            batch.tokens.extend_from_slice(input.tokens);
            batch.positions.extend(position..position + rows);
            batch.spans.push(Span {
                first,
                rows,
                position,
                caches: &mut sequence.caches,
            });
            if input.wants_logits {
                batch.wanted.push(first + rows - 1);
            }
        }
        self.backend
            .run(|| {
                let rows = self.network.forward(&self.backend, &mut batch)?;
                self.backend.read(&rows, logits)
            })
            .map_err(|error| ModelError(format!("the step failed: {error}")))
    }
}

impl<B: Backend, N: Network<B>> Model for Runner<B, N> {
    fn vocab_size(&self) -> usize {
        self.network.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.limits.context_length
    }

    fn kv_capacity(&self) -> usize {
        self.limits.kv_tokens
    }

    fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    fn open(&mut self, max_tokens: usize) -> Result<SequenceId, ModelError> {
        let Limits {
            context_length,
            kv_tokens,
        } = self.limits;
        if max_tokens > context_length {
            return Err(ModelError(format!(
                "{max_tokens} tokens are more than the context of {context_length}"
            )));
        }
        let free = kv_tokens - self.promised;
        if max_tokens > free {
            return Err(ModelError(format!(
                "{max_tokens} tokens do not fit: {free} of {kv_tokens} are free"
            )));
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.promised += max_tokens;
        let caches = self.heads.iter().map(|heads| self.backend.new_cache(heads)).collect();
        self.sequences.insert(
            id,
            Sequence {
                caches,
                len: 0,
                max_tokens,
            },
        );
        Ok(id)
    }

    fn close(&mut self, sequence: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&sequence) {
            self.promised -= sequence.max_tokens;
        }
    }

    fn step(&mut self, inputs: &[StepInput<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        logits.clear();
        self.check(inputs)?;
        if inputs.is_empty() {
            return Ok(());
        }
        let mut taken: Vec<_> = inputs
            .iter()
            .filter_map(|input| self.sequences.remove_entry(&input.sequence))
            .collect();
        let result = self.run(inputs, &mut taken, logits);
        for (input, (id, mut sequence)) in inputs.iter().zip(taken) {
            // A failed step leaves the lengths: what it wrote into the caches is written over by the next one.
            if result.is_ok() {
                sequence.len += input.tokens.len();
            }
            self.sequences.insert(id, sequence);
        }
        result
    }
}
