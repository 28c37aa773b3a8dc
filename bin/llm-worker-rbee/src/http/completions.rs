//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State as FromState};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::Utc;
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::{Completion, CompletionChunks, CompletionRequest, FinishReason, Prompt, StreamMode, Usage, sse};
use uuid::Uuid;

use super::stream::Frames;
use super::{Shared, answer, check_model, refused, served};
use crate::generation::Order;
use crate::metrics::Endpoint;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = state.metrics.begin(Endpoint::Completions);
    let body = json_body(request, &state).await?;
    let request = CompletionRequest::parse(&body).map_err(refused)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;

    let prompt = match request.prompt {
        Prompt::Text(text) => {
            answer::encode(&served, "prompt", text.len(), move |language| {
                language.encode_text(&text)
            })
            .await?
        }
        Prompt::Tokens(tokens) => tokens,
    };
    let mode = request.generation.stream;
    let order = Order::new(prompt, Some(request.max_tokens), request.generation);
    let answer = answer::begin(&served, order, ticket, "prompt")?;

    let id: Arc<str> = format!("cmpl-{}", Uuid::new_v4().simple()).into();
    let created = Utc::now().timestamp();
    let model: Arc<str> = request.model.into();
    match mode {
        StreamMode::On { include_usage } => {
            answer::stream(answer, CompletionChunks::new(id, created, model, include_usage)).await
        }
        StreamMode::Off => {
            let (text, reason, usage) = answer::collect(answer).await?;
            Ok(Json(Completion::new(id, created, model, text, reason, usage)).into_response())
        }
    }
}

impl Frames for CompletionChunks {
    fn start(&self) -> Bytes {
        Bytes::new()
    }

    fn text(&self, text: String) -> Bytes {
        sse::event(&self.text(text))
    }

    fn end(&self, reason: FinishReason, usage: Usage) -> Bytes {
        let finish = sse::event(&self.finish(reason));
        let usage = self.usage(usage).map(|chunk| sse::event(&chunk)).unwrap_or_default();
        [finish, usage, sse::DONE].concat().into()
    }
}
