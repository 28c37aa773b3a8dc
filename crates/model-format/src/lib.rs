//! What lies in a model's files, from their headers: GGUF files, and folders of safetensors with `config.json`.
//!
//! Owns: reading headers whose sizes are not to be trusted, metadata and tensors under GGUF's names, the translation of
//! `config.json` and of Hugging Face's tensor names into them, and how much memory a model takes once it is loaded.
//!
//! Must not know: how a model computes, candle, devices, where files come from, daemons.

mod error;
mod facts;
mod file;
mod gguf;
mod hf;
mod memory;
mod safetensors;
mod tensor_type;
mod value;

pub use error::FormatError;
pub use facts::{Facts, facts};
pub use file::{FileFormat, ModelFile, RawTensor, TensorEntry};
pub use memory::{Backend, KV_BLOCK_TOKENS, MemoryNeed, RowShape};
pub use tensor_type::TensorType;
pub use value::{Array, Value};
