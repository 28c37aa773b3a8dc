//! Why a grammar cannot be used.

/// Why there is no constraint. All but [`Vocabulary`](Self::Vocabulary) are the client's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The model's vocabulary does not allow for constrained answers.
    #[error("the model's vocabulary cannot be constrained: {0}")]
    Vocabulary(String),
    /// The schema asks for something that cannot be kept while generating.
    #[error("the JSON schema uses {keyword:?} at {pointer:?}, which constrained answers do not support: leave it out")]
    UnsupportedKeyword {
        /// The keyword, such as `uniqueItems`.
        keyword: String,
        /// JSON pointer to it inside the schema.
        pointer: String,
    },
    /// The schema is broken, contradicts itself, or is too large.
    #[error("the JSON schema cannot be followed: {0}")]
    Schema(String),
    /// One of the tools' parameters are at fault.
    #[error("the parameters of the tool {tool:?} cannot be followed: {source}")]
    Tool {
        /// The tool's name.
        tool: String,
        /// What is wrong with its schema.
        source: Box<GrammarError>,
    },
    /// The tool to be called is not among the tools.
    #[error("the tool {0:?} is to be called, but is not among the tools")]
    UnknownTool(String),
    /// There is nothing to be called.
    #[error("tool calls are asked for, but there are no tools")]
    NoTools,
}
