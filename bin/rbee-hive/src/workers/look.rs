//! Looks at a worker while it lives: where it listens, whether it is ready, and whether anybody needs it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hive_contract::ProcessState;
use serde::Deserialize;
use shared_contract::WorkerId;
use tokio::time::sleep;
use worker_contract::WorkerStatus;

use super::stop::retire;
use crate::App;
use crate::core::{Core, Worker};
use crate::idle::{self, Verdict};
use crate::introduce::{Knows, introduce};

/// Pause between two looks at a worker that starts.
const LOOK: Duration = Duration::from_millis(100);
/// Limit for a worker to answer how it is.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a worker announces.
#[derive(Debug, Deserialize)]
struct Announced {
    port: u16,
}

/// The part of a worker's `GET /health` that its hive reads.
#[derive(Debug, Deserialize)]
struct Health {
    worker_id: WorkerId,
    status: WorkerStatus,
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    progress: Option<f32>,
    /// Time since its last request, or since it was ready; `None` while it works.
    #[serde(default)]
    idle_ms: Option<u64>,
}

/// Does for a process what is to be done while it lives: learns its port, sees it become ready, tells it of queens, ends it
/// when nobody needs it.
pub(super) async fn accompany(app: Arc<App>, id: WorkerId, pid: u32) {
    let Some(port) = learn_port(&app, &id, pid).await else {
        return;
    };
    let base_url = app.launcher.base_url(port);
    let watched = async {
        if watch_start(&app, &base_url, &id, pid).await {
            watch_idleness(&app, &base_url, &id, pid).await;
        }
    };
    tokio::join!(
        watched,
        introduce(&app, &base_url, &id, pid, knows(&app.core, &id, pid))
    );
}

/// Which queens a process has from its command line.
fn knows(core: &Core, id: &WorkerId, pid: u32) -> Knows {
    let table = core.workers();
    let table = table.borrow();
    match table.get(id).and_then(|worker| worker.adopted_pid) {
        Some(adopted) if adopted == pid => Knows::OthersQueens,
        _ => Knows::OurQueens,
    }
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

/// Looks at a process that starts until it is ready or gone; `true` if it is ready.
async fn watch_start(app: &App, base_url: &str, id: &WorkerId, pid: u32) -> bool {
    let core = &app.core;
    let mut pause = looks();
    loop {
        pause.tick().await;
        if !lives(core, id, pid) {
            return false;
        }
        let Some(health) = health(app, base_url, id).await else {
            continue;
        };
        if matches!(health.status, WorkerStatus::Ready | WorkerStatus::Busy) {
            of_process(core, id, pid, |worker| {
                worker.step = None;
                worker.is_settled = true;
                if worker.state == ProcessState::Starting {
                    worker.state = ProcessState::Running;
                }
            });
            return true;
        }
        if health.status == WorkerStatus::Draining {
            // An earlier hive, or somebody else, asked it to, and did not say here how long it may take.
            of_process(core, id, pid, |worker| {
                worker.state = ProcessState::Stopping;
                worker.grace.get_or_insert(Duration::MAX);
            });
            return false;
        }
        let step = health.phase.map(|phase| (phase, health.progress));
        of_process(core, id, pid, |worker| worker.step = step);
    }
}

/// Stops a worker that nobody needed for as long as its order says.
async fn watch_idleness(app: &App, base_url: &str, id: &WorkerId, pid: u32) {
    let limit = app
        .core
        .workers()
        .borrow()
        .get(id)
        .and_then(|worker| worker.order.keep_alive);
    let Some(limit) = limit else {
        return;
    };
    loop {
        let idle = health(app, base_url, id).await.and_then(|health| health.idle_ms);
        // Whoever stops or drains it meanwhile has the say.
        if !runs(&app.core, id, pid) {
            return;
        }
        match idle::judge(limit, idle.map(Duration::from_millis)) {
            Verdict::LookAgain(pause) => sleep(pause).await,
            Verdict::Stop => {
                app.core.counters.idle_stops.inc();
                let why = format!("idle for {}", humantime::format_duration(limit));
                // It may have ended by itself meanwhile.
                let _ = retire(app, id, why).await;
                return;
            }
        }
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

fn runs(core: &Core, id: &WorkerId, pid: u32) -> bool {
    let table = core.workers();
    let table = table.borrow();
    table
        .get(id)
        .is_some_and(|worker| worker.pid == Some(pid) && worker.state == ProcessState::Running)
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

/// What a worker says of itself. Where another one answers, this one has not told its new port yet.
async fn health(app: &App, base_url: &str, id: &WorkerId) -> Option<Health> {
    let url = format!("{base_url}/health");
    let answer = app.http.get(url).timeout(HEALTH_TIMEOUT).send().await.ok()?;
    let health: Health = answer.json().await.ok()?;
    (health.worker_id == *id).then_some(health)
}
