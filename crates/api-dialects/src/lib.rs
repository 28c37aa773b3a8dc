//! The other ways to ask for a chat: OpenAI's Responses and Anthropic's Messages, spoken on top of chat completions.
//!
//! Owns: which parameters of `POST /v1/responses`, `POST /v1/messages` and `POST /v1/messages/count_tokens` are understood,
//! accepted without effect or refused by name; how each becomes a body of `POST /v1/chat/completions`; and how the chat's
//! answer, its stream and its errors become the dialect's. The shapes are those that the official clients read and write
//! (openai 3.54, anthropic 2.12).
//! Must not know: HTTP frameworks, daemons, models, clocks, random numbers. What stands in an answer and is not in the
//! chat's, its name and its time, is given: [`Identity`].
//!
//! A request is valid as a whole or refused with an [`InvalidRequest`](openai_api::InvalidRequest) that names the offending
//! path as the client wrote it; the translated body is checked as the worker will check it. Nothing is ignored in silence:
//! what has no effect is listed in [`Translated::ignored`]. Both dialects are stateless here: a whole conversation comes with
//! each request.
//!
//! A stream is translated byte by byte as it comes ([`Translate`]): whatever the chunking, the same bytes give the same
//! events. Comments pass. A chat stream that breaks off, or says that it failed, ends in the dialect's own error event.

mod chat;
mod draft;
pub mod messages;
mod names;
pub mod responses;
mod sse;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use shared_contract::ErrorObject;

use crate::names::Names;

/// A request as `POST /v1/chat/completions` takes it.
#[derive(Debug, Clone)]
pub struct Translated {
    /// The body.
    pub body: Bytes,
    /// Whether the answer is to be a stream.
    pub is_stream: bool,
    /// The parameters that were accepted and have no effect, each once, in the order in which they were met.
    pub ignored: Vec<String>,
    names: Names,
}

impl Translated {
    /// An error about the chat request, with the parameters named as the client wrote them.
    pub fn error(&self, error: ErrorObject) -> ErrorObject {
        self.names.error(error)
    }
}

/// What an answer is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Letters and digits that no other answer has; the dialect puts its own prefix before it.
    pub id: String,
    /// When it was begun, in seconds since the epoch.
    pub created: i64,
}

/// How the chat's answers are told in a dialect.
pub trait Reply: Send {
    /// A whole answer: the body of a chat completion becomes the body of the dialect's answer.
    fn whole(self: Box<Self>, chat: &[u8], identity: Identity) -> Result<Bytes, Unreadable>;

    /// A stream of answers.
    fn stream(self: Box<Self>, identity: Identity) -> Box<dyn Translate>;
}

/// Translates a stream of server-sent events as its bytes come.
pub trait Translate: Send {
    /// Takes bytes of the chat's stream, cut anywhere; what can be told with them is appended to `out`: whole events.
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>);

    /// The chat's stream is over. Appends an error event unless the answer was complete or an error was told already.
    fn end(&mut self, out: &mut Vec<u8>);

    /// Whether an error event was told: nothing follows it, so the chat's stream need not be read any further.
    fn has_failed(&self) -> bool;
}

/// The worker's answer is no chat completion.
#[derive(Debug, thiserror::Error)]
#[error("the worker's answer is not a chat completion: {0}")]
pub struct Unreadable(#[from] serde_json::Error);
