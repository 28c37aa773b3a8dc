//! Qwen 3, dense: queries and keys are normed per head.

use super::Family;
use super::description::Description;
use crate::architecture::Architecture;
use crate::error::LoadError;
use model_format::ModelFile;

pub(crate) fn describe(file: &ModelFile, longest: usize) -> Result<Architecture, LoadError> {
    Ok(Architecture {
        qk_norm: true,
        ..Description::new(file, Family::Qwen3, &[])?.decoder(longest)?
    })
}
