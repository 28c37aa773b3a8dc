//! What a job tells of its answer: the text as it comes, and the result.

use hive_contract::JobProgress;
use openai_api::Usage;
use router::Account;
use serde::Deserialize;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, ErrorObject};
use worker_contract::InferUsage;

use super::MAX_TEXT_BYTES;
use crate::jobs::Job;

/// What is told at the least in one piece.
const LEAST_PIECE_BYTES: usize = 16;
/// A piece is at least as long as this part of what was told before it: of the longest text there are fewer than 160.
const PIECE_SHARE: usize = 16;
/// The data that ends a stream.
const DONE: &[u8] = b"[DONE]";

/// Tells an answer in a job, event by event.
pub(super) struct Telling<'a> {
    job: &'a Job,
    account: &'a Account,
    text: String,
    /// Bytes of the text that were told.
    told: usize,
    /// Tokens of the text; until the usage comes, events that brought some of it.
    tokens: u64,
    finish_reason: Option<String>,
    usage: Option<InferUsage>,
    is_full: bool,
}

/// What is read of a chunk. Any server that speaks OpenAI's dialect may have made it.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

impl<'a> Telling<'a> {
    pub(super) fn new(job: &'a Job, account: &'a Account) -> Self {
        Self {
            job,
            account,
            text: String::new(),
            told: 0,
            tokens: 0,
            finish_reason: None,
            usage: None,
            is_full: false,
        }
    }

    /// The next event of the stream, by its data. The error is what the stream ends with in place of the answer's rest.
    pub(super) fn event(&mut self, data: &[u8]) -> Result<(), ErrorObject> {
        if data == DONE || self.is_full {
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            let message = format!("the worker's stream cannot be read: {error}");
            ErrorKind::UpstreamFailed.object(message, None)
        })?;
        if let Some(error) = chunk.error {
            return Err(told(error));
        }
        if let Some(usage) = chunk.usage {
            self.tokens = usage.completion_tokens.into();
            self.usage = Some(InferUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            });
        }
        for choice in chunk.choices {
            self.choice(choice);
        }
        Ok(())
    }

    /// Whether it is as long as it may be, so that nothing more is read.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether it was told why the answer ended.
    pub(super) fn is_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Tells the rest; what came of it all.
    pub(super) fn result(mut self) -> Value {
        if self.told < self.text.len() {
            self.tell();
        }
        self.account.read(|figures| {
            json!({
                "text": self.text,
                "finish_reason": self.finish_reason,
                "usage": self.usage,
                "model": figures.model,
                "worker_id": figures.worker(),
                "request_id": self.job.id(),
            })
        })
    }

    fn choice(&mut self, choice: Choice) {
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        if choice.text.is_empty() {
            return;
        }
        let room = MAX_TEXT_BYTES - self.text.len();
        let fits = choice.text.floor_char_boundary(room);
        self.text.push_str(&choice.text[..fits]);
        self.tokens += 1;
        if fits < choice.text.len() {
            self.is_full = true;
            self.finish_reason = Some("length".to_owned());
        }
        if self.text.len() - self.told >= LEAST_PIECE_BYTES.max(self.told / PIECE_SHARE) {
            self.tell();
        } else {
            self.job.progress(self.progress());
        }
    }

    fn tell(&mut self) {
        if self.told == 0
            && let Some(hive) = self.account.read(|figures| figures.hive().cloned())
        {
            self.job.is_done_by(hive);
        }
        let piece = self.text[self.told..].to_owned();
        self.told = self.text.len();
        self.job.say_piece(piece, self.progress());
    }

    fn progress(&self) -> JobProgress {
        JobProgress {
            phase: "answer".to_owned(),
            done: self.tokens,
            total: None,
            unit: "tokens".to_owned(),
            per_second: None,
            eta_s: None,
            source: None,
        }
    }
}

