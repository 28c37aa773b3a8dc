//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State as FromState};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::{
    AnswerMessage, ChatChoice, ChatChunks, ChatCompletion, ChatLogprobs, ChatRequest, Message, StreamMode,
    TokenLogprob, ToolCallDelta, TopLogprob, Usage, sse,
};
use worker_contract::Resume;

use super::manners::{Manners, tell_ignored};
use super::stream::{self, Frames};
use super::structured::Form;
use super::{Shared, answer, check_model, refused, resumption, served};
use crate::answers::Whole;
use crate::generation::{End, Order};
use crate::language::Language;
use crate::metrics::Endpoint;
use crate::parts::{CallPart, Part};
use crate::state::Served;
use crate::transcript::Spelled;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = super::begin(&state, Endpoint::ChatCompletions, &request);
    let manners = Manners::of(request.headers())?;
    let body = json_body(request, &state).await?;
    let request = ChatRequest::parse(&body).map_err(refused)?;
    manners.check(&request.generation.ignored)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;

    let (orders, asks) = orders_of(&served, request, manners).await?;
    let names = (&["messages".to_owned()][..], "n");
    let per_prompt = asks.choices;
    let answers = answer::begin(&served, orders, per_prompt, ticket, names)?;

    let starts = if asks.resume.is_none() { asks.choices } else { 0 };
    let (id, created) = answer::head("chatcmpl", asks.resume);
    let response = match asks.stream {
        StreamMode::On { include_usage } => {
            let chunks = ChatChunks::new(id, created, asks.model, include_usage);
            stream::response(answers, ChatFrames { chunks, starts }).await?
        }
        StreamMode::Off => {
            let (answers, usage) = answer::collect(answers).await?;
            let numbered = (0..).zip(answers);
            let choices = numbered.map(|(index, answer)| choice(index, answer, asks.has_logprobs));
            let completion = ChatCompletion::new(id, created, asks.model, choices.collect(), usage);
            Json(completion).into_response()
        }
    };
    Ok(tell_ignored(response, &asks.ignored))
}

/// What of a request concerns how it is answered.
struct Asks {
    model: Arc<str>,
    choices: u32,
    stream: StreamMode,
    has_logprobs: bool,
    resume: Option<Resume>,
    ignored: Vec<&'static str>,
}

async fn orders_of(
    served: &Served,
    mut request: ChatRequest,
    manners: Manners,
) -> Result<(Vec<Order>, Asks), ApiError> {
    let form = Form::of(&request, served.language.tool_format())?;
    let resume = request.resume.take();
    let resumed = resume
        .as_ref()
        .map(|resume| resumption::read(served, resume))
        .transpose()?;
    let choices = request.generation.n;
    let has_logprobs = request.logprobs.is_some();
    let asks = Asks {
        model: request.model.as_str().into(),
        choices,
        stream: request.generation.stream,
        has_logprobs,
        resume,
        ignored: std::mem::take(&mut request.generation.ignored),
    };
    let names_tokens = manners.names_tokens && choices == 1 && !has_logprobs;
    answer::check_size(served, "messages", request.messages.iter().map(bytes).sum())?;
    let orders = answer::prepare(served, move |language| {
        let prompt = prompt(language, &request, &form)?;
        let orders = (0..choices).map(|index| {
            let mut constraint = form.constraint(language)?;
            if let (Some(constraint), Some(resumed)) = (&mut constraint, &resumed) {
                resumption::follow(constraint.as_mut(), resumed)?;
            }
            Ok(Order {
                max_tokens: request.max_tokens,
                logprobs: request.logprobs.map(|alternatives| alternatives as usize),
                constraint,
                tools: form.parser(),
                shown: form.markers(),
                names_tokens,
                resumed: resumed.clone(),
                ..Order::new(prompt.clone(), &request.generation, index)
            })
        });
        orders.collect::<Result<Vec<_>, ApiError>>()
    });
    Ok((orders.await?, asks))
}

/// The tokens of a request's prompt. Computes for long.
pub(super) fn prompt(language: &dyn Language, request: &ChatRequest, form: &Form) -> Result<Vec<u32>, ApiError> {
    let told = if form.tells_of_tools() {
        request.tools.as_slice()
    } else {
        &[]
    };
    let prompt = language.encode_chat(&request.messages, told, request.prompt_end);
    prompt.map_err(|error| answer::unencodable("messages", &error))
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
        stop_reason: answer.stop,
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
    /// Choices that have not begun yet.
    starts: u32,
}

impl Frames for ChatFrames {
    fn start(&self) -> Bytes {
        let starts = (0..self.starts).map(|choice| sse::event(&self.chunks.start(choice)));
        starts.collect::<Vec<_>>().concat().into()
    }

    fn part(&mut self, choice: u32, part: Part) -> Bytes {
        let Part {
            text, calls, tokens, ..
        } = part;
        let logprobs = (!tokens.is_empty()).then(|| logprobs(tokens));
        sse::event(&if calls.is_empty() {
            self.chunks.text(choice, text, logprobs)
        } else {
            let text = Some(text).filter(|text| !text.is_empty());
            let calls = calls.into_iter().map(delta).collect();
            self.chunks.calls(choice, calls, text, logprobs)
        })
    }

    fn finish(&mut self, choice: u32, end: End) -> Bytes {
        sse::event(&self.chunks.finish_at(choice, end.reason, end.stop))
    }

    fn end(&self, usage: Usage) -> Bytes {
        let usage = self.chunks.usage(usage).map(|chunk| sse::event(&chunk));
        [usage.unwrap_or_default(), sse::DONE].concat().into()
    }
}

fn delta(call: CallPart) -> ToolCallDelta {
    match call.beginning {
        Some(begun) => ToolCallDelta::first(call.index, begun.id, begun.name, call.arguments),
        None => ToolCallDelta::more(call.index, call.arguments),
    }
}
