//! Jobs over HTTP.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use daemon::{ApiError, Json, sse};
use futures_util::StreamExt;
use hive_contract::{JobAccepted, JobStatus, Operation};
use serde::Serialize;
use shared_contract::ErrorKind;

use super::Shared;
use crate::jobs::Job;
use crate::{App, operations};

pub(super) async fn create(
    State(app): Shared,
    Json(operation): Json<Operation>,
) -> Result<(StatusCode, Json<JobAccepted>), ApiError> {
    let task = operations::check(&app.core, &operation).await?;
    let theirs = Arc::clone(&app);
    let job = app.jobs.start(operation, &app.core.counters, |job| {
        operations::perform(theirs, task, job)
    })?;
    let accepted = JobAccepted {
        job_id: job.id.clone(),
        stream_url: format!("/v1/jobs/{}/stream", job.id),
    };
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// Answer to `GET /v1/jobs`.
#[derive(Debug, Serialize)]
pub(super) struct JobList {
    jobs: Vec<JobStatus>,
}

pub(super) async fn list(State(app): Shared) -> Json<JobList> {
    let jobs = app.jobs.list().iter().map(|job| job.status()).collect();
    Json(JobList { jobs })
}

pub(super) async fn get(State(app): Shared, Path(id): Path<String>) -> Result<Json<JobStatus>, ApiError> {
    Ok(Json(find(&app, &id)?.status()))
}

/// 202 while the job cleans up, 200 if it was over before.
pub(super) async fn cancel(
    State(app): Shared,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<JobStatus>), ApiError> {
    let job = find(&app, &id)?;
    job.cancelled().cancel();
    let status = job.status();
    let code = if status.state.is_final() {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    Ok((code, Json(status)))
}

/// All events from the start, or after the one that a reader who comes back has seen last.
pub(super) async fn stream(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&app, &id)?;
    let seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let events = job.events(seen);
    Ok(sse::response(
        events.map(|event| sse::event(&event).id(event.seq.to_string())),
    ))
}

fn find(app: &App, id: &str) -> Result<Arc<Job>, ApiError> {
    app.jobs.get(id).ok_or_else(|| {
        let message = format!("there is no job `{id}` here; those there are can be listed at /v1/jobs");
        ApiError::new(ErrorKind::NotFound, message)
    })
}
