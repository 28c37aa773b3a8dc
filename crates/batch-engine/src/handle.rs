//! Starts an engine; what its users hold.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::{fmt, io, thread};

use tokio::sync::watch;
use tracing::Span;

use crate::generation::Generation;
use crate::shared::{EngineState, Limits, Shared, Waiting};
use crate::step_loop::StepLoop;
use crate::{Counters, Load, Model, Request, Sampling, SubmitError};

/// Starts engines.
#[derive(Debug, Clone, Copy)]
pub struct Engine;

/// How an engine shares its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that run at a time.
    pub max_sequences: NonZeroUsize,
    /// Most prompt tokens in one step, over all sequences: how long a prompt may hold up the others' next token.
    pub prefill_chunk: NonZeroUsize,
    /// Requests that may wait, beyond those that free slots take at the next step.
    pub queue_limit: usize,
    /// Tokens kept for a reader that stays behind, before its sequence pauses.
    pub token_buffer: NonZeroUsize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        const fn at_least_one(number: usize) -> NonZeroUsize {
            NonZeroUsize::MIN.saturating_add(number - 1)
        }
        Self {
            max_sequences: at_least_one(8),
            prefill_chunk: at_least_one(256),
            queue_limit: 64,
            token_buffer: at_least_one(32),
        }
    }
}

impl Engine {
    /// Gives the model to a thread of its own, which ends after a [drain](EngineHandle::drain) or when the model
    /// fails. The error is the operating system's refusal of a thread.
    pub fn start(model: Box<dyn Model>, options: EngineOptions) -> io::Result<EngineHandle> {
        let kv_capacity = model.kv_capacity();
        let shared = Arc::new(Shared::new(Limits {
            max_sequences: options.max_sequences.get(),
            queue_limit: options.queue_limit,
            token_buffer: options.token_buffer.get(),
            vocab_size: model.vocab_size(),
            context_length: model.context_length().min(kv_capacity),
            kv_capacity,
        }));
        let step_loop = StepLoop::new(model, Arc::clone(&shared), options.prefill_chunk.get());
        thread::Builder::new()
            .name("batch-engine".into())
            .spawn(move || step_loop.run())?;
        Ok(EngineHandle {
            inner: Arc::new(Inner { shared }),
        })
    }
}

/// Submits requests to an engine and looks at it. Cheap to clone; dropping the last one [drains](Self::drain).
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.drain();
    }
}

impl EngineHandle {
    /// Queues a request. Returns at once; it starts, in order of arrival, when a slot and room in the KV cache are free.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let shared = &self.inner.shared;
        let max_tokens = check(&request, &shared.limits)?;
        let Request { prompt, sampling, .. } = request;
        shared.enqueue(|id| {
            let (generation, reply) = Generation::new(
                id,
                Arc::clone(shared),
                prompt.len(),
                max_tokens,
                shared.limits.token_buffer,
            );
            (
                generation,
                Waiting {
                    id,
                    prompt,
                    max_tokens,
                    sampling,
                    reply,
                    span: Span::current(),
                },
            )
        })
    }

    /// How busy the engine is.
    #[must_use]
    pub fn load(&self) -> Load {
        *self.inner.shared.load.borrow()
    }

    /// How busy the engine is, and every change of it.
    #[must_use]
    pub fn watch_load(&self) -> watch::Receiver<Load> {
        self.inner.shared.load.subscribe()
    }

    /// Where the engine is in its life, and every change of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<EngineState> {
        self.inner.shared.state.subscribe()
    }

    /// What the engine has done since its start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.shared.counters()
    }

    /// Sequences that run at a time.
    #[must_use]
    pub fn max_sequences(&self) -> usize {
        self.inner.shared.limits.max_sequences
    }

    /// Tokens that one request may have, prompt and answer together.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.inner.shared.limits.context_length
    }

    /// Takes no new requests; when those running and waiting are done, the thread drops the model and ends.
    pub fn drain(&self) {
        self.inner.shared.drain();
    }

    /// Waits until the thread has dropped the model: after a drain, or a failure.
    pub async fn stopped(&self) {
        self.inner.shared.ended.cancelled().await;
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle")
            .field("state", &*self.inner.shared.state.borrow())
            .field("load", &self.load())
            .finish_non_exhaustive()
    }
}

/// How many tokens the answer may have, if the request is one that can be served.
fn check(request: &Request, limits: &Limits) -> Result<usize, SubmitError> {
    let Sampling {
        temperature,
        top_p,
        seed: _,
    } = request.sampling;
    if !temperature.is_finite() || temperature < 0.0 {
        return Err(SubmitError::InvalidTemperature(temperature));
    }
    if !(0.0..=1.0).contains(&top_p) {
        return Err(SubmitError::InvalidTopP(top_p));
    }
    let prompt_tokens = request.prompt.len();
    if prompt_tokens == 0 {
        return Err(SubmitError::EmptyPrompt);
    }
    let context_length = limits.context_length;
    if prompt_tokens >= context_length {
        return Err(SubmitError::ContextLengthExceeded {
            prompt_tokens,
            context_length,
        });
    }
    let vocab_size = limits.vocab_size;
    if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(SubmitError::UnknownToken { token, vocab_size });
    }
    Ok(request.max_tokens.min(context_length - prompt_tokens))
}
