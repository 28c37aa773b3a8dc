//! Continuous batching: admission, paged KV blocks and their prefix cache, the step loop on its own OS thread,
//! sampling and cancellation.
//!
//! [`Engine::start`] gives a [`Model`] to a thread of its own and returns an [`EngineHandle`]; each
//! [`EngineHandle::submit`] returns a [`Generation`] that yields the answer's tokens, each [`EngineHandle::embed`] an
//! [`Embedding`]. Sequences join and leave between steps. One step decodes a token for every running sequence and
//! prefills at most [`EngineOptions::prefill_chunk`] tokens of prompts, in one [`Model::step`].
//!
//! Owns: the waiting queue, slots, the KV blocks and who may write them, what goes into a step, sampling, load figures.
//!
//! Must not know: HTTP, text, grammars, candle. It sees token ids, a [`Model`] and [`Constraint`]s.
//!
//! The road of a request: `handle` (checks it) -> `shared` (queues it) -> `step_loop` (admits it, runs it) -> `kv` (its
//! blocks) -> `compose` (its share of a step) -> `sequence` (its place in the batch) -> `sampling` (its next token) ->
//! `generation` or `embedding` (its reader).

mod compose;
mod constraint;
mod embedding;
mod error;
mod generation;
mod handle;
mod kv;
mod load;
mod model;
mod request;
mod sampling;
mod sequence;
mod shared;
mod step_loop;
mod trace;

pub use constraint::{Constraint, ConstraintError, TokenMask};
pub use embedding::Embedding;
pub use error::SubmitError;
pub use generation::Generation;
pub use handle::{Engine, EngineHandle, EngineOptions};
pub use load::{Counters, Load};
pub use model::{KvLayout, Model, ModelError, Output, StepInput};
pub use request::{Event, FinishReason, MAX_LOGPROBS, Pooling, Request, Sampling, Token, TokenLogprobs};
pub use shared::EngineState;
