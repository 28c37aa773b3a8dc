//! What the hive can be asked to do: checked before a job is accepted, then done step by step.

mod devices;
pub(crate) mod models;
mod spawn;
pub(crate) mod workers;

use std::sync::Arc;
use std::time::Duration;

use daemon::ApiError;
use hive_contract::Operation;
use jobs::{Failure, Job};
use model_store::{ModelRef, ModelRefError, StoreError, StoredModel};
use serde_json::{Value, json};
use shared_contract::{ErrorKind, OperationalStatus, WorkerId};
use worker_contract::MAX_GRACE_S;

use crate::App;
use crate::core::Core;

/// An operation that can be done here.
pub(crate) enum Task {
    Spawn(spawn::Plan),
    ListWorkers,
    GetWorker {
        worker_id: WorkerId,
    },
    Stop {
        worker_id: WorkerId,
        grace: Option<Duration>,
    },
    Drain {
        worker_id: WorkerId,
    },
    Logs(workers::Logs),
    Pull {
        model: ModelRef,
    },
    ListModels,
    GetModel {
        model: StoredModel,
        is_verified: bool,
    },
    DeleteModel {
        model: models::Found,
    },
    ListDevices,
}

/// Checks what is asked for against what there is.
pub(crate) async fn check(core: &Core, operation: &Operation) -> Result<Task, ApiError> {
    if core.status() != OperationalStatus::Ready {
        return Err(ApiError::new(
            ErrorKind::Draining,
            "this hive is shutting down and takes no jobs",
        ));
    }
    match operation {
        Operation::WorkerSpawn { .. } => Ok(Task::Spawn(spawn::check(core, operation)?)),
        Operation::WorkerList {} => Ok(Task::ListWorkers),
        Operation::WorkerGet { worker_id } => Ok(Task::GetWorker {
            worker_id: workers::known(core, worker_id)?,
        }),
        Operation::WorkerStop { worker_id, grace_s } => Ok(Task::Stop {
            worker_id: workers::known(core, worker_id)?,
            grace: grace_s.map(grace).transpose()?,
        }),
        Operation::WorkerDrain { worker_id } => Ok(Task::Drain {
            worker_id: workers::known(core, worker_id)?,
        }),
        Operation::WorkerLogs {
            worker_id,
            lines,
            follow,
        } => Ok(Task::Logs(workers::open_logs(core, worker_id, *lines, *follow)?)),
        Operation::ModelPull { model } => Ok(Task::Pull {
            model: model_ref(core, model)?,
        }),
        Operation::ModelList {} => Ok(Task::ListModels),
        Operation::ModelGet { model, verify } => Ok(Task::GetModel {
            model: models::check_showable(models::find(core, model).await?, *verify)?,
            is_verified: *verify,
        }),
        Operation::ModelDelete { model } => {
            let model = models::find(core, model).await?;
            models::check_removable(core, &model)?;
            Ok(Task::DeleteModel { model })
        }
        Operation::DeviceList {} => Ok(Task::ListDevices),
    }
}

/// Time that requests may take.
fn grace(seconds: u64) -> Result<Duration, ApiError> {
    if seconds > MAX_GRACE_S {
        let message = format!("at most {MAX_GRACE_S}; worker_drain waits for as long as it takes");
        return Err(ApiError::invalid("grace_s", message));
    }
    Ok(Duration::from_secs(seconds))
}

/// Does it.
pub(crate) async fn perform(app: Arc<App>, task: Task, job: Arc<Job>) -> Result<Value, Failure> {
    match task {
        Task::Spawn(plan) => spawn::perform(&app, plan, &job).await,
        Task::ListWorkers => Ok(workers::list(&app.core)),
        Task::GetWorker { worker_id } => Ok(workers::get(&app.core, &worker_id)?),
        Task::Stop { worker_id, grace } => workers::stop(&app, &worker_id, grace, &job).await,
        Task::Drain { worker_id } => workers::drain(&app, &worker_id, &job).await,
        Task::Logs(logs) => workers::logs(logs, &job).await,
        Task::Pull { model } => {
            let stored = models::pull(&app, &model, &job).await?;
            Ok(json!(app.core.entry(&stored).await))
        }
        Task::ListModels => Ok(models::list(&app.core).await?),
        Task::GetModel { model, is_verified } => models::get(&app.core, &model, is_verified, &job).await,
        Task::DeleteModel { model } => models::delete(&app.core, &model, &job).await,
        Task::ListDevices => Ok(devices::list(&app.core)),
    }
}

/// The store's word on why something cannot be done, as a client reads it.
pub(crate) fn store_error(error: &StoreError) -> ApiError {
    let kind = match error {
        StoreError::UnknownModel { .. } | StoreError::NotStored { .. } => ErrorKind::ModelNotFound,
        StoreError::InUse { .. }
        | StoreError::Ambiguous { .. }
        | StoreError::Damaged { .. }
        | StoreError::DamagedModel { .. } => ErrorKind::Conflict,
        StoreError::NoSpace { .. } | StoreError::NoRoom { .. } | StoreError::DiskFull { .. } => ErrorKind::NoCapacity,
        _ => ErrorKind::Internal,
    };
    ApiError::new(kind, format!("failed to {error}"))
}

/// A reference that can be fetched.
fn model_ref(core: &Core, text: &str) -> Result<ModelRef, ApiError> {
    let reference: ModelRef = text
        .parse()
        .map_err(|error: ModelRefError| ApiError::invalid("model", error.to_string()))?;
    core.store
        .resolve(&reference)
        .map_err(|error| store_error(&error).with_param("model"))?;
    Ok(reference)
}

/// Names in a sentence.
fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
