//! The hive's workers: how one is started, and what is learnt of it while it lives.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heartbeat_client::QueenUrl;
use hive_contract::{DeviceInfo, DeviceKind, ProcessState, WorkerExit};
use serde::Deserialize;
use shared_contract::{HiveId, ModelId, WorkerId};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use worker_contract::WorkerStatus;
use worker_supervisor::{Event, EventKind, Kept, Spec, State};

use crate::App;
use crate::changes::Change;
use crate::config::Config;
use crate::core::{Core, Worker};
use crate::introduce::introduce;

/// Pause between two looks at a worker that starts.
const LOOK: Duration = Duration::from_millis(100);
/// Limit for a worker to answer how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a worker gets beyond its grace period, to cut what is left and say goodbye, before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// How this hive starts workers.
#[derive(Debug, Clone)]
pub(crate) struct Launcher {
    program: OsString,
    leading_args: Vec<OsString>,
    host: IpAddr,
    advertise_host: Option<String>,
    token: Option<daemon::Secret>,
    insecure: bool,
    hive_id: HiveId,
    models_dir: PathBuf,
    announce_dir: PathBuf,
    grace: Duration,
}

/// What a worker is to serve.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) id: WorkerId,
    /// As the worker's `--model` takes it.
    pub(crate) reference: String,
    pub(crate) model: ModelId,
    pub(crate) device: DeviceInfo,
}

impl Launcher {
    pub(crate) fn new(config: &Config, hive_id: HiveId) -> Self {
        let mut words = config.worker_command.iter().cloned();
        Self {
            program: words.next().unwrap_or_default(),
            leading_args: words.collect(),
            host: config.worker_host,
            advertise_host: config.advertise_host.clone(),
            token: config.token.clone(),
            insecure: config.insecure,
            hive_id,
            models_dir: config.models_dir.clone(),
            announce_dir: config.state_dir.join("announced"),
            grace: config.grace,
        }
    }

    /// The worker program and the arguments that always come first.
    pub(crate) fn program(&self) -> (&OsString, &[OsString]) {
        (&self.program, &self.leading_args)
    }

    /// Where workers write the port that they listen on.
    pub(crate) fn announce_dir(&self) -> &Path {
        &self.announce_dir
    }

    /// How long a process that was asked to end may live on.
    pub(crate) fn stop_limit(&self) -> Duration {
        self.grace + FAREWELL
    }

    fn announce_file(&self, id: &WorkerId) -> PathBuf {
        self.announce_dir.join(format!("{id}.json"))
    }

    /// The command line for an order. The worker reports to these queens for as long as it is kept.
    fn spec(&self, order: &Order, queens: &[QueenUrl]) -> Spec {
        let announce = self.announce_file(&order.id);
        let mut args = self.leading_args.clone();
        let mut add = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            args.push(flag.into());
            args.push(value.as_ref().to_owned());
        };
        add("--model", &order.reference);
        add("--model-id", &order.model.as_str());
        add("--device", &order.device.id);
        add("--host", &self.host.to_string());
        add("--port", &"0");
        for url in queens {
            add("--queen-url", &url.as_str());
        }
        add("--hive-id", &self.hive_id.as_str());
        add("--worker-id", &order.id.as_str());
        add("--models-dir", &self.models_dir);
        add("--grace-s", &self.grace.as_secs().to_string());
        add("--announce", &announce);
        if let Some(host) = &self.advertise_host {
            add("--advertise-host", host);
        }
        if self.insecure {
            args.push("--insecure".into());
        }
        let mut env = Vec::new();
        if let Some(token) = &self.token {
            // Not as an argument: other users can read those.
            env.push(("RBEE_TOKEN".into(), token.expose().into()));
        }
        if order.device.kind == DeviceKind::Cuda {
            // CUDA's own order is fastest first; ours, NVML's, is that of the bus.
            env.push(("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()));
        }
        Spec {
            id: order.id.clone(),
            program: self.program.clone(),
            args,
            env,
            start_number: Some("RBEE_INCARNATION".into()),
            announce: Some(announce),
        }
    }

    /// Where this host reaches a worker that listens on `port`.
    fn base_url(&self, port: u16) -> String {
        let host = match self.host {
            IpAddr::V4(host) if host.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(host) if host.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            host => host,
        };
        format!("http://{}", SocketAddr::new(host, port))
    }
}

/// Starts a worker and keeps it.
pub(crate) fn start(
    core: &Core,
    launcher: &Launcher,
    order: &Order,
    queens: &[QueenUrl],
) -> Result<(), worker_supervisor::Error> {
    // It stands in the table before its first event comes.
    core.change_workers(|table| {
        let worker = Worker {
            model: order.model.clone(),
            device: order.device.id.clone(),
            state: ProcessState::Starting,
            pid: None,
            port: None,
            step: None,
            exit: None,
            reason: None,
            restarts: 0,
            log: PathBuf::new(),
        };
        table.insert(order.id.clone(), worker);
        Vec::new()
    });
    let started = core.supervisor.start(launcher.spec(order, queens));
    if started.is_err() {
        core.change_workers(|table| {
            table.remove(&order.id);
            Vec::new()
        });
    }
    started.map(drop)
}

/// Stops a worker; it is gone when this ends.
pub(crate) async fn stop(
    core: &Core,
    launcher: &Launcher,
    id: &WorkerId,
) -> Result<worker_supervisor::Ending, worker_supervisor::Error> {
    core.change_workers(|table| {
        if let Some(worker) = table.get_mut(id) {
            worker.state = ProcessState::Stopping;
        }
        Vec::new()
    });
    core.supervisor.stop(id, launcher.stop_limit()).await
}

/// Brings what happens to the processes into the table, for as long as it is polled.
pub(crate) async fn follow(app: Arc<App>, mut events: Receiver<Event>, http: reqwest::Client) {
    let core = &app.core;
    let mut looks = tokio::task::JoinSet::new();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // Ended looks are collected as they end, so that the set does not grow.
            Some(_) = looks.join_next() => continue,
        };
        let started = match event {
            Ok(Event { id, kind }) => {
                match &kind {
                    EventKind::Started { .. } => drop(core.counters.worker_starts.inc()),
                    EventKind::Exited { pid, reason, .. } => exited(core, &id, *pid, reason),
                    _ => {}
                }
                reconcile(core, &id).map(|pid| vec![(id, pid)]).unwrap_or_default()
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "worker events were missed, looking at all workers");
                let ids: Vec<WorkerId> = core.workers().borrow().keys().cloned().collect();
                ids.into_iter()
                    .filter_map(|id| reconcile(core, &id).map(|pid| (id, pid)))
                    .collect()
            }
            Err(RecvError::Closed) => return,
        };
        for (id, pid) in started {
            looks.spawn(accompany(Arc::clone(&app), http.clone(), id, pid));
        }
    }
}

