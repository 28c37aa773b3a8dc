//! One answer: from a prompt's tokens to parts of text and of tool calls.

use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;

use batch_engine::{Constraint, EngineHandle, Event, Generation, Request, Sampling, SubmitError, Token, TokenLogprobs};
use openai_api::FinishReason;
use structured_output::ToolCallParser;

use crate::language::Language;
use crate::metrics::Pulse;
use crate::parts::{Part, Speech};
use crate::state::Served;
use crate::transcript::{Spelled, Transcript};

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
    /// What the answer has to follow; it has accepted the tokens that are `resumed` already.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// Finds calls of tools in the text.
    pub(crate) tools: Option<ToolCallParser>,
    /// Spellings of control tokens that are part of the text.
    pub(crate) shown: &'static [&'static str],
    /// Whether parts name the tokens that led to them.
    pub(crate) names_tokens: bool,
    /// Another worker began the answer, and its client has all parts of this.
    pub(crate) resumed: Option<Resumed>,
}

/// What there is of an answer that is taken up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Resumed {
    /// Its tokens so far, none of which ends an answer.
    pub(crate) tokens: Vec<u32>,
    /// Whether the model ended it behind them.
    pub(crate) is_ended: bool,
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

    /// Most tokens that the answer may have, those that are resumed included.
    fn limit(&self, engine: &EngineHandle) -> usize {
        let prompt_tokens = self.prompt.len();
        let limit = match self.max_tokens {
            Some(max) => max as usize,
            None => share_of_answer(engine, prompt_tokens),
        };
        limit.min(engine.context_length().saturating_sub(prompt_tokens))
    }
}

