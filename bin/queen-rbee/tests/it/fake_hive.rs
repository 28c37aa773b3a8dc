//! A hive that starts workers in no time: its memory is a number, and one tiny server answers for all of its workers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use hive_contract::{JobProgress, Operation};
use http::StatusCode;
use jobs::{Failure, Job, Jobs};
use serde_json::{Value, json};
use shared_contract::ErrorKind;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::Queen;

/// What each worker takes, whatever its model.
pub(crate) const WORKER_MB: u64 = 1024;
/// The models on the hive's disk.
const MODELS: [&str; 3] = ["a", "b", "c"];

/// The hive. Dropped, it is gone without a word.
pub(crate) struct FakeHive {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    id: String,
    port: u16,
    queen_url: String,
    http: reqwest::Client,
    inner: Mutex<Inner>,
    /// What it does besides starting and ending workers.
    others: Jobs,
}

#[derive(Default)]
struct Inner {
    free_mb: u64,
    workers: BTreeMap<String, Process>,
    /// The models of all workers that were started, in order.
    started: Vec<String>,
    /// All that it was asked to do.
    asked: Vec<Operation>,
    /// What it says to every order to start one.
    refusal: Option<String>,
    /// Whether no worker of it ever becomes ready.
    hangs: bool,
    jobs: HashMap<String, String>,
    count: u64,
    seq: u64,
}

#[derive(Clone)]
struct Process {
    model: String,
    state: &'static str,
    pinned: bool,
}

impl FakeHive {
    /// Starts it, and sends its first heartbeat.
    pub(crate) async fn start(queen: &Queen, id: &str, free_mb: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            id: id.to_owned(),
            port: listener.local_addr().unwrap().port(),
            queen_url: queen.url.clone(),
            http: queen.http.clone(),
            inner: Mutex::new(Inner {
                free_mb,
                ..Inner::default()
            }),
            others: Jobs::new(|_, _| {}),
        });
        let router = Router::new()
            .route("/health", get(async || "{}"))
            .route("/v1/jobs", post(job))
            .route("/v1/jobs/{id}", delete(cancel))
            .route("/v1/jobs/{id}/stream", get(stream))
            .route("/v1/chat/completions", post(answer))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        shared.beat().await;
        Self {
            shared,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The models of all workers that it was told to start.
    pub(crate) fn started(&self) -> Vec<String> {
        self.shared.inner.lock().unwrap().started.clone()
    }

    /// All that it was asked to do, in order.
    pub(crate) fn asked(&self) -> Vec<Operation> {
        self.shared.inner.lock().unwrap().asked.clone()
    }

    /// The models of its workers.
    pub(crate) fn models(&self) -> Vec<String> {
        let inner = self.shared.inner.lock().unwrap();
        inner.workers.values().map(|process| process.model.clone()).collect()
    }

    /// From now on it starts nothing, for this reason.
    pub(crate) fn refuse(&self, why: &str) {
        self.shared.inner.lock().unwrap().refusal = Some(why.to_owned());
    }

    /// From now on it starts them again.
    pub(crate) fn relent(&self) {
        self.shared.inner.lock().unwrap().refusal = None;
    }

    /// From now on its workers start for ever, and its files are fetched for ever.
    pub(crate) fn hang(&self) {
        self.shared.inner.lock().unwrap().hangs = true;
    }

    /// Tells of a worker that somebody else has ordered.
    pub(crate) async fn has_starting(&self, worker: &str, model: &str) {
        let process = Process {
            model: model.to_owned(),
            state: "starting",
            pinned: false,
        };
        self.shared
            .inner
            .lock()
            .unwrap()
            .workers
            .insert(worker.to_owned(), process);
        self.shared.beat().await;
    }

    /// Makes a worker ready.
    pub(crate) async fn make_ready(&self, worker: &str) {
        self.shared.make_ready(worker).await;
    }
}

impl Shared {
    async fn beat(&self) {
        let beat = {
            let mut inner = self.inner.lock().unwrap();
            inner.seq += 1;
            let need = json!({"fixed_bytes": WORKER_MB << 20, "kv_bytes_per_token": 0});
            let facts = json!({"family": "llama", "parameters": 1, "layers": 1, "heads": 1, "kv_heads": 1,
                "context_length": 4096, "quantization": "Q4_1", "weight_bytes": 1, "kv_bytes_per_token": 0,
                "memory": {"cpu": need, "gpu": need, "block_tokens": 32}});
            let models = MODELS.map(
                |id| json!({"id": id, "reference": format!("file:/models/{id}.gguf"), "size_bytes": 1, "facts": facts}),
            );
            let process = |(id, process): (&String, &Process)| {
                json!({"pid": 1, "group": "llm-worker", "instance": "1", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
                       "io_w_mb_s": 0.0, "uptime_s": 0, "model": process.model, "state": process.state, "worker_id": id,
                       "device": "cpu", "granted_mb": WORKER_MB, "pinned": process.pinned})
            };
            json!({
                "hive": {"id": self.id, "hostname": "", "port": self.port, "operational_status": "ready",
                         "health_status": "healthy", "version": "0.0.0"},
                "timestamp": "2025-10-24T10:00:00Z", "seq": inner.seq,
                "monitor": {"ram_total_mb": 65536, "ram_free_mb": inner.free_mb},
                "capabilities": {
                    "devices": [{"id": "cpu", "kind": "cpu", "name": "CPU", "memory_total_mb": 65536}],
                    "engines": [{"implementation": "test", "version": "0", "kinds": ["cpu"]}],
                    "models": models},
                "workers": inner.workers.iter().map(process).collect::<Vec<_>>()})
        };
        self.tell("/v1/hive-heartbeat", &beat).await;
    }

