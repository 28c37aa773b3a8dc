//! The OpenAI endpoints.

use std::sync::Arc;

use axum::extract::{Path, Request, State as Shared};
use axum::response::Response;
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::Object;
use serde::Serialize;
use shared_contract::{ErrorKind, ModelId};

use crate::State;
use crate::gateway::Endpoint;
use crate::models::{self, ServedModel};

/// Answer to `GET /v1/models`.
#[derive(Serialize)]
pub(super) struct ModelList {
    object: Object,
    data: Vec<ServedModel>,
}

pub(super) async fn chat_completions(
    Shared(state): Shared<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    relay(&state, Endpoint::ChatCompletions, request).await
}

pub(super) async fn completions(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    relay(&state, Endpoint::Completions, request).await
}

pub(super) async fn embeddings(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    relay(&state, Endpoint::Embeddings, request).await
}

pub(super) async fn models(Shared(state): Shared<Arc<State>>) -> Json<ModelList> {
    Json(ModelList {
        object: Object::List,
        data: models::served(&state.workers, state.started_unix_s),
    })
}

pub(super) async fn model(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
) -> Result<Json<ServedModel>, ApiError> {
    ModelId::new(name.as_str())
        .ok()
        .and_then(|model| models::find(&state.workers, &model, state.started_unix_s))
        .map(Json)
        .ok_or_else(|| {
            ApiError::new(ErrorKind::ModelNotFound, models::not_found(&state.workers, &name)).with_param("model")
        })
}

async fn relay(state: &State, endpoint: Endpoint, request: Request) -> Result<Response, ApiError> {
    let headers = request.headers().clone();
    let body = json_body(request, &()).await?;
    state.gateway.answer(endpoint, headers, body).await
}
