//! What came over the wire: replies, and streams cut into their events.

use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{Verdict, Wrong, ensure, shown};
use crate::render;

/// The keys of an error object, all of which clients read.
const ERROR_KEYS: [&str; 4] = ["message", "type", "param", "code"];
/// Most of a body that is no JSON that a sentence shows, in bytes.
const EXCERPT: usize = 80;

/// A whole reply.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    /// Method and path, for sentences.
    pub(super) asked: String,
    /// HTTP status.
    pub(super) status: u16,
    /// Its headers.
    pub(super) headers: HeaderMap,
    /// Its body.
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// A header as text; empty where it is not there.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    }

    /// The body as JSON, whatever the status.
    pub(super) fn json(&self) -> Result<Value, Wrong> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let text = String::from_utf8_lossy(&self.body[..self.body.len().min(EXCERPT)]);
            let text = render::clean(text.trim());
            Wrong::Fail(format!(
                "{}: status {} with a body that is no JSON: `{text}`",
                self.asked, self.status
            ))
        })
    }

    /// The body of a success.
    pub(super) fn success(&self) -> Result<Value, Wrong> {
        ensure(self.status == 200, || format!("{}: {}", self.asked, self.refusal()))?;
        self.json()
    }

    /// The body of a success; a refusal by 4xx or 501 says that the server does not offer this.
    pub(super) fn offered(&self) -> Result<Value, Wrong> {
        match self.status {
            400..=499 | 501 => Err(Wrong::Skip(format!("not offered: {}", self.refusal()))),
            _ => self.success(),
        }
    }

    fn refusal(&self) -> String {
        let message = self
            .json()
            .ok()
            .and_then(|body| Some(body["error"]["message"].as_str()?.to_owned()));
        match message {
            Some(message) => format!("status {}, {}", self.status, render::clean(&message)),
            None => format!("status {}", self.status),
        }
    }

    /// Checks for an error of this status; returns the error object.
    pub(super) fn refused(&self, status: u16) -> Result<Value, Wrong> {
        ensure(self.status == status, || {
            format!("{}: status {}, {status} was expected", self.asked, self.status)
        })?;
        let body = self.json()?;
        ensure(body["error"].is_object(), || {
            format!(
                "{}: status {status} without an error object: {}",
                self.asked,
                shown(&body)
            )
        })?;
        Ok(body["error"].clone())
    }

    /// What is wrong with the shape of an error body.
    pub(super) fn error_shape(&self) -> Result<(), Wrong> {
        let body = self.json()?;
        let error = &body["error"];
        let lacks = ERROR_KEYS.iter().find(|key| error.get(**key).is_none());
        if let Some(lacks) = lacks {
            return Err(Wrong::Fail(format!(
                "{}: status {}, no error.{lacks}",
                self.asked, self.status
            )));
        }
        let is_text = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
        let is_text_or_null = |key: &str| error[key].is_null() || is_text(key);
        ensure(
            is_text("message") && is_text("type") && is_text_or_null("param") && is_text_or_null("code"),
            || format!("{}: status {}, {}", self.asked, self.status, shown(error)),
        )
    }
}

/// A stream, cut into its events.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    /// The reply as it came.
    pub(super) reply: Reply,
    /// Each event's JSON, in order, without `[DONE]`.
    pub(super) chunks: Vec<Value>,
    /// How many `[DONE]` there were.
    pub(super) dones: usize,
    /// Whether the last event was one.
    pub(super) ends_with_done: bool,
    /// What is wrong with the framing, the first thing only.
    pub(super) framing: Option<String>,
}

impl Stream {
    /// Cuts a reply into events. Fails if it is no success.
    pub(super) fn of(reply: Reply) -> Result<Self, Wrong> {
        ensure(reply.status == 200, || format!("{}: {}", reply.asked, reply.refusal()))?;
        let mut stream = Self {
            chunks: Vec::new(),
            dones: 0,
            ends_with_done: false,
            framing: None,
            reply,
        };
        stream.cut();
        Ok(stream)
    }

    fn cut(&mut self) {
        let Ok(text) = String::from_utf8(self.reply.body.clone()) else {
            self.odd("the bytes are not UTF-8".to_owned());
            return;
        };
        let text = text.replace("\r\n", "\n");
        if !text.ends_with("\n\n") {
            self.odd("the last event does not end with a blank line".to_owned());
        }
        for block in text.split("\n\n").filter(|block| !block.is_empty()) {
            self.take(block);
        }
    }

    fn take(&mut self, block: &str) {
        let mut data = Vec::new();
        for line in block.split('\n').filter(|line| !line.is_empty()) {
            match line.split_once(':') {
                Some(("data", rest)) => data.push(rest.strip_prefix(' ').unwrap_or(rest)),
                Some(("" | "event" | "id" | "retry", _)) => {}
                _ => self.odd(format!("a line is no field of an event: {}", shown(&line.into()))),
            }
        }
        match data.as_slice() {
            [] => {}
            ["[DONE]"] => {
                self.dones += 1;
                self.ends_with_done = true;
            }
            [one] => {
                self.ends_with_done = false;
                match serde_json::from_str(one) {
                    Ok(chunk) => self.chunks.push(chunk),
                    Err(_) => self.odd(format!("an event is no JSON: {}", shown(&(*one).into()))),
                }
            }
            _ => self.odd("an event has several data lines".to_owned()),
        }
    }

    fn odd(&mut self, what: String) {
        self.framing.get_or_insert(what);
    }

    /// The choices of this index in all chunks, in order.
    pub(super) fn choices(&self, index: u64) -> impl Iterator<Item = &Value> {
        let choices = self
            .chunks
            .iter()
            .filter_map(|chunk| chunk["choices"].as_array())
            .flatten();
        choices.filter(move |choice| choice["index"].as_u64() == Some(index))
    }

    /// The text of one choice.
    pub(super) fn text(&self, index: u64) -> String {
        let part = |choice: &Value| {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            text.unwrap_or("").to_owned()
        };
        self.choices(index).map(part).collect()
    }

    /// All finish reasons of one choice.
    pub(super) fn finishes(&self, index: u64) -> Vec<&str> {
        self.choices(index)
            .filter_map(|choice| choice["finish_reason"].as_str())
            .collect()
    }
}

/// The text of the first choice of a whole answer.
pub(super) fn content(answer: &Value) -> Result<&str, Wrong> {
    let message = &answer["choices"][0]["message"]["content"];
    message
        .as_str()
        .ok_or_else(|| Wrong::Fail(format!("choices[0].message.content is {}", shown(message))))
}

/// A number of the usage.
pub(super) fn tokens(answer: &Value, which: &str) -> Result<u64, Wrong> {
    let count = &answer["usage"][which];
    count
        .as_u64()
        .ok_or_else(|| Wrong::Fail(format!("usage.{which} is {}", shown(count))))
}

/// A field that must have this value.
pub(super) fn field(answer: &Value, name: &str, wanted: &str) -> Result<(), Wrong> {
    ensure(answer[name] == wanted, || {
        format!("{name} is {}, not `{wanted}`", shown(&answer[name]))
    })
}

/// Says what was seen, as a check that passes.
pub(super) fn saw(text: impl Into<String>) -> Verdict {
    Ok(text.into())
}
