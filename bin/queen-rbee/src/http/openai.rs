//! The OpenAI endpoints.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State as Shared};
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use daemon::extract::json_request;
use daemon::{ApiError, Guard, Json, PageGuard};
use openai_api::{InvalidRequest, Object};
use router::{Endpoint, Refusal};
use serde::Serialize;
use shared_contract::ErrorKind;

use super::MAX_REQUEST_BYTES;
use super::access::account_of;
use crate::State;
use crate::models::{self, ListedModel};

/// Answer to `GET /v1/models`.
#[derive(Serialize)]
pub(super) struct ModelList {
    object: Object,
    data: Vec<ListedModel>,
}

/// A route whose requests go to a worker. Guards and limit are its handler's, not layers: each layer boxes the request's
/// future once more, and these routes are what the queen spends her time on.
pub(super) fn relayed(
    state: &Arc<State>,
    (guard, pages): (&Guard, &PageGuard),
    endpoint: Endpoint,
) -> MethodRouter<Arc<State>> {
    let (state, guard, pages) = (Arc::clone(state), guard.clone(), pages.clone());
    post(move |request: Request| {
        let (state, guard, pages) = (Arc::clone(&state), guard.clone(), pages.clone());
        async move {
            pages.check_page(request.headers())?;
            guard.check_bearer(request.headers())?;
            relay(&state, endpoint, request).await
        }
    })
}

pub(super) async fn models(Shared(state): Shared<Arc<State>>) -> Json<ModelList> {
    Json(ModelList {
        object: Object::List,
        data: models::list(&state.supply, state.started_unix_s),
    })
}

pub(super) async fn model(
    Shared(state): Shared<Arc<State>>,
    Path(name): Path<String>,
) -> Result<Json<ListedModel>, ApiError> {
    models::find(&state.supply, &name, state.started_unix_s)
        .map(Json)
        .ok_or_else(|| refused(state.supply.unknown(&name)))
}

async fn relay(state: &State, endpoint: Endpoint, request: Request) -> Result<Response, ApiError> {
    let account = account_of(&request);
    let (headers, body) = json_request(request, MAX_REQUEST_BYTES).await?;
    match state.router.answer(endpoint, headers, body, account).await {
        Ok(response) => Ok(response.map(Body::new)),
        Err(refusal) => Err(refused(refusal)),
    }
}

/// A mistake of a request as the queen answers it.
pub(crate) fn invalid(mistake: InvalidRequest) -> ApiError {
    let error = ApiError::new(ErrorKind::InvalidRequest, mistake.message).with_code(mistake.code.as_str());
    match mistake.param {
        Some(param) => error.with_param(param),
        None => error,
    }
}

/// The router's refusal as the queen answers it.
pub(crate) fn refused(refusal: Refusal) -> ApiError {
    let mut error = ApiError::new(refusal.kind, refusal.message);
    if let Some(param) = refusal.param {
        error = error.with_param(param);
    }
    if let Some(code) = refusal.code {
        error = error.with_code(code);
    }
    match refusal.retry_after_s {
        Some(seconds) => error.retry_after(seconds),
        None => error,
    }
}
