//! A fake model: it multiplies nothing. By default its greedy answer counts upwards from the prompt's last token until
//! [`END`]. It checks what a model may rely on, and a [`Controller`] decides when, and how, each step ends.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use batch_engine::{Engine, EngineHandle, EngineOptions, KvLayout, Model, ModelError, Output, StepInput};

use crate::pages::{Pages, Part};

pub(crate) const VOCAB_SIZE: usize = 100;
/// Ends an answer.
pub(crate) const END: u32 = 99;
pub(crate) const BLOCK_TOKENS: usize = 4;
pub(crate) const HIDDEN_SIZE: usize = 2;

/// Writes the logits that follow these tokens.
type Logits = Box<dyn Fn(&[u32], &mut [f32]) + Send>;

pub(crate) struct FakeModel {
    pub(crate) context_length: usize,
    /// Number of blocks, each for [`BLOCK_TOKENS`].
    pub(crate) blocks: usize,
    pub(crate) logits: Logits,
    pub(crate) inside: Inside,
}

/// What a test has no need to set.
#[derive(Default)]
pub(crate) struct Inside {
    pages: Option<Pages>,
    gate: Option<Gate>,
    log: Arc<Mutex<Log>>,
}

struct Gate {
    steps: SyncSender<Vec<Seen>>,
    verdicts: Receiver<Verdict>,
}

/// What the model has done in all.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) tokens: usize,
}

/// One input of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) position: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) output: Output,
}

/// An input that brings its sequence's next token.
pub(crate) fn last(position: usize, tokens: &[u32]) -> Seen {
    Seen {
        position,
        tokens: tokens.to_vec(),
        output: Output::Last,
    }
}

/// An input after which the prompt goes on.
pub(crate) fn part(position: usize, tokens: &[u32]) -> Seen {
    Seen {
        output: Output::Nothing,
        ..last(position, tokens)
    }
}

/// An input of whose tokens all logits are wanted.
pub(crate) fn all(position: usize, tokens: &[u32]) -> Seen {
    Seen {
        output: Output::All,
        ..last(position, tokens)
    }
}

/// An input of whose tokens the hidden states are wanted.
pub(crate) fn hidden(position: usize, tokens: &[u32]) -> Seen {
    Seen {
        output: Output::Hidden,
        ..last(position, tokens)
    }
}

/// How a step ends.
#[derive(Debug)]
pub(crate) enum Verdict {
    Go,
    Error,
    Panic,
    /// With a value too few.
    TooFewValues,
}

/// Holds and releases the model's steps. Once it is dropped they run freely.
pub(crate) struct Controller {
    steps: Receiver<Vec<Seen>>,
    verdicts: SyncSender<Verdict>,
}

impl Controller {
    /// Waits for the step that the engine begins next, and holds it.
    pub(crate) fn held_step(&self) -> Vec<Seen> {
        // The limit only turns a test that would hang into one that fails.
        self.steps
            .recv_timeout(Duration::from_secs(60))
            .expect("the engine should begin a step")
    }

    /// Ends the held step.
    pub(crate) fn end_step(&self, verdict: Verdict) {
        self.verdicts.send(verdict).unwrap();
    }

    /// Lets one step pass and returns what it saw.
    pub(crate) fn step(&self) -> Vec<Seen> {
        let step = self.held_step();
        self.end_step(Verdict::Go);
        step
    }
}

impl FakeModel {
    pub(crate) fn new() -> Self {
        Self {
            context_length: 1000,
            blocks: 2500,
            logits: Box::new(|tokens, logits| {
                let last = tokens.last().copied().unwrap_or_default();
                logits[(last as usize + 1).min(END as usize)] = 1.0;
            }),
            inside: Inside::default(),
        }
    }

