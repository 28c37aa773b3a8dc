//! All answers to one request, as they come.

use batch_engine::SubmitError;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};
use openai_api::{FinishReason, ToolCall, Usage};

use crate::generation::{Answer, End, Order, Piece, Tally};
use crate::metrics::{Outcome, Ticket};
use crate::parts::Part;
use crate::state::Served;
use crate::transcript::Spelled;

/// What the answers give next. `Done` or `Failed` is the last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// More of one answer.
    Part {
        /// The answer's number.
        choice: u32,
        /// What is new.
        part: Part,
    },
    /// One answer is complete.
    Finished {
        /// The answer's number.
        choice: u32,
        /// How it ended.
        end: End,
    },
    /// All answers are complete, and what they took together.
    Done(Usage),
    /// An answer broke off, and so all of them do, for a reason that is for the log.
    Failed(String),
}

/// The answers to one request, computed side by side. Dropping them cancels all that still run.
pub(crate) struct Answers {
    pieces: SelectAll<BoxStream<'static, (u32, Piece)>>,
    /// Answers to each prompt, which stand together.
    per_prompt: u32,
    /// What each prompt took.
    prompts: Vec<PromptTally>,
    completion_tokens: u32,
    ticket: Ticket,
    is_over: bool,
}

/// What one prompt took, however many answers it has.
#[derive(Debug, Clone, Copy)]
struct PromptTally {
    tokens: u32,
    /// The answer that found least in the cache is the one that computed the prompt for the others.
    cached: u32,
}

impl Answers {
    /// Hands all orders to the engine, those of a prompt together: `per_prompt` of each. Refused by the engine: none
    /// of them runs, and the number of the prompt that was refused comes with the reason.
    pub(crate) fn begin(
        served: &Served,
        orders: Vec<Order>,
        per_prompt: u32,
        mut ticket: Ticket,
    ) -> Result<Self, (usize, SubmitError)> {
        let mut pieces = SelectAll::new();
        let mut prompts = Vec::new();
        for (choice, order) in (0_u32..).zip(orders) {
            if choice % per_prompt == 0 {
                prompts.push(PromptTally {
                    tokens: u32::try_from(order.prompt.len()).unwrap_or(u32::MAX),
                    cached: u32::MAX,
                });
            }
            let answer = Answer::begin(served, order, ticket.pulse(choice == 0))
                .map_err(|error| ((choice / per_prompt) as usize, error))?;
            let answer = stream::unfold(answer, move |mut answer| async move {
                let piece = answer.next().await?;
                Some(((choice, piece), answer))
            });
            pieces.push(answer.boxed());
        }
        ticket.begun();
        Ok(Self {
            pieces,
            per_prompt,
            prompts,
            completion_tokens: 0,
            ticket,
            is_over: false,
        })
    }

    /// What comes next; `None` after the last. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Step> {
        if self.is_over {
            return None;
        }
        let step = match self.pieces.next().await {
            Some((choice, Piece::Part(part))) => return Some(Step::Part { choice, part }),
            Some((choice, Piece::Done(end))) => {
                self.count(choice, end.tally);
                return Some(Step::Finished { choice, end });
            }
            Some((_, Piece::Failed(reason))) => {
                self.ticket.end(Outcome::Failed);
                self.pieces.clear();
                Step::Failed(reason)
            }
            None => {
                self.ticket.end(Outcome::Finished);
                let usage = self.usage();
                self.ticket.used(&usage);
                Step::Done(usage)
            }
        };
        self.is_over = true;
        Some(step)
    }

    /// Waits for all of it.
    pub(crate) async fn collect(mut self) -> Result<(Vec<Whole>, Usage), String> {
        let count = self.prompts.len() * self.per_prompt as usize;
        let mut answers = vec![Whole::new(); count];
        while let Some(step) = self.next().await {
            match step {
                Step::Part { choice, part } => answers[choice as usize].add(part),
                Step::Finished { choice, end } => answers[choice as usize].finish(end),
                Step::Done(usage) => return Ok((answers, usage)),
                Step::Failed(reason) => return Err(reason),
            }
        }
        Err("the answers have no end".to_owned())
    }

    fn count(&mut self, choice: u32, tally: Tally) {
        self.completion_tokens = self.completion_tokens.saturating_add(tally.completion_tokens);
        let prompt = &mut self.prompts[(choice / self.per_prompt) as usize];
        prompt.cached = prompt.cached.min(tally.cached_tokens);
    }

    fn usage(&self) -> Usage {
        let sum = |of: fn(&PromptTally) -> u32| self.prompts.iter().map(of).fold(0, u32::saturating_add);
        Usage::new(sum(|prompt| prompt.tokens), self.completion_tokens).with_cached(sum(|prompt| prompt.cached))
    }
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) tokens: Vec<Spelled>,
    pub(crate) reason: FinishReason,
    /// The stop text that ended it, if one did.
    pub(crate) stop: Option<String>,
    tally: Tally,
}

impl Whole {
    /// One of which nothing has come.
    fn new() -> Self {
        Self {
            text: String::new(),
            calls: Vec::new(),
            tokens: Vec::new(),
            reason: FinishReason::Length,
            stop: None,
            tally: Tally::default(),
        }
    }

    /// How probable the model found the answer's tokens on average: the mean of their logprobs.
    pub(crate) fn mean_logprob(&self) -> f64 {
        self.tally.logprob / f64::from(self.tally.completion_tokens.max(1))
    }

    fn add(&mut self, part: Part) {
        self.text.push_str(&part.text);
        self.tokens.extend(part.tokens);
        for call in part.calls {
            self.calls.extend(call.beginning.map(|begun| ToolCall {
                id: begun.id,
                name: begun.name,
                arguments: String::new(),
            }));
            self.calls[call.index as usize].arguments.push_str(&call.arguments);
        }
    }

    fn finish(&mut self, end: End) {
        self.reason = end.reason;
        self.stop = end.stop;
        self.tally = end.tally;
    }
}
