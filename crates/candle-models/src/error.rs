//! Why a model cannot be loaded.

use std::path::PathBuf;

use model_format::FormatError;

use crate::device::DeviceError;
use crate::tokenizer::TokenizerError;

/// Why a model cannot be loaded. Texts fit after "failed to load the model: ".
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The model file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file does not begin as a GGUF file does.
    #[error("{} is not a GGUF file", .0.display())]
    NotGguf(PathBuf),
    /// The file is cut short, damaged, or not consistent with itself.
    #[error("the model file is damaged: {0}")]
    Damaged(String),
    /// A model of another family, or of a variant that is not implemented.
    #[error("{0}")]
    Unsupported(String),
    /// It needs more memory than it may take.
    #[error("the model does not fit: {0}")]
    Memory(String),
    /// The options contradict the model.
    #[error("{0}")]
    Options(String),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The processor lacks the kernels asked for, or the system refuses their threads.
    #[error(transparent)]
    Kernels(#[from] cpu_kernels::KernelsError),
    /// The file's vocabulary cannot be used.
    #[error("the file's tokenizer cannot be used: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The file's chat template cannot be used.
    #[error("the file's chat template cannot be used: {0}")]
    ChatTemplate(#[from] crate::chat_template::TemplateError),
    /// There is no memory for the KV cache, or no telling how many threads there are.
    #[error("the machine has not enough resources: {0}")]
    Resources(#[from] std::io::Error),
    /// Candle refused, for example for want of device memory.
    #[error("candle: {0}")]
    Candle(#[from] candle_core::Error),
}

impl From<FormatError> for LoadError {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Unreadable { path, source } => Self::Unreadable { path, source },
            FormatError::NotGguf(path) => Self::NotGguf(path),
            FormatError::Damaged(what) => Self::Damaged(what),
            FormatError::Unsupported(what) => Self::Unsupported(what),
        }
    }
}