/// A process has ended: the queens hear it at once.
fn exited(core: &Core, id: &WorkerId, pid: Option<u32>, reason: &str) {
    core.counters.worker_exits.inc();
    core.change_workers(|table| match table.get_mut(id) {
        // Where events were missed, the table may speak of a later process already.
        Some(worker) if worker.pid.is_none() || worker.pid == pid => {
            worker.pid = None;
            worker.port = None;
            worker.step = None;
            vec![removed(id, pid, reason)]
        }
        _ => Vec::new(),
    });
}

fn removed(id: &WorkerId, pid: Option<u32>, reason: &str) -> Change {
    Change::WorkerRemoved(WorkerExit {
        worker_id: id.clone(),
        reason: reason.to_owned(),
        pid,
    })
}

/// Makes the table say of a worker what its supervisor says. Returns the id of a process that is new.
fn reconcile(core: &Core, id: &WorkerId) -> Option<u32> {
    let kept = core.supervisor.get(id);
    let mut started = None;
    core.change_workers(|table| {
        let Some(kept) = kept else {
            // That it has ended was told, unless that event was missed; that it will not come back was not.
            let gone = table
                .remove(id)
                .filter(|worker| worker.pid.is_some() || worker.state == ProcessState::Restarting);
            return gone
                .map(|worker| removed(id, worker.pid, "ended"))
                .into_iter()
                .collect();
        };
        let Some(worker) = table.get_mut(id) else {
            return Vec::new();
        };
        let changes = match kept.pid {
            Some(pid) if worker.pid != Some(pid) => {
                started = Some(pid);
                worker.port = None;
                worker.state = ProcessState::Starting;
                vec![Change::WorkerAdded(id.clone())]
            }
            _ => Vec::new(),
        };
        adopt(worker, kept);
        changes
    });
    started
}

/// Takes over what the supervisor knows; what only a look at the worker tells stays as it is.
pub(crate) fn adopt(worker: &mut Worker, kept: Kept) {
    worker.pid = kept.pid;
    worker.restarts = kept.starts.saturating_sub(1);
    worker.exit = kept.exit;
    worker.reason = kept.reason;
    worker.log = kept.log;
    worker.state = match (kept.state, worker.state) {
        // Whether it is ready shows in a look at it.
        (State::Running, ProcessState::Running) => ProcessState::Running,
        (State::Running | State::Stopping, ProcessState::Stopping) | (State::Stopping, _) => ProcessState::Stopping,
        (State::Running, _) => ProcessState::Starting,
        (State::Restarting, _) => ProcessState::Restarting,
        (State::Failed, _) => ProcessState::Failed,
    };
}

/// What a worker announces.
#[derive(Debug, Deserialize)]
struct Announced {
    port: u16,
}

/// The part of a worker's `GET /health` that its hive reads.
#[derive(Debug, Deserialize)]
struct Health {
    status: WorkerStatus,
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    progress: Option<f32>,
}

/// Does for a process what is to be done while it lives: learns its port, sees it become ready, tells it of queens.
async fn accompany(app: Arc<App>, http: reqwest::Client, id: WorkerId, pid: u32) {
    let Some(port) = learn_port(&app, &id, pid).await else {
        return;
    };
    let base_url = app.launcher.base_url(port);
    tokio::join!(
        watch_start(&app.core, &http, &base_url, &id, pid),
        introduce(&app, &http, &base_url, &id, pid)
    );
}

