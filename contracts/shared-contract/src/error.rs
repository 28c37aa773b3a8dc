//! The one error body: heartbeats, jobs and the OpenAI endpoints answer with it alike.
//!
//! Shape: OpenAI API reference, "Error codes"; all four keys are always present.

use serde::{Deserialize, Serialize};

/// `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error itself.
    pub error: ErrorObject,
}

/// What went wrong, for people (`message`) and programs (the rest).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// What went wrong and what to do about it.
    pub message: String,
    /// Kind of error, for example `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of the field that is wrong, where one is.
    pub param: Option<String>,
    /// Short fixed word, where there is one.
    pub code: Option<String>,
}

/// The closed set of errors that a daemon answers with: one HTTP status, `type` and `code` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is not valid.
    InvalidRequest,
    /// The prompt does not fit the model's context.
    ContextLengthExceeded,
    /// No or a wrong token or API key.
    Unauthorized,
    /// Not for whoever asks, whatever he presents.
    Forbidden,
    /// No such model.
    ModelNotFound,
    /// No such path, job or worker.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// It contradicts what is there.
    Conflict,
    /// The body is larger than the limit.
    TooLarge,
    /// The queue is full: come back later.
    RateLimited,
    /// Our own fault.
    Internal,
    /// The worker behind the gateway failed.
    UpstreamFailed,
    /// The model is being loaded.
    ModelLoading,
    /// Nobody has room.
    NoCapacity,
    /// This daemon is shutting down.
    Draining,
    /// The worker behind the gateway did not answer in time.
    UpstreamTimeout,
}

impl ErrorKind {
    /// HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLengthExceeded => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::ModelNotFound | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::UpstreamFailed => 502,
            Self::ModelLoading | Self::NoCapacity | Self::Draining => 503,
            Self::UpstreamTimeout => 504,
        }
    }

    /// The body's `type`.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limit_error",
            Self::Internal
            | Self::UpstreamFailed
            | Self::ModelLoading
            | Self::NoCapacity
            | Self::Draining
            | Self::UpstreamTimeout => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body's `code`, where the kind has a fixed one.
    pub const fn code(self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest => None,
            Self::ContextLengthExceeded => Some("context_length_exceeded"),
            Self::Unauthorized => Some("invalid_api_key"),
            Self::Forbidden => Some("forbidden"),
            Self::ModelNotFound => Some("model_not_found"),
            Self::NotFound => Some("not_found"),
            Self::MethodNotAllowed => Some("method_not_allowed"),
            Self::Conflict => Some("conflict"),
            Self::TooLarge => Some("body_too_large"),
            Self::RateLimited => Some("rate_limit_exceeded"),
            Self::Internal => Some("internal_error"),
            Self::UpstreamFailed => Some("upstream_failed"),
            Self::ModelLoading => Some("model_loading"),
            Self::NoCapacity => Some("no_capacity"),
            Self::Draining => Some("draining"),
            Self::UpstreamTimeout => Some("upstream_timeout"),
        }
    }

    /// The body for this kind.
    pub fn object(self, message: impl Into<String>, param: Option<&str>) -> ErrorObject {
        ErrorObject {
            message: message.into(),
            kind: self.type_name().to_owned(),
            param: param.map(str::to_owned),
            code: self.code().map(str::to_owned),
        }
    }
}
