//! Continuous batching: admission, the step loop on its own OS thread, sampling and cancellation.
//!
//! Must not know: HTTP, text, candle. It sees token ids and a [`Model`].

mod model;

pub use model::{Model, ModelError, SequenceId, StepInput};
