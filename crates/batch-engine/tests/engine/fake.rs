//! A fake model: it multiplies nothing. By default its greedy answer counts upwards from the prompt's last token until
//! [`END`]. It checks what a model may rely on, and a [`Controller`] decides when, and how, each step ends.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use batch_engine::{Engine, EngineHandle, EngineOptions, Model, ModelError, SequenceId, StepInput};

pub(crate) const VOCAB_SIZE: usize = 100;
/// Ends an answer.
pub(crate) const END: u32 = 99;

/// Writes the logits that follow these tokens.
type Logits = Box<dyn Fn(&[u32], &mut [f32]) + Send>;

pub(crate) struct FakeModel {
    pub(crate) context_length: usize,
    pub(crate) kv_capacity: usize,
    pub(crate) logits: Logits,
    /// Which sequence, counted from 0, is not opened, and how that fails.
    pub(crate) refuses: Option<(usize, Refusal)>,
    pub(crate) inside: Inside,
}

/// What a test has no need to set.
#[derive(Default)]
pub(crate) struct Inside {
    opened: usize,
    sequences: HashMap<SequenceId, Held>,
    gate: Option<Gate>,
    log: Arc<Mutex<Log>>,
}

/// How `open` fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refusal {
    Error,
    Panic,
}

#[derive(Default)]
struct Held {
    tokens: Vec<u32>,
    max_tokens: usize,
}

struct Gate {
    steps: SyncSender<Vec<Seen>>,
    verdicts: Receiver<Verdict>,
}

/// What the model has seen besides steps.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// `max_tokens` of each sequence, in the order of opening; the n-th has the id n.
    pub(crate) opened: Vec<usize>,
    pub(crate) closed: Vec<u64>,
}

/// One input of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) sequence: u64,
    pub(crate) tokens: Vec<u32>,
    pub(crate) wants_logits: bool,
}

/// An input that brings its sequence's next token.
pub(crate) fn last(sequence: u64, tokens: &[u32]) -> Seen {
    Seen {
        sequence,
        tokens: tokens.to_vec(),
        wants_logits: true,
    }
}

/// An input after which the prompt goes on.
pub(crate) fn part(sequence: u64, tokens: &[u32]) -> Seen {
    Seen {
        wants_logits: false,
        ..last(sequence, tokens)
    }
}

/// How a step ends.
#[derive(Debug)]
pub(crate) enum Verdict {
    Go,
    Error,
    Panic,
    /// With a logit too few.
    TooFewLogits,
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
            kv_capacity: 10_000,
            logits: Box::new(|tokens, logits| {
                let last = tokens.last().copied().unwrap_or_default();
                logits[(last as usize + 1).min(END as usize)] = 1.0;
            }),
            refuses: None,
            inside: Inside::default(),
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
}

impl Model for FakeModel {
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn kv_capacity(&self) -> usize {
        self.kv_capacity
    }

    fn is_end(&self, token: u32) -> bool {
        token == END
    }

    fn open(&mut self, max_tokens: usize) -> Result<SequenceId, ModelError> {
        let number = self.inside.opened;
        self.inside.opened += 1;
        match self.refuses {
            Some((refused, Refusal::Error)) if refused == number => return Err(ModelError("no memory".into())),
            Some((refused, Refusal::Panic)) if refused == number => panic!("no memory at all"),
            _ => {}
        }
        let reserved: usize = self.inside.sequences.values().map(|held| held.max_tokens).sum();
        assert!(reserved + max_tokens <= self.kv_capacity, "the KV budget is exceeded");
        assert!(max_tokens <= self.context_length, "the context is exceeded");
        let id = SequenceId(number as u64);
        self.inside.sequences.insert(
            id,
            Held {
                tokens: Vec::new(),
                max_tokens,
            },
        );
        self.inside.log.lock().unwrap().opened.push(max_tokens);
        Ok(id)
    }

    fn close(&mut self, sequence: SequenceId) {
        assert!(self.inside.sequences.remove(&sequence).is_some(), "closed twice");
        self.inside.log.lock().unwrap().closed.push(sequence.0);
    }

    fn step(&mut self, inputs: &[StepInput<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError> {
        assert!(!inputs.is_empty(), "a step without work");
        let mut verdict = Verdict::Go;
        if let Some(gate) = &self.inside.gate {
            let seen = inputs.iter().map(|input| Seen {
                sequence: input.sequence.0,
                tokens: input.tokens.to_vec(),
                wants_logits: input.wants_logits,
            });
            if gate.steps.send(seen.collect()).is_ok() {
                verdict = gate.verdicts.recv().unwrap_or(Verdict::Go);
            }
        }
        logits.clear();
        for input in inputs {
            let held = self
                .inside
                .sequences
                .get_mut(&input.sequence)
                .expect("an open sequence");
            assert!(!input.tokens.is_empty(), "an input without tokens");
            held.tokens.extend_from_slice(input.tokens);
            assert!(
                held.tokens.len() <= held.max_tokens,
                "more tokens than the sequence was opened for"
            );
            if input.wants_logits {
                let start = logits.len();
                logits.resize(start + VOCAB_SIZE, 0.0);
                (self.logits)(&held.tokens, &mut logits[start..]);
            }
        }
        match verdict {
            Verdict::Go => {}
            Verdict::Error => return Err(ModelError("the device is gone".into())),
            Verdict::Panic => panic!("a broken kernel"),
            Verdict::TooFewLogits => drop(logits.pop()),
        }
        Ok(())
    }
}
