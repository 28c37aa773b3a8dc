//! Qwen 2 and 2.5: queries, keys and values have biases.

use super::Family;
use super::description::Description;
use crate::architecture::Architecture;
use crate::error::LoadError;
use model_format::ModelFile;

pub(crate) fn describe(file: &ModelFile, longest: usize) -> Result<Architecture, LoadError> {
    Ok(Architecture {
        qkv_bias: true,
        ..Description::new(file, Family::Qwen2, &[])?.decoder(longest)?
    })
}
