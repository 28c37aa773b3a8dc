//! `GET /v1/traffic`: the last hour of requests.

use std::sync::Arc;

use axum::extract::State as Shared;
use daemon::{ApiError, Json, Query};
use serde::Deserialize;

use crate::State;
use crate::traffic::TrafficAnswer;

/// Which part of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// Only points that began later, in seconds since the epoch; left out: the whole hour.
    after: Option<i64>,
}

pub(super) async fn traffic(
    Shared(state): Shared<Arc<State>>,
    part: Result<Query<Part>, ApiError>,
) -> Result<Json<TrafficAnswer>, ApiError> {
    let Query(Part { after }) = part?;
    Ok(Json(TrafficAnswer::of(&state, after)))
}
