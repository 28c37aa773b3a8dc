//! Why a request gets no worker's answer.

use shared_contract::{ErrorKind, ErrorObject};

use crate::upstream::Incoming;

/// An error as the client reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Decides status, `type` and `code`.
    pub kind: ErrorKind,
    /// What is wrong and what to do about it; names no address.
    pub message: String,
    /// Path of the field, or name of the header, that is wrong.
    pub param: Option<String>,
    /// A more exact code than the kind has.
    pub code: Option<&'static str>,
    /// When to come back.
    pub retry_after_s: Option<u32>,
}

impl Refusal {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after_s: None,
        }
    }

    /// Names the field or header.
    #[must_use]
    pub fn with_param(self, param: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..self
        }
    }

    /// Gives a more exact code than the kind has.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// Asks the client to come back after so many seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self {
            retry_after_s: Some(seconds),
            ..self
        }
    }

    /// The inner object of the error body; also of an error inside a stream.
    pub fn object(&self) -> ErrorObject {
        let object = self.kind.object(self.message.as_str(), self.param.as_deref());
        match self.code {
            Some(code) => ErrorObject {
                code: Some(code.to_owned()),
                ..object
            },
            None => object,
        }
    }
}

/// What a request that no worker answered is told.
pub(crate) enum Refused {
    /// By the queen.
    Error(Refusal),
    /// By the last worker that was tried.
    Relayed(Box<http::Response<Incoming>>),
}

impl Refused {
    /// Its HTTP status.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Error(refusal) => refusal.kind.status(),
            Self::Relayed(response) => response.status().as_u16(),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Error(refusal)
    }
}
