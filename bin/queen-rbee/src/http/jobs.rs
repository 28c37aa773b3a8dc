//! `POST /v1/jobs` of the queen.

use std::sync::Arc;

use axum::extract::State as Shared;
use daemon::{ApiError, Json};
use hive_contract::JobAccepted;
use http::StatusCode;

use crate::State;
use crate::jobs::{self, JobRequest};

pub(super) async fn create(
    Shared(state): Shared<Arc<State>>,
    Json(request): Json<JobRequest>,
) -> Result<(StatusCode, Json<JobAccepted>), ApiError> {
    let job = jobs::start(&state, request)?;
    Ok(::jobs::http::accepted(&job))
}