/// Waits until a process has announced its port; `None` if it is gone before.
async fn learn_port(app: &App, id: &WorkerId, pid: u32) -> Option<u16> {
    let announce = app.launcher.announce_file(id);
    let mut pause = looks();
    loop {
        pause.tick().await;
        if !lives(&app.core, id, pid) {
            return None;
        }
        if let Some(port) = announced(&announce).await {
            of_process(&app.core, id, pid, |worker| worker.port = Some(port));
            return Some(port);
        }
    }
}

/// Looks at a process that starts until it is ready or gone.
async fn watch_start(core: &Core, http: &reqwest::Client, base_url: &str, id: &WorkerId, pid: u32) {
    let url = format!("{base_url}/health");
    let mut pause = looks();
    loop {
        pause.tick().await;
        if !lives(core, id, pid) {
            return;
        }
        let Some(health) = health(http, &url).await else {
            continue;
        };
        if matches!(health.status, WorkerStatus::Ready | WorkerStatus::Busy) {
            of_process(core, id, pid, |worker| {
                worker.step = None;
                if worker.state == ProcessState::Starting {
                    worker.state = ProcessState::Running;
                }
            });
            return;
        }
        let step = health.phase.map(|phase| (phase, health.progress));
        of_process(core, id, pid, |worker| worker.step = step);
    }
}

fn looks() -> tokio::time::Interval {
    let mut pause = tokio::time::interval(LOOK);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pause
}

fn lives(core: &Core, id: &WorkerId, pid: u32) -> bool {
    core.workers()
        .borrow()
        .get(id)
        .is_some_and(|worker| worker.pid == Some(pid))
}

/// Changes a worker, if it is still this process.
fn of_process(core: &Core, id: &WorkerId, pid: u32, change: impl FnOnce(&mut Worker)) {
    core.change_workers(|table| {
        if let Some(worker) = table.get_mut(id).filter(|worker| worker.pid == Some(pid)) {
            change(worker);
        }
        Vec::new()
    });
}

async fn announced(file: &Path) -> Option<u16> {
    let text = tokio::fs::read(file).await.ok()?;
    match serde_json::from_slice::<Announced>(&text) {
        Ok(announced) => Some(announced.port),
        Err(error) => {
            tracing::debug!(file = %file.display(), %error, "what the worker announced is not understood");
            None
        }
    }
}

async fn health(http: &reqwest::Client, url: &str) -> Option<Health> {
    let answer = http.get(url).timeout(HEALTH_TIMEOUT).send().await.ok()?;
    answer.json().await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launcher(host: &str) -> Launcher {
        Launcher {
            program: "rbee".into(),
            leading_args: vec!["worker".into()],
            host: host.parse().unwrap(),
            advertise_host: Some("gpu-box".into()),
            token: Some("a-long-secret".parse().unwrap()),
            insecure: false,
            hive_id: HiveId::new("hive-1").unwrap(),
            models_dir: "/models".into(),
            announce_dir: "/state/announced".into(),
            grace: Duration::from_secs(30),
        }
    }

    fn spec(device: &str) -> Spec {
        let order = Order {
            id: WorkerId::new("worker-1").unwrap(),
            reference: "example".into(),
            model: ModelId::new("example").unwrap(),
            device: DeviceInfo {
                id: device.into(),
                kind: device.parse().unwrap(),
                name: String::new(),
                memory_total_mb: 0,
                uuid: None,
                compute_capability: None,
            },
        };
        let queens = ["http://a:1", "http://b:2"].map(|url| url.parse().unwrap());
        launcher("0.0.0.0").spec(&order, &queens)
    }

    #[test]
    fn a_worker_is_told_its_model_its_device_and_every_queen() {
        let spec = spec("cpu");
        let args: Vec<_> = spec.args.iter().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!((spec.program.to_str(), args[0]), (Some("rbee"), "worker"));
        let line = args.join(" ");
        for part in [
            "--model example --model-id example --device cpu --host 0.0.0.0 --port 0",
            "--queen-url http://a:1 --queen-url http://b:2",
            "--hive-id hive-1 --worker-id worker-1",
            "--announce /state/announced/worker-1.json",
            "--advertise-host gpu-box",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn the_token_goes_by_the_environment_where_other_users_cannot_read_it() {
        let spec = spec("cpu");
        assert!(spec.args.iter().all(|arg| arg != "a-long-secret"));
        assert_eq!(spec.env, [("RBEE_TOKEN".into(), "a-long-secret".into())]);
    }

    #[test]
    fn a_cuda_worker_counts_devices_as_its_hive_does() {
        assert!(
            spec("cuda:1")
                .env
                .contains(&("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into()))
        );
    }

    #[test]
    fn a_worker_is_asked_and_told_where_this_host_reaches_it() {
        assert_eq!(launcher("0.0.0.0").base_url(1), "http://127.0.0.1:1");
        assert_eq!(launcher("::").base_url(1), "http://[::1]:1");
        assert_eq!(launcher("10.0.0.1").base_url(1), "http://10.0.0.1:1");
    }
}