    /// A model whose logits look random and depend on all of the sequence's own tokens.
    pub(crate) fn hashing() -> Self {
        Self {
            logits: Box::new(|tokens, logits| {
                let mut hash = 0xcbf2_9ce4_8422_2325_u64;
                for &token in tokens {
                    hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
                }
                for logit in logits.iter_mut() {
                    hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *logit = f32::from((hash >> 48) as u16) / 10_000.0;
                }
                logits[END as usize] = f32::NEG_INFINITY;
            }),
            ..Self::new()
        }
    }

    /// Starts an engine whose steps run freely.
    pub(crate) fn start(self, options: EngineOptions) -> EngineHandle {
        Engine::start(Box::new(self), options).unwrap()
    }

    /// Starts an engine whose steps are held.
    pub(crate) fn start_held(mut self, options: EngineOptions) -> (EngineHandle, Controller) {
        let (step_sender, steps) = sync_channel(1);
        let (verdicts, verdict_receiver) = sync_channel(1);
        self.inside.gate = Some(Gate {
            steps: step_sender,
            verdicts: verdict_receiver,
        });
        (self.start(options), Controller { steps, verdicts })
    }

    /// Outlives the model: when it is the only one left, the model has been dropped.
    pub(crate) fn log(&self) -> Arc<Mutex<Log>> {
        Arc::clone(&self.inside.log)
    }

    /// Waits at the gate, if there is one.
    fn verdict(&self, inputs: &[StepInput<'_>]) -> Verdict {
        let Some(gate) = &self.inside.gate else {
            return Verdict::Go;
        };
        let seen = inputs.iter().map(|input| Seen {
            position: input.position,
            tokens: input.tokens.to_vec(),
            output: input.output,
        });
        if gate.steps.send(seen.collect()).is_err() {
            return Verdict::Go;
        }
        gate.verdicts.recv().unwrap_or(Verdict::Go)
    }
}

/// The fake model's hidden state of a token.
pub(crate) fn hidden_state(position: usize, token: u32) -> [f32; HIDDEN_SIZE] {
    [token as f32, position as f32]
}

impl Model for FakeModel {
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn hidden_size(&self) -> usize {
        HIDDEN_SIZE
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn kv_layout(&self) -> KvLayout {
        KvLayout {
            block_tokens: BLOCK_TOKENS,
            blocks: self.blocks,
        }
    }

    fn step(&mut self, inputs: &[StepInput<'_>], rows: &mut Vec<f32>) -> Result<(), ModelError> {
        assert!(!inputs.is_empty(), "a step without work");
        let verdict = self.verdict(inputs);
        let blocks = self.blocks;
        let pages = self
            .inside
            .pages
            .get_or_insert_with(|| Pages::new(BLOCK_TOKENS, blocks));
        let parts: Vec<Part<'_>> = inputs
            .iter()
            .map(|input| (input.tokens, input.position, input.blocks))
            .collect();
        let sequences = pages.step(&parts);
        rows.clear();
        for (input, tokens) in inputs.iter().zip(&sequences) {
            assert!(tokens.len() <= self.context_length, "the context is exceeded");
            self.inside.log.lock().unwrap().tokens += input.tokens.len();
            let mut add_logits = |tokens: &[u32]| {
                let start = rows.len();
                rows.resize(start + VOCAB_SIZE, 0.0);
                (self.logits)(tokens, &mut rows[start..]);
            };
            match input.output {
                Output::Nothing => {}
                Output::Last => add_logits(tokens),
                Output::All => (input.position..tokens.len()).for_each(|at| add_logits(&tokens[..=at])),
                Output::Hidden => {
                    rows.extend((input.position..tokens.len()).flat_map(|at| hidden_state(at, tokens[at])));
                }
            }
        }
        match verdict {
            Verdict::Go => {}
            Verdict::Error => return Err(ModelError("the device is gone".into())),
            Verdict::Panic => panic!("a broken kernel"),
            Verdict::TooFewValues => drop(rows.pop()),
        }
        Ok(())
    }
}
