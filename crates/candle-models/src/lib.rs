//! Models from GGUF files and from folders of safetensors: weights, tokenizer and chat template, and the batched forward
//! pass that batch-engine drives.
//!
//! Owns the model families, the KV cache's blocks, the translation between text and tokens, and the choice between the
//! fused CPU path (cpu-kernels) and candle's own operations on other devices.
//!
//! Must not know: sequences' life, requests, sampling, scheduling, HTTP. All calls block; the caller picks the thread.

mod architecture;
mod backend;
mod budget;
mod candle_tensor;
mod chat_template;
mod device;
mod error;
mod families;
mod load;
mod network;
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
