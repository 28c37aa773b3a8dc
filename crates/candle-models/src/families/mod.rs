//! The model families: what each makes of a file's description, one file each.

use crate::architecture::Architecture;
use crate::error::LoadError;
use model_format::ModelFile;

mod description;
mod gemma3;
mod llama;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

/// A model family that this build can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama and its many relatives: SmolLM2, Mistral, TinyLlama.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Gemma 3, text only.
    Gemma3,
    /// Phi 3, 3.5 and 4 (mini), text only.
    Phi3,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma3, Self::Phi3];

    /// The name that GGUF files give it in `general.architecture`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
        }
    }

    /// The family that a file names.
    ///
    /// # Errors
    /// It names another, or none.
    pub(crate) fn of(file: &ModelFile) -> Result<Self, LoadError> {
        let name = file.string("general.architecture").unwrap_or("");
        Self::ALL
            .into_iter()
            .find(|family| family.architecture() == name)
            .ok_or_else(|| {
                let supported = Self::ALL.map(Self::architecture).join(", ");
                LoadError::Unsupported(format!(
                    "the model architecture {name:?} is not supported; supported are: {supported}"
                ))
            })
    }

    /// The network that a file describes, for sequences of at most `longest` tokens: rotary positions that are scaled
    /// for long texts only depend on it.
    ///
    /// # Errors
    /// The description is incomplete, or asks for something that is not implemented.
    pub(crate) fn describe(self, file: &ModelFile, longest: usize) -> Result<Architecture, LoadError> {
        match self {
            Self::Llama => llama::describe(file, longest),
            Self::Qwen2 => qwen2::describe(file, longest),
            Self::Qwen3 => qwen3::describe(file, longest),
            Self::Gemma3 => gemma3::describe(file, longest),
            Self::Phi3 => phi3::describe(file, longest),
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.architecture())
    }
}
