//! Starts an engine; what its users hold.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::{fmt, io, thread};

use tokio::sync::watch;

use crate::embedding::{Embedding, Pooler};
use crate::generation::Generation;
use crate::kv::KvBlocks;
use crate::sampling::Sampler;
use crate::sequence::Task;
use crate::shared::{EngineState, Limits, Shared, Waiting};
use crate::step_loop::StepLoop;
use crate::trace::Trace;
use crate::{Counters, Load, MAX_LOGPROBS, Model, Pooling, Request, Sampling, SubmitError};

/// Starts engines.
#[derive(Debug, Clone, Copy)]
pub struct Engine;

/// How an engine shares its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that run at a time.
    pub max_sequences: NonZeroUsize,
    /// Most prompt tokens in one step, over all sequences: how long prompts may hold up the others' next token.
    pub prefill_chunk: NonZeroUsize,
    /// Requests that may wait, beyond those that free slots take at the next step.
    pub queue_limit: usize,
    /// Tokens kept for a reader that stays behind, before its sequence pauses.
    pub token_buffer: NonZeroUsize,
    /// Keeps the KV blocks of past prompts and answers while nobody needs their room, the least recently used going
    /// first, so that what begins like them is not run again. Only full blocks are kept, a prompt's last token is always
    /// run, and embeddings and requests for [prompt log-probabilities](Request::prompt_logprobs) are run whole.
    pub prefix_cache: bool,
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
            prefix_cache: true,
        }
    }
}

impl Engine {
    /// Gives the model to a thread of its own, which ends after a [drain](EngineHandle::drain) or when the model
    /// fails. The error is the operating system's refusal of a thread.
    pub fn start(model: Box<dyn Model>, options: EngineOptions) -> io::Result<EngineHandle> {
        let (handle, step_loop) = Self::prepare(model, options);
        thread::Builder::new()
            .name("batch-engine".into())
            .spawn(move || step_loop.run())?;
        Ok(handle)
    }

    /// An engine without its thread.
    pub(crate) fn prepare(model: Box<dyn Model>, options: EngineOptions) -> (EngineHandle, StepLoop) {
        let layout = model.kv_layout();
        let shared = Arc::new(Shared::new(Limits {
            max_sequences: options.max_sequences.get(),
            queue_limit: options.queue_limit,
            token_buffer: options.token_buffer.get(),
            vocab_size: model.vocab_size(),
            hidden_size: model.hidden_size(),
            context_length: model.context_length().min(layout.tokens()),
            kv_total_tokens: layout.tokens(),
        }));
        let kv = KvBlocks::new(layout, options.prefix_cache);
        let step_loop = StepLoop::new(model, kv, Arc::clone(&shared), options.prefill_chunk.get());
        let inner = Arc::new(Inner { shared });
        (EngineHandle { inner }, step_loop)
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
        let prompt_tokens = request.prompt.len();
        let (prompt, answer) = request.prompt.split_at(prompt_tokens - request.resumed);
        let mut sampler = Sampler::new(prompt, request.sampling, request.logprobs, request.constraint);
        sampler.resume(answer);
        let prompt_logprobs = request.prompt_logprobs.then(|| request.logprobs.unwrap_or(0));
        shared.enqueue(|id| {
            let buffer = shared.limits.token_buffer;
            let (generation, reply) = Generation::new(id, Arc::clone(shared), prompt_tokens, max_tokens, buffer);
            let waiting = Waiting {
                id,
                prompt: request.prompt,
                max_tokens,
                task: Task::answer(reply, sampler, prompt_logprobs),
                trace: Trace::queued(),
            };
            (generation, waiting)
        })
    }

    /// Queues a text to be embedded, among the requests of [`Self::submit`] and under their rules. Nothing of it is
    /// taken from the prefix cache, nor kept there.
    pub fn embed(&self, tokens: Vec<u32>, pooling: Pooling) -> Result<Embedding, SubmitError> {
        let shared = &self.inner.shared;
        let context_length = shared.limits.context_length;
        if tokens.len() > context_length {
            let tokens = tokens.len();
            return Err(SubmitError::TextTooLong { tokens, context_length });
        }
        check_tokens(&tokens, &shared.limits)?;
        let pooler = Pooler::new(pooling, shared.limits.hidden_size);
        shared.enqueue(|id| {
            let (embedding, reply) = Embedding::new(id, Arc::clone(shared));
            let waiting = Waiting {
                id,
                prompt: tokens,
                max_tokens: 0,
                task: Task::embedding(reply, pooler),
                trace: Trace::queued(),
            };
            (embedding, waiting)
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

    /// Number of tokens that the model knows, starting with token 0.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.shared.limits.vocab_size
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
    check_sampling(&request.sampling, limits.vocab_size)?;
    if let Some(asked) = request.logprobs.filter(|&asked| asked > MAX_LOGPROBS) {
        return Err(SubmitError::TooManyLogprobs(asked));
    }
    check_tokens(&request.prompt, limits)?;
    let prompt_tokens = request.prompt.len();
    if request.resumed >= prompt_tokens {
        return Err(SubmitError::EmptyPrompt);
    }
    let context_length = limits.context_length;
    // Who wants no answer, but the prompt's log-probabilities, needs no room for one.
    if prompt_tokens + request.max_tokens.min(1) > context_length {
        return Err(SubmitError::ContextLengthExceeded {
            prompt_tokens,
            context_length,
        });
    }
    Ok(request.max_tokens.min(context_length - prompt_tokens))
}

fn check_tokens(tokens: &[u32], limits: &Limits) -> Result<(), SubmitError> {
    if tokens.is_empty() {
        return Err(SubmitError::EmptyPrompt);
    }
    let vocab_size = limits.vocab_size;
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(SubmitError::UnknownToken { token, vocab_size }),
        None => Ok(()),
    }
}

fn check_sampling(sampling: &Sampling, vocab_size: usize) -> Result<(), SubmitError> {
    const PROBABILITY: &str = "between 0 and 1";
    let is_probability = |value: f32| (0.0..=1.0).contains(&value);
    let Sampling {
        temperature,
        top_k: _,
        top_p,
        min_p,
        typical_p,
        repetition_penalty: repetition,
        presence_penalty: presence,
        frequency_penalty: frequency,
        logit_bias,
        seed: _,
    } = sampling;
    let finite = |value: f32| value.is_finite();
    let checks: [(&'static str, f32, bool, &'static str); 7] = [
        (
            "temperature",
            *temperature,
            finite(*temperature) && *temperature >= 0.0,
            "a number of 0 or more",
        ),
        ("top_p", *top_p, is_probability(*top_p), PROBABILITY),
        ("min_p", *min_p, is_probability(*min_p), PROBABILITY),
        ("typical_p", *typical_p, is_probability(*typical_p), PROBABILITY),
        (
            "repetition_penalty",
            *repetition,
            finite(*repetition) && *repetition > 0.0,
            "a number above 0",
        ),
        ("presence_penalty", *presence, finite(*presence), "a number"),
        ("frequency_penalty", *frequency, finite(*frequency), "a number"),
    ];
    for (field, value, is_valid, expected) in checks {
        if !is_valid {
            return Err(SubmitError::InvalidSampling { field, value, expected });
        }
    }
    for &(token, value) in logit_bias {
        if token as usize >= vocab_size {
            return Err(SubmitError::UnknownBiasToken { token, vocab_size });
        }
        if !value.is_finite() {
            return Err(SubmitError::InvalidSampling {
                field: "logit_bias",
                value,
                expected: "a number",
            });
        }
    }
    Ok(())
}
