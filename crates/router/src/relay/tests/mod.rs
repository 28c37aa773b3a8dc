//! The relay of a stream, over workers that are scripts.

mod figures;
mod life;
mod migration;
mod real;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use heartbeat_registry::{Registry, RegistryOptions, Report};
use http::{Response, StatusCode};
use http_body::Frame;
use openai_api::{ChatChunks, FinishReason, Usage, sse};
use serde_json::{Value, json};
use shared_contract::{ErrorKind, HiveId, WorkerId};
use tokio::time::Instant;
use worker_contract::{Feature, WorkerHeartbeat};

use super::Lost;
use super::legs::{Answer, Claim, Legs, NoAnswer, Travel};
use super::stream::Stream;
use crate::Endpoint;
use crate::account::Account;
use crate::flight::Flight;
use crate::metrics::{Metrics, ModelMetrics};
use crate::receipt::Receipt;
use crate::testing::{heartbeat, record};

/// What one worker does.
enum Worker {
    /// Answers with these bytes, and then so.
    Answers(StatusCode, Vec<Bytes>, Then),
    /// There is none.
    IsMissing(&'static str),
    /// It comes never.
    IsAwaited,
}

/// How the bytes of a worker end.
#[derive(Debug, Clone, Copy)]
enum Then {
    Ends,
    Breaks,
    Hangs,
}

impl Worker {
    /// A stream of events, in chunks of whole events.
    fn streams(events: impl IntoIterator<Item = Bytes>, then: Then) -> Self {
        Self::Answers(StatusCode::OK, events.into_iter().collect(), then)
    }
}

/// What another worker was asked for.
#[derive(Debug, Clone, PartialEq)]
struct Asking {
    body: Value,
    revision: Option<String>,
    needs: Option<Feature>,
}

/// What the test sees of the workers.
#[derive(Default)]
struct Seen {
    askings: Vec<Asking>,
    blamed: Vec<Lost>,
    /// Bodies and claims that were dropped.
    dropped: usize,
}

type Answering = Box<dyn FnMut(&Value) -> Worker + Send>;

/// A request whose workers are decided by a function of what they are asked.
struct Script {
    answering: Answering,
    endpoint: Endpoint,
    body: Bytes,
    deadline: Option<Instant>,
    receipt: Receipt,
    account: Arc<Account>,
    seen: Arc<Mutex<Seen>>,
}

impl Script {
    fn new(request: &Value, answering: impl FnMut(&Value) -> Worker + Send + 'static) -> Self {
        let is_chat = request.get("messages").is_some();
        Self {
            answering: Box::new(answering),
            endpoint: if is_chat {
                Endpoint::ChatCompletions
            } else {
                Endpoint::Completions
            },
            body: request.to_string().into(),
            deadline: None,
            receipt: Receipt::default(),
            account: Arc::default(),
            seen: Arc::default(),
        }
    }

    /// These workers, one after the other, whatever they are asked.
    fn of(request: &Value, workers: impl IntoIterator<Item = Worker>) -> Self {
        let mut workers: VecDeque<_> = workers.into_iter().collect();
        Self::new(request, move |_| {
            workers.pop_front().unwrap_or(Worker::IsMissing("nobody is there"))
        })
    }

    /// The stream that the client gets, from its very beginning.
    fn stream(self) -> (Stream<Self>, Arc<Mutex<Seen>>, Arc<Metrics>) {
        self.stream_counted_in(&mut prometheus_client::registry::Registry::default())
    }

    /// The same, with metrics that can be read.
    fn stream_counted_in(
        self,
        registry: &mut prometheus_client::registry::Registry,
    ) -> (Stream<Self>, Arc<Mutex<Seen>>, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new(registry));
        let seen = Arc::clone(&self.seen);
        let mut flight = Flight::start(&metrics, Arc::clone(&self.account));
        flight.is_for(Arc::new(ModelMetrics::new("m".to_owned(), &metrics)));
        (Stream::waiting(self.travel(), (), flight), seen, metrics)
    }

