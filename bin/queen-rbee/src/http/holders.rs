//! `GET /v1/model-holders`: hives from which a model's files can be copied.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use daemon::{ApiError, Json, Query};
use hive_contract::ModelHolders;
use serde::Deserialize;

use crate::State;

/// Which model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// As `rbee pull` takes it.
    reference: String,
}

pub(super) async fn holders(
    Shared(state): Shared<Arc<State>>,
    wanted: Result<Query<Wanted>, ApiError>,
) -> Result<Json<ModelHolders>, ApiError> {
    let Query(Wanted { reference }) = wanted?;
    Ok(Json(state.hives.holders(&reference, Instant::now())))
}
