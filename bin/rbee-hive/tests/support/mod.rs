//! A hive in this process, workers that are this test program called again, and a queen that only listens.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use daemon::{Json, Query, Shutdown};
use eventsource_stream::Eventsource;
use futures_util::StreamExt;
use hive_contract::{HiveHeartbeat, JobAccepted, JobEvent, ModelHolder, ModelHolders};
use rbee_hive::{Config, RunError, Sharing};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use shared_contract::{DropReason, HeartbeatAck, WorkerId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use worker_contract::{DrainRequest, QueenList, QueenNotice};

pub(crate) mod gguf;

/// Far longer than anything here takes; reached only by a test that fails.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// The test that is a worker when it is called with a worker's arguments.
const WORKER_TEST: &str = "a_worker_for_the_other_tests";

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it takes far too long")
}

/// A running hive.
pub(crate) struct Bed {
    pub(crate) base: String,
    pub(crate) shutdown: Shutdown,
    pub(crate) http: reqwest::Client,
    pub(crate) folder: TempDir,
    /// Its own, if it can be taken away from it.
    runtime: Option<Runtime>,
    task: JoinHandle<Result<(), RunError>>,
}

pub(crate) fn config(folder: &TempDir) -> Config {
    let this_program = std::env::current_exe().unwrap().into_os_string();
    let words = [WORKER_TEST, "--exact", "--ignored", "--nocapture", "--"];
    Config {
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        token: None,
        insecure: false,
        queen_urls: Vec::new(),
        hive_id: None,
        state_dir: folder.path().join("state"),
        models_dir: folder.path().join("models"),
        worker_command: std::iter::once(this_program).chain(words.map(OsString::from)).collect(),
        worker_host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        advertise_host: None,
        mdns: false,
        grace: LONG,
        load_timeout: LONG,
        nvml_library: Some("/nowhere/libnvidia-ml.so.1".into()),
        // Whatever else this machine has.
        sharing: Sharing {
            devices: vec!["cpu".into()],
            ..Sharing::default()
        },
        idle_unload: None,
        keep_workers: false,
        cgroup: None,
        catalogue: None,
        model_cache_max: None,
        otlp_endpoint: None,
    }
}

pub(crate) async fn start() -> Bed {
    start_with(|_| {}).await
}

pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Bed {
    start_on(tempfile::tempdir().unwrap(), change).await
}

/// With the state and the models that another one left.
pub(crate) async fn start_on(folder: TempDir, change: impl FnOnce(&mut Config)) -> Bed {
    let mut config = config(&folder);
    change(&mut config);
    run(folder, config, None).await
}

/// One that can [`Bed::die`].
pub(crate) async fn start_doomed() -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder);
    run(folder, config, Some(Runtime::new().unwrap())).await
}

