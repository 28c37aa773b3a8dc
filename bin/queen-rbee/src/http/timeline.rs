//! `GET /v1/timeline`: what changed in the fleet within the last hour.

use std::sync::Arc;

use axum::extract::State as Shared;
use daemon::{ApiError, Json, Query};
use serde::Deserialize;

use crate::State;
use crate::timeline::TimelineView;

/// Where to go on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct After {
    /// The id of the newest entry that is known.
    after: Option<u64>,
}

pub(super) async fn timeline(
    Shared(state): Shared<Arc<State>>,
    after: Result<Query<After>, ApiError>,
) -> Result<Json<TimelineView>, ApiError> {
    let Query(After { after }) = after?;
    Ok(Json(state.timeline.view(after)))
}
