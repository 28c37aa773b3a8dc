//! What the hive can be asked to do: checked before a job is accepted, then done step by step.

use std::sync::Arc;

use daemon::ApiError;
use hive_contract::{DeviceInfo, DeviceKind, JobProgress, Operation, ProcessState, ProcessStats};
use model_store::{ModelRef, StoreError, StoredModel};
use serde::Serialize;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, OperationalStatus, WorkerId};
use worker_supervisor::{Ending, Exit};

use crate::App;
use crate::core::{self, Core, Worker};
use crate::jobs::{Failure, Job};
use crate::workers::{self, Order};

/// Lines of its log that are quoted when a worker does not come up.
const QUOTED_LINES: usize = 10;

/// A worker in lists: what is measured of its process, and what its hive knows.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerEntry {
    #[serde(flatten)]
    stats: ProcessStats,
    /// How it last ended, or why it is not started again.
    reason: Option<String>,
    restarts: u32,
    /// File with what it prints, on the hive's host.
    log: String,
}

/// An operation that can be done here.
#[derive(Debug)]
pub(crate) enum Task {
    Spawn { model: ModelRef, device: DeviceInfo },
    ListWorkers,
    Stop { worker_id: WorkerId },
    Pull { model: ModelRef },
    ListModels,
}

/// Checks what is asked for against what there is.
pub(crate) fn check(core: &Core, operation: &Operation) -> Result<Task, ApiError> {
    if core.status() != OperationalStatus::Ready {
        return Err(ApiError::new(
            ErrorKind::Draining,
            "this hive is shutting down and takes no jobs",
        ));
    }
    match operation {
        Operation::WorkerSpawn { model, worker, device } => Ok(Task::Spawn {
            model: model_ref(core, model)?,
            device: pick_device(core.devices(), *worker, device.as_deref())?,
        }),
        Operation::WorkerList => Ok(Task::ListWorkers),
        Operation::WorkerStop { worker_id } => {
            if core.supervisor.get(worker_id).is_none() {
                let there = core.supervisor.list();
                let there = list(there.iter().map(|kept| kept.id.as_str()));
                let message = format!("this hive has no worker `{worker_id}`; it has {there}");
                return Err(ApiError::new(ErrorKind::NotFound, message).with_param("worker_id"));
            }
            Ok(Task::Stop {
                worker_id: worker_id.clone(),
            })
        }
        Operation::ModelPull { model } => Ok(Task::Pull {
            model: model_ref(core, model)?,
        }),
        Operation::ModelList => Ok(Task::ListModels),
    }
}

/// Does it.
pub(crate) async fn perform(app: Arc<App>, task: Task, job: Arc<Job>) -> Result<Value, Failure> {
    match task {
        Task::Spawn { model, device } => spawn(&app, model, device, &job).await,
        Task::ListWorkers => Ok(list_workers(&app.core)),
        Task::Stop { worker_id } => stop(&app, &worker_id, &job).await,
        Task::Pull { model } => {
            let stored = pull(&app.core, &model, &job).await?;
            Ok(json!(core::entry(stored)))
        }
        Task::ListModels => Ok(list_models(&app.core).await?),
    }
}

pub(crate) fn list_workers(core: &Core) -> Value {
    let table = core.workers().borrow().clone();
    let entries: Vec<WorkerEntry> = core
        .process_stats()
        .into_iter()
        .filter_map(|stats| {
            let worker = table.get(stats.worker_id.as_ref()?)?;
            Some(WorkerEntry {
                reason: worker.reason.clone(),
                restarts: worker.restarts,
                log: worker.log.display().to_string(),
                stats,
            })
        })
        .collect();
    json!({ "workers": entries })
}

pub(crate) async fn list_models(core: &Core) -> Result<Value, ApiError> {
    let models = core.refresh_models().await.map_err(|error| store_error(&error))?;
    let catalogue: Vec<Value> = core
        .store
        .catalogue()
        .entries()
        .iter()
        .map(|entry| {
            json!({
                "id": entry.id,
                "family": entry.family,
                "licence": entry.licence,
                "size_bytes": entry.size_bytes,
                "context_length": entry.context_length,
                "chat": entry.chat,
            })
        })
        .collect();
    Ok(json!({ "models": models, "catalogue": catalogue }))
}

