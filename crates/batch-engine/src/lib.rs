//! Continuous batching: admission, the step loop on its own OS thread, sampling and cancellation.
//!
//! [`Engine::start`] gives a [`Model`] to a thread of its own and returns an [`EngineHandle`]; each
//! [`EngineHandle::submit`] returns a [`Generation`] that yields the answer's tokens. Sequences join and leave between
//! steps. One step decodes a token for every running sequence and prefills at most
//! [`EngineOptions::prefill_chunk`] tokens of the oldest prompts, in one [`Model::step`].
//!
//! Owns: the waiting queue, slots and the KV budget, what goes into a step, sampling, load figures.
//!
//! Must not know: HTTP, text, candle. It sees token ids and a [`Model`].
//!
//! The road of a request: `handle` (checks it) -> `shared` (queues it) -> `step_loop` (admits it, runs it) ->
//! `sequence` (its place in the batch) -> `sampling` (its next token) -> `generation` (its reader).

mod generation;
mod handle;
mod load;
mod model;
mod request;
mod sampling;
mod sequence;
mod shared;
mod step_loop;

pub use generation::Generation;
pub use handle::{Engine, EngineHandle, EngineOptions};
pub use load::{Counters, Load};
pub use model::{Model, ModelError, SequenceId, StepInput};
pub use request::{Event, FinishReason, Request, Sampling, SubmitError};
pub use shared::EngineState;
