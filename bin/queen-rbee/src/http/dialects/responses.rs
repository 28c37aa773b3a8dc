//! `POST /v1/responses`.

use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::response::Response;
use daemon::ApiError;

use super::answer;
use crate::State;

pub(super) async fn create(Shared(state): Shared<Arc<State>>, request: Request) -> Result<Response, ApiError> {
    answer(&state, request, api_dialects::responses::translate).await
}
