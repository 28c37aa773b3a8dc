//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State as FromState};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::Utc;
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::{ChatChunks, ChatCompletion, ChatRequest, FinishReason, StreamMode, Usage, sse};
use uuid::Uuid;

use super::stream::Frames;
use super::{Shared, answer, check_model, refused, served};
use crate::generation::Order;
use crate::metrics::Endpoint;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = state.metrics.begin(Endpoint::ChatCompletions);
    let body = json_body(request, &state).await?;
    let request = ChatRequest::parse(&body).map_err(refused)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;

    let messages = request.messages;
    let bytes = messages.iter().map(|message| message.content.len()).sum();
    let prompt = answer::encode(&served, "messages", bytes, move |language| {
        language.encode_chat(&messages)
    })
    .await?;
    let mode = request.generation.stream;
    let order = Order::new(prompt, request.max_tokens, request.generation);
    let answer = answer::begin(&served, order, ticket, "messages")?;

    let id: Arc<str> = format!("chatcmpl-{}", Uuid::new_v4().simple()).into();
    let created = Utc::now().timestamp();
    let model: Arc<str> = request.model.into();
    match mode {
        StreamMode::On { include_usage } => {
            answer::stream(answer, ChatChunks::new(id, created, model, include_usage)).await
        }
        StreamMode::Off => {
            let (text, reason, usage) = answer::collect(answer).await?;
            Ok(Json(ChatCompletion::new(id, created, model, text, reason, usage)).into_response())
        }
    }
}

impl Frames for ChatChunks {
    fn start(&self) -> Bytes {
        sse::event(&self.start())
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
