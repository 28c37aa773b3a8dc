//! The llama family: the plain decoder. SmolLM2, Mistral and TinyLlama are of it.

use cpu_kernels::RopeStyle;

use super::Family;
use super::description::Description;
use crate::architecture::Architecture;
use crate::error::LoadError;
use model_format::{FileFormat, ModelFile};

pub(crate) fn describe(file: &ModelFile, longest: usize) -> Result<Architecture, LoadError> {
    let description = Description::new(file, Family::Llama, &[])?;
    Ok(Architecture {
        // The converter to GGUF reorders the rows of queries and keys so that neighbours turn together.
        rope_style: match file.format() {
            FileFormat::Gguf => RopeStyle::Interleaved,
            FileFormat::Safetensors => RopeStyle::Halves,
        },
        ..description.decoder(longest)?
    })
}
