//! Whole journeys, to workers that listen on this host.

mod choosing;
mod failing;
mod waiting;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use heartbeat_registry::Registry;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, ModelId};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use worker_contract::WorkerHeartbeat;

use crate::testing::{heartbeat, record};
use crate::{Account, Demand, Endpoint, Failure, Prospect, Refusal, Router, RouterOptions, Supply};

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, hyper::Error>>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A worker's process: it answers as it is told, and counts what clients asked.
struct Worker {
    id: &'static str,
    port: u16,
    /// Requests of clients; probes are not counted.
    asked: Arc<AtomicUsize>,
    /// What it was asked last.
    newest: Arc<Mutex<Value>>,
    behaviour: Arc<Mutex<Behaviour>>,
    beats: AtomicU64,
    _listening: AbortOnDropHandle<()>,
}

/// What a worker does with a request.
#[derive(Clone, Copy)]
enum Behaviour {
    Answers,
    Hangs,
    Refuses(StatusCode),
    /// Sends so many bytes of an answer that would be longer, and closes the connection.
    BreaksOff(usize),
    /// A stream: so many comments with this pause before each, then one event.
    Comments(usize, Duration),
}

impl Worker {
    async fn start(id: &'static str, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let newest = Arc::new(Mutex::new(Value::Null));
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (counted, kept, told) = (Arc::clone(&asked), Arc::clone(&newest), Arc::clone(&behaviour));
        let listening = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (counted, kept, told) = (Arc::clone(&counted), Arc::clone(&kept), Arc::clone(&told));
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (counted, kept, told) = (Arc::clone(&counted), Arc::clone(&kept), Arc::clone(&told));
                    async move {
                        let body = request.into_body().collect().await?.to_bytes();
                        let body: Value = serde_json::from_slice(&body).unwrap();
                        if body["messages"][0]["content"] != "." {
                            counted.fetch_add(1, Ordering::SeqCst);
                            *kept.lock().unwrap() = body;
                        }
                        let behaviour = *told.lock().unwrap();
                        Ok::<_, hyper::Error>(answer(behaviour).await)
                    }
                });
                connections
                    .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            id,
            port,
            asked,
            newest,
            behaviour,
            beats: AtomicU64::new(0),
            _listening: AbortOnDropHandle::new(listening),
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn newest(&self) -> Value {
        self.newest.lock().unwrap().clone()
    }

    fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Its next heartbeat.
    fn beat(&self) -> WorkerHeartbeat {
        let mut beat = heartbeat(self.id, 1);
        beat.worker.port = self.port;
        beat.seq = self.beats.fetch_add(1, Ordering::SeqCst);
        beat
    }
}

fn answer(behaviour: Behaviour) -> Answering {
    let whole = |text: &'static str| {
        Full::new(Bytes::from_static(text.as_bytes()))
            .map_err(|never| match never {})
            .boxed_unsync()
    };
    Box::pin(async move {
        match behaviour {
            Behaviour::Answers => Response::new(whole(r#"{"answer": 1}"#)),
            Behaviour::Hangs => std::future::pending().await,
            Behaviour::Refuses(status) => {
                let mut response = Response::new(whole(r#"{"error": {"message": "on purpose"}}"#));
                *response.status_mut() = status;
                response
            }
            Behaviour::BreaksOff(count) => {
                let begun = stream::once(async move { Ok(Frame::data(Bytes::from(vec![b' '; count]))) });
                let mut response = Response::new(StreamBody::new(begun).boxed_unsync());
                response
                    .headers_mut()
                    .insert(header::CONTENT_LENGTH, HeaderValue::from(count + 10));
                response
            }
            Behaviour::Comments(count, pause) => {
                let comments = stream::iter(0..count).then(move |_| async move {
                    tokio::time::sleep(pause).await;
                    Bytes::from_static(b": keep-alive\n\n")
                });
                let rest = Bytes::from_static(b"data: {\"choices\":[]}\n\ndata: [DONE]\n\n");
                let chunks = comments.chain(stream::once(async { rest }));
                let body = StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk))));
                let mut response = Response::new(body.boxed_unsync());
                let mime = HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(header::CONTENT_TYPE, mime);
                response
            }
        }
    })
}

/// Knows the model `m` and its alias, and says what it is told.
struct Shelf {
    prospect: Mutex<Prospect>,
    demands: Mutex<Vec<Demand>>,
}

impl Supply for Shelf {
    fn resolve(&self, name: &str) -> Result<ModelId, Refusal> {
        match name {
            "m" | "alias" => Ok(ModelId::new("m").unwrap()),
            _ => Err(Refusal::new(ErrorKind::ModelNotFound, "there is only `m`").with_param("model")),
        }
    }

    fn demand(&self, model: &ModelId, demand: Demand) {
        assert_eq!(model.as_str(), "m");
        self.demands.lock().unwrap().push(demand);
    }

    fn prospect(&self, _model: &ModelId) -> Prospect {
        self.prospect.lock().unwrap().clone()
    }
}

/// A router and what it knows.
struct House {
    router: Router,
    workers: Arc<Registry<WorkerHeartbeat>>,
    shelf: Arc<Shelf>,
}

fn nothing_comes(why: &str) -> Prospect {
    Prospect::None {
        why: why.to_owned(),
        retry: None,
    }
}

fn loading(eta: Option<Duration>) -> Prospect {
    Prospect::Coming {
        words: "download".to_owned(),
        progress: Some(0.5),
        eta,
    }
}

impl House {
    fn new(options: RouterOptions, workers: &[&Worker]) -> Self {
        let registry = crate::testing::registry(&[]);
        for worker in workers {
            record(&registry, worker.beat());
        }
        let shelf = Arc::new(Shelf {
            prospect: Mutex::new(nothing_comes("all are busy")),
            demands: Mutex::default(),
        });
        let mut metrics = prometheus_client::registry::Registry::default();
        let supply: Arc<dyn Supply> = Arc::<Shelf>::clone(&shelf);
        Self {
            router: Router::new(options, Arc::clone(&registry), supply, &mut metrics),
            workers: registry,
            shelf,
        }
    }

    fn expect(&self, prospect: Prospect) {
        *self.shelf.prospect.lock().unwrap() = prospect;
    }

    /// A worker beats, and those that wait are told.
    fn beat(&self, beat: WorkerHeartbeat) {
        record(&self.workers, beat);
        self.router.offer_all();
    }

    async fn ask(&self) -> Result<Answered, Refusal> {
        self.ask_for(&json!({"model": "m"}), &[]).await
    }

    async fn ask_for(&self, request: &Value, headers: &[(&'static str, &str)]) -> Result<Answered, Refusal> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        let body = request.to_string().into();
        let response = self
            .router
            .answer(Endpoint::ChatCompletions, headers, body, Arc::default())
            .await?;
        let (head, body) = response.into_parts();
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        Ok(Answered {
            status: head.status,
            worker: header("x-rbee-worker").unwrap_or_default(),
            attempts: header("x-rbee-attempts").map_or(0, |count| count.parse().unwrap()),
            text: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        })
    }
}

/// What the client got.
#[derive(Debug)]
struct Answered {
    status: StatusCode,
    worker: String,
    attempts: u32,
    text: String,
}
