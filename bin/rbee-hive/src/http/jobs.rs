//! `POST /v1/jobs`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use daemon::{ApiError, Json};
use hive_contract::{JobAccepted, Operation};

use super::Shared;
use crate::operations;

pub(super) async fn create(
    State(app): Shared,
    Json(operation): Json<Operation>,
) -> Result<(StatusCode, Json<JobAccepted>), ApiError> {
    let task = operations::check(&app.core, &operation).await?;
    let theirs = Arc::clone(&app);
    let job = app
        .jobs
        .start(operation, |job| operations::perform(theirs, task, job))?;
    Ok(::jobs::http::accepted(&job))
}
