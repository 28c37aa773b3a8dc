//! Operations on the workers that there are: list, get, stop, drain, logs.

use std::pin::pin;
use std::time::Duration;

use daemon::ApiError;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use hive_contract::ProcessStats;
use jobs::{Failure, Job};
use serde::Serialize;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, WorkerId};
use worker_supervisor::Ending;

use super::list as names;
use crate::App;
use crate::core::Core;
use crate::workers;

/// Lines of a log that are shown where no number is asked for.
const LINES: u32 = 100;
/// Most lines of a log that can be asked for.
const MAX_LINES: u32 = 10_000;
/// Lines that one event tells at most, of those that are there at once: far fewer events than a job remembers.
const LINES_PER_EVENT: usize = 100;

/// A worker in lists: what is measured of its process, and what its hive knows.
#[derive(Debug, Serialize)]
struct WorkerEntry {
    #[serde(flatten)]
    stats: ProcessStats,
    /// How it last ended, or why it is not started again.
    reason: Option<String>,
    restarts: u32,
    /// File with what it prints, on the hive's host.
    log: String,
}

/// The lines of a worker's log, still to be passed on.
pub(crate) struct Logs {
    worker_id: WorkerId,
    lines: BoxStream<'static, String>,
}

/// The id, if this hive has a worker of that name.
pub(super) fn known(core: &Core, worker_id: &WorkerId) -> Result<WorkerId, ApiError> {
    // Some stand in the table only: those that are about to be started, and those that wait for their device.
    if core.workers().borrow().contains_key(worker_id) || core.supervisor.get(worker_id).is_some() {
        return Ok(worker_id.clone());
    }
    Err(unknown(core, worker_id))
}

fn unknown(core: &Core, worker_id: &WorkerId) -> ApiError {
    let there = core.workers().borrow().clone();
    let there = names(there.keys().map(WorkerId::as_str));
    let message = format!("this hive has no worker `{worker_id}`; it has {there}");
    ApiError::new(ErrorKind::NotFound, message).with_param("worker_id")
}

fn entries(core: &Core) -> Vec<WorkerEntry> {
    let table = core.workers().borrow().clone();
    let entry = |stats: ProcessStats| {
        let worker = table.get(stats.worker_id.as_ref()?)?;
        Some(WorkerEntry {
            reason: worker.reason.clone(),
            restarts: worker.restarts,
            log: worker.log.display().to_string(),
            stats,
        })
    };
    let (_, stats) = core.measure();
    stats.into_iter().filter_map(entry).collect()
}

/// All workers: `{"workers": [..]}`.
pub(crate) fn list(core: &Core) -> Value {
    json!({ "workers": entries(core) })
}

/// One of them.
pub(super) fn get(core: &Core, worker_id: &WorkerId) -> Result<Value, ApiError> {
    let entry = entries(core)
        .into_iter()
        .find(|entry| entry.stats.worker_id.as_ref() == Some(worker_id));
    entry.map(|entry| json!(entry)).ok_or_else(|| unknown(core, worker_id))
}

/// Ends a worker, which may finish its requests within the grace period.
pub(super) async fn stop(
    app: &App,
    worker_id: &WorkerId,
    grace: Option<Duration>,
    job: &Job,
) -> Result<Value, Failure> {
    job.step("stop");
    let grace_s = grace.unwrap_or(app.config.grace).as_secs();
    job.say(format!(
        "stopping worker {worker_id}: it may finish its requests within {grace_s} s"
    ));
    let how = match workers::stop(app, worker_id, grace).await {
        Ok(Ending::Killed) => "killed",
        // An error: it ended by itself since the job was accepted, which is what was wanted.
        Ok(Ending::Ended) | Err(_) => "stopped",
    };
    Ok(json!({"worker_id": worker_id, "how": how}))
}

/// Ends a worker once it has finished its requests, however long they take.
pub(super) async fn drain(app: &App, worker_id: &WorkerId, job: &Job) -> Result<Value, Failure> {
    job.step("drain");
    let mut table = app.core.workers();
    let process = table.borrow().get(worker_id).and_then(|worker| worker.pid);
    if process.is_some() {
        workers::drain(app, worker_id).await?;
        job.say(format!(
            "worker {worker_id} takes no new requests, and ends when those that it has are answered"
        ));
        // It goes, or another process takes its place.
        let gone = table.wait_for(|table| table.get(worker_id).is_none_or(|worker| worker.pid != process));
        tokio::select! {
            _ = gone => {}
            () = job.cancelled().cancelled() => {
                job.say(format!(
                    "worker {worker_id} goes on draining, which cannot be taken back; worker_stop ends it sooner"
                ));
                return Err(Failure::Cancelled);
            }
        }
    }
    // One that broke while it drained would be started again. That it is not kept any more is what is wanted.
    let _ = workers::stop(app, worker_id, Some(Duration::ZERO)).await;
    Ok(json!({"worker_id": worker_id, "how": "drained"}))
}

/// Finds the log of a worker that is there, or was not long ago.
pub(super) fn open_logs(
    core: &Core,
    worker_id: &WorkerId,
    lines: Option<u32>,
    is_followed: bool,
) -> Result<Logs, ApiError> {
    let lines = lines.unwrap_or(LINES);
    if lines > MAX_LINES {
        let message = format!(
            "lines: at most {MAX_LINES}; all of them are in the file that worker_get names as `log`, on the hive's host"
        );
        return Err(ApiError::invalid("lines", message));
    }
    let lines = core.supervisor.log_lines(worker_id, lines as usize, is_followed);
    let lines = lines.map_err(|_| unknown(core, worker_id))?;
    Ok(Logs {
        worker_id: worker_id.clone(),
        lines: lines.boxed(),
    })
}

/// Passes the lines on, until the log ends or the job is cancelled.
pub(super) async fn logs(logs: Logs, job: &Job) -> Result<Value, Failure> {
    job.step("logs");
    let lines = logs.lines.take_until(job.cancelled().cancelled().boxed());
    let mut lines = pin!(lines.ready_chunks(LINES_PER_EVENT));
    let mut count = 0;
    while let Some(lines) = lines.next().await {
        count += lines.len();
        job.say(lines.join("\n"));
    }
    if job.cancelled().is_cancelled() {
        return Err(Failure::Cancelled);
    }
    Ok(json!({"worker_id": logs.worker_id, "lines": count}))
}
