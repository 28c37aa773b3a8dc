//! The endpoints that all daemons have for their jobs. Taking an order is each daemon's own: `POST /v1/jobs`, answered with
//! [`accepted`].

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use daemon::{ApiError, Json, sse};
use futures_util::StreamExt;
use hive_contract::{JobAccepted, JobList, JobStatus};
use http::{HeaderMap, StatusCode};
use shared_contract::ErrorKind;

use crate::{Job, Jobs, Order};

/// `GET /v1/jobs`, `GET` and `DELETE /v1/jobs/{id}`, `GET /v1/jobs/{id}/stream`.
pub fn routes<O: Order, S>(jobs: Jobs<O>) -> Router<S> {
    Router::new()
        .route("/v1/jobs", get(list::<O>))
        .route("/v1/jobs/{id}", get(status::<O>).delete(cancel::<O>))
        .route("/v1/jobs/{id}/stream", get(stream::<O>))
        .with_state(jobs)
}

/// Answers that a job has been started.
pub fn accepted<O: Order>(job: &Job<O>) -> (StatusCode, Json<JobAccepted>) {
    let accepted = JobAccepted {
        job_id: job.id().to_owned(),
        stream_url: format!("/v1/jobs/{}/stream", job.id()),
    };
    (StatusCode::ACCEPTED, Json(accepted))
}

/// All jobs, without the results of those that are over: each is shown with its job, and together they can be long.
async fn list<O: Order>(State(jobs): State<Jobs<O>>) -> Json<JobList<O>> {
    let jobs = jobs.list().iter().map(|job| job.status_without_result()).collect();
    Json(JobList { jobs })
}

async fn status<O: Order>(State(jobs): State<Jobs<O>>, Path(id): Path<String>) -> Result<Json<JobStatus<O>>, ApiError> {
    Ok(Json(find(&jobs, &id)?.status()))
}

/// 202 while the job cleans up, 200 if it was over before.
async fn cancel<O: Order>(
    State(jobs): State<Jobs<O>>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<JobStatus<O>>), ApiError> {
    let job = find(&jobs, &id)?;
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
async fn stream<O: Order>(
    State(jobs): State<Jobs<O>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = find(&jobs, &id)?;
    let seen = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let events = job.events(seen);
    Ok(sse::response(
        events.map(|event| sse::event(&event).id(event.seq.to_string())),
    ))
}

fn find<O: Order>(jobs: &Jobs<O>, id: &str) -> Result<Arc<Job<O>>, ApiError> {
    jobs.get(id).ok_or_else(|| {
        let message = format!("there is no job `{id}` here; those there are can be listed at /v1/jobs");
        ApiError::new(ErrorKind::NotFound, message)
    })
}
