//! Operations on the model files: pull, list, get, verify, delete.

use std::sync::Arc;

use daemon::ApiError;
use hive_contract::{JobProgress, ModelDetail, ModelEntry, ModelFileEntry};
use jobs::{Failure, Job};
use model_store::{DamagedModel, ModelRef, ModelStore, StoreError, StoredModel};
use serde::Serialize;
use serde_json::{Value, json};
use shared_contract::{ErrorKind, WorkerId};

use super::{list as names, store_error};
use crate::App;
use crate::core::Core;
use crate::model_files::problem;
use crate::peers;

/// A model that somebody asks for.
pub(crate) enum Found {
    /// In the folder of models.
    Stored(StoredModel),
    /// There, too, but of no use.
    Damaged(DamagedModel),
    /// A `file:` reference: somebody else's file.
    InPlace(StoredModel),
}

/// A model in `model_list`.
#[derive(Debug, Serialize)]
struct ModelInList {
    #[serde(flatten)]
    entry: ModelEntry,
    /// When a worker last began to use it.
    last_used: Option<chrono::DateTime<chrono::Utc>>,
    /// Whether something uses it now, and it can be neither deleted nor pushed out by another.
    in_use: bool,
}

/// Fetches a model, from another hive if one has it; at once if it is here.
pub(crate) async fn pull(app: &App, model: &ModelRef, job: &Arc<Job>) -> Result<StoredModel, Failure> {
    let core = &app.core;
    job.step("resolve");
    let is_needed = !matches!(model, ModelRef::File(_)) && in_job(core.store.get(model).await)?.is_none();
    let peers = if is_needed {
        peers::holders(app, model).await
    } else {
        Vec::new()
    };
    if !peers.is_empty() {
        let hives = names(peers.iter().map(|peer| peer.name.as_str()));
        job.say(format!("other hives that have {}: {hives}", model.printable()));
    }
    let stored = core
        .store
        .pull_from(model, &peers, reporter(job), job.cancelled())
        .await;
    let stored = in_job(stored)?;
    relist(core).await;
    Ok(stored)
}

/// Passes a store's progress on to a job.
fn reporter(job: &Arc<Job>) -> impl Fn(model_store::Progress) + Send + Sync + 'static {
    let job = Arc::clone(job);
    move |progress| {
        job.progress(JobProgress {
            phase: progress.phase.as_str().to_owned(),
            done: progress.done_bytes,
            total: progress.total_bytes,
            unit: "bytes".to_owned(),
            per_second: progress.per_second,
            eta_s: progress.eta_s,
            source: progress.source.map(|source| source.to_string()),
        });
    }
}

fn in_job<T>(result: Result<T, StoreError>) -> Result<T, Failure> {
    result.map_err(|error| match error {
        StoreError::Cancelled => Failure::Cancelled,
        error => store_error(&error).into(),
    })
}

/// Looks at the folder anew, because something in it changed.
async fn relist(core: &Core) {
    if let Err(error) = core.refresh_models().await {
        tracing::warn!(%error, "the model files cannot be listed");
    }
}

/// `{"models": [..], "unreadable": [..], "catalogue": [..]}`: what is here, what nobody can tell what it was, and what
/// has a short name.
pub(crate) async fn list(core: &Core) -> Result<Value, ApiError> {
    let listed = core.refresh_models().await.map_err(|error| store_error(&error))?;
    let whole = listed.models.into_iter().map(|(model, entry)| ModelInList {
        entry,
        last_used: Some(model.last_used.into()),
        in_use: model.is_held || !users(core, &model.reference).is_empty(),
    });
    let damaged = listed.damaged.into_iter().map(|entry| ModelInList {
        entry,
        last_used: None,
        in_use: false,
    });
    let models: Vec<ModelInList> = whole.chain(damaged).collect();
    let unreadable: Vec<Value> = listed
        .unreadable
        .iter()
        .map(|model| json!({"path": model.path, "problem": problem(model)}))
        .collect();
    Ok(json!({ "models": models, "unreadable": unreadable, "catalogue": catalogue(&core.store) }))
}

fn catalogue(store: &ModelStore) -> Vec<Value> {
    let entry = |entry: &model_store::CatalogueEntry| {
        json!({
            "id": entry.id,
            "family": entry.family,
            "licence": entry.licence,
            "size_bytes": entry.size_bytes,
            "parameters": entry.parameters,
            "quantization": entry.quantization,
            "context_length": entry.context_length,
            "chat": entry.chat,
        })
    };
    store.catalogue().entries().iter().map(entry).collect()
}

/// The model that this text names: by reference, catalogue name or id; a damaged one by its path, too.
pub(super) async fn find(core: &Core, text: &str) -> Result<Found, ApiError> {
    if let Ok(reference @ ModelRef::File(_)) = text.parse() {
        return in_place(core, reference).await.map(Found::InPlace);
    }
    match core.store.find(text).await {
        Ok(stored) => Ok(Found::Stored(stored)),
        Err(error @ (StoreError::NotStored { .. } | StoreError::DamagedModel { .. })) => {
            let listing = core.store.list().await.map_err(|error| store_error(&error))?;
            let damaged = listing.damaged.into_iter().find(|model| is_named(model, text));
            damaged.map(Found::Damaged).ok_or_else(|| asked_for(&error))
        }
        Err(error) => Err(asked_for(&error)),
    }
}

fn is_named(model: &DamagedModel, text: &str) -> bool {
    model.id.as_ref().is_some_and(|id| id.as_str() == text)
        || model
            .reference
            .as_ref()
            .is_some_and(|reference| reference.to_string() == text)
        || model.path.to_str() == Some(text)
}

