//! A queen with whatever joins it, each a real process.

use std::ffi::OsString;

use queen_rbee::fleet::FleetView;
use serde_json::{Value, json};

use crate::http::{self, Answer};
use crate::{Process, Program, eventually};

/// One queen, and the URL under which the scenario asks it.
#[derive(Debug)]
pub struct Cluster {
    /// The queen's process.
    pub queen: Process,
    args: Vec<OsString>,
}

impl Cluster {
    /// A queen that wants a beat a second, so that scenarios need not wait long; and no machine is so busy that somebody
    /// who lives is lost, or that a fake worker is who has beaten once and is asked then.
    pub async fn start() -> Self {
        Self::with(["--heartbeat-interval-ms", "1000", "--heartbeat-ttl-ms", "10000"]).await
    }

    /// A queen with these settings, on a port that the system picks.
    pub async fn with(args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let port = ["--port".into(), "0".into()];
        let queen = Process::daemon(Program::Queen, args.iter().cloned().chain(port)).await;
        Self { queen, args }
    }

    /// A cluster with one worker, which is ready.
    pub async fn serving(model: &str) -> (Self, Process) {
        Self::serving_with(model, &[]).await
    }

    /// The same with more settings of the worker.
    pub async fn serving_with(model: &str, more: &[&str]) -> (Self, Process) {
        let cluster = Self::start().await;
        let worker = cluster.worker_with(model, more).await;
        cluster.until_ready(model, 1).await;
        (cluster, worker)
    }

    /// Starts the queen again on the port that it had.
    pub async fn restart_queen(&mut self) {
        let port = self.queen.address.port().to_string();
        let args = self.args.iter().cloned().chain(["--port".into(), port.into()]);
        self.queen = Process::daemon(Program::Queen, args).await;
    }

    /// The queen's URL.
    pub fn url(&self) -> String {
        self.queen.url()
    }

    /// A hive of this queen.
    pub async fn hive(&self) -> Process {
        Process::daemon(Program::Hive, ["--port", "0", "--queen-url", &self.url()]).await
    }

    /// A worker of this queen without any hive.
    pub async fn worker(&self, model: &str) -> Process {
        self.worker_with(model, &[]).await
    }

    /// The same with more settings.
    pub async fn worker_with(&self, model: &str, more: &[&str]) -> Process {
        let more = more.iter().map(ToString::to_string);
        Process::daemon(Program::Worker, worker_args(model, &self.url()).into_iter().chain(more)).await
    }

    /// What the queen says of its fleet.
    pub async fn fleet(&self) -> FleetView {
        let answer = http::get(format!("{}/v1/fleet", self.url())).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_value(answer.body).expect("a fleet view")
    }

    /// Waits until the fleet is as `wanted` finds it.
    pub async fn until<T>(&self, what: &str, wanted: impl Fn(&FleetView) -> Option<T>) -> T {
        eventually(what, async || wanted(&self.fleet().await)).await
    }

    /// Waits until so many workers can be chosen for the model.
    pub async fn until_ready(&self, model: &str, count: usize) {
        self.until(&format!("{count} worker(s) of {model} are ready"), |fleet| {
            let ready = fleet
                .workers
                .iter()
                .filter(|w| w.model_id.as_str() == model && w.ready)
                .count();
            (ready == count).then_some(())
        })
        .await;
    }

    /// A short greedy chat.
    pub async fn chat(&self, model: &str, text: &str) -> Answer {
        http::post(self.chat_url(), &chat_body(model, text)).await
    }

    /// URL of chat completions.
    pub fn chat_url(&self) -> String {
        format!("{}/v1/chat/completions", self.url())
    }

    /// URL of embeddings.
    pub fn embeddings_url(&self) -> String {
        format!("{}/v1/embeddings", self.url())
    }

    /// URL of text completions.
    pub fn completions_url(&self) -> String {
        format!("{}/v1/completions", self.url())
    }

    /// Asks a hive for a job and waits for its end; returns its last event.
    pub async fn job(&self, hive: &Process, operation: &Value) -> Value {
        http::job(&hive.url(), operation).await
    }
}

/// A worker's arguments.
pub fn worker_args(model: &str, queen_url: &str) -> [String; 8] {
    [
        "--model",
        model,
        "--device",
        "cpu",
        "--port",
        "0",
        "--queen-url",
        queen_url,
    ]
    .map(str::to_owned)
}

/// Body of a short greedy chat.
pub fn chat_body(model: &str, text: &str) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 0,
    })
}
