//! Answers that follow a grammar: JSON, JSON of a schema, tool calls.
//!
//! [`Grammars`] holds a model's vocabulary and turns a [`Grammar`] into a [`batch_engine::Constraint`], which says before
//! each token which ones may come next. The grammars themselves are llguidance's. For tool calls there is more to do
//! than constrain: [`ToolFormat`] tells from a chat template how a model spells its calls and has the words for models
//! that were never told, [`ToolCallParser`] finds the calls in an answer's text while it is being made.
//!
//! Owns: the vocabulary as a trie of bytes, what a schema may ask for, the spelling of tool calls.
//!
//! Must not know: HTTP, the OpenAI types, the model, how tokens are chosen.
//!
//! The road of a request with tools: `tools` (the format of the template) -> `tool_grammar` (the grammar) -> `grammars`
//! (compiles it) -> `matcher` (bites from the first token) or `free_text` (bites when a call begins); and back:
//! `tool_calls` (the answer's text) by `call_syntax` (what stands around arguments) and `json_span` (where they end).

mod call_syntax;
mod error;
mod free_text;
mod grammars;
mod instructions;
mod json_span;
mod matcher;
mod schema;
mod tool_calls;
mod tool_grammar;
mod tools;

pub use error::GrammarError;
pub use grammars::{Grammar, Grammars, TokenText};
pub use tool_calls::{ToolCallParser, ToolEvent};
pub use tools::{ToolFormat, ToolSpec};
