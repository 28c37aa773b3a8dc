//! A queen, and workers whose every answer a test decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use daemon::Shutdown;
use futures_util::StreamExt;
use http::request::Parts;
use queen_rbee::fleet::{FleetView, Liveness, WorkerView};
use queen_rbee::{Config, run};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

/// What fails a test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits something that must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// A queen on a free port of loopback.
pub(crate) struct Queen {
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    pub(crate) shutdown: Shutdown,
    pub(crate) task: AbortOnDropHandle<()>,
}

impl Queen {
    pub(crate) async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shutdown = Shutdown::new();
        let running = shutdown.clone();
        let task = tokio::spawn(async move { run(config, listener, running).await.unwrap() });
        Self {
            url,
            http: daemon::client::new().unwrap(),
            shutdown,
            task: AbortOnDropHandle::new(task),
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).json(body)
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.url))
    }

    /// Sends a heartbeat that must be accepted; answers with the acknowledgement.
    pub(crate) async fn beat(&self, path: &str, beat: &Value) -> Value {
        let response = self.post(path, beat).send().await.unwrap();
        assert_eq!(response.status(), 200, "{beat}");
        response.json().await.unwrap()
    }

    pub(crate) async fn worker_beat(&self, beat: &Value) -> Value {
        self.beat("/v1/worker-heartbeat", beat).await
    }

    pub(crate) async fn hive_beat(&self, beat: &Value) -> Value {
        self.beat("/v1/hive-heartbeat", beat).await
    }

    /// A request for a model, sent in the background.
    pub(crate) fn ask(&self, body: &Value) -> AbortOnDropHandle<reqwest::Response> {
        let request = self.post("/v1/chat/completions", body);
        AbortOnDropHandle::new(tokio::spawn(async move { request.send().await.unwrap() }))
    }

    pub(crate) async fn fleet(&self) -> FleetView {
        self.get("/v1/fleet").send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn worker(&self, id: &str) -> Option<WorkerView> {
        self.fleet()
            .await
            .workers
            .into_iter()
            .find(|worker| worker.id.as_str() == id)
    }

    /// Ends when the worker has this liveness; answers with it.
    pub(crate) async fn worker_becomes(&self, id: &str, liveness: Liveness) -> WorkerView {
        within(&format!("{id} being {liveness}"), async {
            loop {
                if let Some(worker) = self.worker(id).await
                    && worker.liveness == liveness
                {
                    return worker;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Ends when so many workers have answered when the queen called them back.
    pub(crate) async fn workers_reached(&self, count: u32) {
        self.metric_is("rbee_callbacks_total{kind=\"worker\",result=\"reached\"}", count.into())
            .await;
    }

    /// The value of the metric whose line starts so; 0 if there is none.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").send().await.unwrap().text().await.unwrap();
        text.lines()
            .find_map(|l| l.strip_prefix(line))
            .map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Ends when the metric has the value.
    pub(crate) async fn metric_is(&self, line: &str, value: f64) {
        within(&format!("{line} = {value}"), async {
            while self.metric(line).await != value {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// A request that has reached a worker.
pub(crate) struct Reached {
    pub(crate) head: Parts,
    pub(crate) body: Bytes,
    reply: oneshot::Sender<Response>,
}

impl Reached {
    /// Answers it.
    pub(crate) fn answer(self, response: Response) {
        assert!(self.reply.send(response).is_ok(), "the request was given up");
    }

    /// Ends when the queen has given the request up.
    pub(crate) async fn given_up(mut self) {
        within("giving up", self.reply.closed()).await;
    }

    /// Answers with a stream of events, which the test goes on to write.
    pub(crate) fn stream(self) -> BodyWriter {
        self.write_as("text/event-stream")
    }

    /// Answers with a body that the test goes on to write.
    pub(crate) fn write_as(self, content_type: &str) -> BodyWriter {
        let (chunks, body) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let body = futures_util::stream::unfold(body, |mut body| async move { Some((body.recv().await?, body)) });
        let response = Response::builder()
            .header("content-type", content_type)
            .body(Body::from_stream(body))
            .unwrap();
        self.answer(response);
        BodyWriter { chunks }
    }
}

/// The worker's end of a body. Dropped, the body ends properly.
pub(crate) struct BodyWriter {
    chunks: mpsc::Sender<Result<Bytes, std::io::Error>>,
}

impl BodyWriter {
    pub(crate) async fn write(&self, text: &str) {
        self.chunks.send(Ok(Bytes::from(text.to_owned()))).await.unwrap();
    }

    /// Cuts the connection.
    pub(crate) async fn cut(self) {
        let _ = self.chunks.send(Err(std::io::Error::other("cut by the test"))).await;
    }

    /// Ends when the queen has closed the stream.
    pub(crate) async fn closed(&self) {
        within("the stream's end", self.chunks.closed()).await;
    }
}

/// A worker that hands every request to the test, but for the queen's call-backs: those it answers itself.
pub(crate) struct Worker {
    pub(crate) address: SocketAddr,
    requests: mpsc::Receiver<Reached>,
    calls: Arc<AtomicU32>,
    task: AbortOnDropHandle<()>,
}

impl Worker {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reached, requests) = mpsc::channel(64);
        let calls = Arc::new(AtomicU32::new(0));
        let called = Arc::clone(&calls);
        let health = get(async move || {
            called.fetch_add(1, Ordering::SeqCst);
        });
        let router = Router::new()
            .route("/health", health)
            .fallback(move |request: Request| {
                let reached = reached.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                    let (reply, answer) = oneshot::channel();
                    reached.send(Reached { head, body, reply }).await.unwrap();
                    answer
                        .await
                        .unwrap_or_else(|_| Response::builder().status(500).body(Body::empty()).unwrap())
                }
            });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            requests,
            calls,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// How often it was called back.
    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Ends it: from now on its port refuses connections.
    pub(crate) async fn stop(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// The next request that reaches it.
    pub(crate) async fn next(&mut self) -> Reached {
        within("a request to the worker", self.requests.recv()).await.unwrap()
    }

    /// Whether a request lies there.
    pub(crate) fn has_next(&mut self) -> bool {
        !self.requests.is_empty()
    }

    /// Its heartbeat: ready, with one slot, serving model `m`.
    pub(crate) fn beat(&self, id: &str) -> Value {
        worker_beat(id, self.address.port())
    }
}

/// A port that takes connections, and closes them without a word until it is opened.
pub(crate) struct Door {
    pub(crate) port: u16,
    is_open: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Door {
    pub(crate) async fn shut() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&is_open);
        let task = tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                if opened.load(Ordering::SeqCst) {
                    let _ = connection.read(&mut [0; 1_024]).await;
                    let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                    let _ = connection.write_all(answer.as_bytes()).await;
                }
            }
        });
        Self {
            port,
            is_open,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// From now on every request is answered, though not kindly.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }
}

/// A port that refuses connections.
pub(crate) async fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

pub(crate) fn worker_beat(id: &str, port: u16) -> Value {
    json!({
        "worker": {"id": id, "model_id": "m", "device": "cpu", "port": port, "status": "ready",
                   "implementation": "test", "version": "0.0.0"},
        "timestamp": "2025-10-24T10:00:00Z",
    })
}

pub(crate) fn hive_beat(id: &str) -> Value {
    json!({
        "hive": {"id": id, "hostname": "", "port": 7835, "operational_status": "ready",
                 "health_status": "healthy", "version": "0.0.0"},
        "timestamp": "2025-10-24T10:00:00Z",
    })
}

/// Puts a value at a path, such as `/worker/status`.
pub(crate) fn with(mut json: Value, path: &str, value: impl Into<Value>) -> Value {
    let (parent, key) = path.rsplit_once('/').unwrap();
    json.pointer_mut(parent).unwrap()[key] = value.into();
    json
}

/// A request for model `m`.
pub(crate) fn chat() -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
}

pub(crate) fn chat_stream() -> Value {
    with(chat(), "/stream", true)
}

pub(crate) fn plain(status: u16, body: &str) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

/// Reads a response's body as it comes.
pub(crate) struct Reader(futures_util::stream::BoxStream<'static, reqwest::Result<Bytes>>);

impl Reader {
    pub(crate) fn new(response: reqwest::Response) -> Self {
        Self(response.bytes_stream().boxed())
    }

    /// The next chunk as text; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let chunk = within("a chunk", self.0.next()).await?;
        Some(String::from_utf8(chunk.unwrap().to_vec()).unwrap())
    }

    /// Ends with the error that ends the body.
    pub(crate) async fn error(&mut self) -> reqwest::Error {
        within("an error", async {
            loop {
                if let Err(error) = self.0.next().await.expect("the body ended as if it was complete") {
                    return error;
                }
            }
        })
        .await
    }
}
