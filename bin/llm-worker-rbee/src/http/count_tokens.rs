//! `POST /v1/count_tokens`: how long the prompt of a chat is.

use axum::extract::{Request, State as FromState};
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::ChatRequest;
use worker_contract::TokenCount;

use super::structured::Form;
use super::{Shared, answer, chat, check_model, refused, served};
use crate::metrics::{Endpoint, Outcome};

/// Counts at the length that a chat with the same body would have, also of one that is too long for the model.
pub(super) async fn count(FromState(state): Shared, request: Request) -> Result<Json<TokenCount>, ApiError> {
    let mut ticket = super::begin(&state, Endpoint::CountTokens, &request);
    let body = json_body(request, &state).await?;
    let request = ChatRequest::parse(&body).map_err(refused)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;
    let form = Form::of(&request, served.language.tool_format())?;
    let prompt = answer::prepare(&served, move |language| chat::prompt(language, &request, &form)).await?;
    ticket.end(Outcome::Finished);
    let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    Ok(Json(TokenCount { prompt_tokens }))
}
