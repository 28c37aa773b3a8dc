//! The answer as a stream of named events.

use openai_api::{ToolCall, Usage};
use serde::Serialize;
use serde_json::{Value, json};
use shared_contract::ErrorObject;

use super::errors::error_type;
use super::message::{Counts, End, message, tool_use};
use crate::Identity;
use crate::chat::{Ending, Logprob};
use crate::stream::{Speaker, write_event};

/// Tells a chat's stream as Messages does.
#[derive(Debug)]
pub(super) struct Events {
    identity: Identity,
    /// Number of the block that grows, or of the next one.
    index: usize,
    open: Option<Block>,
    has_calls: bool,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    ToolUse,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event<'a> {
    MessageStart { message: Value },
    ContentBlockStart { index: usize, content_block: Value },
    ContentBlockDelta { index: usize, delta: Delta<'a> },
    ContentBlockStop { index: usize },
    MessageDelta { delta: Option<End>, usage: Counts },
    MessageStop,
    Ping,
    Error { error: Value },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta<'a> {
    TextDelta { text: &'a str },
    InputJsonDelta { partial_json: &'a str },
}

impl Event<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let name = match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
            Self::Error { .. } => "error",
        };
        write_event(name, self, out);
    }
}

impl Events {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity,
            index: 0,
            open: None,
            has_calls: false,
            end: None,
        }
    }

    fn open(&mut self, block: Block, content_block: Value, out: &mut Vec<u8>) {
        self.close(out);
        let index = self.index;
        Event::ContentBlockStart { index, content_block }.write(out);
        self.open = Some(block);
    }

    /// Ends the block that grows, if there is one.
    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            Event::ContentBlockStop { index: self.index }.write(out);
            self.index += 1;
        }
    }

    fn open_text(&mut self, out: &mut Vec<u8>) {
        self.open(Block::Text, json!({"type": "text", "text": "", "citations": null}), out);
    }
}

impl Speaker for Events {
    fn begin(&mut self, model: &str, usage: Option<&Usage>, out: &mut Vec<u8>) {
        let counts = usage.map(Counts::new).unwrap_or_default();
        let message = message(&self.identity, model, &[], counts);
        Event::MessageStart { message }.write(out);
    }

    fn text(&mut self, text: &str, _: Vec<Logprob>, out: &mut Vec<u8>) {
        if self.open != Some(Block::Text) {
            self.open_text(out);
        }
        let delta = Delta::TextDelta { text };
        Event::ContentBlockDelta {
            index: self.index,
            delta,
        }
        .write(out);
    }

    fn call(&mut self, id: &str, name: &str, out: &mut Vec<u8>) {
        self.has_calls = true;
        let call = ToolCall {
            id: id.to_owned(),
            name: name.to_owned(),
            arguments: String::new(),
        };
        self.open(Block::ToolUse, tool_use(&call, &json!({})), out);
    }

    fn arguments(&mut self, partial_json: &str, out: &mut Vec<u8>) {
        let delta = Delta::InputJsonDelta { partial_json };
        Event::ContentBlockDelta {
            index: self.index,
            delta,
        }
        .write(out);
    }

    fn finish(&mut self, ending: Ending, out: &mut Vec<u8>) {
        if self.open.is_none() && self.index == 0 {
            // An answer that says nothing is an empty text.
            self.open_text(out);
        }
        self.close(out);
        self.end = Some(End::of(ending, self.has_calls));
    }

    fn complete(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        let delta = self.end.take();
        let usage = Counts::new(usage);
        Event::MessageDelta { delta, usage }.write(out);
        Event::MessageStop.write(out);
    }

    fn fail(&mut self, error: &ErrorObject, out: &mut Vec<u8>) {
        let error = json!({"type": error_type(error), "message": error.message});
        Event::Error { error }.write(out);
    }

    fn alive(&mut self, _: &[u8], out: &mut Vec<u8>) {
        Event::Ping.write(out);
    }
}
