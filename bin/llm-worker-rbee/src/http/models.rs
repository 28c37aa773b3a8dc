//! `GET /v1/models` and `GET /v1/models/{id}`: the one model of this worker.

use axum::extract::{Path, State as FromState};
use daemon::{ApiError, Json};
use openai_api::{Model, ModelList};

use super::{Shared, check_model, served};
use crate::state::State;

pub(super) async fn list(FromState(state): Shared) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList::new(vec![model(&state)?])))
}

/// Ids may have slashes.
pub(super) async fn get(FromState(state): Shared, Path(id): Path<String>) -> Result<Json<Model>, ApiError> {
    check_model(&state, &id)?;
    Ok(Json(model(&state)?))
}

fn model(state: &State) -> Result<Model, ApiError> {
    let served = served(state)?;
    Ok(Model::new(state.identity.model_id.as_str(), served.created))
}
