//! The answer as a whole.

use bytes::Bytes;
use openai_api::{FinishReason, ToolCall, Usage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::events::Events;
use crate::chat::{Answer, Ending};
use crate::stream::Stream;
use crate::{Identity, Reply, Translate, Unreadable};

/// The name under which arguments stand that are no JSON object.
const INVALID_JSON: &str = "INVALID_JSON";

/// The answer to one request: nothing of the request stands in it.
#[derive(Debug)]
pub(super) struct Answered;

impl Reply for Answered {
    fn whole(self: Box<Self>, chat: &[u8], identity: Identity) -> Result<Bytes, Unreadable> {
        let answer = Answer::read(chat)?;
        let mut content = Vec::new();
        if !answer.text.is_empty() || answer.calls.is_empty() {
            content.push(json!({"type": "text", "text": answer.text, "citations": null}));
        }
        content.extend(answer.calls.iter().map(|call| tool_use(call, &input(&call.arguments))));
        let end = End::of(answer.ending, !answer.calls.is_empty());
        let mut message = message(&identity, &answer.model, &content, Counts::new(&answer.usage));
        message["stop_reason"] = json!(end.stop_reason);
        message["stop_sequence"] = json!(end.stop_sequence);
        Ok(message.to_string().into())
    }

    fn stream(self: Box<Self>, identity: Identity) -> Box<dyn Translate> {
        Box::new(Stream::new(Events::new(identity)))
    }
}

/// Why a message ended.
#[derive(Debug, Serialize)]
pub(super) struct End {
    stop_reason: &'static str,
    stop_sequence: Option<String>,
}

impl End {
    pub(super) fn of(ending: Ending, has_calls: bool) -> Self {
        let stop_reason = match (ending.reason, &ending.stop_text) {
            (FinishReason::Length, _) => "max_tokens",
            (FinishReason::Stop, Some(_)) => "stop_sequence",
            // A call that was asked for by name ends with `stop` at OpenAI.
            (FinishReason::ToolCalls, _) | (FinishReason::Stop, None) if has_calls => "tool_use",
            (FinishReason::ToolCalls | FinishReason::Stop, _) => "end_turn",
        };
        Self {
            stop_reason,
            stop_sequence: ending.stop_text.filter(|_| stop_reason == "stop_sequence"),
        }
    }
}

/// Tokens of a request. Those that were found in the cache are not among `input_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    input_tokens: u32,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: u32,
}

impl Counts {
    pub(super) fn new(usage: &Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens.saturating_sub(cached),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
        }
    }
}

/// A message that has not ended.
pub(super) fn message(identity: &Identity, model: &str, content: &[Value], counts: Counts) -> Value {
    let mut usage = json!(counts);
    usage["service_tier"] = "standard".into();
    json!({
        "id": format!("msg_{}", identity.id),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage,
    })
}

/// A block that calls a tool.
pub(super) fn tool_use(call: &ToolCall, input: &Value) -> Value {
    json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
}

fn input(arguments: &str) -> Value {
    if arguments.trim().is_empty() {
        return json!({});
    }
    match serde_json::from_str(arguments) {
        Ok(input @ Value::Object(_)) => input,
        _ => json!({INVALID_JSON: arguments}),
    }
}

/// Reads the worker's count of a prompt's tokens, and writes it as the answer to `POST /v1/messages/count_tokens`.
pub fn count(chat: &[u8]) -> Result<Bytes, Unreadable> {
    #[derive(Deserialize)]
    struct Counted {
        prompt_tokens: u32,
    }
    let counted: Counted = serde_json::from_slice(chat)?;
    Ok(json!({"input_tokens": counted.prompt_tokens}).to_string().into())
}
