//! One answer: from a prompt's tokens to pieces of text and of tool calls.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;

use batch_engine::{Constraint, EngineHandle, Event, Generation, Request, Sampling, SubmitError, Token, TokenLogprobs};
use openai_api::FinishReason;
use structured_output::{ToolCallParser, ToolEvent};
use uuid::Uuid;

use crate::language::Language;
use crate::metrics::Pulse;
use crate::state::Served;
use crate::transcript::{Passed, Spelled, Transcript};

/// How to make an answer.
#[derive(Default)]
pub(crate) struct Order {
    pub(crate) prompt: Vec<u32>,
    /// `None`: what the context still holds, within the slot's share of the KV cache.
    pub(crate) max_tokens: Option<u32>,
    pub(crate) sampling: Sampling,
    /// Texts that end the answer.
    pub(crate) stop: Vec<String>,
    /// Tells how probable each token was, with so many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Whether the answer is compared with others by how probable it was.
    pub(crate) is_ranked: bool,
    /// The answer begins with the prompt, which has this text.
    pub(crate) echo: Option<String>,
    /// What the answer has to follow.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// Finds calls of tools in the text.
    pub(crate) tools: Option<ToolCallParser>,
    /// Spellings of control tokens that are part of the text.
    pub(crate) shown: &'static [&'static str],
}

impl Order {
    /// The answer number `index` to a prompt of a request to an OpenAI endpoint.
    pub(crate) fn new(prompt: Vec<u32>, generation: &openai_api::Generation, index: u32) -> Self {
        Self {
            prompt,
            sampling: Sampling {
                temperature: generation.temperature,
                top_k: NonZeroU32::new(generation.top_k),
                top_p: generation.top_p,
                min_p: generation.min_p,
                typical_p: generation.typical_p,
                repetition_penalty: generation.repetition_penalty,
                presence_penalty: generation.presence_penalty,
                frequency_penalty: generation.frequency_penalty,
                logit_bias: generation.logit_bias.clone(),
                // Or all answers to a prompt would be the same.
                seed: generation.seed.map(|seed| seed.wrapping_add(index.into())),
            },
            stop: generation.stop.clone(),
            ..Self::default()
        }
    }
}

/// What an answer gives next. `Done` or `Failed` is the last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// More of the answer.
    Part(Part),
    /// The answer is complete.
    Done {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        tally: Tally,
    },
    /// The answer broke off, for a reason that is for the log.
    Failed(String),
}

/// More of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    /// What is new.
    pub(crate) content: Content,
    /// The tokens that its text was put together of, if they were asked for; none where it is no text.
    pub(crate) tokens: Vec<Spelled>,
}

/// What a part adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Whole characters that are surely part of the answer; empty only where there are tokens without text.
    Text(String),
    /// A tool is called.
    Call {
        /// The call's number in the answer.
        index: u32,
        /// Names the call.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments, which are JSON.
    Arguments {
        /// The call's number in the answer.
        index: u32,
        /// What is new.
        piece: String,
    },
}

/// What an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Tally {
    /// Tokens of the prompt that were not computed again.
    pub(crate) cached_tokens: u32,
    /// Tokens of a stop text count, since they were generated; the model's end token does not.
    pub(crate) completion_tokens: u32,
    /// Sum over all tokens, if it was asked for.
    pub(crate) logprob: f64,
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
    language: Arc<dyn Language>,
    transcript: Transcript,
    tools: Option<ToolCallParser>,
    has_calls: bool,
    echo: Option<Echo>,
    wants_tokens: bool,
    /// Tokens that go with the next text.
    tokens: Vec<Spelled>,
    /// What the latest token led to, at most.
    parts: VecDeque<Part>,
    tally: Tally,
    pulse: Pulse,
    progress: Progress,
}

/// A prompt that is part of the answer.
struct Echo {
    text: String,
    tokens: Vec<u32>,
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
    pub(crate) fn begin(served: &Served, order: Order, pulse: Pulse) -> Result<Self, SubmitError> {
        let engine = &served.engine;
        let max_tokens = match order.max_tokens {
            Some(max) => max as usize,
            None => share_of_answer(engine, order.prompt.len()),
        };
        let wants_tokens = order.logprobs.is_some();
        let echo = order.echo.map(|text| Echo {
            text,
            tokens: if wants_tokens { order.prompt.clone() } else { Vec::new() },
        });
        let generation = engine.submit(Request {
            prompt: order.prompt,
            max_tokens,
            sampling: order.sampling,
            logprobs: order.logprobs.or(order.is_ranked.then_some(0)),
            prompt_logprobs: wants_tokens && echo.is_some(),
            constraint: order.constraint,
        })?;
        Ok(Self {
            language: Arc::clone(&served.language),
            transcript: Transcript::new(served.language.decoder(order.shown), order.stop),
            tools: order.tools,
            has_calls: false,
            echo,
            wants_tokens,
            tokens: Vec::new(),
            parts: VecDeque::new(),
            tally: Tally::default(),
            pulse,
            progress: Progress::Running(generation),
        })
    }

