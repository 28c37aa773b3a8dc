//! What can go wrong between a sender and its queen.

use std::time::Duration;

use crate::MAX_QUEENS;

/// Why a queen is not reported to, or why a beat was not delivered. Fits after "failed to reach the queen: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The queen's URL cannot be used.
    #[error("the queen's URL `{url}` cannot be used: {problem}")]
    QueenUrl {
        /// The URL as it was given, without user and password.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The token cannot be sent in a header.
    #[error("the token has characters that a header cannot carry; use printable ASCII")]
    Token,
    /// No room for one more queen.
    #[error("{MAX_QUEENS} queens are reported to already, and none of them can be given up")]
    TooManyQueens,
    /// The goodbyes have been said: nothing is to follow them.
    #[error("this process has said goodbye to its queens")]
    Ended,
    /// The payload could not be written as JSON.
    #[error("the heartbeat cannot be written as JSON: {0}")]
    Encode(String),
    /// No answer within the limit of this try.
    #[error("the queen did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The request did not get through: refused, reset, no route, unknown host.
    #[error("the queen cannot be reached: {0}")]
    Unreachable(String),
    /// The queen answered, and did not accept the beat.
    #[error("the queen answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The message of the error body; the status' own words where there is none.
        message: String,
    },
    /// The queen answered 200 with something that is no acknowledgement.
    #[error("the queen's answer is no acknowledgement: {0}; is the URL that of a queen-rbee?")]
    BadAnswer(String),
}

impl Error {
    /// Whether waiting will not help: somebody has to change a token, a setting or a version. The client tries again all
    /// the same, since that somebody may do it at the queen.
    pub(crate) fn needs_a_person(&self) -> bool {
        match self {
            Self::Refused { status, .. } => matches!(status, 400 | 401 | 403 | 413 | 422),
            Self::Encode(_) | Self::BadAnswer(_) => true,
            Self::QueenUrl { .. }
            | Self::Token
            | Self::TooManyQueens
            | Self::Ended
            | Self::TimedOut(_)
            | Self::Unreachable(_) => false,
        }
    }
}
