//! An answer of the queen's OpenAI endpoints as it comes: what she says while it waits, its text, and its receipt.

mod comments;
mod screen;
pub(crate) mod stream;
mod wrap;

use std::cell::RefCell;
use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::screen::Screen;
use self::stream::{Chunk, Chunks, Fault};
use crate::api::{self, Api};

/// The workers' word for a model without a chat template.
pub(crate) const NO_CHAT: &str = "no_chat_template";
/// The workers' word for a prompt that leaves no room for an answer.
pub(crate) const CONTEXT_FULL: &str = "context_length_exceeded";

/// Something that comes before the answer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// What the queen says while there is no text yet, such as how far the model is loaded.
    Waiting(&'a str),
    /// The next part of the text.
    Text(&'a str),
}

/// What has come so far.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Who answers, as the stream names it.
    pub(crate) model: String,
    /// The text.
    pub(crate) text: String,
    /// Why it ended, once it has.
    pub(crate) finish_reason: Option<String>,
    /// OpenAI's counts, at the end.
    pub(crate) usage: Option<Value>,
    /// Who answered; less is known of one that was stopped.
    pub(crate) receipt: Receipt,
    asked: Instant,
    first_text: Option<Instant>,
    last_text: Option<Instant>,
}

/// Who answered, by the usage chunk's `rbee` member, or before that by the answer's headers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Receipt {
    /// Names the request in the daemons' logs.
    pub(crate) request_id: Option<String>,
    /// Host.
    pub(crate) hive: Option<String>,
    /// Worker.
    pub(crate) worker: Option<String>,
    /// How long it waited for a worker.
    pub(crate) queue_ms: Option<u64>,
    /// Workers that were tried.
    pub(crate) attempts: Option<u64>,
    /// Workers that took over in the middle.
    pub(crate) migrations: Option<u64>,
}

impl Answer {
    /// An answer that is asked for now.
    pub(crate) fn begin() -> Self {
        Self {
            model: String::new(),
            text: String::new(),
            finish_reason: None,
            usage: None,
            receipt: Receipt::default(),
            asked: Instant::now(),
            first_text: None,
            last_text: None,
        }
    }

    /// From the question to the first text.
    pub(crate) fn time_to_first_text(&self) -> Option<Duration> {
        Some(self.first_text?.saturating_duration_since(self.asked))
    }

    /// Tokens a second after the first one, where that can be told.
    pub(crate) fn tokens_per_second(&self) -> Option<f64> {
        let tokens = self.usage.as_ref()?["completion_tokens"].as_u64()?;
        let span = self
            .last_text?
            .saturating_duration_since(self.first_text?)
            .as_secs_f64();
        (tokens > 1 && span > 0.0).then(|| (tokens - 1) as f64 / span)
    }

    fn take(&mut self, chunk: &Chunk) {
        if !chunk.model.is_empty() {
            self.model.clone_from(&chunk.model);
        }
        if chunk.usage.is_some() {
            self.usage.clone_from(&chunk.usage);
        }
        if let Some(receipt) = &chunk.rbee {
            self.receipt.clone_from(receipt);
        }
        for choice in &chunk.choices {
            let text = choice.text();
            if !text.is_empty() {
                let now = Instant::now();
                self.first_text.get_or_insert(now);
                self.last_text = Some(now);
                self.text.push_str(text);
            }
            if choice.finish_reason.is_some() {
                self.finish_reason.clone_from(&choice.finish_reason);
            }
        }
    }
}

