//! `infer`: a prompt is continued while nobody needs to listen; the answer is read later.
//!
//! The job is a client of the router like any other, with its own id as the request's: it waits in the model's line, has a
//! model loaded that nobody serves, is retried, outlives its worker, and is counted and logged. It sends a completion and
//! reads its stream; cancelled, it drops the stream, and the worker's slot is free within a token.
//!
//! What is told: the text in pieces, the messages of events whose progress has the phase `answer`. Put together they are the
//! text of the result. They grow with the text, so that the longest one does not outgrow the job's history. An answer that is
//! longer than [`MAX_TEXT_BYTES`] ends there, as if its tokens were used up; its usage is not known then.
//!
//! A `hive_id` pins the request to workers of that hive, as the header `x-rbee-hive` does: it has none loaded there.

mod telling;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use daemon::ApiError;
use daemon::serve::REQUEST_ID;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use jobs::{Crowd, Failure};
use openai_api::CompletionRequest;
use router::{Account, Body, Endpoint, Router, Supply};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use shared_contract::{ErrorBody, ErrorKind, ErrorObject, HiveId};
use tracing::field::Empty;
use tracing::{Instrument, Span};
use worker_contract::InferRequest;

use self::telling::Telling;
use super::Job;
use crate::State;
use crate::http::{JobLine, invalid, refused};
use crate::subscriptions::events::EventReader;

/// Largest text of an answer: it is kept twice, in pieces and whole, within what a job's history may hold.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Most tokens of an answer where the request does not say: a worker reserves memory for all that it may have to make, so
/// that what the context still holds would keep others out.
const DEFAULT_TOKENS: u32 = 1_024;
/// Letters of a prompt that are kept with the job, for people to know it by.
const SHOWN_LETTERS: usize = 80;
/// Largest refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
/// Pins a request to the workers of a hive.
const PIN_HIVE: HeaderName = HeaderName::from_static("x-rbee-hive");

/// Jobs that are answers: fewer than all that may run, so that operators are not kept out.
pub(super) const ANSWERS: Crowd = Crowd {
    does: "make an answer",
    limit: 32,
};

/// What `infer` is asked: what a worker's own `POST /v1/infer` is, of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Infer {
    /// The model: its own name, or an alias.
    pub model: String,
    /// What to continue, and how.
    #[serde(flatten)]
    pub request: InferRequest,
}

impl<'de> Deserialize<'de> for Infer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Flattened, the request could not refuse what it does not know.
        let mut fields = Map::deserialize(deserializer)?;
        let model = fields
            .remove("model")
            .ok_or_else(|| D::Error::missing_field("model"))
            .and_then(super::request::part)?;
        Ok(Self {
            model,
            request: super::request::part(Value::Object(fields))?,
        })
    }
}

impl Infer {
    /// As the job shows it: with the beginning of the prompt only.
    pub(super) fn shown(mut self) -> Self {
        let prompt = &mut self.request.prompt;
        if let Some((end, _)) = prompt.char_indices().nth(SHOWN_LETTERS) {
            prompt.truncate(end);
            prompt.push('…');
            prompt.shrink_to_fit();
        }
        self
    }
}

/// An answer that is to be made.
pub(super) struct Question {
    body: Bytes,
    hive: Option<HeaderValue>,
    /// Of the answer, within that of whoever ordered it.
    span: Span,
}

impl Question {
    /// Checks what is asked as far as that needs no worker.
    pub(super) fn new(state: &State, infer: &Infer, hive: Option<&HiveId>) -> Result<Self, ApiError> {
        let InferRequest {
            prompt,
            max_tokens,
            temperature,
            top_p,
            seed,
            stop,
        } = &infer.request;
        let body = json!({
            "model": infer.model,
            "prompt": prompt,
            "max_tokens": max_tokens.unwrap_or(DEFAULT_TOKENS),
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stop": stop,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let body = Bytes::from(body.to_string());
        CompletionRequest::parse(&body).map_err(invalid)?;
        state.supply.resolve(&infer.model).map_err(refused)?;
        let pin = |hive: &HiveId| HeaderValue::from_str(hive.as_str()).map_err(ApiError::internal);
        Ok(Self {
            body,
            hive: hive.map(pin).transpose()?,
            span: tracing::trace_span!(
                target: "otlp",
                "infer",
                otel.kind = "internal",
                rbee.request_id = Empty,
                gen_ai.request.model = Empty,
                gen_ai.usage.output_tokens = Empty,
            ),
        })
    }

    /// Has it answered, and tells the answer in the job. `peer` ordered it.
    pub(super) async fn answer(self, router: &Router, peer: SocketAddr, job: &Job) -> Result<Value, Failure> {
        self.span.record("rbee.request_id", job.id());
        let account: Arc<Account> = self.span.in_scope(Arc::default);
        let span = self.span.clone();
        let mut line = JobLine::begin(Endpoint::Completions, Arc::clone(&account), job.id().to_owned(), peer);
        let answering = async {
            let mut answer = self.send(router, &account, job, &mut line).await?;
            let mut telling = Telling::new(job, &account);
            read(&mut answer, &mut telling, &mut line).await?;
            Ok(telling.result())
        };
        tokio::select! {
            result = answering.instrument(span) => result.map_err(Failure::Told),
            () = job.cancelled().cancelled() => Err(Failure::Cancelled),
        }
    }

    /// The stream of the answer.
    async fn send(
        self,
        router: &Router,
        account: &Arc<Account>,
        job: &Job,
        line: &mut JobLine,
    ) -> Result<Body, ErrorObject> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(id) = HeaderValue::from_str(job.id()) {
            headers.insert(REQUEST_ID, id);
        }
        if let Some(hive) = self.hive {
            headers.insert(PIN_HIVE, hive);
        }
        let answered = router.answer(Endpoint::Completions, headers, self.body, Arc::clone(account));
        let response = match answered.await {
            Ok(response) => response,
            Err(refusal) => {
                line.answered(refusal.kind.status());
                return Err(refusal.object());
            }
        };
        let (status, body) = (response.status(), response.into_body());
        line.answered(status.as_u16());
        if status == StatusCode::OK {
            return Ok(body);
        }
        let told = Limited::new(body, MAX_REFUSAL_BYTES).collect().await;
        let error = told.ok().and_then(|told| serde_json::from_slice(&told.to_bytes()).ok());
        Err(error.map_or_else(
            || ErrorKind::UpstreamFailed.object(format!("the worker answered {status}"), None),
            |ErrorBody { error }| error,
        ))
    }
}

/// Reads the stream of an answer to its end, or until nothing more of it is wanted.
async fn read(answer: &mut Body, telling: &mut Telling<'_>, line: &mut JobLine) -> Result<(), ErrorObject> {
    let broken = |why: String| ErrorKind::UpstreamFailed.object(format!("the worker's stream {why}"), None);
    let mut events = EventReader::default();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|error| broken(format!("broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        line.sent(data.len());
        events.feed(data);
        loop {
            match events.next() {
                Ok(Some(data)) => telling.event(&data)?,
                Ok(None) => break,
                Err(_) => return Err(broken("has an event that is too long".to_owned())),
            }
        }
        if telling.is_full() {
            return Ok(());
        }
    }
    match telling.is_finished() {
        true => Ok(()),
        false => Err(broken("ended before the answer".to_owned())),
    }
}