async fn stop(app: &App, worker_id: &WorkerId, job: &Job) -> Result<Value, Failure> {
    job.say(format!("stopping worker {worker_id}: it may finish its requests"));
    match workers::stop(&app.core, &app.launcher, worker_id).await {
        Ok(Ending::Ended) => Ok(json!({"worker_id": worker_id, "how": "stopped"})),
        Ok(Ending::Killed) => Ok(json!({"worker_id": worker_id, "how": "killed"})),
        // It ended by itself since the job was accepted, which is what was wanted.
        Err(_) => Ok(json!({"worker_id": worker_id, "how": "stopped"})),
    }
}

async fn pull(core: &Core, model: &ModelRef, job: &Arc<Job>) -> Result<StoredModel, Failure> {
    let reporter = Arc::clone(job);
    let report = move |progress: model_store::Progress| {
        reporter.progress(JobProgress {
            phase: progress.phase.as_str().to_owned(),
            done: progress.done_bytes,
            total: progress.total_bytes,
            unit: "bytes".to_owned(),
        });
    };
    let stored = match core.store.pull(model, report, job.cancelled()).await {
        Ok(stored) => stored,
        Err(StoreError::Cancelled) => return Err(Failure::Cancelled),
        Err(error) => return Err(store_error(&error).into()),
    };
    if let Err(error) = core.refresh_models().await {
        tracing::warn!(%error, "the model files cannot be listed");
    }
    Ok(stored)
}

async fn spawn(app: &App, model: ModelRef, device: DeviceInfo, job: &Arc<Job>) -> Result<Value, Failure> {
    let stored = pull(&app.core, &model, job).await?;
    let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let order = Order {
        id: WorkerId::new(format!("worker-{random}")).map_err(ApiError::internal)?,
        reference: model.to_string(),
        model: stored.id,
        device,
    };
    job.say(format!(
        "starting worker {} for {} on {}",
        order.id, order.model, order.device.id
    ));
    workers::start(&app.core, &app.launcher, &order, &app.queens.urls()).map_err(|error| start_error(&error))?;
    let outcome = tokio::select! {
        outcome = until_ready(&app.core, &order, job) => outcome,
        () = tokio::time::sleep(app.config.load_timeout) => Err(too_late(app, &order.id)),
        () = job.cancelled().cancelled() => Err(Failure::Cancelled),
    };
    let worker = match outcome {
        Ok(worker) => worker,
        Err(failure) => {
            // What was not wanted, or did not come up, is not left behind. It may have ended already.
            let _ = workers::stop(&app.core, &app.launcher, &order.id).await;
            return Err(failure);
        }
    };
    Ok(json!({
        "worker_id": order.id,
        "model": order.model,
        "device": order.device.id,
        "port": worker.port,
        "pid": worker.pid,
    }))
}

/// Waits until the worker is ready. One that ends by itself before says that it cannot; one that is killed is started
/// again by its supervisor.
async fn until_ready(core: &Core, order: &Order, job: &Job) -> Result<Worker, Failure> {
    let mut table = core.workers();
    loop {
        let worker = table.borrow_and_update().get(&order.id).cloned();
        let Some(worker) = worker else {
            return Err(did_not_come_up(core, &order.id, "it was stopped").into());
        };
        match worker.state {
            ProcessState::Running => return Ok(worker),
            ProcessState::Stopping => return Err(did_not_come_up(core, &order.id, "it was stopped").into()),
            ProcessState::Restarting | ProcessState::Failed => {
                let reason = worker.reason.unwrap_or_default();
                let was_killed = matches!(worker.exit, Some(Exit::Signal(_)));
                if worker.state == ProcessState::Failed || !was_killed {
                    return Err(did_not_come_up(core, &order.id, &reason).into());
                }
                job.say(format!("worker {}: {reason}; it is being started again", order.id));
            }
            ProcessState::Starting => {
                if let Some((phase, share)) = worker.step {
                    job.progress(JobProgress {
                        phase,
                        done: (share.unwrap_or(0.0) * 100.0) as u64,
                        total: share.map(|_| 100),
                        unit: "percent".to_owned(),
                    });
                }
            }
        }
        if table.changed().await.is_err() {
            return Err(did_not_come_up(core, &order.id, "the hive is ending").into());
        }
    }
}