/// Asks and reads the stream to its `[DONE]`; each part is shown as it comes.
pub(crate) async fn ask(
    queen: &Api,
    path: &str,
    body: &Value,
    answer: &mut Answer,
    show: impl FnMut(Said<'_>) -> io::Result<()>,
) -> anyhow::Result<()> {
    let response = queen.post_open(path, body).await?;
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    answer.receipt = Receipt {
        request_id: header("x-request-id"),
        hive: header("x-rbee-hive"),
        worker: header("x-rbee-worker"),
        ..Receipt::default()
    };
    let show = RefCell::new(show);
    let reading = async {
        let mut chunks = Chunks::of(response, |comment| show.borrow_mut()(Said::Waiting(comment)));
        while let Some(chunk) = chunks.next().await? {
            answer.take(&chunk);
            for choice in &chunk.choices {
                show.borrow_mut()(Said::Text(choice.text()))?;
            }
        }
        Ok(())
    };
    reading
        .await
        .map_err(|error: anyhow::Error| match error.downcast_ref() {
            Some(Fault::Refused(_)) if answer.text.is_empty() => error,
            Some(_) => error.context("the answer broke off"),
            None => error,
        })
}

/// The code of the queen's or worker's refusal, where the error is one.
pub(crate) fn refusal(error: &anyhow::Error) -> Option<&str> {
    let object = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(api::Error::Refused { object, .. }), _) | (_, Some(Fault::Refused(object))) => object,
        _ => return None,
    };
    object.code.as_deref()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;
    use serde_json::json;

    use super::*;
    use crate::api::Peer;
    use crate::api::tests::{api, serve};

    /// The result, the answer, and what was said while it waited.
    async fn answered(events: &'static str) -> (anyhow::Result<()>, Answer, Vec<String>) {
        let url = serve(Router::new().route("/", post(async move || events))).await;
        let mut answer = Answer::begin();
        let mut waiting = Vec::new();
        let show = |said: Said<'_>| {
            if let Said::Waiting(words) = said {
                waiting.push(words.to_owned());
            }
            Ok(())
        };
        let result = ask(&api(Peer::OpenAi, &url), "/", &json!({}), &mut answer, show).await;
        (result, answer, waiting)
    }

    #[tokio::test]
    async fn the_parts_of_a_chat_make_one_answer() {
        let (result, answer, waiting) = answered(
            ": loading m, load 72 %\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
             : keep-alive\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n\
             data: {\"model\":\"m\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
             data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"total_tokens\":3},\
             \"rbee\":{\"worker\":\"w\",\"queue_ms\":7,\"added_later\":1}}\n\n\
             data: [DONE]\n\n",
        )
        .await;
        result.unwrap();
        assert_eq!((answer.model.as_str(), answer.text.as_str()), ("m", "Hello"));
        assert_eq!(answer.finish_reason.as_deref(), Some("stop"));
        assert_eq!(answer.usage.as_ref().unwrap()["total_tokens"], 3);
        assert_eq!(
            (answer.receipt.worker.as_deref(), answer.receipt.queue_ms),
            (Some("w"), Some(7))
        );
        assert!(answer.time_to_first_text().is_some());
        assert_eq!(waiting, ["loading m, load 72 %"], "a keep-alive says nothing");
    }

    #[tokio::test]
    async fn an_error_in_the_stream_is_an_error_with_its_code() {
        let (result, answer, _) = answered(
            "data: {\"choices\":[{\"text\":\"Hel\"}]}\n\n\
             data: {\"error\":{\"message\":\"the worker is gone\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n",
        )
        .await;
        assert_eq!(
            format!("{:#}", result.unwrap_err()),
            "the answer broke off: the worker is gone"
        );
        assert_eq!(answer.text, "Hel");
        let (result, _, _) = answered(
            "data: {\"error\":{\"message\":\"no template\",\"type\":\"x\",\"param\":null,\"code\":\"no_chat_template\"}}\n\n",
        )
        .await;
        let error = result.unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), refusal(&error)),
            ("no template", Some(NO_CHAT))
        );
    }

    #[tokio::test]
    async fn a_stream_without_its_end_is_an_error() {
        let (result, ..) = answered("data: {\"choices\":[{\"text\":\"Hel\"}]}\n\n").await;
        assert_eq!(
            format!("{:#}", result.unwrap_err()),
            "the answer broke off: the stream ended without [DONE]"
        );
    }
}
