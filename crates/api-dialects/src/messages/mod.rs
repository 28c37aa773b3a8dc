//! Anthropic's Messages: `POST /v1/messages` and `POST /v1/messages/count_tokens`.
//!
//! `system` becomes a system message before all others. Turns of one side that follow each other become one, as Anthropic
//! says. Results of tools become messages of their own, in their place; one that is an error says so in its text, as the chat
//! has no other place for that. If the last turn is the assistant's, the model goes on with it. Blocks of thinking are left out
//! and named among the ignored parameters: the chat has no place for them, and none are ever made. Marks for caching have no
//! effect and are named: what was computed is found again by itself.
//!
//! `stop_sequence` is told where the worker names the text that ended the answer. A stream begins before its usage is known,
//! so `message_start` may say 0 tokens; `message_delta`, whose counts replace those, says how many they are. Arguments of a
//! tool that are no JSON object, as when the limit of tokens cut them off, come whole as `{"INVALID_JSON": "..."}`, which is
//! how Anthropic's documentation has clients send them back.

mod content;
mod errors;
mod events;
mod message;
mod request;

pub use errors::{error_body, error_type};
pub use message::count;
pub use request::{translate, translate_count};