fn did_not_come_up(core: &Core, id: &WorkerId, reason: &str) -> ApiError {
    let lines = core.supervisor.log_tail(id, QUOTED_LINES);
    let said = if lines.is_empty() {
        "it printed nothing".to_owned()
    } else {
        format!("its last lines were:\n{}", lines.join("\n"))
    };
    ApiError::new(
        ErrorKind::Internal,
        format!("failed to start worker {id}: {reason}; {said}"),
    )
}

fn too_late(app: &App, id: &WorkerId) -> Failure {
    let seconds = app.config.load_timeout.as_secs();
    let reason = format!("it was not ready within {seconds} s; a longer time can be set with --load-timeout-s");
    did_not_come_up(&app.core, id, &reason).into()
}

fn start_error(error: &worker_supervisor::Error) -> ApiError {
    use worker_supervisor::Error;
    let kind = match error {
        Error::TooMany { .. } => ErrorKind::NoCapacity,
        Error::Closed(_) => ErrorKind::Draining,
        _ => ErrorKind::Internal,
    };
    let remedy = match error {
        Error::Spawn { .. } => "; the worker program can be set with --worker-command of the hive",
        _ => "",
    };
    ApiError::new(kind, format!("failed to {error}{remedy}"))
}

fn store_error(error: &StoreError) -> ApiError {
    let kind = match error {
        StoreError::UnknownModel { .. } => ErrorKind::ModelNotFound,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, format!("failed to {error}"))
}

fn model_ref(core: &Core, text: &str) -> Result<ModelRef, ApiError> {
    let reference: ModelRef = text
        .parse()
        .map_err(|error: model_store::ModelRefError| ApiError::invalid("model", error.to_string()))?;
    core.store
        .resolve(&reference)
        .map_err(|error| store_error(&error).with_param("model"))?;
    Ok(reference)
}

/// The device that was asked for, or the first of the kind.
fn pick_device(
    devices: Vec<DeviceInfo>,
    kind: Option<DeviceKind>,
    wanted: Option<&str>,
) -> Result<DeviceInfo, ApiError> {
    let there = list(devices.iter().map(|device| device.id.as_str()));
    let Some(id) = wanted else {
        let kind = kind.unwrap_or_default();
        let first = devices.into_iter().find(|device| device.kind == kind);
        return first.ok_or_else(|| {
            let message = format!("this host has no device for a {kind} worker; it has {there}");
            ApiError::invalid("worker", message)
        });
    };
    let Some(device) = devices.into_iter().find(|device| device.id == id) else {
        let message = format!("this host has no device `{id}`; it has {there}");
        return Err(ApiError::invalid("device", message));
    };
    match kind {
        Some(kind) if kind != device.kind => {
            let message = format!("device `{id}` takes a {} worker, not a {kind} worker", device.kind);
            Err(ApiError::invalid("worker", message))
        }
        _ => Ok(device),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Vec<DeviceInfo> {
        let device = |id: &str| DeviceInfo {
            id: id.into(),
            kind: id.parse().unwrap(),
            name: String::new(),
            memory_total_mb: 0,
            uuid: None,
            compute_capability: None,
        };
        vec![device("cpu"), device("cuda:0"), device("cuda:1")]
    }

    fn pick(kind: Option<DeviceKind>, wanted: Option<&str>) -> Result<String, String> {
        pick_device(devices(), kind, wanted)
            .map(|device| device.id)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_device_follows_from_what_is_asked_for() {
        assert_eq!(pick(None, None), Ok("cpu".into()));
        assert_eq!(pick(Some(DeviceKind::Cuda), None), Ok("cuda:0".into()));
        assert_eq!(pick(None, Some("cuda:1")), Ok("cuda:1".into()));
        assert_eq!(pick(Some(DeviceKind::Cuda), Some("cuda:1")), Ok("cuda:1".into()));
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_with_those_that_are() {
        for wrong in [pick(Some(DeviceKind::Metal), None), pick(None, Some("cuda:7"))] {
            assert!(wrong.unwrap_err().contains("cpu, cuda:0, cuda:1"));
        }
        let mismatch = pick(Some(DeviceKind::Cpu), Some("cuda:0")).unwrap_err();
        assert!(mismatch.contains("takes a cuda worker"), "{mismatch}");
    }
}