/// The error of an event, as a request would have got it.
fn told(error: Value) -> ErrorObject {
    let message = error["message"]
        .as_str()
        .unwrap_or("the worker could not go on")
        .to_owned();
    serde_json::from_value(error).unwrap_or_else(|_| ErrorKind::UpstreamFailed.object(message, None))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;
    use hive_contract::JobEvent;
    use jobs::{Failure, Jobs};

    use super::*;
    use crate::jobs::{OwnOperation, QueenOperation};

    /// All events of a job whose answer has these.
    async fn told(events: impl IntoIterator<Item = Value>) -> Vec<JobEvent> {
        let events: Vec<Value> = events.into_iter().collect();
        let jobs = Jobs::new(|_, _| {});
        let order = QueenOperation::Own(OwnOperation::Status {});
        let job = jobs.start(order, |job: Arc<Job>| async move {
            let account = Account::default();
            let mut telling = Telling::new(&job, &account);
            for event in events {
                telling.event(event.to_string().as_bytes()).map_err(Failure::Told)?;
            }
            telling.event(DONE).map_err(Failure::Told)?;
            Ok(telling.result())
        });
        job.unwrap().events(None).collect().await
    }

    fn text(text: &str) -> Value {
        json!({"choices": [{"index": 0, "text": text, "finish_reason": null}], "usage": null})
    }

    fn end(completion_tokens: usize) -> [Value; 2] {
        [
            json!({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": null}),
            json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": completion_tokens, "total_tokens": 0}}),
        ]
    }

    fn pieces(events: &[JobEvent]) -> String {
        events.iter().filter_map(|event| event.message.as_deref()).collect()
    }

    fn result(events: &[JobEvent]) -> &Value {
        events.last().and_then(|event| event.result.as_ref()).expect("a result")
    }

    #[tokio::test]
    async fn the_pieces_are_the_text_and_the_result_has_it_all() {
        let words = ["Once", " upon", " a", " time", " there", " was", " a", " bee", "."];
        let events = told(words.map(text).into_iter().chain(end(9))).await;
        assert_eq!(pieces(&events), words.concat());
        let last = events
            .iter()
            .filter_map(|event| event.progress.as_ref())
            .next_back()
            .unwrap();
        assert_eq!((last.done, &*last.unit, &*last.phase), (9, "tokens", "answer"));
        let result = result(&events);
        assert_eq!(
            (&result["text"], &result["finish_reason"]),
            (&json!(words.concat()), &json!("stop"))
        );
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 9, "cached_tokens": 0});
        assert_eq!(result["usage"], usage);
    }

    #[tokio::test]
    async fn the_longest_answer_is_remembered_from_its_first_piece_to_its_result() {
        let count = MAX_TEXT_BYTES / 4;
        let events = told((0..count).map(|_| text(" bee")).chain(end(count))).await;
        assert_eq!(events[0].seq, 0, "nothing is forgotten");
        assert_eq!(pieces(&events).len(), MAX_TEXT_BYTES);
        assert_eq!(result(&events)["text"].as_str().unwrap().len(), MAX_TEXT_BYTES);
        assert_eq!(result(&events)["usage"]["completion_tokens"], count);
    }

    #[tokio::test]
    async fn an_answer_that_is_longer_ends_there_at_a_whole_letter() {
        let letters = "ä".repeat(MAX_TEXT_BYTES / 2 - 1);
        let events = told([text(&format!("x{letters}")), text("ää"), text("more")]).await;
        assert_eq!(pieces(&events), format!("x{letters}"));
        assert_eq!(result(&events)["finish_reason"], "length");
        assert_eq!(result(&events)["usage"], Value::Null);
    }

    #[tokio::test]
    async fn an_error_of_the_stream_is_the_jobs_own() {
        let error = ErrorKind::NoCapacity.object("all are busy", Some("model"));
        let events = told([text("Once"), json!({ "error": error })]).await;
        assert_eq!(events.last().unwrap().error, Some(error));
        let mut events = told([json!({"error": {"message": "out of paper", "code": 500}})]).await;
        let error = events.pop().unwrap().error.unwrap();
        assert_eq!(
            (error.message.as_str(), error.code.as_deref()),
            ("out of paper", Some("upstream_failed"))
        );
    }
}
