//! OpenAI's wire formats as rbee speaks them: requests, validated; answers; the frames of a stream.
//!
//! Owns: which parameters of `POST /v1/chat/completions`, `POST /v1/completions` and `POST /v1/embeddings` are understood,
//! which are accepted without effect, which are refused by name, and the exact shape of every answer and stream chunk.
//! Must not know: HTTP frameworks, daemons, tokenizers, models, grammars, clocks.
//!
//! A request is valid as a whole or refused with an [`InvalidRequest`] that names the offending path. Nothing is ever
//! ignored in silence: a parameter that OpenAI knows and this server does not support passes only with the value that
//! asks for nothing (`suffix: null`, `functions: []`, `modalities: ["text"]`, ...), and unknown parameters are refused.
//! What has no effect by its nature (labels, hints) is accepted and named, so that the answer can say so.
//! Beyond OpenAI's parameters, those that open models are used with are understood by the names that vLLM gave them:
//! `top_k`, `min_p`, `typical_p`, `repetition_penalty`, `add_generation_prompt`, `continue_final_message`; and `resume`, by
//! which a queen has a stream taken up ([`worker_contract::Resume`]).

mod chat;
mod completions;
mod embeddings;
mod error;
mod fields;
mod generation;
mod ignored;
mod logprobs;
mod messages;
mod models;
mod prompts;
mod response;
mod response_format;
mod resume;
mod routing;
pub mod sse;
mod stream;
#[cfg(test)]
mod tests;
mod tools;

pub use chat::{ChatRequest, MAX_TOP_LOGPROBS, PromptEnd};
pub use completions::{CompletionRequest, DEFAULT_COMPLETION_TOKENS, MAX_COMPLETION_LOGPROBS, MAX_COMPLETIONS};
pub use embeddings::{
    Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EncodingFormat, MAX_EMBEDDING_INPUTS, Vector,
};
pub use error::{InvalidCode, InvalidRequest};
pub use fields::Fields;
pub use generation::{
    Generation, MAX_CHOICES, MAX_LOGIT_BIASES, MAX_REPETITION_PENALTY, MAX_STOP_BYTES, MAX_STOPS, StreamMode,
};
pub use ignored::{IGNORED_HEADER, STRICT_HEADER, refuse_ignored};
pub use logprobs::{ChatLogprobs, CompletionLogprobs, TextOffset, TokenLogprob, TopLogprob};
pub use messages::{Message, Role, ToolCall};
pub use models::{Model, ModelList};
pub use prompts::Prompt;
pub use response::{
    AnswerMessage, AnswerRole, ChatChoice, ChatCompletion, Completion, CompletionChoice, FinishReason, Object,
    PromptTokensDetails, Usage,
};
pub use response_format::{MAX_SCHEMA_BYTES, ResponseFormat};
pub use routing::{Routing, routing, with_model};
pub use stream::{
    ChatChoiceDelta, ChatChunks, ChatCompletionChunk, CompletionChunks, Delta, FunctionDelta, ToolCallDelta,
};
pub use tools::{MAX_TOOLS, MAX_TOOLS_BYTES, Tool, ToolChoice, ToolKind};
