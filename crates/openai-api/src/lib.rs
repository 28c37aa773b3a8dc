//! OpenAI's wire formats as rbee speaks them: requests, validated; answers; the frames of a stream.
//!
//! Owns: which parameters of `POST /v1/chat/completions` and `POST /v1/completions` are understood, which are accepted
//! without effect, which are refused by name, and the exact shape of every answer and stream chunk.
//! Must not know: HTTP frameworks, daemons, tokenizers, models, clocks.
//!
//! A request is valid as a whole or refused with an [`InvalidRequest`] that names the offending path. Nothing is ever
//! ignored in silence: a parameter that OpenAI knows and this server does not support passes only with the value that
//! asks for nothing (`n: 1`, `tools: []`, `presence_penalty: 0`, ...), and unknown parameters are refused.

mod chat;
mod completions;
mod error;
mod fields;
mod generation;
mod models;
mod response;
mod routing;
pub mod sse;
mod stream;

pub use chat::{ChatRequest, Message, Role};
pub use completions::{CompletionRequest, DEFAULT_COMPLETION_TOKENS, Prompt};
pub use error::{InvalidCode, InvalidRequest};
pub use generation::{ACCEPTED_WITHOUT_EFFECT, Generation, MAX_STOP_BYTES, MAX_STOPS, StreamMode};
pub use models::{Model, ModelList};
pub use response::{
    AnswerMessage, AnswerRole, ChatChoice, ChatCompletion, Completion, CompletionChoice, FinishReason, Object,
    PromptTokensDetails, Usage,
};
pub use routing::{Routing, routing};
pub use stream::{ChatChoiceDelta, ChatChunks, ChatCompletionChunk, CompletionChunks, Delta};
