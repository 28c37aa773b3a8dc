//! One answer: from a prompt's tokens to pieces of text.

use batch_engine::{EngineHandle, Event, Generation, Request, Sampling, SubmitError};
use openai_api::{FinishReason, Usage};

use crate::language::Decoder;
use crate::metrics::{Outcome, Ticket};
use crate::state::Served;
use crate::text::StopMatcher;

/// How to make an answer.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) prompt: Vec<u32>,
    /// `None`: what the context still holds, within the slot's share of the KV cache.
    pub(crate) max_tokens: Option<u32>,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
}

impl Order {
    /// What a request to an OpenAI endpoint asks for.
    pub(crate) fn new(prompt: Vec<u32>, max_tokens: Option<u32>, generation: openai_api::Generation) -> Self {
        Self {
            prompt,
            max_tokens,
            temperature: generation.temperature,
            top_p: generation.top_p,
            seed: generation.seed,
            stop: generation.stop,
        }
    }
}

/// What an answer gives next. `Done` or `Failed` is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Whole characters that are surely part of the answer; never empty.
    Text(String),
    /// The answer is complete.
    Done {
        /// Why it ended.
        reason: FinishReason,
        /// What it took. Tokens of a stop text count, since they were generated; the model's end token does not.
        usage: Usage,
    },
    /// The answer broke off, for a reason that is for the log.
    Failed(String),
}

/// Tokens of an answer without a limit of its own: what the prompt leaves of a slot's share of the KV cache, and at least
/// half of that share. The engine sets aside what a request may come to hold, so the whole context for each would leave
/// slots empty on a model whose context is long.
fn share_of_answer(engine: &EngineHandle, prompt_tokens: usize) -> usize {
    let share = engine.load().kv_total_tokens / engine.max_sequences();
    share.saturating_sub(prompt_tokens).max(share / 2).max(1)
}

/// An answer in the making. Dropping it cancels it: its slot is free within one token.
pub(crate) struct Answer {
    prompt_tokens: u32,
    completion_tokens: u32,
    decoder: Box<dyn Decoder>,
    stops: StopMatcher,
    ticket: Ticket,
    progress: Progress,
}

/// Where an answer stands.
enum Progress {
    Running(Generation),
    /// Everything is told but this.
    Last(Piece),
    Over,
}

impl Answer {
    /// Hands the order to the engine.
    pub(crate) fn begin(served: &Served, order: Order, mut ticket: Ticket) -> Result<Self, SubmitError> {
        let engine = &served.engine;
        let prompt_tokens = count(order.prompt.len());
        let max_tokens = match order.max_tokens {
            Some(max) => max as usize,
            None => share_of_answer(engine, order.prompt.len()),
        };
        let generation = engine.submit(Request {
            prompt: order.prompt,
            max_tokens,
            sampling: Sampling {
                temperature: order.temperature,
                top_p: order.top_p,
                seed: order.seed,
            },
        })?;
        ticket.begun();
        Ok(Self {
            prompt_tokens,
            completion_tokens: 0,
            decoder: served.language.decoder(),
            stops: StopMatcher::new(order.stop),
            ticket,
            progress: Progress::Running(generation),
        })
    }

    /// The next piece; `None` after the last. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        while let Progress::Running(generation) = &mut self.progress {
            let event = generation.next().await;
            if let Some(text) = self.take(event) {
                return Some(Piece::Text(text));
            }
        }
        match std::mem::replace(&mut self.progress, Progress::Over) {
            Progress::Last(piece) => Some(piece),
            Progress::Running(_) | Progress::Over => None,
        }
    }

    /// Text that the event brings, if any. Replacing the progress drops the generation, which frees its slot.
    fn take(&mut self, event: Option<Event>) -> Option<String> {
        let (text, reason) = match event {
            Some(Event::Token(token)) => {
                self.ticket.token();
                self.completion_tokens += 1;
                (self.decoder.push(token), None)
            }
            Some(Event::Finished(reason)) => (self.decoder.finish(), Some(reason)),
            Some(Event::Failed(reason)) => return self.end(Outcome::Failed, Piece::Failed(reason)),
            None => return self.end(Outcome::Failed, Piece::Failed("the engine ended".to_owned())),
        };
        let mut passed = self.stops.push(text.as_deref().unwrap_or_default());
        let reason = match reason {
            _ if passed.stopped => Some(FinishReason::Stop),
            None => None,
            Some(reason) => {
                passed.text.push_str(&self.stops.finish());
                Some(match reason {
                    batch_engine::FinishReason::EndOfText => FinishReason::Stop,
                    batch_engine::FinishReason::Length => FinishReason::Length,
                })
            }
        };
        if let Some(reason) = reason {
            let usage = Usage::new(self.prompt_tokens, self.completion_tokens);
            self.end(Outcome::Finished, Piece::Done { reason, usage });
        }
        Some(passed.text).filter(|text| !text.is_empty())
    }

    fn end(&mut self, outcome: Outcome, last: Piece) -> Option<String> {
        self.ticket.end(outcome);
        self.progress = Progress::Last(last);
        None
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
