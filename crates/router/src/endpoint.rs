//! The endpoints that are relayed.

/// An endpoint of the workers that clients are passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/count_tokens`
    CountTokens,
}

impl Endpoint {
    /// Whether its answers can be streams; the others take no notice of `stream`.
    pub(crate) fn can_stream(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions)
    }

    /// Its path, the same at the workers.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::CountTokens => "/v1/count_tokens",
        }
    }
}
