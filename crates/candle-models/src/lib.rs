//! Models from GGUF files: weights, tokenizer and chat template, and the batched forward pass that batch-engine drives.
//!
//! Owns the model families, per-sequence KV caches, the translation between text and tokens, and the choice between
//! the fused CPU path (cpu-kernels) and candle's own operations on other devices.
//!
//! Must not know: requests, sampling, scheduling, HTTP. All calls block; the caller picks the thread.

mod backend;
mod chat_template;
mod device;
mod error;
mod families;
mod gguf;
mod load;
mod runner;
mod tokenizer;
mod weights;

#[cfg(test)]
mod tests;

pub use chat_template::{ChatTemplate, TemplateError};
pub use device::{DeviceError, DeviceSpec};
pub use error::LoadError;
pub use families::Family;
pub use load::{LoadOptions, LoadedModel, ModelInfo, load};
pub use tokenizer::{TextDecoder, Tokenizer, TokenizerError};
