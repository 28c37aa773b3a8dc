//! Events on their way through: what of a worker's bytes the client gets.

use std::ops::Range;

use bytes::Bytes;
use openai_api::sse;
use serde::Deserialize;

use super::events::{self, Output, Splitter, TooLong};
use super::frame::Frame;
use super::observe::{Chunk, DONE};
use super::plan::Way;
use super::receipts;
use super::rewrite::Rewriter;
use super::story::Story;
use crate::receipt::Receipt;

/// Passes on the events of one worker after the other.
#[derive(Default)]
pub(super) struct Pass {
    splitter: Splitter,
    story: Story,
    manner: Manner,
    frame: Frame,
}

/// How the present worker's events are passed on.
#[derive(Default)]
enum Manner {
    /// As they come.
    #[default]
    AsIs,
    /// As they come, but for what the client has already.
    Resumed,
    /// Made those of the answer that the client has.
    Rewritten(Box<Rewriter>),
    /// Without looking at them.
    Blind,
}

/// Where the parts of an event lie.
struct Lines {
    event: Range<usize>,
    data: Range<usize>,
    tokens: Option<Range<usize>>,
}

/// An event by which a worker says that it cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) event: Bytes,
    /// Another worker would say the same: it is the request that is wrong.
    pub(super) is_final: bool,
}

impl Pass {
    /// What was passed on so far.
    pub(super) fn story(&self) -> &Story {
        &self.story
    }

    /// Whether the bytes pass without being looked at.
    pub(super) fn is_blind(&self) -> bool {
        matches!(self.manner, Manner::Blind)
    }

    /// What of these bytes the client gets, up to the event by which the worker fails.
    pub(super) fn chunk(&mut self, chunk: Bytes, receipt: &Receipt) -> (Bytes, Option<Failed>) {
        if self.is_blind() {
            return (chunk, None);
        }
        let run = match self.splitter.feed(chunk) {
            Ok(run) => run,
            Err(TooLong(all)) => {
                self.manner = Manner::Blind;
                self.story.note_too_long();
                return (all, None);
            }
        };
        let mut output = Output::of(&run);
        for event in events::each(&run) {
            if let Some(failed) = self.event(&run, event, &mut output, receipt) {
                return (output.finish(), Some(failed));
            }
        }
        (output.finish(), None)
    }

    /// The present worker is lost: what it left unfinished is dropped.
    pub(super) fn cut(&mut self) {
        self.splitter.clear();
    }

    /// The next worker was asked in this way.
    pub(super) fn next_leg(&mut self, way: Way) {
        self.frame = Frame::default();
        self.manner = match way {
            Way::Repeat if self.story.head().id.is_none() => Manner::AsIs,
            Way::Repeat => Manner::Rewritten(Box::new(Rewriter::repeat(&self.story))),
            Way::Resume => Manner::Resumed,
            Way::Continue => Manner::Rewritten(Box::new(Rewriter::continuation(&self.story))),
        };
        match way {
            Way::Repeat => self.story.begin_again(),
            Way::Resume => self.story.next_leg(),
            Way::Continue => self.story.next_leg_by_text(),
        }
    }

    fn event(
        &mut self,
        run: &Bytes,
        event: Range<usize>,
        output: &mut Output<'_>,
        receipt: &Receipt,
    ) -> Option<Failed> {
        let fields = events::fields(&run[event.clone()]);
        let within = |range: Range<usize>| event.start + range.start..event.start + range.end;
        if fields.is_odd {
            self.story.note_unreadable();
            output.keep(event);
            return None;
        }
        let tokens = fields.tokens.map(within);
        let Some(data) = fields.data.map(within) else {
            self.note_tokens(run, tokens.as_ref());
            keep_without(tokens, event, run, output);
            return None;
        };
        if self.story.is_done() {
            return None;
        }
        if &run[data.clone()] == DONE {
            self.done(output);
            output.keep(event);
            return None;
        }
        let familiar = match self.manner {
            Manner::AsIs | Manner::Resumed => self.frame.text(&run[data.clone()]),
            Manner::Rewritten(_) | Manner::Blind => None,
        };
        if let Some(text) = familiar {
            self.note_tokens(run, tokens.as_ref());
            self.story.note_text(text);
            keep_without(tokens, event, run, output);
            return None;
        }
        self.unfamiliar(run, Lines { event, data, tokens }, output, receipt)
    }