async fn run(folder: TempDir, config: Config, runtime: Option<Runtime>) -> Bed {
    let shutdown = Shutdown::new();
    let (address, announced) = tokio::sync::oneshot::channel();
    let asked = shutdown.clone();
    let hive = async move {
        let listener = TcpListener::bind(config.address).await.unwrap();
        address.send(listener.local_addr().unwrap()).unwrap();
        rbee_hive::run(config, listener, asked).await
    };
    let task = match &runtime {
        Some(runtime) => runtime.spawn(hive),
        None => tokio::spawn(hive),
    };
    let bed = Bed {
        base: format!("http://{}", announced.await.unwrap()),
        shutdown,
        http: daemon::client::new().unwrap(),
        folder,
        runtime,
        task,
    };
    within(async {
        while bed.get("/health").await["ready"] != true {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    bed
}

/// A client that always sends this token.
pub(crate) fn http_with(token: &str) -> reqwest::Client {
    // An error says that another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let headers = [(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())];
    reqwest::Client::builder()
        .default_headers(headers.into_iter().collect())
        .no_proxy()
        .build()
        .unwrap()
}

impl Bed {
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = within(self.request(Method::GET, path).send()).await.unwrap();
        answer.json().await.unwrap()
    }

    /// Waits until `/metrics` has this line.
    pub(crate) async fn metric(&self, line: &str) {
        within(async {
            loop {
                let metrics = self.request(Method::GET, "/metrics").send().await.unwrap();
                if metrics.text().await.unwrap().lines().any(|shown| shown == line) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// What `/metrics` says of this gauge.
    pub(crate) async fn figure(&self, name: &str) -> f64 {
        let answer = within(self.request(Method::GET, "/metrics").send()).await.unwrap();
        let metrics = answer.text().await.unwrap();
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in:\n{metrics}"))
            .parse()
            .unwrap()
    }

    pub(crate) async fn post_job(&self, operation: &Value) -> Response {
        within(self.request(Method::POST, "/v1/jobs").json(operation).send())
            .await
            .unwrap()
    }

    pub(crate) async fn accepted(&self, operation: &Value) -> JobAccepted {
        let answer = self.post_job(operation).await;
        assert_eq!(answer.status(), 202, "{:?}", answer.text().await);
        answer.json().await.unwrap()
    }

    /// The events of a job as they come.
    pub(crate) async fn events(&self, job: &JobAccepted) -> mpsc::Receiver<JobEvent> {
        let (send, receive) = mpsc::channel(1024);
        let answer = within(self.request(Method::GET, &job.stream_url).send()).await.unwrap();
        let mut events = answer.bytes_stream().eventsource();
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let parsed: JobEvent = serde_json::from_str(&event.data).unwrap();
                assert_eq!(event.id, parsed.seq.to_string());
                if send.send(parsed).await.is_err() {
                    return;
                }
            }
        });
        receive
    }

    /// Runs a job to its end.
    pub(crate) async fn job(&self, operation: &Value) -> JobEvent {
        let job = self.accepted(operation).await;
        let mut events = self.events(&job).await;
        within(async {
            let mut last = None;
            while let Some(event) = events.recv().await {
                last = Some(event);
            }
            last.unwrap()
        })
        .await
    }

    /// A model file whose name says how its worker behaves.
    pub(crate) fn model(&self, behaviour: &str) -> String {
        self.model_of(behaviour, gguf::SMALL)
    }

    fn model_of(&self, behaviour: &str, header: gguf::Header) -> String {
        let path = self.folder.path().join(format!("{behaviour}.gguf"));
        std::fs::write(&path, gguf::with(header)).unwrap();
        format!("file:{}", path.display())
    }

    pub(crate) fn spawn_operation(&self, behaviour: &str) -> Value {
        self.spawn_operation_of(behaviour, gguf::SMALL)
    }

    pub(crate) fn spawn_operation_of(&self, behaviour: &str, header: gguf::Header) -> Value {
        json!({"operation": "worker_spawn", "model": self.model_of(behaviour, header)})
    }

    /// Starts a worker and waits until it is ready; its id and process id.
    pub(crate) async fn spawn(&self, behaviour: &str) -> (WorkerId, u32) {
        let end = self.job(&self.spawn_operation(behaviour)).await;
        let result = end.result.unwrap_or_else(|| panic!("no result: {:?}", end.error));
        let id = WorkerId::new(result["worker_id"].as_str().unwrap()).unwrap();
        (id, result["pid"].as_u64().unwrap() as u32)
    }

    pub(crate) async fn workers(&self) -> Vec<Value> {
        self.get("/v1/workers").await["workers"].as_array().unwrap().clone()
    }

    async fn ask_worker(&self) -> Option<Value> {
        let port: u16 = self.workers().await[0]["instance"].as_str()?.parse().ok()?;
        let url = format!("http://127.0.0.1:{port}/seen");
        self.http.get(url).send().await.ok()?.json().await.ok()
    }

    /// Asks the hive's only worker for this path, however it answers.
    pub(crate) async fn tell_worker(&self, path: &str) {
        let workers = self.workers().await;
        let port = workers[0]["instance"].as_str().unwrap();
        // One that is told to end may not answer.
        let _ = within(self.http.get(format!("http://127.0.0.1:{port}{path}")).send()).await;
    }

    /// What the hive's only worker has seen, once this is true of it.
    pub(crate) async fn seen(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        within(async {
            loop {
                // While the worker starts again, it has no port or does not answer.
                if let Some(seen) = self.ask_worker().await
                    && wanted(&seen)
                {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Asks the hive to end, and waits until it has.
    pub(crate) async fn end(self) -> TempDir {
        self.shutdown.request();
        within(self.task).await.unwrap().unwrap();
        self.folder
    }

    /// Takes the hive's runtime away, and with it everything that it was about to do, as a kill of its process would.
    pub(crate) async fn die(self) -> TempDir {
        let runtime = self.runtime.expect("it has a runtime of its own");
        tokio::task::spawn_blocking(|| runtime.shutdown_timeout(LONG))
            .await
            .unwrap();
        self.folder
    }
}

/// A queen that acknowledges every beat and passes it on.
pub(crate) struct Queen {
    pub(crate) url: String,
    /// The hives that she says have a model, whichever it is.
    pub(crate) holders: Arc<Mutex<Vec<ModelHolder>>>,
    /// The models whose holders she was asked for.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    /// With the host and port that each was sent to.
    beats: mpsc::Receiver<(String, HiveHeartbeat)>,
    _server: tokio::task::JoinSet<()>,
}

pub(crate) async fn queen() -> Queen {
    queen_who_drops(None).await
}

/// One that drops each beat for this reason.
pub(crate) async fn queen_who_drops(dropped: Option<DropReason>) -> Queen {
    let (send, beats) = mpsc::channel(1024);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}");
    let record = move |headers: HeaderMap, Json(beat): Json<HiveHeartbeat>| async move {
        let way = headers[HOST].to_str().unwrap().to_owned();
        send.send((way, beat)).await.unwrap();
        Json(HeartbeatAck {
            status: "ok".into(),
            message: String::new(),
            interval_ms: 30_000,
            ttl_ms: 90_000,
            want_full: false,
            queen_id: Some(format!("queen-{}", address.port()).parse().unwrap()),
            dropped,
            known_incarnation: None,
        })
    };
    let (holders, asked) = (
        Arc::<Mutex<Vec<ModelHolder>>>::default(),
        Arc::<Mutex<Vec<String>>>::default(),
    );
    let (known, questions) = (Arc::clone(&holders), Arc::clone(&asked));
    let who_has = move |Query(query): Query<BTreeMap<String, String>>| async move {
        questions.lock().unwrap().push(query["reference"].clone());
        let holders = known.lock().unwrap().clone();
        Json(ModelHolders { holders })
    };
    let router = Router::new()
        .route("/v1/hive-heartbeat", post(record))
        .route("/v1/model-holders", get(who_has));
    let mut server = tokio::task::JoinSet::new();
    server.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Queen {
        url,
        holders,
        asked,
        beats,
        _server: server,
    }
}

impl Queen {
    pub(crate) async fn next(&mut self) -> HiveHeartbeat {
        self.next_by().await.1
    }

    /// With the host and port that it was sent to.
    pub(crate) async fn next_by(&mut self) -> (String, HiveHeartbeat) {
        within(self.beats.recv()).await.expect("the queen lives")
    }

    /// The first beat from now on of which this is true.
    pub(crate) async fn beat_with(&mut self, wanted: impl Fn(&HiveHeartbeat) -> bool) -> HiveHeartbeat {
        loop {
            let beat = self.next().await;
            if wanted(&beat) {
                return beat;
            }
        }
    }
}

/// A worker, as far as its hive can see. Does nothing if it is not called as one.
pub(crate) async fn worker() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1).cloned()
    };
    let Some(announce) = value("--announce").map(PathBuf::from) else {
        return;
    };
    let model = value("--model").unwrap();
    let behaviour = model.rsplit('/').next().unwrap().trim_end_matches(".gguf").to_owned();
    match behaviour.as_str() {
        "broken" => {
            eprintln!("this model cannot be loaded");
            std::process::exit(3)
        }
        "deaf" => {
            use tokio::signal::unix::{SignalKind, signal};
            // From here on the signal only wakes a stream that nobody reads.
            std::mem::forget(signal(SignalKind::terminate()).unwrap());
        }
        _ => {}
    }
    let (status, progress) = match behaviour.as_str() {
        "slow" => ("starting", Some(0.5)),
        _ => ("ready", None),
    };
    let health = json!({
        "worker_id": value("--worker-id").unwrap(),
        "status": status,
        "phase": progress.map(|_| "load"),
        "progress": progress,
        "idle_ms": (behaviour == "idle").then_some(3_600_000),
    });
    let listener = TcpListener::bind((value("--host").unwrap().as_str(), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    std::fs::write(announce, json!({"port": port}).to_string()).unwrap();
    // The first line that each worker prints; what a test asks for comes after it.
    println!("\n{behaviour} worker is up");
    let drain = Arc::new(Drain::default());
    let router = Router::new()
        .route("/health", get(move || async move { Json(health) }))
        .merge(queens(behaviour == "slow to hear"))
        .merge(requests(&drain, behaviour == "busy"));
    tokio::select! {
        served = axum::serve(listener, router) => served.unwrap(),
        () = drain.is_over() => {}
        // A test that fails must not leave its workers behind.
        () = orphaned() => {}
    }
}

/// `POST /v1/queens` as a worker has it, and `GET /seen`, which shows what the worker got from its hive.
fn queens(is_slow_to_hear: bool) -> Router {
    type Notices = Arc<Mutex<Vec<Value>>>;
    let notices = Notices::default();
    let heard = Arc::clone(&notices);
    let notice = move |headers: HeaderMap, Json(notice): Json<QueenNotice>| async move {
        let mut heard = heard.lock().unwrap();
        let token = headers
            .get(AUTHORIZATION)
            .map(|value| value.to_str().unwrap().to_owned());
        heard.push(json!({"queen": notice.queen_url, "token": token}));
        match is_slow_to_hear && heard.len() == 1 {
            true => Err(StatusCode::SERVICE_UNAVAILABLE),
            false => Ok(Json(QueenList { queens: Vec::new() })),
        }
    };
    let incarnation: u64 = std::env::var("RBEE_INCARNATION").unwrap().parse().unwrap();
    let args = std::env::args().collect::<Vec<_>>().join(" ");
    let seen = move || async move {
        Json(json!({"incarnation": incarnation, "args": args, "notices": *notices.lock().unwrap()}))
    };
    Router::new()
        .route("/v1/queens", post(notice))
        .route("/seen", get(seen))
}

/// Whether a worker was asked to drain, and has a request at work.
#[derive(Default)]
struct Drain(watch::Sender<(bool, bool)>);

impl Drain {
    async fn is_over(&self) {
        let mut state = self.0.subscribe();
        state.wait_for(|state| *state == (true, false)).await.unwrap();
    }
}

/// `POST /v1/drain` as a worker has it, `GET /finish`, which ends the request of a busy one, and `GET /say?text=`, which
/// prints a line.
fn requests(drain: &Arc<Drain>, is_busy: bool) -> Router {
    drain.0.send_modify(|state| state.1 = is_busy);
    let (draining, finishing) = (Arc::clone(drain), Arc::clone(drain));
    let begin = move |Json(asked): Json<DrainRequest>| async move {
        println!("asked to finish within {} s", asked.grace_s.unwrap());
        draining.0.send_modify(|state| state.0 = true);
        (StatusCode::ACCEPTED, Json(json!({"status": "draining"})))
    };
    let finish = move || async move { finishing.0.send_modify(|state| state.1 = false) };
    let say = |Query(query): Query<BTreeMap<String, String>>| async move { println!("{}", query["text"]) };
    Router::new()
        .route("/v1/drain", post(begin))
        .route("/finish", get(finish))
        .route("/say", get(say))
}

async fn orphaned() {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
