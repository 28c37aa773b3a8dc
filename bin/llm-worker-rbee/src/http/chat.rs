//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State as FromState};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::Utc;
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::{
    AnswerMessage, ChatChoice, ChatChunks, ChatCompletion, ChatLogprobs, ChatRequest, FinishReason, Message,
    StreamMode, TokenLogprob, TopLogprob, Usage, sse,
};
use uuid::Uuid;

use super::stream::Frames;
use super::structured::Form;
use super::{Shared, answer, check_model, refused, served};
use crate::answers::Whole;
use crate::generation::{Content, Order, Part};
use crate::metrics::Endpoint;
use crate::state::Served;
use crate::transcript::Spelled;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = state.metrics.begin(Endpoint::ChatCompletions);
    let body = json_body(request, &state).await?;
    let request = ChatRequest::parse(&body).map_err(refused)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;

    let (orders, asks) = orders_of(&served, request).await?;
    let names = (&["messages".to_owned()][..], "n");
    let per_prompt = asks.choices;
    let answers = answer::begin(&served, orders, per_prompt, ticket, names)?;

    let id: Arc<str> = format!("chatcmpl-{}", Uuid::new_v4().simple()).into();
    let created = Utc::now().timestamp();
    match asks.stream {
        StreamMode::On { include_usage } => {
            let chunks = ChatChunks::new(id, created, asks.model, include_usage);
            let choices = asks.choices;
            answer::stream(answers, ChatFrames { chunks, choices }).await
        }
        StreamMode::Off => {
            let (answers, usage) = answer::collect(answers).await?;
            let numbered = (0..).zip(answers);
            let choices = numbered.map(|(index, answer)| choice(index, answer, asks.has_logprobs));
            let completion = ChatCompletion::new(id, created, asks.model, choices.collect(), usage);
            Ok(Json(completion).into_response())
        }
    }
}

/// What of a request concerns how it is answered.
struct Asks {
    model: Arc<str>,
    choices: u32,
    stream: StreamMode,
    has_logprobs: bool,
}

async fn orders_of(served: &Served, request: ChatRequest) -> Result<(Vec<Order>, Asks), ApiError> {
    let form = Form::of(&request, served.language.tool_format())?;
    let ChatRequest {
        model,
        messages,
        max_tokens,
        generation,
        logprobs,
        tools,
        ..
    } = request;
    let asks = Asks {
        model: model.into(),
        choices: generation.n,
        stream: generation.stream,
        has_logprobs: logprobs.is_some(),
    };
    answer::check_size(served, "messages", messages.iter().map(bytes).sum())?;
    let orders = answer::prepare(served, move |language| {
        let told = if form.tells_of_tools() { tools.as_slice() } else { &[] };
        let prompt = language.encode_chat(&messages, told);
        let prompt = prompt.map_err(|error| answer::unencodable("messages", &error))?;
        let orders = (0..generation.n).map(|index| {
            Ok(Order {
                max_tokens,
                logprobs: logprobs.map(|alternatives| alternatives as usize),
                constraint: form.constraint(language)?,
                tools: form.parser(),
                shown: form.markers(),
                ..Order::new(prompt.clone(), &generation, index)
            })
        });
        orders.collect::<Result<Vec<_>, ApiError>>()
    });
    Ok((orders.await?, asks))
}

fn bytes(message: &Message) -> usize {
    let calls = message.tool_calls.iter().map(|call| call.arguments.len());
    message.content.as_ref().map_or(0, String::len) + calls.sum::<usize>()
}

fn choice(index: u32, answer: Whole, has_logprobs: bool) -> ChatChoice {
    ChatChoice {
        index,
        message: AnswerMessage::new(answer.text, answer.calls),
        logprobs: has_logprobs.then(|| logprobs(answer.tokens)),
        finish_reason: answer.reason,
    }
}

fn logprobs(tokens: Vec<Spelled>) -> ChatLogprobs {
    let tokens = tokens.into_iter().map(|token| {
        let top = token.top.into_iter();
        let top = top.map(|(bytes, logprob)| TopLogprob::new(bytes, logprob)).collect();
        // Every token of an answer has one.
        TokenLogprob::new(token.bytes, token.logprob.unwrap_or_default(), top)
    });
    ChatLogprobs::new(tokens.collect())
}

/// Frames of a chat's chunks.
struct ChatFrames {
    chunks: ChatChunks,
    choices: u32,
}

impl Frames for ChatFrames {
    fn start(&self) -> Bytes {
        let starts = (0..self.choices).map(|choice| sse::event(&self.chunks.start(choice)));
        starts.collect::<Vec<_>>().concat().into()
    }

    fn part(&mut self, choice: u32, part: Part) -> Bytes {
        sse::event(&match part.content {
            Content::Text(text) => {
                let logprobs = (!part.tokens.is_empty()).then(|| logprobs(part.tokens));
                self.chunks.text(choice, text, logprobs)
            }
            Content::Call { index, id, name } => self.chunks.tool_call(choice, index, id, name),
            Content::Arguments { index, piece } => self.chunks.tool_arguments(choice, index, piece),
        })
    }

    fn finish(&mut self, choice: u32, reason: FinishReason) -> Bytes {
        sse::event(&self.chunks.finish(choice, reason))
    }

    fn end(&self, usage: Usage) -> Bytes {
        let usage = self.chunks.usage(usage).map(|chunk| sse::event(&chunk));
        [usage.unwrap_or_default(), sse::DONE].concat().into()
    }
}
