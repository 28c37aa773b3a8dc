//! `GET /v1/placement`: where a model would go now, and why; `GET /v1/decisions`: what was decided lately.

use std::sync::Arc;

use axum::extract::State as Shared;
use daemon::{ApiError, Json, Query};
use serde::Deserialize;

use super::openai::refused;
use crate::State;
use crate::supply::{DecisionList, PlacementView};

/// Decisions that are listed where no number is asked for.
const DECISIONS: usize = 50;

/// Which model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Its name or an alias.
    model: String,
}

pub(super) async fn placement(
    Shared(state): Shared<Arc<State>>,
    wanted: Result<Query<Wanted>, ApiError>,
) -> Result<Json<PlacementView>, ApiError> {
    let Query(Wanted { model }) = wanted?;
    state.supply.placement(&model, &state.router).map(Json).map_err(refused)
}

/// How many.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    limit: Option<usize>,
}

pub(super) async fn decisions(
    Shared(state): Shared<Arc<State>>,
    limit: Result<Query<Limit>, ApiError>,
) -> Result<Json<DecisionList>, ApiError> {
    let Query(Limit { limit }) = limit?;
    Ok(Json(state.supply.decisions(limit.unwrap_or(DECISIONS))))
}
