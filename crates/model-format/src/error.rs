//! Why a model's files cannot be read.

use std::path::{Path, PathBuf};

/// Why a model's files cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A file cannot be opened, read or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file does not begin as a GGUF file does.
    #[error("{} is not a GGUF file", .0.display())]
    NotGguf(PathBuf),
    /// A file is cut short, damaged, or not consistent with itself.
    #[error("the model file is damaged: {0}; fetch it again")]
    Damaged(String),
    /// A variant of the format that is not implemented.
    #[error("{0}")]
    Unsupported(String),
}

impl FormatError {
    pub(crate) fn unreadable(path: &Path, source: std::io::Error) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            source,
        }
    }
}
