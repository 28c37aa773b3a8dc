//! Phi 3, 3.5 and 4 mini: fused projections; the long-context models have rotary factors for short and for long texts.

use super::Family;
use super::description::Description;
use crate::architecture::Architecture;
use crate::error::LoadError;
use model_format::ModelFile;

pub(crate) fn describe(file: &ModelFile, longest: usize) -> Result<Architecture, LoadError> {
    Ok(Architecture {
        fused_qkv: true,
        fused_gate_up: true,
        ..Description::new(file, Family::Phi3, &[])?.decoder(longest)?
    })
}
