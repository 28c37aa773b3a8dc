//! The engine's thread: admits, steps, samples, delivers, until there is nothing left to do for ever.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::generation::{Outcome, Reply};
use crate::load::{self, RateWindow};
use crate::sampling::Scratch;
use crate::sequence::{Sequence, Share, plan};
use crate::shared::{Report, Shared, Waiting};
use crate::{Counters, FinishReason, Model};

pub(crate) struct StepLoop {
    model: Box<dyn Model>,
    shared: Arc<Shared>,
    prefill_chunk: usize,
    /// Admitted and not yet open. Here, like the next two, so that a panic of the model leaves nobody without an answer.
    joining: VecDeque<Waiting>,
    /// In order of admission.
    running: Vec<Sequence>,
    /// Ended and not yet told.
    leaving: Vec<Sequence>,
    /// Counted since the last report.
    counted: Counters,
    rate: RateWindow,
    // Kept between steps for their memory.
    shares: Vec<Share>,
    logits: Vec<f32>,
    scratch: Scratch,
}

impl StepLoop {
    pub(crate) fn new(model: Box<dyn Model>, shared: Arc<Shared>, prefill_chunk: usize) -> Self {
        Self {
            model,
            shared,
            prefill_chunk,
            joining: VecDeque::new(),
            running: Vec::new(),
            leaving: Vec::new(),
            counted: Counters::default(),
            rate: RateWindow::new(Instant::now()),
            shares: Vec::new(),
            logits: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// The thread's life.
    pub(crate) fn run(mut self) {
        match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => self.fail(&reason),
            Err(panic) => self.fail(&format!("the model panicked: {}", panic_text(&*panic))),
        }
        let Self { model, shared, .. } = self;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(model))) {
            let reason = format!("the model panicked when it was dropped: {}", panic_text(&*panic));
            tracing::error!(reason, "engine failed");
            // Nothing waits any more: the engine has drained or failed.
            shared.fail(&reason);
        }
        shared.end();
    }

    /// Runs until drained. The error is the reason why the model cannot go on.
    fn serve(&mut self) -> Result<(), String> {
        loop {
            self.shared.attend();
            self.remove_ended();
            self.admit();
            plan(&self.running, self.prefill_chunk, &mut self.shares);
            if !self.shares.is_empty() {
                self.step()?;
            } else if self.running.is_empty() && self.shared.is_drained() {
                return Ok(());
            } else {
                self.sleep();
            }
        }
    }

    /// Nothing can be run: there is no request, or the readers stay behind.
    fn sleep(&mut self) {
        // The published pace has to fall although nothing happens.
        let limit = (self.rate.per_second(Instant::now()) > 0.0).then_some(load::BUCKET);
        self.shared.sleep(limit);
    }

    /// Opens a sequence for each request that can start now.
    fn admit(&mut self) {
        loop {
            let limits = &self.shared.limits;
            let reserved: usize = self.running.iter().map(Sequence::reserved).sum();
            let free_slots = limits.max_sequences - self.running.len();
            self.joining = self.shared.admit(free_slots, limits.kv_capacity - reserved);
            if self.joining.is_empty() {
                return;
            }
            // Those that do not get a sequence make room for others: another round.
            self.open_joining();
            self.publish();
        }
    }

    fn open_joining(&mut self) {
        while let Some(waiting) = self.joining.front() {
            // No token wanted, no work.
            let opened = (waiting.max_tokens > 0).then(|| self.model.open(waiting.reserved()));
            let Some(waiting) = self.joining.pop_front() else {
                return;
            };
            let outcome = match opened {
                Some(Ok(id)) => {
                    tracing::debug!(parent: &waiting.span, prompt_tokens = waiting.prompt.len(), "sequence starts");
                    self.running.push(Sequence::new(id, waiting));
                    continue;
                }
                Some(Err(error)) => {
                    tracing::warn!(parent: &waiting.span, %error, "sequence not opened");
                    Err(format!("the model could not open a sequence: {error}"))
                }
                None => Ok(FinishReason::Length),
            };
            count_end(&mut self.counted, Some(&outcome));
            self.publish();
            waiting.reply.finish(outcome);
        }
    }

    /// Runs what was planned, and chooses a token for each sequence that is ready for one.
    fn step(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let inputs: Vec<_> = self
            .shares
            .iter()
            .map(|share| self.running[share.place].input(share))
            .collect();
        self.model
            .step(&inputs, &mut self.logits)
            .map_err(|error| format!("the model failed at a step: {error}"))?;
        let vocab_size = self.shared.limits.vocab_size;
        let wanted = self.shares.iter().filter(|share| share.wants_logits).count() * vocab_size;
        if self.logits.len() != wanted {
            return Err(format!(
                "the model returned {} logits instead of {wanted}",
                self.logits.len()
            ));
        }
        let mut rows = self.logits.chunks_exact(vocab_size);
        let mut decoded = 0;
        for share in &self.shares {
            let sequence = &mut self.running[share.place];
            self.counted.prefill_tokens += sequence.fed(share) as u64;
            let row = if share.wants_logits { rows.next() } else { None };
            if row.is_some_and(|logits| sequence.choose_next(logits, &mut self.scratch, &*self.model)) {
                decoded += 1;
            }
        }
        let now = Instant::now();
        self.rate.record(decoded, now);
        self.counted.decode_tokens += decoded;
        self.counted.steps += 1;
        self.counted.step_time += now.duration_since(started);
        Ok(())
    }

    /// Frees the slots and the KV caches of sequences that have ended or whose reader has left, makes that visible,
    /// and only then tells the readers.
    fn remove_ended(&mut self) {
        self.leaving.extend(self.running.extract_if(.., |sequence| {
            sequence.outcome.is_some() || sequence.reply.is_abandoned()
        }));
        for sequence in &self.leaving {
            self.model.close(sequence.id);
        }
        for sequence in &self.leaving {
            count_end(&mut self.counted, sequence.outcome.as_ref());
        }
        self.publish();
        for sequence in self.leaving.drain(..) {
            let generated_tokens = sequence.generated();
            let Sequence {
                span, reply, outcome, ..
            } = sequence;
            tracing::debug!(parent: &span, generated_tokens, ?outcome, "sequence ends");
            if let Some(outcome) = outcome {
                reply.finish(outcome);
            }
        }
    }

    fn publish(&mut self) {
        self.shared.publish(&Report {
            running: self.running.len() + self.joining.len(),
            kv_used_tokens: self.running.iter().map(Sequence::held).sum(),
            kv_reserved_tokens: self.running.iter().map(Sequence::reserved).sum(),
            tokens_per_second: self.rate.per_second(Instant::now()),
            counted: std::mem::take(&mut self.counted),
        });
    }

    /// Tells everybody that the model is broken.
    fn fail(&mut self, reason: &str) {
        tracing::error!(reason, running = self.running.len(), "engine failed");
        let waiting = self.shared.fail(reason);
        let begun = self.leaving.drain(..).chain(self.running.drain(..));
        let not_begun = self.joining.drain(..).chain(waiting);
        let ends: Vec<(Reply, Outcome)> = begun
            .map(|sequence| (sequence.reply, sequence.outcome))
            .chain(not_begun.map(|waiting| (waiting.reply, None)))
            .map(|(reply, outcome)| (reply, outcome.unwrap_or_else(|| Err(reason.to_owned()))))
            .collect();
        for (_, outcome) in &ends {
            count_end(&mut self.counted, Some(outcome));
        }
        self.publish();
        for (reply, outcome) in ends {
            reply.finish(outcome);
        }
    }
}

/// Counts a request that has ended; without an outcome, its reader has left.
fn count_end(counters: &mut Counters, outcome: Option<&Outcome>) {
    match outcome {
        None => counters.cancelled += 1,
        Some(Ok(_)) => counters.finished += 1,
        Some(Err(_)) => counters.failed += 1,
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}