/// What an answer gives next. `Done` or `Failed` is the last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// More of the answer.
    Part(Part),
    /// The answer is complete.
    Done(End),
    /// The answer broke off, for a reason that is for the log.
    Failed(String),
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct End {
    /// Why.
    pub(crate) reason: FinishReason,
    /// The stop text that ended it, if one did.
    pub(crate) stop: Option<String>,
    /// What it took.
    pub(crate) tally: Tally,
    /// The tokens since the last part, if they are to be named.
    pub(crate) taken: Vec<u32>,
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
    speech: Speech,
    echo: Option<Echo>,
    wants_logprobs: bool,
    /// Tokens since the last part, if they are to be named.
    taken: Option<Vec<u32>>,
    prompt_tokens: u32,
    /// The token with this number is the last, for the reason of length.
    limit: u32,
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
    /// Hands the order to the engine, unless the answer is complete with what is resumed.
    pub(crate) fn begin(served: &Served, mut order: Order, pulse: Pulse) -> Result<Self, SubmitError> {
        let limit = order.limit(&served.engine);
        let resumed = order.resumed.take().unwrap_or_default();
        let transcript = Transcript::new(served.language.decoder(order.shown), mem::take(&mut order.stop));
        let wants_logprobs = order.logprobs.is_some();
        let echo = order.echo.take().map(|text| Echo {
            text,
            tokens: if wants_logprobs {
                order.prompt.clone()
            } else {
                Vec::new()
            },
        });
        let mut answer = Self {
            language: Arc::clone(&served.language),
            speech: Speech::new(transcript, order.tools.take()),
            echo,
            wants_logprobs,
            taken: order.names_tokens.then(Vec::new),
            prompt_tokens: count(order.prompt.len()),
            limit: count(limit),
            tally: Tally::default(),
            pulse,
            progress: Progress::Over,
        };
        match answer.catch_up(&resumed) {
            Some(FinishReason::Length) if answer.tally.completion_tokens > answer.limit => {
                // It went on where there was more room: the client has all but what was held back there.
                answer.speech.take();
                answer.finish(FinishReason::Length);
            }
            Some(reason) => {
                answer.finish(reason);
                // The client has it.
                answer.speech.take();
            }
            None => {
                let has_echo = answer.echo.is_some();
                answer.progress =
                    Progress::Running(served.engine.submit(request(order, &resumed.tokens, limit, has_echo))?);
                // The client has it.
                answer.speech.take();
            }
        }
        Ok(answer)
    }

    /// Goes to where the answer stands that is taken up. Returns why it is complete, if it is.
    fn catch_up(&mut self, resumed: &Resumed) -> Option<FinishReason> {
        for &token in &resumed.tokens {
            self.tally.completion_tokens += 1;
            if self.speech.push(token, None) {
                return Some(FinishReason::Stop);
            }
        }
        if resumed.is_ended {
            return Some(FinishReason::Stop);
        }
        let is_full = !resumed.tokens.is_empty() && self.tally.completion_tokens >= self.limit;
        is_full.then_some(FinishReason::Length)
    }

    /// The next piece; `None` after the last. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            let is_running = matches!(self.progress, Progress::Running(_));
            // What the last token says and what was held back till the end are one part: see `Speech`.
            let is_full = is_running && self.tally.completion_tokens >= self.limit;
            if !is_full && let Some(part) = self.speech.take() {
                let taken = self.named();
                return Some(Piece::Part(Part { taken, ..part }));
            }
            let Progress::Running(generation) = &mut self.progress else {
                break;
            };
            let event = generation.next().await;
            self.take(event);
        }
        match mem::replace(&mut self.progress, Progress::Over) {
            Progress::Last(Piece::Done(end)) => {
                let taken = self.named();
                Some(Piece::Done(End { taken, ..end }))
            }
            Progress::Last(piece) => Some(piece),
            Progress::Running(_) | Progress::Over => None,
        }
    }

    /// The next part names this token, if it names any.
    fn name(&mut self, token: Option<u32>) {
        if let Some(taken) = &mut self.taken {
            taken.extend(token);
        }
    }

    fn named(&mut self) -> Vec<u32> {
        self.taken.as_mut().map(mem::take).unwrap_or_default()
    }

    fn take(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Token(token)) => {
                self.repeat_prompt();
                if self.take_token(&token) {
                    self.finish(FinishReason::Stop);
                }
            }
            Some(Event::Finished(reason)) => {
                self.repeat_prompt();
                let reason = match reason {
                    batch_engine::FinishReason::EndOfText => {
                        // Or who takes the stream up could not tell whether what was held back has come out.
                        self.name(self.language.end_tokens().first().copied());
                        FinishReason::Stop
                    }
                    batch_engine::FinishReason::Length => FinishReason::Length,
                };
                self.finish(reason);
            }
            Some(Event::Failed(reason)) => self.end(Piece::Failed(reason)),
            None => self.end(Piece::Failed("the engine ended".to_owned())),
        }
    }

    /// Returns whether it completes a stop text.
    fn take_token(&mut self, token: &Token) -> bool {
        self.pulse.token();
        self.tally.completion_tokens += 1;
        let logprobs = token.logprobs.as_deref();
        self.tally.logprob += logprobs.map_or(0.0, |logprobs| logprobs.logprob.into());
        self.name(Some(token.id));
        let spelled = self
            .wants_logprobs
            .then(|| spell(self.language.as_ref(), token.id, logprobs));
        self.speech.push(token.id, spelled)
    }

    /// Begins the answer with its prompt, where that was asked for.
    fn repeat_prompt(&mut self) {
        let Some(Echo { text, tokens }) = self.echo.take() else {
            return;
        };
        let mut spelled = Vec::new();
        if let Progress::Running(generation) = &self.progress
            && let Some(logprobs) = generation.prompt_logprobs()
        {
            let tokens = tokens.iter().zip(logprobs);
            spelled.extend(tokens.map(|(&token, logprobs)| spell(self.language.as_ref(), token, logprobs.as_ref())));
        }
        self.speech.quote(&text, spelled);
    }

    fn finish(&mut self, reason: FinishReason) {
        let (reason, stop) = self.speech.finish(reason);
        if let Progress::Running(generation) = &self.progress {
            // What is resumed is no prompt to the client.
            self.tally.cached_tokens = count(generation.cached_tokens()).min(self.prompt_tokens);
        }
        self.end(Piece::Done(End {
            reason,
            stop,
            tally: self.tally,
            taken: Vec::new(),
        }));
    }

    /// Replacing the progress drops the generation, which frees its slot.
    fn end(&mut self, last: Piece) {
        self.progress = Progress::Last(last);
    }
}

/// The order in the engine's words.
fn request(order: Order, resumed: &[u32], limit: usize, has_echo: bool) -> Request {
    let mut prompt = order.prompt;
    prompt.extend(resumed);
    Request {
        prompt,
        resumed: resumed.len(),
        // A prompt without room for an answer is the engine's to refuse.
        max_tokens: match order.max_tokens {
            Some(0) => 0,
            _ => limit.saturating_sub(resumed.len()).max(1),
        },
        sampling: order.sampling,
        logprobs: order.logprobs.or(order.is_ranked.then_some(0)),
        prompt_logprobs: order.logprobs.is_some() && has_echo,
        constraint: order.constraint,
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
