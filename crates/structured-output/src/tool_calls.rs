//! Finds tool calls in the text of an answer while it is being made.

use crate::call_syntax::{self, Header, Lead, Stop, is_blank};
use crate::json_span::{JsonSpan, SpanStep};
use crate::tools::ToolFormat;

/// Longest text before or after a call's arguments that is waited for; what is longer is no call.
const MAX_FRAME_BYTES: usize = 4096;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolEvent {
    /// Text that belongs to no call.
    Text(String),
    /// A call begins.
    Begin {
        /// Counts the answer's calls from 0.
        index: usize,
        /// The tool's name.
        name: String,
    },
    /// The next piece of the arguments of the call that began last: JSON as the model wrote it.
    Arguments {
        /// The call.
        index: usize,
        /// Never empty.
        piece: String,
    },
    /// The arguments are complete. Missing where an answer was cut off, or a model that nothing constrained wrote
    /// brackets that do not match.
    End {
        /// The call.
        index: usize,
    },
}

/// Turns the pieces of an answer's text into text and calls. However a text is cut into pieces, it says the same.
///
/// Text is passed on at once, except for blanks and beginnings of a call's opening, which are held back until it is
/// clear what they are; blanks around calls are dropped. What turns out to be no call, or a call of an unknown tool, is
/// text.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    format: ToolFormat,
    names: Vec<String>,
    state: State,
    /// Text that is not yet passed on.
    held: String,
    calls: usize,
    /// Whether there was nothing but blanks since the last call.
    is_after_call: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// In text, where a call may begin.
    Text,
    /// In what may be a call, before its arguments.
    Header(Lead),
    /// In a call's arguments.
    Arguments(JsonSpan),
    /// Behind a call's arguments.
    Tail,
    /// In text, where no call begins any more.
    Rest,
}

impl ToolCallParser {
    /// At the beginning of an answer that may call these tools.
    pub fn new(format: ToolFormat, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            format,
            names: names.into_iter().collect(),
            state: State::Text,
            held: String::new(),
            calls: 0,
            is_after_call: false,
        }
    }

    /// Takes the next piece of the text and adds what it tells to `events`.
    pub fn push(&mut self, piece: &str, events: &mut Vec<ToolEvent>) {
        self.held.push_str(piece);
        while self.advance(events) {}
    }

    /// The text is complete: adds what was held back.
    pub fn finish(&mut self, events: &mut Vec<ToolEvent>) {
        match self.state {
            State::Text | State::Rest if self.is_after_call => self.held.clear(),
            State::Text | State::Rest | State::Header(_) => self.text(self.held.len(), events),
            State::Arguments(_) | State::Tail => self.held.clear(),
        }
    }

    /// Goes one state further. Whether there is more to do with what is held.
    fn advance(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match &mut self.state {
            State::Text => self.read_text(events),
            State::Rest => self.read_rest(events),
            State::Header(lead) => {
                let lead = *lead;
                self.read_header(lead, events)
            }
            State::Arguments(_) => self.read_arguments(events),
            State::Tail => self.read_tail(),
        }
    }

    fn read_text(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let Some(opening) = self.format.opening() else {
            let rest = self.held.trim_start_matches(is_blank);
            self.state = match rest.chars().next() {
                None => return false,
                Some('{') => State::Header(Lead::First),
                Some(_) => State::Rest,
            };
            return true;
        };
        let (end, is_opened) = match self.held.find(opening) {
            Some(start) => (start, true),
            None => (self.held.len() - overlap(&self.held, opening), false),
        };
        self.text(self.held[..end].trim_end_matches(is_blank).len(), events);
        if is_opened {
            self.state = State::Header(Lead::First);
        }
        is_opened
    }

    fn read_rest(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        if !(self.is_after_call && self.held.trim_start_matches(is_blank).is_empty()) {
            self.text(self.held.len(), events);
        }
        false
    }

    fn read_header(&mut self, lead: Lead, events: &mut Vec<ToolEvent>) -> bool {
        match call_syntax::header(self.frame(), lead, self.format, &self.names) {
            Ok(Header { name, arguments, end }) => {
                let index = self.calls;
                self.calls += 1;
                self.held.drain(..end);
                events.push(ToolEvent::Begin { index, name });
                self.state = State::Arguments(JsonSpan::default());
                if let Some(piece) = arguments {
                    events.extend([ToolEvent::Arguments { index, piece }, ToolEvent::End { index }]);
                    self.state = State::Tail;
                }
                true
            }
            Err(Stop::Unfinished) if self.held.len() < MAX_FRAME_BYTES => false,
            Err(_) => {
                // Another call may begin inside: only the opening's first character is certainly none.
                let blanks = self.held.len() - self.held.trim_start_matches(is_blank).len();
                self.state = self.text_state();
                self.text(blanks + 1, events);
                true
            }
        }
    }

    fn read_arguments(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let State::Arguments(span) = &mut self.state else {
            return false;
        };
        let mut bytes = self.held.bytes();
        let step = bytes
            .by_ref()
            .map(|byte| span.step(byte))
            .find(|&step| step != SpanStep::Inside);
        let read = self.held.len() - bytes.len();
        let end = if step == Some(SpanStep::Broken) { read - 1 } else { read };
        let index = self.calls - 1;
        if end > 0 {
            let piece: String = self.held.drain(..end).collect();
            events.push(ToolEvent::Arguments { index, piece });
        }
        match step {
            Some(SpanStep::End) => {
                events.push(ToolEvent::End { index });
                self.state = State::Tail;
            }
            Some(_) => self.state = self.text_state(),
            None => return false,
        }
        true
    }

    fn read_tail(&mut self) -> bool {
        match call_syntax::tail(self.frame(), self.format) {
            Ok(tail) => {
                self.held.drain(..tail.end);
                if tail.is_followed {
                    self.state = State::Header(Lead::Next);
                } else {
                    self.state = self.text_state();
                    self.is_after_call = true;
                }
            }
            Err(Stop::Unfinished) if self.held.len() < MAX_FRAME_BYTES => return false,
            Err(_) => self.state = self.text_state(),
        }
        true
    }

    /// As much of what is held as is looked at for what stands around arguments.
    fn frame(&self) -> &str {
        &self.held[..self.held.floor_char_boundary(MAX_FRAME_BYTES)]
    }

    /// The state after something that is no call, or a last one.
    fn text_state(&self) -> State {
        match self.format.opening() {
            Some(_) => State::Text,
            None => State::Rest,
        }
    }

    /// Passes the held text up to `end` on.
    fn text(&mut self, end: usize, events: &mut Vec<ToolEvent>) {
        if end > 0 {
            self.is_after_call = false;
            events.push(ToolEvent::Text(self.held.drain(..end).collect()));
        }
    }
}

/// Length of the longest end of `text` that `opening` begins with.
fn overlap(text: &str, opening: &str) -> usize {
    (1..opening.len())
        .rev()
        .find(|&length| opening.is_char_boundary(length) && text.ends_with(&opening[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
