//! An answer's tokens become parts: text, and calls of tools.

use structured_output::{ToolCallParser, ToolEvent};
use uuid::Uuid;

use crate::transcript::{Passed, Spelled, Transcript};
use openai_api::FinishReason;

/// What one or more tokens add to an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Part {
    /// Whole characters that are surely part of the answer; may be empty.
    pub(crate) text: String,
    /// What is new of calls of tools.
    pub(crate) calls: Vec<CallPart>,
    /// The tokens that the text was put together of, if they were asked for.
    pub(crate) tokens: Vec<Spelled>,
    /// The tokens since the part before, also those whose text is held back, if they are to be named.
    pub(crate) taken: Vec<u32>,
}

/// What is new of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallPart {
    /// The call's number in the answer.
    pub(crate) index: u32,
    /// The call begins with this part.
    pub(crate) beginning: Option<CallBeginning>,
    /// More of its arguments, which are JSON; may be empty.
    pub(crate) arguments: String,
}

/// What is said of a call once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallBeginning {
    /// Names the call.
    pub(crate) id: String,
    /// The function.
    pub(crate) name: String,
}

/// Puts an answer together of its tokens.
///
/// What a token leads to is one part, whatever it is: who has the part has all that the token says, and who has it not has
/// nothing of it. Streams that are taken up by another worker rest on this.
pub(crate) struct Speech {
    transcript: Transcript,
    tools: Option<ToolCallParser>,
    has_calls: bool,
    /// The stop text that was reached.
    stop: Option<String>,
    /// Tokens that go with the next text.
    tokens: Vec<Spelled>,
    /// What is new.
    part: Option<Part>,
}

impl Speech {
    /// Nothing is said yet. Without `tools`, everything is text.
    pub(crate) fn new(transcript: Transcript, tools: Option<ToolCallParser>) -> Self {
        Self {
            transcript,
            tools,
            has_calls: false,
            stop: None,
            tokens: Vec::new(),
            part: None,
        }
    }

    /// The answer begins with a text that is none of its own, spelled by these tokens.
    pub(crate) fn quote(&mut self, text: &str, tokens: Vec<Spelled>) {
        self.tokens.extend(tokens);
        self.add_text(text);
    }

    /// Takes the next token, and how it is spelled if anybody wants to know. Returns whether a stop text was reached:
    /// nothing may follow but the [end](Self::finish).
    pub(crate) fn push(&mut self, token: u32, spelled: Option<Spelled>) -> bool {
        let passed = self.transcript.push(token, spelled);
        self.say(passed);
        self.stop.is_some()
    }

    /// The answer is over, for this reason: what was held back is part of it. Returns the reason as the client is told, and
    /// the stop text that was reached, if one was.
    pub(crate) fn finish(&mut self, reason: FinishReason) -> (FinishReason, Option<String>) {
        if self.stop.is_none() {
            let passed = self.transcript.finish();
            self.say(passed);
        }
        let stop = self.stop.clone();
        let reason = if stop.is_some() { FinishReason::Stop } else { reason };
        // What the limit cut off behind whole calls is the beginning of another one, not text.
        let is_cut_call = reason == FinishReason::Length && self.has_calls;
        if let Some(parser) = self.tools.as_mut().filter(|_| !is_cut_call) {
            let mut events = Vec::new();
            parser.finish(&mut events);
            self.tell(events);
        }
        if !self.tokens.is_empty() && !self.has_calls {
            self.add_text("");
        }
        match reason {
            FinishReason::Stop if self.has_calls => (FinishReason::ToolCalls, stop),
            reason => (reason, stop),
        }
    }

    /// What is new since the last call.
    pub(crate) fn take(&mut self) -> Option<Part> {
        self.part.take()
    }

    fn say(&mut self, passed: Passed) {
        self.stop = passed.stop;
        self.tokens.extend(passed.tokens);
        match &mut self.tools {
            Some(parser) => {
                let mut events = Vec::new();
                parser.push(&passed.text, &mut events);
                self.tell(events);
            }
            None if passed.text.is_empty() => {}
            None => self.add_text(&passed.text),
        }
    }

    fn tell(&mut self, events: Vec<ToolEvent>) {
        for event in events {
            match event {
                ToolEvent::Text(text) => self.add_text(&text),
                ToolEvent::Begin { index, name } => {
                    self.has_calls = true;
                    let id = format!("call_{}", Uuid::new_v4().simple());
                    self.add_call(index, Some(CallBeginning { id, name }), String::new());
                }
                ToolEvent::Arguments { index, piece } => self.add_call(index, None, piece),
                ToolEvent::End { .. } => {}
            }
        }
    }

    fn add_text(&mut self, text: &str) {
        let part = self.part.get_or_insert_default();
        part.text.push_str(text);
        part.tokens.append(&mut self.tokens);
    }

    fn add_call(&mut self, index: usize, beginning: Option<CallBeginning>, arguments: String) {
        // They spell the call, not the text.
        self.tokens.clear();
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let calls = &mut self.part.get_or_insert_default().calls;
        match calls.last_mut() {
            Some(call) if call.index == index => call.arguments.push_str(&arguments),
            _ => calls.push(CallPart {
                index,
                beginning,
                arguments,
            }),
        }
    }
}
