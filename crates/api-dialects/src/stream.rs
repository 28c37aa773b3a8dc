//! A chat's stream, followed chunk by chunk and told by a dialect.

use openai_api::Usage;
use serde::Serialize;
use shared_contract::{ErrorKind, ErrorObject};

use crate::Translate;
use crate::chat::{self, Ending, Logprob};
use crate::sse::{Decoder, Item};

/// The data that ends a chat's stream.
const DONE: &[u8] = b"[DONE]";

/// Tells a stream in a dialect. The calls come in this order: `begin`, any number of `text`, `call` and `arguments` (of the
/// newest call), `finish`, `complete`. `fail` may come at any time and is the last one. All append to `out`.
pub(crate) trait Speaker: Send {
    /// The model has begun; what is known of the usage.
    fn begin(&mut self, model: &str, usage: Option<&Usage>, out: &mut Vec<u8>);

    /// The text goes on.
    fn text(&mut self, text: &str, logprobs: Vec<Logprob>, out: &mut Vec<u8>);

    /// The model calls a tool.
    fn call(&mut self, id: &str, name: &str, out: &mut Vec<u8>);

    /// The arguments of the newest call go on.
    fn arguments(&mut self, piece: &str, out: &mut Vec<u8>);

    /// Nothing follows.
    fn finish(&mut self, ending: Ending, out: &mut Vec<u8>);

    /// The answer is complete.
    fn complete(&mut self, usage: &Usage, out: &mut Vec<u8>);

    /// The answer failed.
    fn fail(&mut self, error: &ErrorObject, out: &mut Vec<u8>);

    /// A comment once the model has begun: a sign of life. Before, comments pass as they are.
    fn alive(&mut self, comment: &[u8], out: &mut Vec<u8>) {
        write_comment(comment, out);
    }
}

/// Follows a chat's stream.
#[derive(Debug)]
pub(crate) struct Stream<S> {
    decoder: Decoder,
    teller: Teller<S>,
}

#[derive(Debug)]
struct Teller<S> {
    speaker: S,
    place: Place,
    /// The newest call's number.
    call: Option<u32>,
    usage: Option<Usage>,
    has_failed: bool,
}

/// How far the stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing was said.
    Waiting,
    /// The answer has begun.
    Speaking,
    /// The reason of its end was said.
    Finished,
    /// All was told.
    Over,
}

impl<S: Speaker> Stream<S> {
    pub(crate) fn new(speaker: S) -> Self {
        Self {
            decoder: Decoder::default(),
            teller: Teller {
                speaker,
                place: Place::Waiting,
                call: None,
                usage: None,
                has_failed: false,
            },
        }
    }
}

impl<S: Speaker> Translate for Stream<S> {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let Self { decoder, teller } = self;
        if teller.place == Place::Over {
            return;
        }
        if decoder.push(bytes, |item| teller.item(item, out)).is_err() {
            teller.fail("an event of the worker's stream is too large", out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.teller.fail("the worker's stream broke off before its end", out);
    }

    fn has_failed(&self) -> bool {
        self.teller.has_failed
    }
}

impl<S: Speaker> Teller<S> {
    fn item(&mut self, item: Item<'_>, out: &mut Vec<u8>) {
        match (self.place, item) {
            (Place::Over, _) => (),
            (Place::Waiting, Item::Comment(comment)) => write_comment(comment, out),
            (_, Item::Comment(comment)) => self.speaker.alive(comment, out),
            (_, Item::Data(DONE)) => self.done(out),
            (_, Item::Data(data)) => match serde_json::from_slice(data) {
                Ok(event) => self.event(event, out),
                Err(error) => self.fail(&format!("the worker's stream cannot be read: {error}"), out),
            },
        }
    }

    fn event(&mut self, event: chat::Event, out: &mut Vec<u8>) {
        if let Some(error) = event.error {
            self.tell_failure(&error, out);
            return;
        }
        self.usage = event.usage.or(self.usage);
        if self.place == Place::Waiting {
            self.place = Place::Speaking;
            self.speaker.begin(&event.model, self.usage.as_ref(), out);
        }
        for mut choice in event.choices {
            // What comes behind the end belongs to no answer.
            if self.place == Place::Speaking {
                self.choice(&mut choice, out);
            }
        }
    }

    fn choice(&mut self, choice: &mut chat::ChoiceDelta, out: &mut Vec<u8>) {
        let logprobs = choice.take_logprobs();
        let text = choice.delta.content.take().unwrap_or_default();
        let mut calls = choice.take_calls();
        // A chunk does not say whether its text stands before or behind its calls; that of a call which grows is behind it.
        let begun = calls.iter().take_while(|call| self.is_growing(call)).count();
        let new = calls.split_off(begun);
        self.calls(calls, out);
        if !text.is_empty() || !logprobs.is_empty() {
            self.speaker.text(&text, logprobs, out);
            self.call = None;
        }
        self.calls(new, out);
        if let Some(ending) = choice.take_ending()
            && self.place == Place::Speaking
        {
            self.place = Place::Finished;
            self.speaker.finish(ending, out);
        }
    }

    fn is_growing(&self, call: &chat::CallDelta) -> bool {
        call.id.is_none() && self.call == Some(call.index)
    }

    fn calls(&mut self, calls: Vec<chat::CallDelta>, out: &mut Vec<u8>) {
        for call in calls {
            if !self.is_growing(&call) {
                let (Some(id), Some(name)) = (call.id, call.function.name) else {
                    return self.fail("the worker's stream mixes calls of tools", out);
                };
                self.call = Some(call.index);
                self.speaker.call(&id, &name, out);
            }
            if !call.function.arguments.is_empty() {
                self.speaker.arguments(&call.function.arguments, out);
            }
        }
    }

    fn done(&mut self, out: &mut Vec<u8>) {
        match (self.place, self.usage) {
            (Place::Finished, Some(usage)) => {
                self.place = Place::Over;
                self.speaker.complete(&usage, out);
            }
            (Place::Finished, None) => self.fail("the worker's stream does not tell its usage", out),
            _ => self.fail("the worker's stream ended without a reason", out),
        }
    }

    /// Ends with an error, unless the end was told.
    fn fail(&mut self, message: &str, out: &mut Vec<u8>) {
        if self.place != Place::Over {
            self.tell_failure(&ErrorKind::UpstreamFailed.object(message, None), out);
        }
    }

    fn tell_failure(&mut self, error: &ErrorObject, out: &mut Vec<u8>) {
        self.place = Place::Over;
        self.has_failed = true;
        self.speaker.fail(error, out);
    }
}

/// Writes one event with its name.
pub(crate) fn write_event(name: &str, data: &impl Serialize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    // A `Vec` takes all bytes, and no event has keys that are not texts.
    serde_json::to_writer(&mut *out, data).expect("the event can be written as JSON");
    out.extend_from_slice(b"\n\n");
}

fn write_comment(comment: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b": ");
    // An event stream is UTF-8.
    out.extend_from_slice(String::from_utf8_lossy(comment).as_bytes());
    out.extend_from_slice(b"\n\n");
}
