//! A server process under measurement.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::{Args, Result};

/// Longest wait for a server.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks at a server that starts.
const LOOK: Duration = Duration::from_millis(2);

/// A server that is ready. Ends with the value.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    /// Fields that make this server generate exactly as many tokens as asked.
    pub(crate) whole_length: serde_json::Value,
    pub(crate) model: String,
    start: Start,
    _child: Child,
}

/// How a server began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) ready_after: Duration,
    pub(crate) rss_bytes: u64,
}

impl Server {
    /// Our worker with its defaults but for the port and the slots.
    pub(crate) async fn start_ours(args: &Args, slots: u32) -> Result<Self> {
        let program = match &args.worker {
            Some(program) => program.clone(),
            None => beside_this_program("llm-worker-rbee")?,
        };
        let model = args
            .model
            .canonicalize()
            .map_err(|error| format!("find the model: {error}"))?;
        let mut command = Command::new(&program);
        let port = free_port()?;
        command
            .args(["--model", &format!("file:{}", model.display())])
            .args(["--model-id", "figures"])
            .args(["--port", &port.to_string(), "--slots", &slots.to_string()])
            .args(["--threads", &args.threads.to_string()]);
        Self::start_process("rbee", command, port, "figures").await
    }

    /// Starts a server that listens on the given port and says at `/health` when it is ready.
    pub(crate) async fn start_process(
        name: &'static str,
        mut command: Command,
        port: u16,
        model: &str,
    ) -> Result<Self> {
        let begin = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("start {name}: {error}"))?;
        let errors = child.stderr.take();
        let log = tokio::spawn(async move {
            let mut tail = Vec::new();
            if let Some(mut errors) = errors {
                let mut piece = [0; 4096];
                while let Ok(read @ 1..) = errors.read(&mut piece).await {
                    tail.extend_from_slice(&piece[..read]);
                    let excess = tail.len().saturating_sub(4096);
                    tail.drain(..excess);
                }
            }
            String::from_utf8_lossy(&tail).into_owned()
        });
        let url = format!("http://127.0.0.1:{port}");
        let client = rbee_tests::http::client();
        while begin.elapsed() < PATIENCE {
            if let Ok(Some(status)) = child.try_wait() {
                let log = log.await.unwrap_or_default();
                return Err(format!("start {name}: it ended with {status}:\n{log}"));
            }
            let answer = client.get(format!("{url}/health")).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) && is_ready(&client, &url).await {
                let rss_bytes = child.id().map_or(Ok(0), rss)?;
                let start = Start {
                    ready_after: begin.elapsed(),
                    rss_bytes,
                };
                let whole_length = serde_json::json!({});
                return Ok(Self {
                    name,
                    url,
                    whole_length,
                    model: model.to_owned(),
                    start,
                    _child: child,
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("start {name}: not ready after {} s", PATIENCE.as_secs()))
    }

    pub(crate) fn start(&self) -> Start {
        self.start
    }
}

/// Whether the server lists a model: it does so once it can be asked.
async fn is_ready(client: &reqwest::Client, url: &str) -> bool {
    let answer = client.get(format!("{url}/health")).send().await;
    match answer {
        Ok(answer) => match answer.json::<serde_json::Value>().await {
            Ok(health) => health.get("ready").is_none_or(|ready| ready == true),
            Err(_) => false,
        },
        Err(_) => false,
    }
}

/// A program in the folder of this one.
fn beside_this_program(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().map_err(|error| format!("find this program: {error}"))?;
    let program = this.with_file_name(name);
    if program.exists() {
        Ok(program)
    } else {
        Err(format!(
            "find {name} beside this program: build it in the same profile, or name it by --worker"
        ))
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    let listener =
        std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(|error| format!("find a free port: {error}"))?;
    listener
        .local_addr()
        .map(|address| address.port())
        .map_err(|error| format!("find a free port: {error}"))
}

/// Resident memory of a process (Linux: proc(5)).
fn rss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
    let kibibytes = status.lines().find_map(|line| {
        let rest = line.strip_prefix("VmRSS:")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    kibibytes
        .map(|count| count * 1024)
        .ok_or_else(|| format!("find VmRSS in {path}"))
}
