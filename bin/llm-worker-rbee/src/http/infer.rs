//! `POST /v1/infer`: the plain road for programs of the house.

use axum::extract::{Request, State as FromState};
use axum::response::Response;
use batch_engine::Sampling;
use bytes::Bytes;
use daemon::ApiError;
use daemon::extract::{from_slice, json_body};
use openai_api::{MAX_STOP_BYTES, MAX_STOPS, Usage, sse};
use shared_contract::ErrorObject;
use worker_contract::{FinishReason, InferEvent, InferRequest, InferUsage};

use super::stream::{self, Frames};
use super::{Shared, answer, served};
use crate::generation::{End, Order};
use crate::metrics::Endpoint;
use crate::parts::Part;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = super::begin(&state, Endpoint::Infer, &request);
    let request: InferRequest = from_slice(&json_body(request, &state).await?)?;
    validate(&request)?;
    let served = served(&state)?;
    let text = request.prompt;
    answer::check_size(&served, "prompt", text.len())?;
    let prompt = answer::prepare(&served, move |language| {
        let tokens = language.encode_text(&text);
        tokens.map_err(|error| answer::unencodable("prompt", &error))
    });
    let order = Order {
        prompt: prompt.await?,
        max_tokens: request.max_tokens,
        sampling: Sampling {
            temperature: request.temperature,
            top_p: request.top_p,
            seed: request.seed,
            ..Sampling::default()
        },
        stop: request.stop,
        ..Order::default()
    };
    let names = (&["prompt".to_owned()][..], "prompt");
    let answers = answer::begin(&served, vec![order], 1, ticket, names)?;
    let finish_reason = FinishReason::Length;
    stream::response(answers, InferFrames { finish_reason }).await
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
struct InferFrames {
    /// Why the answer ended, once it has.
    finish_reason: FinishReason,
}

impl Frames for InferFrames {
    fn start(&self) -> Bytes {
        Bytes::new()
    }

    fn part(&mut self, _choice: u32, part: Part) -> Bytes {
        sse::event(&InferEvent::Token { text: part.text })
    }

    fn finish(&mut self, _choice: u32, end: End) -> Bytes {
        self.finish_reason = match end.reason {
            openai_api::FinishReason::Stop | openai_api::FinishReason::ToolCalls => FinishReason::Stop,
            openai_api::FinishReason::Length => FinishReason::Length,
        };
        Bytes::new()
    }

    fn end(&self, usage: Usage) -> Bytes {
        sse::event(&InferEvent::Done {
            finish_reason: self.finish_reason,
            usage: InferUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            },
        })
    }

    fn error(&self, error: ErrorObject) -> Bytes {
        sse::event(&InferEvent::Error { error })
    }
}
