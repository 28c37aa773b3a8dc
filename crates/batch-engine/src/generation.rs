//! The two ends of an answer: the step loop's [`Reply`] and the reader's [`Generation`].
//!
//! Tokens go through a bounded channel. How the answer ended is kept beside it, so that an end never waits for room.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use crate::shared::Shared;
use crate::{Event, FinishReason, Token, TokenLogprobs};

/// How an answer ended.
pub(crate) type Outcome = Result<FinishReason, String>;

/// What both ends of an answer share.
#[derive(Debug)]
struct Ticket {
    /// Tokens sent and not yet read. Raised before a token is sent and lowered after it is read, so the channel, which
    /// has room for `limit`, is never full when a token is sent.
    buffered: AtomicUsize,
    limit: usize,
    beginning: OnceLock<Beginning>,
    outcome: OnceLock<Outcome>,
}

/// What is known of an answer once its prompt is prefilled.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) cached_tokens: usize,
    pub(crate) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

/// The step loop's end of an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    tokens: mpsc::Sender<Token>,
    ticket: Arc<Ticket>,
}

impl Reply {
    /// Whether the reader has left.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.tokens.is_closed()
    }

    /// Whether the reader can be sent another token. Where not, it wakes the step loop once there is room again.
    pub(crate) fn has_room(&self) -> bool {
        self.ticket.buffered.load(Ordering::Acquire) < self.ticket.limit
    }

    /// The prompt is prefilled; said once, before the first token.
    pub(crate) fn begin(&self, beginning: Beginning) {
        let begun = self.ticket.beginning.set(beginning);
        debug_assert!(begun.is_ok(), "an answer begins once");
    }

    /// Sends a token; there must be room for it.
    pub(crate) fn send(&self, token: Token) {
        debug_assert!(self.has_room(), "the step loop decodes only what has room");
        self.ticket.buffered.fetch_add(1, Ordering::AcqRel);
        // An error says that the reader has left, which the step loop looks for between steps.
        let _ = self.tokens.try_send(token);
    }

    /// Ends the answer; the reader learns it after the tokens sent so far.
    pub(crate) fn finish(self, outcome: Outcome) {
        // Consumed, so this is the only call: the outcome cannot have been set.
        let _ = self.ticket.outcome.set(outcome);
    }
}

/// One answer being generated. Dropping it cancels: its slot and its KV blocks are free within one step.
pub struct Generation {
    id: u64,
    tokens: mpsc::Receiver<Token>,
    ticket: Arc<Ticket>,
    shared: Arc<Shared>,
    prompt_tokens: usize,
    max_tokens: usize,
    has_ended: bool,
}

impl Generation {
    /// Both ends of a new answer, with room for `buffer` unread tokens.
    pub(crate) fn new(
        id: u64,
        shared: Arc<Shared>,
        prompt_tokens: usize,
        max_tokens: usize,
        buffer: usize,
    ) -> (Self, Reply) {
        let (sender, receiver) = mpsc::channel(buffer);
        let ticket = Arc::new(Ticket {
            buffered: AtomicUsize::new(0),
            limit: buffer,
            beginning: OnceLock::new(),
            outcome: OnceLock::new(),
        });
        let reply = Reply {
            tokens: sender,
            ticket: Arc::clone(&ticket),
        };
        let generation = Self {
            id,
            tokens: receiver,
            ticket,
            shared,
            prompt_tokens,
            max_tokens,
            has_ended: false,
        };
        (generation, reply)
    }

    /// The next event: any number of [`Event::Token`], then one [`Event::Finished`] or [`Event::Failed`], then `None`.
    /// Nothing is lost when the future is dropped. A reader that stays behind pauses its own sequence, which keeps its
    /// slot, and no other.
    pub async fn next(&mut self) -> Option<Event> {
        if self.has_ended {
            return None;
        }
        if let Some(token) = self.tokens.recv().await {
            if self.ticket.buffered.fetch_sub(1, Ordering::AcqRel) == self.ticket.limit {
                self.shared.wake();
            }
            return Some(Event::Token(token));
        }
        self.has_ended = true;
        Some(match self.ticket.outcome.get() {
            Some(Ok(reason)) => Event::Finished(*reason),
            Some(Err(reason)) => Event::Failed(reason.clone()),
            None => Event::Failed("the engine gave up the request".into()),
        })
    }

    /// Length of the prompt in tokens.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Tokens of the prompt that were in the prefix cache, or that another sequence was just running, and were not run
    /// again. Known, as [`Self::prompt_logprobs`] are, once the first event has been read; 0 until the prompt is complete.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        let beginning = self.ticket.beginning.get();
        beginning.map_or(0, |beginning| beginning.cached_tokens)
    }

    /// How probable the model found each of the prompt's tokens, if [`Request::prompt_logprobs`] asked for it. There is
    /// nothing to tell of the first token.
    ///
    /// [`Request::prompt_logprobs`]: crate::Request::prompt_logprobs
    #[must_use]
    pub fn prompt_logprobs(&self) -> Option<&[Option<TokenLogprobs>]> {
        self.ticket.beginning.get()?.prompt_logprobs.as_deref()
    }

    /// Most tokens the answer will have: what was asked, cut to what the context holds.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.ticket.outcome.get().is_none() {
            self.tokens.close();
            self.shared.abandon(self.id);
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("id", &self.id)
            .field("prompt_tokens", &self.prompt_tokens)
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::shared::Limits;

    #[test]
    fn reading_from_a_full_buffer_wakes_the_step_loop() {
        let shared = Arc::new(Shared::new(Limits {
            max_sequences: 1,
            queue_limit: 1,
            token_buffer: 2,
            vocab_size: 10,
            hidden_size: 1,
            context_length: 10,
            kv_total_tokens: 10,
        }));
        let (mut generation, reply) = Generation::new(0, Arc::clone(&shared), 1, 5, 2);
        for id in [1, 2] {
            assert!(reply.has_room());
            reply.send(Token { id, logprobs: None });
        }
        assert!(!reply.has_room());
        shared.attend();
        let event = pin!(generation.next()).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(event, Poll::Ready(Some(Event::Token(Token { id: 1, .. })))));
        assert!(reply.has_room());
        // Would sleep for ever.
        shared.sleep(None);
    }
}
