//! `POST /v1/infer`: the plain road for programs of the house.

use axum::extract::{Request, State as FromState};
use axum::response::Response;
use bytes::Bytes;
use daemon::ApiError;
use daemon::extract::{from_slice, json_body};
use openai_api::{FinishReason, MAX_STOP_BYTES, MAX_STOPS, Usage, sse};
use shared_contract::ErrorObject;
use worker_contract::{InferEvent, InferRequest, InferUsage};

use super::stream::Frames;
use super::{Shared, answer, served};
use crate::generation::Order;
use crate::metrics::Endpoint;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = state.metrics.begin(Endpoint::Infer);
    let request: InferRequest = from_slice(&json_body(request, &state).await?)?;
    validate(&request)?;
    let served = served(&state)?;
    let text = request.prompt;
    let prompt = answer::encode(&served, "prompt", text.len(), move |language| {
        language.encode_text(&text)
    })
    .await?;
    let order = Order {
        prompt,
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        seed: request.seed,
        stop: request.stop,
    };
    let answer = answer::begin(&served, order, ticket, "prompt")?;
    answer::stream(answer, InferFrames).await
}

fn validate(request: &InferRequest) -> Result<(), ApiError> {
    if request.max_tokens == Some(0) {
        return Err(ApiError::invalid("max_tokens", "max_tokens: must be at least 1"));
    }
    if !(0.0..=2.0).contains(&request.temperature) {
        return Err(ApiError::invalid("temperature", "temperature: must be between 0 and 2"));
    }
    if !(request.top_p > 0.0 && request.top_p <= 1.0) {
        return Err(ApiError::invalid("top_p", "top_p: must be above 0 and at most 1"));
    }
    if request.stop.len() > MAX_STOPS {
        return Err(ApiError::invalid(
            "stop",
            format!("stop: at most {MAX_STOPS} stop texts"),
        ));
    }
    for (index, stop) in request.stop.iter().enumerate() {
        if !(1..=MAX_STOP_BYTES).contains(&stop.len()) {
            let path = format!("stop[{index}]");
            let message = format!("{path}: a stop text has 1 to {MAX_STOP_BYTES} bytes");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(())
}

/// Frames of [`InferEvent`]s.
struct InferFrames;

impl Frames for InferFrames {
    fn start(&self) -> Bytes {
        Bytes::new()
    }

    fn text(&self, text: String) -> Bytes {
        sse::event(&InferEvent::Token { text })
    }

    fn end(&self, reason: FinishReason, usage: Usage) -> Bytes {
        sse::event(&InferEvent::Done {
            finish_reason: match reason {
                FinishReason::Stop => worker_contract::FinishReason::Stop,
                FinishReason::Length => worker_contract::FinishReason::Length,
            },
            usage: InferUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
            },
        })
    }

    fn error(&self, error: ErrorObject) -> Bytes {
        sse::event(&InferEvent::Error { error })
    }
}
