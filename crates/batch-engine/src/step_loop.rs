//! The engine's thread: admits, steps, samples, delivers, until there is nothing left to do for ever.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::compose::{Composer, Share};
use crate::kv::KvBlocks;
use crate::load::{self, RateWindow};
use crate::sampling::Scratch;
use crate::sequence::{Ended, Outcome, Sequence, Task};
use crate::shared::{Report, Shared};
use crate::{Counters, Model, Output, StepInput};

pub(crate) struct StepLoop {
    model: Box<dyn Model>,
    kv: KvBlocks,
    shared: Arc<Shared>,
    composer: Composer,
    /// In order of admission.
    running: Vec<Sequence>,
    /// Ended and not yet told. Here so that a panic leaves nobody without an answer.
    leaving: Vec<Ended>,
    /// Counted since the last report.
    counted: Counters,
    /// Blocks that the prefix cache had given up at the last report.
    reported_evictions: u64,
    rate: RateWindow,
    // Kept between steps for their memory.
    rows: Vec<f32>,
    scratch: Scratch,
}

impl StepLoop {
    pub(crate) fn new(model: Box<dyn Model>, kv: KvBlocks, shared: Arc<Shared>, prefill_chunk: usize) -> Self {
        Self {
            scratch: Scratch::new(model.vocab_size()),
            model,
            kv,
            shared,
            composer: Composer::new(prefill_chunk),
            running: Vec::new(),
            leaving: Vec::new(),
            counted: Counters::default(),
            reported_evictions: 0,
            rate: RateWindow::new(Instant::now()),
            rows: Vec::new(),
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
            if self.turn()? {
                continue;
            }
            if self.running.is_empty() && self.shared.is_drained() {
                return Ok(());
            }
            self.sleep();
        }
    }

    /// Looks at everything once, and runs a step if there is anything to run. Returns whether there was.
    fn turn(&mut self) -> Result<bool, String> {
        self.remove_ended();
        self.admit();
        self.composer.compose(&mut self.running, &mut self.kv);
        self.publish();
        if self.composer.shares().is_empty() {
            return Ok(false);
        }
        self.step()?;
        Ok(true)
    }

    /// Nothing can be run: there is no request, or the readers stay behind.
    fn sleep(&mut self) {
        // The published pace has to fall although nothing happens.
        let limit = (self.rate.per_second(Instant::now()) > 0.0).then_some(load::BUCKET);
        self.shared.sleep(limit);
    }

    /// Starts a sequence for each request that can start now.
    fn admit(&mut self) {
        while self.running.len() < self.shared.limits.max_sequences {
            let kv = &mut self.kv;
            let Some((waiting, table)) = self.shared.admit(|waiting| Sequence::admit(waiting, kv)) else {
                break;
            };
            if waiting.task.needs_model(waiting.max_tokens) {
                let (prompt_tokens, cached_tokens) = (waiting.prompt.len(), self.kv.cached_tokens(&table));
                tracing::debug!(parent: waiting.trace.request(), prompt_tokens, cached_tokens, "sequence starts");
                self.running.push(Sequence::new(waiting, table, &self.kv));
            } else {
                self.kv.release(table);
                let outcome = Ok(());
                count_end(&mut self.counted, Some(&outcome));
                self.publish();
                waiting.task.finish(outcome);
            }
        }
    }

    /// Runs what was composed, and gives each sequence what the model returned for it.
    fn step(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let shares = self.composer.shares();
        let inputs: Vec<StepInput<'_>> = shares
            .iter()
            .map(|share| self.running[share.place].input(share))
            .collect();
        self.model
            .step(&inputs, &mut self.rows)
            .map_err(|error| format!("the model failed at a step: {error}"))?;
        let limits = &self.shared.limits;
        let values = |share: &Share| match share.output {
            Output::Nothing => 0,
            Output::Last => limits.vocab_size,
            Output::All => share.tokens * limits.vocab_size,
            Output::Hidden => share.tokens * limits.hidden_size,
        };
        let wanted: usize = shares.iter().map(values).sum();
        if self.rows.len() != wanted {
            let returned = self.rows.len();
            return Err(format!("the model returned {returned} values instead of {wanted}"));
        }
        let mut rest = self.rows.as_mut_slice();
        let mut decoded = 0;
        for share in shares {
            let rows;
            (rows, rest) = rest.split_at_mut(values(share));
            let sequence = &mut self.running[share.place];
            let progress = sequence.advance(share, rows, &mut self.kv, &*self.model, &mut self.scratch);
            self.counted.prefill_tokens += progress.prefilled as u64;
            self.counted.prefix_lookup_tokens += progress.looked_up as u64;
            self.counted.prefix_hit_tokens += progress.hit as u64;
            decoded += progress.decoded as u64;
        }
        let now = Instant::now();
        self.rate.record(decoded, now);
        self.counted.decode_tokens += decoded;
        self.counted.steps += 1;
        self.counted.step_time += now.duration_since(started);
        Ok(())
    }

    /// Frees the slots and the KV blocks of sequences that have ended or whose reader has left, makes that visible, and
    /// only then tells the readers.
    fn remove_ended(&mut self) {
        for sequence in self.running.extract_if(.., |sequence| sequence.has_ended()) {
            let (table, ended) = sequence.end();
            self.kv.release(table);
            count_end(&mut self.counted, ended.outcome.as_ref());
            self.leaving.push(ended);
        }
        if !self.leaving.is_empty() {
            self.publish();
        }
        for ended in self.leaving.drain(..) {
            let Ended {
                trace,
                task,
                outcome,
                generated_tokens,
            } = ended;
            tracing::debug!(parent: trace.request(), generated_tokens, ?outcome, "sequence ends");
            if let Some(outcome) = outcome {
                task.finish(outcome);
            }
        }
    }

    fn publish(&mut self) {
        let evictions = self.kv.evicted();
        self.counted.prefix_evicted_blocks += evictions - self.reported_evictions;
        self.reported_evictions = evictions;
        self.shared.publish(&Report {
            running: self.running.len(),
            kv_used_tokens: self.kv.used_tokens(),
            kv_reserved_tokens: self.kv.reserved_tokens(),
            kv_cached_tokens: self.kv.kept_tokens(),
            // The last word of an engine that falls idle stands until it is asked again.
            tokens_per_second: match self.running.is_empty() {
                true => 0.0,
                false => self.rate.per_second(Instant::now()),
            },
            counted: std::mem::take(&mut self.counted),
        });
    }

    /// Tells everybody that the model is broken.
    fn fail(&mut self, reason: &str) {
        tracing::error!(reason, running = self.running.len(), "engine failed");
        let waiting = self.shared.fail(reason);
        let broken = || Err(reason.to_owned());
        // Those that are leaving have been counted.
        let mut ends: Vec<(Task, Outcome)> = Vec::new();
        ends.extend(
            self.leaving
                .drain(..)
                .map(|ended| (ended.task, ended.outcome.unwrap_or_else(broken))),
        );
        let counted = ends.len();
        ends.extend(self.running.drain(..).map(|sequence| {
            let (_, ended) = sequence.end();
            (ended.task, ended.outcome.unwrap_or_else(broken))
        }));
        ends.extend(waiting.into_iter().map(|waiting| (waiting.task, broken())));
        for (_, outcome) in &ends[counted..] {
            count_end(&mut self.counted, Some(outcome));
        }
        self.shared.publish(&Report {
            counted: std::mem::take(&mut self.counted),
            ..Report::default()
        });
        for (task, outcome) in ends {
            task.finish(outcome);
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
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}

#[cfg(test)]
mod simulation;
