//! The answer as a whole.

use bytes::Bytes;
use openai_api::{FinishReason, ToolCall, Usage};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::events::Events;
use crate::chat::{Answer, Ending, Logprob};
use crate::stream::Stream;
use crate::{Identity, Reply, Translate, Unreadable};

/// What an answer repeats of its request.
#[derive(Debug, Default)]
pub(super) struct Echo(Map<String, Value>);

impl Echo {
    pub(super) fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    pub(super) fn put_format(&mut self, format: &Value) {
        self.put("text", json!({"format": format, "verbosity": "medium"}));
    }
}

/// The answer to one request.
#[derive(Debug)]
pub(super) struct Response {
    model: String,
    echo: Echo,
}

impl Response {
    pub(super) fn new(model: String, echo: Echo) -> Self {
        Self { model, echo }
    }
}

impl Reply for Response {
    fn whole(self: Box<Self>, chat: &[u8], identity: Identity) -> Result<Bytes, Unreadable> {
        let answer = Answer::read(chat)?;
        let mut frame = Frame::new(self.model, self.echo, identity);
        frame.model = answer.model;
        let status = Status::at(&answer.ending);
        // Only the last item can have been cut off.
        let of_item = |rest: usize| if rest == 0 { status } else { Status::Completed };
        let mut output = Vec::new();
        if !answer.text.is_empty() || answer.calls.is_empty() {
            let text = (answer.text.as_str(), answer.logprobs.as_slice());
            output.push(frame.message(0, of_item(answer.calls.len()), Some(text)));
        }
        for (index, call) in answer.calls.iter().enumerate() {
            let rest = answer.calls.len() - index - 1;
            output.push(frame.call(output.len(), of_item(rest), call));
        }
        let response = frame.response(status, &output, Some(&answer.usage));
        Ok(response.to_string().into())
    }

    fn stream(self: Box<Self>, identity: Identity) -> Box<dyn Translate> {
        let frame = Frame::new(self.model, self.echo, identity);
        Box::new(Stream::new(Events::new(frame)))
    }
}

/// How an answer or one of its items stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

impl Status {
    /// That of an answer that ended so.
    pub(super) fn at(ending: &Ending) -> Self {
        match ending.reason {
            FinishReason::Stop | FinishReason::ToolCalls => Self::Completed,
            FinishReason::Length => Self::Incomplete,
        }
    }
}

/// What all states of one answer have in common.
#[derive(Debug)]
pub(super) struct Frame {
    identity: Identity,
    pub(super) model: String,
    echo: Echo,
}

impl Frame {
    fn new(model: String, echo: Echo, identity: Identity) -> Self {
        Self { identity, model, echo }
    }

    /// The `id` of an item, by its place in the output.
    pub(super) fn item_id(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}_{}_{index}", self.identity.id)
    }

    /// An item with text; without a content yet if it is `None`.
    pub(super) fn message(&self, index: usize, status: Status, text: Option<(&str, &[Logprob])>) -> Value {
        let content: Vec<Value> = text.map(|(text, logprobs)| part(text, logprobs)).into_iter().collect();
        json!({
            "id": self.item_id("msg", index), "type": "message", "status": status, "role": "assistant", "content": content,
        })
    }

    /// An item that calls a tool.
    pub(super) fn call(&self, index: usize, status: Status, call: &ToolCall) -> Value {
        json!({
            "id": self.item_id("fc", index), "type": "function_call", "status": status,
            "call_id": call.id, "name": call.name, "arguments": call.arguments,
        })
    }

    /// The answer as it stands.
    pub(super) fn response(&self, status: Status, output: &[Value], usage: Option<&Usage>) -> Value {
        let reason = (status == Status::Incomplete).then(|| json!({"reason": "max_output_tokens"}));
        let mut response = json!({
            "id": format!("resp_{}", self.identity.id),
            "object": "response",
            "created_at": self.identity.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": reason,
            "instructions": null,
            "max_output_tokens": null,
            "max_tool_calls": null,
            "metadata": {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "service_tier": "default",
            "store": false,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": usage.map(self::usage),
        });
        for (name, value) in &self.echo.0 {
            response[name] = value.clone();
        }
        response
    }
}

/// The part of a message that holds its text.
pub(super) fn part(text: &str, logprobs: &[Logprob]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            // Writing to the cache costs nothing extra here, so nothing is counted as written.
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    })
}