    /// Passes on an event that has to be parsed.
    fn unfamiliar(&mut self, run: &Bytes, lines: Lines, output: &mut Output<'_>, receipt: &Receipt) -> Option<Failed> {
        let Lines { event, data, tokens } = lines;
        let json = &run[data.clone()];
        let chunk = Chunk::read(json);
        if chunk.as_ref().is_some_and(Chunk::is_error) {
            return Some(Failed {
                is_final: is_final(json),
                event: run.slice(event),
            });
        }
        self.note_tokens(run, tokens.as_ref());
        let Some(chunk) = chunk else {
            self.story.note_unreadable();
            keep_without(tokens, event, run, output);
            return None;
        };
        if let Manner::Rewritten(rewriter) = &mut self.manner {
            if let Some(data) = rewriter.rewrite(json) {
                self.put(&data, output, receipt);
            }
            return None;
        }
        if matches!(self.manner, Manner::Resumed) && self.is_known_end(&chunk) {
            return None;
        }
        self.frame.learn(json, &chunk);
        self.story.note(&chunk);
        if chunk.is_usage() {
            let brace = data.end - 1;
            keep_without(tokens, event.start..brace, run, output);
            output.put(&receipts::member(receipt));
            output.keep(brace..event.end);
        } else {
            keep_without(tokens, event, run, output);
        }
        None
    }

    fn note_tokens(&mut self, run: &Bytes, line: Option<&Range<usize>>) {
        if let Some(line) = line {
            self.story.note_tokens(&run[line.clone()]);
        }
    }

    /// Whether it is the end of an answer that the client knows to have ended.
    fn is_known_end(&self, chunk: &Chunk<'_>) -> bool {
        let choice = chunk.choices.first.as_ref();
        self.story.finished() > 0 && choice.is_some_and(|choice| choice.is_finish() && choice.text() == Ok(""))
    }

    /// Puts an event with this data.
    fn put(&mut self, data: &[u8], output: &mut Output<'_>, receipt: &Receipt) {
        output.put(b"data: ");
        match Chunk::read(data) {
            Some(chunk) => {
                self.story.note(&chunk);
                match data.strip_suffix(b"}").filter(|_| chunk.is_usage()) {
                    Some(start) => {
                        output.put(start);
                        output.put(&receipts::member(receipt));
                        output.put(b"}");
                    }
                    None => output.put(data),
                }
            }
            None => output.put(data),
        }
        output.put(b"\n\n");
    }

    /// The stream is complete.
    fn done(&mut self, output: &mut Output<'_>) {
        if let Manner::Rewritten(rewriter) = &mut self.manner
            && let Some(rest) = rewriter.rest()
        {
            output.put(&sse::event(&self.story.chunk(Some(&rest), None)));
        }
        self.story.note_done();
    }
}

/// Keeps an event, or its beginning, without the line that names tokens.
fn keep_without(tokens: Option<Range<usize>>, event: Range<usize>, run: &Bytes, output: &mut Output<'_>) {
    match tokens {
        None => output.keep(event),
        Some(line) => {
            let (before, after) = (event.start..line.start, line.end..event.end);
            let is_empty = |range: &Range<usize>| run[range.clone()].trim_ascii().is_empty();
            if !(is_empty(&before) && is_empty(&after)) {
                output.keep(before);
                output.keep(after);
            }
        }
    }
}

/// Whether an error is about the request, so that any worker would say it.
fn is_final(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow)]
        error: Inner<'a>,
    }
    #[derive(Deserialize)]
    struct Inner<'a> {
        r#type: &'a str,
    }
    serde_json::from_slice::<Body<'_>>(data).is_ok_and(|body| body.error.r#type == "invalid_request_error")
}
