//! `/v1/serve`: what must always run; `/v1/hives/{id}/drain`: which hives take nothing new.

use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use daemon::{ApiError, Json, Query};
use serde::Deserialize;
use shared_contract::HiveId;

use crate::State;
use crate::supply::{DrainView, ServeList, ServeRequest, ServeView};

pub(super) async fn list(Shared(state): Shared<Arc<State>>) -> Json<ServeList> {
    Json(state.supply.serve_list())
}

pub(super) async fn serve(
    Shared(state): Shared<Arc<State>>,
    Json(request): Json<ServeRequest>,
) -> Result<Json<ServeView>, ApiError> {
    state.supply.serve(request).await.map(Json)
}

/// Which statement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    /// The model's id, an alias or a reference.
    model: String,
}

pub(super) async fn unserve(
    Shared(state): Shared<Arc<State>>,
    named: Result<Query<Named>, ApiError>,
) -> Result<Json<ServeView>, ApiError> {
    let Query(Named { model }) = named?;
    state.supply.unserve(&model).await.map(Json)
}

pub(super) async fn drain(
    Shared(state): Shared<Arc<State>>,
    Path(hive): Path<String>,
) -> Result<Json<DrainView>, ApiError> {
    state.supply.drain(id(hive)?, true).await.map(Json)
}

pub(super) async fn undrain(
    Shared(state): Shared<Arc<State>>,
    Path(hive): Path<String>,
) -> Result<Json<DrainView>, ApiError> {
    state.supply.drain(id(hive)?, false).await.map(Json)
}

fn id(text: String) -> Result<HiveId, ApiError> {
    HiveId::new(text).map_err(|why| ApiError::invalid("id", format!("the hive's id: {why}")))
}