    /// All that the client gets, if nothing has to be waited for.
    fn output(self) -> String {
        let (mut stream, ..) = self.stream();
        let mut output = Vec::new();
        while let Some(data) = now(&mut stream) {
            output.extend_from_slice(&data);
        }
        assert!(stream.is_over());
        String::from_utf8(output).expect("whole characters")
    }
}

/// The next data, which is there already.
fn now(stream: &mut Stream<Script>) -> Option<Bytes> {
    match stream.poll_data(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(data) => data,
        Poll::Pending => panic!("nothing is there"),
    }
}

/// The next data.
async fn next(stream: &mut Stream<Script>) -> Option<String> {
    let data = std::future::poll_fn(|cx| stream.poll_data(cx)).await;
    data.map(|data| String::from_utf8(data.into()).expect("whole characters"))
}

impl Legs for Script {
    type Rest = Rest;
    type Claim = Held;
    type Situation = ();
    type Landed = Answer<Self>;
    type Refused = NoAnswer<Self>;

    fn travel(mut self) -> Travel<Self> {
        let asked = serde_json::from_slice(&self.body).expect("a body is JSON");
        let result = match (self.answering)(&asked) {
            Worker::Answers(status, chunks, then) => {
                let mut head = Response::new(());
                *head.status_mut() = status;
                let mime = if status == StatusCode::OK {
                    sse::CONTENT_TYPE
                } else {
                    "application/json"
                };
                head.headers_mut().insert("content-type", mime.parse().unwrap());
                Ok(Answer {
                    head: head.into_parts().0,
                    first: None,
                    rest: Rest {
                        chunks: chunks.into(),
                        then,
                        seen: Arc::clone(&self.seen),
                    },
                    claim: Held(Arc::clone(&self.seen)),
                })
            }
            Worker::IsMissing(why) => {
                let kind = ErrorKind::NoCapacity;
                Err(NoAnswer::Error(kind.status(), kind.object(why, None)))
            }
            Worker::IsAwaited => return Box::pin(std::future::pending()),
        };
        Box::pin(std::future::ready((self, result)))
    }

    fn resume(&mut self, body: Bytes, revision: Option<String>, needs: Option<Feature>) {
        self.seen.lock().unwrap().askings.push(Asking {
            body: serde_json::from_slice(&body).expect("a body is JSON"),
            revision,
            needs,
        });
        self.body = body;
    }

    fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    fn body(&self) -> &Bytes {
        &self.body
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn stall_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    fn situation(&self) {}

    fn words((): &()) -> String {
        "waiting, place 1 of 1".to_owned()
    }
}

struct Rest {
    chunks: VecDeque<Bytes>,
    then: Then,
    seen: Arc<Mutex<Seen>>,
}

impl http_body::Body for Rest {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match (self.chunks.pop_front(), self.then) {
            (Some(chunk), _) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            (None, Then::Ends) => Poll::Ready(None),
            (None, Then::Breaks) => Poll::Ready(Some(Err(io::Error::other("on purpose")))),
            (None, Then::Hangs) => Poll::Pending,
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.seen.lock().unwrap().dropped += 1;
    }
}

struct Held(Arc<Mutex<Seen>>);

impl Claim for Held {
    fn blame(&self, lost: &Lost) {
        self.0.lock().unwrap().blamed.push(lost.clone());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped += 1;
    }
}

/// A model that always says the same: token `n` is its piece number `n`, and one more ends the answer.
#[derive(Debug, Clone)]
struct Model {
    pieces: Vec<String>,
    include_usage: bool,
}

impl Model {
    fn new(pieces: &[&str]) -> Self {
        Self {
            pieces: pieces.iter().map(|&piece| piece.to_owned()).collect(),
            include_usage: false,
        }
    }

