//! The answer as a stream of named events.

use openai_api::{ToolCall, Usage};
use serde::Serialize;
use serde_json::{Value, json};
use shared_contract::ErrorObject;

use super::response::{Frame, Status, part};
use crate::chat::{Ending, Logprob};
use crate::stream::{Speaker, write_event};

/// Tells a chat's stream as Responses does.
#[derive(Debug)]
pub(super) struct Events {
    frame: Frame,
    /// Number of the next event.
    sequence: u64,
    has_begun: bool,
    /// The items that are whole.
    output: Vec<Value>,
    /// The item that grows.
    open: Option<Item>,
    end: Status,
}

#[derive(Debug)]
enum Item {
    Text { text: String, logprobs: Vec<Logprob> },
    Call(ToolCall),
}

/// What stands in every event.
#[derive(Serialize)]
struct Event<'a, T> {
    r#type: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    rest: T,
}

#[derive(Serialize)]
struct TextDelta<'a> {
    item_id: &'a str,
    output_index: usize,
    content_index: usize,
    delta: &'a str,
    logprobs: &'a [Logprob],
}

#[derive(Serialize)]
struct ArgumentsDelta<'a> {
    item_id: &'a str,
    output_index: usize,
    delta: &'a str,
}

impl Events {
    pub(super) fn new(frame: Frame) -> Self {
        Self {
            frame,
            sequence: 0,
            has_begun: false,
            output: Vec::new(),
            open: None,
            end: Status::InProgress,
        }
    }

    fn emit(&mut self, name: &str, rest: impl Serialize, out: &mut Vec<u8>) {
        let event = Event {
            r#type: name,
            sequence_number: self.sequence,
            rest,
        };
        write_event(name, &event, out);
        self.sequence += 1;
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        self.has_begun = true;
        for name in ["response.created", "response.in_progress"] {
            let response = self.frame.response(Status::InProgress, &[], None);
            self.emit(name, json!({"response": response}), out);
        }
    }

    /// Number of the item that grows.
    fn index(&self) -> usize {
        self.output.len()
    }

    fn open_text(&mut self, out: &mut Vec<u8>) {
        self.close(Status::Completed, out);
        let index = self.index();
        let item = self.frame.message(index, Status::InProgress, None);
        self.emit(
            "response.output_item.added",
            json!({"output_index": index, "item": item}),
            out,
        );
        let added = json!({
            "item_id": self.frame.item_id("msg", index), "output_index": index, "content_index": 0, "part": part("", &[]),
        });
        self.emit("response.content_part.added", added, out);
        self.open = Some(Item::Text {
            text: String::new(),
            logprobs: Vec::new(),
        });
    }

    /// Ends the item that grows, if there is one.
    fn close(&mut self, status: Status, out: &mut Vec<u8>) {
        let index = self.index();
        let item = match self.open.take() {
            None => return,
            Some(Item::Text { text, logprobs }) => {
                let id = self.frame.item_id("msg", index);
                let done = json!({
                    "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": logprobs,
                });
                self.emit("response.output_text.done", done, out);
                let done = json!({
                    "item_id": id, "output_index": index, "content_index": 0, "part": part(&text, &logprobs),
                });
                self.emit("response.content_part.done", done, out);
                self.frame.message(index, status, Some((&text, &logprobs)))
            }
            Some(Item::Call(call)) => {
                let done = json!({
                    "item_id": self.frame.item_id("fc", index), "output_index": index, "arguments": call.arguments,
                });
                self.emit("response.function_call_arguments.done", done, out);
                self.frame.call(index, status, &call)
            }
        };
        self.emit(
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
            out,
        );
        self.output.push(item);
    }

    /// What there is of the item that grows, for an answer that fails.
    fn unfinished(&mut self) -> Option<Value> {
        let index = self.index();
        Some(match self.open.take()? {
            Item::Text { text, logprobs } => self.frame.message(index, Status::Incomplete, Some((&text, &logprobs))),
            Item::Call(call) => self.frame.call(index, Status::Incomplete, &call),
        })
    }
}

impl Speaker for Events {
    fn begin(&mut self, model: &str, _: Option<&Usage>, out: &mut Vec<u8>) {
        model.clone_into(&mut self.frame.model);
        self.start(out);
    }

    fn text(&mut self, piece: &str, new: Vec<Logprob>, out: &mut Vec<u8>) {
        if !matches!(self.open, Some(Item::Text { .. })) {
            self.open_text(out);
        }
        let index = self.index();
        let delta = TextDelta {
            item_id: &self.frame.item_id("msg", index),
            output_index: index,
            content_index: 0,
            delta: piece,
            logprobs: &new,
        };
        self.emit("response.output_text.delta", delta, out);
        if let Some(Item::Text { text, logprobs }) = &mut self.open {
            text.push_str(piece);
            logprobs.extend(new);
        }
    }

    fn call(&mut self, id: &str, name: &str, out: &mut Vec<u8>) {
        self.close(Status::Completed, out);
        let call = ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: String::new(),
        };
        let index = self.index();
        let item = self.frame.call(index, Status::InProgress, &call);
        self.emit(
            "response.output_item.added",
            json!({"output_index": index, "item": item}),
            out,
        );
        self.open = Some(Item::Call(call));
    }

    fn arguments(&mut self, piece: &str, out: &mut Vec<u8>) {
        let index = self.index();
        let delta = ArgumentsDelta {
            item_id: &self.frame.item_id("fc", index),
            output_index: index,
            delta: piece,
        };
        self.emit("response.function_call_arguments.delta", delta, out);
        if let Some(Item::Call(call)) = &mut self.open {
            call.arguments.push_str(piece);
        }
    }

    fn finish(&mut self, ending: Ending, out: &mut Vec<u8>) {
        self.end = Status::at(&ending);
        if self.open.is_none() && self.output.is_empty() {
            // An answer that says nothing is an empty text.
            self.open_text(out);
        }
        self.close(self.end, out);
    }

    fn complete(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        let name = match self.end {
            Status::Incomplete => "response.incomplete",
            _ => "response.completed",
        };
        let output = std::mem::take(&mut self.output);
        let response = self.frame.response(self.end, &output, Some(usage));
        self.emit(name, json!({"response": response}), out);
    }

    fn fail(&mut self, error: &ErrorObject, out: &mut Vec<u8>) {
        if !self.has_begun {
            self.start(out);
        }
        let event = json!({"code": error.code, "message": error.message, "param": error.param});
        self.emit("error", event, out);
        let unfinished = self.unfinished();
        self.output.extend(unfinished);
        let output = std::mem::take(&mut self.output);
        let mut response = self.frame.response(Status::Failed, &output, None);
        // The codes of a failed answer are a closed set.
        let code = error.code.as_deref().filter(|code| *code == "rate_limit_exceeded");
        let code = code.unwrap_or("server_error");
        response["error"] = json!({"code": code, "message": error.message});
        self.emit("response.failed", json!({"response": response}), out);
    }
}