async fn in_place(core: &Core, reference: ModelRef) -> Result<StoredModel, ApiError> {
    let found = core.store.get(&reference).await.map_err(|error| asked_for(&error))?;
    found.ok_or_else(|| {
        let message = format!("there is no model at `{reference}` on this host");
        ApiError::new(ErrorKind::ModelNotFound, message).with_param("model")
    })
}

/// An error about the model of a request.
fn asked_for(error: &StoreError) -> ApiError {
    store_error(error).with_param("model")
}

/// A model of the folder that clients name by its id, and by its reference where several have the id.
pub(crate) async fn stored(core: &Core, id: &str, reference: Option<&str>) -> Result<StoredModel, ApiError> {
    let found = core.store.find(reference.unwrap_or(id)).await;
    let stored = found.map_err(|error| store_error(&error).with_param("id"))?;
    // Only what the store fetched is given out, and never a file of which somebody knows the path.
    if matches!(stored.reference, ModelRef::File(_)) || stored.id.as_str() != id {
        let message = format!("this hive has no model `{id}` from `{}`", stored.reference.printable());
        return Err(ApiError::new(ErrorKind::ModelNotFound, message).with_param("reference"));
    }
    Ok(stored)
}

/// A model of the folder with its files.
pub(crate) async fn detail(core: &Core, model: &StoredModel) -> Result<ModelDetail, StoreError> {
    let files = core.store.files(model).await?;
    Ok(ModelDetail {
        entry: core.entry(model).await,
        files: files
            .into_iter()
            .map(|file| ModelFileEntry {
                name: file.name,
                size_bytes: file.size_bytes,
                sha256: file.sha256,
            })
            .collect(),
    })
}

/// The model to show, if there is one to show.
pub(super) fn check_showable(model: Found, is_verified: bool) -> Result<StoredModel, ApiError> {
    match model {
        Found::Stored(stored) => Ok(stored),
        Found::Damaged(damaged) => {
            let message = format!("the model is damaged: {}", problem(&damaged));
            Err(ApiError::new(ErrorKind::Conflict, message).with_param("model"))
        }
        Found::InPlace(stored) if is_verified => {
            let message = format!(
                "`{}` has no checksum to compare with: only what the hive fetched has one",
                stored.reference.printable()
            );
            Err(ApiError::invalid("verify", message))
        }
        Found::InPlace(stored) => Ok(stored),
    }
}

/// One model with its files, read and compared with their checksums if that is asked for.
pub(super) async fn get(core: &Core, model: &StoredModel, is_verified: bool, job: &Arc<Job>) -> Result<Value, Failure> {
    if matches!(model.reference, ModelRef::File(_)) {
        // Nobody has computed the checksums of its files.
        return Ok(json!(ModelDetail {
            entry: core.entry(model).await,
            files: Vec::new(),
        }));
    }
    if is_verified {
        job.step("verify");
        in_job(core.store.verify(model, reporter(job), job.cancelled()).await)?;
    }
    Ok(json!(in_job(detail(core, model).await)?))
}

/// The workers of this hive that serve a model.
fn users(core: &Core, reference: &ModelRef) -> Vec<WorkerId> {
    let reference = reference.to_string();
    let table = core.workers().borrow().clone();
    let users = table
        .into_iter()
        .filter(|(_, worker)| worker.order.reference == reference);
    users.map(|(id, _)| id).collect()
}

/// Whether a model may be deleted, as far as can be told beforehand.
pub(super) fn check_removable(core: &Core, model: &Found) -> Result<(), ApiError> {
    match model {
        Found::Damaged(_) => Ok(()),
        Found::InPlace(stored) => {
            let message = format!(
                "`{}` is not in the hive's folder of models: whoever put the file there removes it",
                stored.reference.printable()
            );
            Err(ApiError::invalid("model", message))
        }
        Found::Stored(stored) => {
            let users = users(core, &stored.reference);
            if users.is_empty() && !stored.is_held {
                return Ok(());
            }
            Err(in_use(stored, &users))
        }
    }
}

fn in_use(model: &StoredModel, users: &[WorkerId]) -> ApiError {
    let reference = model.reference.printable();
    let message = if users.is_empty() {
        format!(
            "model `{reference}` is in use: a worker that this hive did not start, or a copy to another hive; try again when it has ended"
        )
    } else {
        let users = names(users.iter().map(WorkerId::as_str));
        format!("model `{reference}` is in use by {users}; stop what uses it first (worker_stop)")
    };
    ApiError::new(ErrorKind::Conflict, message).with_param("model")
}

/// Removes a model's files.
pub(super) async fn delete(core: &Core, model: &Found, job: &Job) -> Result<Value, Failure> {
    job.step("delete");
    // A worker may have begun to use it since the job was accepted.
    check_removable(core, model)?;
    let result = match model {
        Found::Stored(stored) => {
            match core.store.delete(stored).await {
                Err(StoreError::InUse { .. }) => Err(in_use(stored, &users(core, &stored.reference)).into()),
                other => in_job(other),
            }?;
            json!({
                "id": stored.id,
                "reference": stored.reference.to_string(),
                "freed_bytes": stored.size_bytes,
            })
        }
        Found::Damaged(damaged) => {
            in_job(core.store.delete_damaged(damaged).await)?;
            let reference = damaged.reference.as_ref().map(ModelRef::to_string);
            json!({"id": damaged.id, "reference": reference})
        }
        // Not removable, which was checked.
        Found::InPlace(_) => Value::Null,
    };
    relist(core).await;
    Ok(result)
}