    async fn worker_beat(&self, worker: &str, model: &str, status: &str) {
        let beat = json!({
            "worker": {"id": worker, "model_id": model, "device": "cpu", "port": self.port, "status": status,
                       "implementation": "test", "version": "0.0.0", "slots": 4, "hive_id": self.id},
            "timestamp": "2025-10-24T10:00:00Z"});
        self.tell("/v1/worker-heartbeat", &beat).await;
    }

    async fn tell(&self, path: &str, beat: &Value) {
        let sent = self.http.post(format!("{}{path}", self.queen_url)).json(beat).send();
        // A queen that ends hears nothing any more.
        let _ = sent.await;
    }

    async fn make_ready(&self, worker: &str) {
        let model = {
            let mut inner = self.inner.lock().unwrap();
            let process = inner.workers.get_mut(worker).unwrap();
            process.state = "running";
            process.model.clone()
        };
        self.beat().await;
        self.worker_beat(worker, &model, "ready").await;
    }

    /// Takes the memory of a worker; `None` if there is none left.
    fn take(&self, model: &str, pinned: bool) -> Option<String> {
        let mut inner = self.inner.lock().unwrap();
        inner.free_mb = inner.free_mb.checked_sub(WORKER_MB)?;
        inner.started.push(model.to_owned());
        inner.count += 1;
        let worker = format!("{}-w{}", self.id, inner.count);
        let process = Process {
            model: model.to_owned(),
            state: "starting",
            pinned,
        };
        inner.workers.insert(worker.clone(), process);
        Some(worker)
    }
}

async fn job(State(hive): State<Arc<Shared>>, Json(order): Json<Value>) -> Response {
    let operation: Operation = serde_json::from_value(order.clone()).unwrap();
    hive.inner.lock().unwrap().asked.push(operation.clone());
    let event = match order["operation"].as_str().unwrap() {
        "worker_spawn" => {
            if let Some(why) = hive.inner.lock().unwrap().refusal.clone() {
                return daemon::ApiError::new(ErrorKind::NoCapacity, why).into_response();
            }
            let path = order["model"].as_str().unwrap();
            let model = path.trim_start_matches("file:/models/").trim_end_matches(".gguf");
            match hive.take(model, order["keep_alive_s"] == 0) {
                Some(_) if hive.inner.lock().unwrap().hangs => json!({"state": "running"}),
                Some(worker) => {
                    hive.beat().await;
                    hive.make_ready(&worker).await;
                    json!({"state": "succeeded", "result": {"worker_id": worker}})
                }
                None => json!({"state": "failed", "message": "failed in step `place`: no room"}),
            }
        }
        "worker_drain" => {
            let worker = order["worker_id"].as_str().unwrap().to_owned();
            let gone = {
                let mut inner = hive.inner.lock().unwrap();
                inner.free_mb += WORKER_MB;
                inner.workers.remove(&worker).unwrap()
            };
            hive.worker_beat(&worker, &gone.model, "stopped").await;
            hive.beat().await;
            json!({"state": "succeeded", "result": {}})
        }
        _ => {
            let hangs = hive.inner.lock().unwrap().hangs;
            let order = operation.clone();
            let job = hive.others.start(operation, |job| perform(order, hangs, job)).unwrap();
            return jobs::http::accepted(&job).into_response();
        }
    };
    let mut event = event;
    event["seq"] = 0.into();
    event["timestamp"] = "2025-10-24T10:00:00Z".into();
    let mut inner = hive.inner.lock().unwrap();
    let id = format!("job-{}", inner.jobs.len());
    inner.jobs.insert(id.clone(), format!("data: {event}\n\n"));
    let accepted = json!({"job_id": id, "stream_url": format!("/v1/jobs/{id}/stream")});
    (StatusCode::ACCEPTED, Json(accepted)).into_response()
}

async fn perform(operation: Operation, hangs: bool, job: Arc<Job>) -> Result<Value, Failure> {
    match operation {
        Operation::ModelPull { model } => {
            job.say(format!("fetching {model}"));
            job.progress(JobProgress {
                phase: "download".into(),
                done: 1,
                total: Some(2),
                unit: "bytes".into(),
                per_second: None,
                eta_s: None,
                source: None,
            });
            if hangs {
                job.cancelled().cancelled().await;
                return Err(Failure::Cancelled);
            }
            Ok(json!({"id": model}))
        }
        Operation::ModelDelete { model } => {
            let message = format!("model `{model}` is in use");
            Err(daemon::ApiError::new(ErrorKind::Conflict, message).into())
        }
        Operation::WorkerLogs { .. } => {
            job.say("a line\nand another");
            Ok(json!({"lines": 2}))
        }
        Operation::ModelList {} => Ok(json!({"models": MODELS})),
        other => panic!("nobody asks for {other:?}"),
    }
}

async fn cancel(State(hive): State<Arc<Shared>>, Path(id): Path<String>) {
    if let Some(job) = hive.others.get(&id) {
        job.cancelled().cancel();
        return;
    }
    let event = json!({"seq": 1, "state": "cancelled", "timestamp": "2025-10-24T10:00:00Z"});
    let mut inner = hive.inner.lock().unwrap();
    inner.jobs.get_mut(&id).unwrap().push_str(&format!("data: {event}\n\n"));
}

async fn stream(State(hive): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    if let Some(job) = hive.others.get(&id) {
        return daemon::sse::response(job.events(None).map(|event| daemon::sse::event(&event)));
    }
    hive.inner.lock().unwrap().jobs[&id].clone().into_response()
}

async fn answer(Json(request): Json<Value>) -> Json<Value> {
    Json(json!({"model": request["model"]}))
}