    fn request(&self) -> Value {
        let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true});
        if self.include_usage {
            request["stream_options"] = json!({"include_usage": true});
        }
        request
    }

    fn chunks(&self, id: &str) -> ChatChunks {
        ChatChunks::new(id.into(), 7, "m".into(), self.include_usage)
    }

    /// The events of a worker that names its tokens, and takes up those that it is told.
    fn by_tokens(&self, asked: &Value) -> Vec<Bytes> {
        let resume = asked.get("resume");
        let chunks = self.chunks(resume.map_or("c-1", |resume| resume["id"].as_str().unwrap()));
        let known = resume.map_or(0, |resume| resume["tokens"].as_array().unwrap().len());
        let mut events = Vec::new();
        if resume.is_none() {
            events.push(sse::event(&chunks.start(0)));
        }
        for (token, piece) in self.pieces.iter().enumerate().skip(known) {
            events.push(named(token, &sse::event(&chunks.text(0, piece.clone(), None))));
        }
        let finish = sse::event(&chunks.finish(0, FinishReason::Stop));
        let end = self.pieces.len();
        events.push(if known > end { finish } else { named(end, &finish) });
        let tokens = u32::try_from(end + 1).unwrap();
        events.extend(chunks.usage(Usage::new(5, tokens)).map(|usage| sse::event(&usage)));
        events.push(sse::DONE);
        events
    }

    /// The events of a worker that goes on with an unfinished message, and has ids of its own.
    fn by_text(&self, asked: &Value) -> Vec<Bytes> {
        let last = asked["messages"].as_array().unwrap().last().unwrap();
        let is_continued = asked["continue_final_message"] == true;
        let known = if is_continued {
            last["content"].as_str().unwrap()
        } else {
            ""
        };
        let chunks = self.chunks(&format!("other-{}", known.len()));
        let mut events = vec![sse::event(&chunks.start(0))];
        let (mut start, mut made, mut prompt) = (0, 1, 5);
        for piece in &self.pieces {
            let end = start + piece.len();
            if end > known.len() {
                let piece = &piece[known.len().saturating_sub(start)..];
                events.push(sse::event(&chunks.text(0, piece.to_owned(), None)));
                made += 1;
            } else {
                prompt += 1;
            }
            start = end;
        }
        events.push(sse::event(&chunks.finish(0, FinishReason::Stop)));
        events.extend(chunks.usage(Usage::new(prompt, made)).map(|usage| sse::event(&usage)));
        events.push(sse::DONE);
        events
    }

    /// What a client gets that is not disturbed.
    fn undisturbed(&self) -> String {
        let events = self.by_tokens(&json!({}));
        Script::of(&self.request(), [Worker::streams(events, Then::Ends)]).output()
    }
}

/// An event with the line that names its token.
fn named(token: usize, event: &Bytes) -> Bytes {
    [format!(": tokens {token}\n").as_bytes(), event].concat().into()
}

/// What a worker last said.
fn report() -> Arc<Report<WorkerHeartbeat>> {
    let workers = Registry::new(RegistryOptions::default());
    let mut beat = heartbeat("w-1", 1);
    beat.worker.hive_id = Some(HiveId::new("h-1").unwrap());
    beat.worker.model_revision = Some("r7".to_owned());
    record(&workers, beat);
    workers.get(&WorkerId::new("w-1").unwrap()).unwrap().report()
}

/// The data of the events of an output, `[DONE]` as a text.
fn data(output: &str) -> Vec<Value> {
    let events = output
        .split_terminator("\n\n")
        .filter_map(|event| event.strip_prefix("data: "));
    events
        .map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data)))
        .collect()
}

/// The texts of all chunks, joined.
fn text(output: &str) -> String {
    let pieces = data(output).into_iter().filter_map(|data| {
        let choice = &data["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        text.map(str::to_owned)
    });
    pieces.collect()
}

/// The message of the error that an output ends with.
fn error(output: &str) -> String {
    let last = data(output).pop().expect("there are events");
    last["error"]["message"]
        .as_str()
        .expect("the last one is an error")
        .to_owned()
}
