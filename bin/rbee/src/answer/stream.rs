//! The reader of streams of the OpenAI endpoints, chat and continuation alike, of the queen or of another server.

use std::io;

use eventsource_stream::{Event, EventStreamError, Eventsource};
use futures_util::StreamExt;
use futures_util::stream::LocalBoxStream;
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use shared_contract::ErrorObject;

use super::Receipt;
use super::comments::Comments;
use crate::api::{root_cause, stream_fault};
use crate::render;

/// A stream's chunks in order.
pub(crate) struct Chunks<'a>(LocalBoxStream<'a, Result<Event, EventStreamError<String>>>);

/// One `data:` line, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Chunk {
    /// Who answers, as the server names it.
    #[serde(default)]
    pub(crate) model: String,
    /// The next parts of the answer.
    #[serde(default)]
    pub(crate) choices: Vec<Choice>,
    /// OpenAI's counts, at the end.
    pub(crate) usage: Option<Value>,
    /// Who answered; only an rbee says so, at the end.
    pub(crate) rbee: Option<Receipt>,
    error: Option<ErrorObject>,
}

/// The next part of one answer.
#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    /// Why the answer ends here.
    pub(crate) finish_reason: Option<String>,
}

/// Of a chat. Servers put what a model thinks before it answers under one of two names, or under both.
#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

/// Why a stream brings no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// It ended as if all were said.
    #[error("the stream ended without [DONE]")]
    Unfinished,
    /// This is no chunk.
    #[error("{0} in an event of the stream")]
    Garbled(#[from] serde_json::Error),
    /// The server gives the answer up.
    #[error("{}", render::clean(&.0.message))]
    Refused(ErrorObject),
}

impl<'a> Chunks<'a> {
    /// Of this answer. `waiting` gets each comment by which the server tells why nothing comes yet.
    pub(crate) fn of(response: Response, mut waiting: impl FnMut(&str) -> io::Result<()> + 'a) -> Self {
        let mut comments = Comments::default();
        let bytes = response.bytes_stream().map(move |item| {
            let bytes = item.map_err(|error| root_cause(&error))?;
            // The events' reader drops comments, and waits in itself for the next event.
            for comment in comments.feed(&bytes) {
                waiting(&comment).map_err(|error| error.to_string())?;
            }
            Ok(bytes)
        });
        Self(bytes.eventsource().boxed_local())
    }

    /// The next one; none after `[DONE]`.
    pub(crate) async fn next(&mut self) -> Result<Option<Chunk>, Fault> {
        let event = self.0.next().await.ok_or(Fault::Unfinished)?;
        let event = event.map_err(|error| Fault::Broken(stream_fault(error)))?;
        if event.data == "[DONE]" {
            return Ok(None);
        }
        let mut chunk: Chunk = serde_json::from_str(&event.data)?;
        match chunk.error.take() {
            Some(object) => Err(Fault::Refused(object)),
            None => Ok(Some(chunk)),
        }
    }
}

impl Choice {
    /// The next part of the text; may be empty.
    pub(crate) fn text(&self) -> &str {
        let content = self.delta.as_ref().and_then(|delta| delta.content.as_ref());
        content.or(self.text.as_ref()).map_or("", String::as_str)
    }

    /// Whether the model says something here, be it what it thinks.
    pub(crate) fn has_words(&self) -> bool {
        let thoughts = self
            .delta
            .iter()
            .flat_map(|delta| [&delta.reasoning_content, &delta.reasoning]);
        !self.text().is_empty() || thoughts.flatten().any(|thought| !thought.is_empty())
    }
}
