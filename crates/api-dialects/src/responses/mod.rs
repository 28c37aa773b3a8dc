//! OpenAI's Responses: `POST /v1/responses`, stateless.
//!
//! `instructions` becomes a system message before all others. A `function_call` joins the assistant's message before it, as
//! the chat has it. Reasoning items are left out and named among the ignored ones, as the chat has no place for them.
//! Nothing is kept: `previous_response_id`, `conversation`, `prompt`, `background: true` and references to items are refused,
//! `store: true` is named as ignored, and each answer says `store: false`.

mod events;
mod input;
mod request;
mod response;

pub use request::translate;