    /// The next piece; `None` after the last. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Some(Piece::Part(part));
            }
            let Progress::Running(generation) = &mut self.progress else {
                break;
            };
            let event = generation.next().await;
            self.take(event);
        }
        match std::mem::replace(&mut self.progress, Progress::Over) {
            Progress::Last(piece) => Some(piece),
            Progress::Running(_) | Progress::Over => None,
        }
    }

    fn take(&mut self, event: Option<Event>) {
        let (passed, reason) = match event {
            Some(Event::Token(token)) => {
                self.repeat_prompt();
                (self.take_token(&token), None)
            }
            Some(Event::Finished(reason)) => {
                self.repeat_prompt();
                (self.transcript.finish(), Some(reason))
            }
            Some(Event::Failed(reason)) => return self.end(Piece::Failed(reason)),
            None => return self.end(Piece::Failed("the engine ended".to_owned())),
        };
        let is_stopped = passed.stopped;
        self.say(passed);
        let reason = match reason {
            _ if is_stopped => Some(FinishReason::Stop),
            Some(batch_engine::FinishReason::EndOfText) => Some(FinishReason::Stop),
            Some(batch_engine::FinishReason::Length) => Some(FinishReason::Length),
            None => None,
        };
        if let Some(reason) = reason {
            self.finish(reason);
        }
    }

    fn take_token(&mut self, token: &Token) -> Passed {
        self.pulse.token();
        self.tally.completion_tokens += 1;
        let logprobs = token.logprobs.as_deref();
        self.tally.logprob += logprobs.map_or(0.0, |logprobs| logprobs.logprob.into());
        let spelled = self
            .wants_tokens
            .then(|| spell(self.language.as_ref(), token.id, logprobs));
        self.transcript.push(token.id, spelled)
    }

    /// Begins the answer with its prompt, where that was asked for.
    fn repeat_prompt(&mut self) {
        let Some(Echo { text, tokens }) = self.echo.take() else {
            return;
        };
        if let Progress::Running(generation) = &self.progress
            && let Some(logprobs) = generation.prompt_logprobs()
        {
            let tokens = tokens.iter().zip(logprobs);
            let spelled = tokens.map(|(&token, logprobs)| spell(self.language.as_ref(), token, logprobs.as_ref()));
            self.tokens = spelled.collect();
        }
        self.add_text(text);
    }

    /// What has passed becomes parts.
    fn say(&mut self, passed: Passed) {
        self.tokens.extend(passed.tokens);
        match &mut self.tools {
            Some(parser) => {
                let mut events = Vec::new();
                parser.push(&passed.text, &mut events);
                self.tell(events);
            }
            None if passed.text.is_empty() => {}
            None => self.add_text(passed.text),
        }
    }

    fn tell(&mut self, events: Vec<ToolEvent>) {
        for event in events {
            let content = match event {
                ToolEvent::Text(text) => {
                    self.add_text(text);
                    continue;
                }
                ToolEvent::Begin { index, name } => {
                    self.has_calls = true;
                    let id = format!("call_{}", Uuid::new_v4().simple());
                    let index = count(index);
                    Content::Call { index, id, name }
                }
                ToolEvent::Arguments { index, piece } => {
                    let index = count(index);
                    Content::Arguments { index, piece }
                }
                ToolEvent::End { .. } => continue,
            };
            // They spell the call, not the text.
            self.tokens.clear();
            let tokens = Vec::new();
            self.parts.push_back(Part { content, tokens });
        }
    }

    fn add_text(&mut self, text: String) {
        let tokens = std::mem::take(&mut self.tokens);
        let content = Content::Text(text);
        self.parts.push_back(Part { content, tokens });
    }

    fn finish(&mut self, reason: FinishReason) {
        // What the limit cut off behind whole calls is the beginning of another one, not text.
        let is_cut_call = reason == FinishReason::Length && self.has_calls;
        if let Some(parser) = self.tools.as_mut().filter(|_| !is_cut_call) {
            let mut events = Vec::new();
            parser.finish(&mut events);
            self.tell(events);
        }
        if !self.tokens.is_empty() && !self.has_calls {
            self.add_text(String::new());
        }
        if let Progress::Running(generation) = &self.progress {
            self.tally.cached_tokens = count(generation.cached_tokens());
        }
        let reason = match reason {
            FinishReason::Stop if self.has_calls => FinishReason::ToolCalls,
            reason => reason,
        };
        let tally = self.tally;
        self.end(Piece::Done { reason, tally });
    }

    /// Replacing the progress drops the generation, which frees its slot.
    fn end(&mut self, last: Piece) {
        self.progress = Progress::Last(last);
    }
}

fn spell(language: &dyn Language, token: u32, logprobs: Option<&TokenLogprobs>) -> Spelled {
    let top = logprobs.map(|logprobs| {
        let top = logprobs.top.iter();
        top.map(|&(token, logprob)| (language.token_bytes(token), logprob))
            .collect()
    });
    Spelled {
        bytes: language.token_bytes(token),
        logprob: logprobs.map(|logprobs| logprobs.logprob),
        top: top.unwrap_or_default(),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use openai_api::CompletionRequest;

    use super::*;

    #[test]
    fn an_order_has_all_that_the_request_says_and_each_answer_a_seed_of_its_own() {
        let body = r#"{"model": "m", "prompt": "x", "temperature": 0.5, "top_k": 7, "top_p": 0.75, "min_p": 0.125,
            "typical_p": 0.25, "repetition_penalty": 1.5, "presence_penalty": -0.5, "frequency_penalty": 2,
            "logit_bias": {"5": -1}, "seed": -1, "stop": ["a", "b"], "n": 3}"#;
        let request = CompletionRequest::parse(body.as_bytes()).unwrap();
        let order = Order::new(vec![1, 2], &request.generation, 2);
        let sampling = Sampling {
            temperature: 0.5,
            top_k: NonZeroU32::new(7),
            top_p: 0.75,
            min_p: 0.125,
            typical_p: 0.25,
            repetition_penalty: 1.5,
            presence_penalty: -0.5,
            frequency_penalty: 2.0,
            logit_bias: vec![(5, -1.0)],
            seed: Some(1),
        };
        assert_eq!((order.prompt, order.sampling), (vec![1, 2], sampling));
        assert_eq!(order.stop, ["a", "b"]);
    }
}
