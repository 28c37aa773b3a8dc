//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::{Request, State as FromState};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use openai_api::{
    Completion, CompletionChoice, CompletionChunks, CompletionLogprobs, CompletionRequest, Prompt, StreamMode,
    TextOffset, Usage, sse,
};

use super::manners::{Manners, tell_ignored};
use super::stream::{self, Frames};
use super::{Shared, answer, check_model, prompts, refused, resumption, served};
use crate::answers::Whole;
use crate::generation::{End, Order};
use crate::metrics::Endpoint;
use crate::parts::Part;
use crate::state::Served;
use crate::transcript::Spelled;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let ticket = super::begin(&state, Endpoint::Completions, &request);
    let manners = Manners::of(request.headers())?;
    let body = json_body(request, &state).await?;
    let mut request = CompletionRequest::parse(&body).map_err(refused)?;
    manners.check(&request.generation.ignored)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;

    let (n, best_of) = (request.generation.n, request.best_of);
    let (mode, has_logprobs) = (request.generation.stream, request.logprobs.is_some());
    let model: Arc<str> = request.model.as_str().into();
    let names = prompts::names("prompt", request.prompts.len());
    let count = match (names.len(), best_of > n) {
        (1, false) => "n",
        (1, true) => "best_of",
        _ => "prompt",
    };
    let ignored = std::mem::take(&mut request.generation.ignored);
    let resume = request.resume.take();
    let mut orders = orders(&served, request, &names).await?;
    if let [order] = orders.as_mut_slice() {
        order.names_tokens = manners.names_tokens && !has_logprobs && order.echo.is_none();
        order.resumed = resume
            .as_ref()
            .map(|resume| resumption::read(&served, resume))
            .transpose()?;
    }
    let choices = orders.len();
    let answers = answer::begin(&served, orders, best_of, ticket, (&names, count))?;

    let (id, created) = answer::head("cmpl", resume);
    let response = match mode {
        StreamMode::On { include_usage } => {
            let frames = CompletionFrames {
                chunks: CompletionChunks::new(id, created, model, include_usage),
                offsets: vec![TextOffset::default(); choices],
            };
            stream::response(answers, frames).await?
        }
        StreamMode::Off => {
            let (answers, usage) = answer::collect(answers).await?;
            let answers = best(answers, best_of as usize, n as usize);
            let choices = (0..).zip(answers).map(|(index, answer)| CompletionChoice {
                text: answer.text,
                index,
                logprobs: has_logprobs.then(|| logprobs(answer.tokens, &mut TextOffset::default())),
                finish_reason: Some(answer.reason),
                stop_reason: answer.stop,
            });
            Json(Completion::new(id, created, model, choices.collect(), usage)).into_response()
        }
    };
    Ok(tell_ignored(response, &ignored))
}

/// The orders for all prompts, `best_of` for each.
async fn orders(served: &Served, request: CompletionRequest, names: &[String]) -> Result<Vec<Order>, ApiError> {
    for (prompt, name) in request.prompts.iter().zip(names) {
        if let Prompt::Text(text) = prompt {
            answer::check_size(served, name, text.len())?;
        }
    }
    let prompts = prompts::encode(served, request.prompts, names).await?;
    let mut orders = Vec::new();
    for (text, tokens) in prompts {
        let echo = request.echo.then(|| match text {
            Some(text) => text,
            None => prompts::decode(served.language.as_ref(), &tokens),
        });
        orders.extend((0..request.best_of).map(|index| Order {
            max_tokens: Some(request.max_tokens),
            logprobs: request.logprobs.map(|alternatives| alternatives as usize),
            is_ranked: request.best_of > request.generation.n,
            echo: echo.clone(),
            ..Order::new(tokens.clone(), &request.generation, index)
        }));
    }
    Ok(orders)
}

/// Of the `made` answers to each prompt, the `wanted` that the model found most probable, the best first.
fn best(mut answers: Vec<Whole>, made: usize, wanted: usize) -> Vec<Whole> {
    if made == wanted {
        return answers;
    }
    let mut best = Vec::new();
    while !answers.is_empty() {
        let others = answers.split_off(made);
        // Stable: of equals the first.
        answers.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        best.extend(answers.drain(..wanted));
        answers = others;
    }
    best
}

fn logprobs(tokens: Vec<Spelled>, offset: &mut TextOffset) -> CompletionLogprobs {
    let mut logprobs = CompletionLogprobs::default();
    for token in tokens {
        logprobs.push(offset.advance(&token.bytes), &token.bytes, token.logprob, token.top);
    }
    logprobs
}

/// Frames of a completion's chunks.
struct CompletionFrames {
    chunks: CompletionChunks,
    /// How far each choice's text has come.
    offsets: Vec<TextOffset>,
}

impl Frames for CompletionFrames {
    fn start(&self) -> Bytes {
        Bytes::new()
    }

    fn part(&mut self, choice: u32, part: Part) -> Bytes {
        let offset = &mut self.offsets[choice as usize];
        let logprobs = (!part.tokens.is_empty()).then(|| logprobs(part.tokens, offset));
        sse::event(&self.chunks.text(choice, part.text, logprobs))
    }

    fn finish(&mut self, choice: u32, end: End) -> Bytes {
        sse::event(&self.chunks.finish_at(choice, end.reason, end.stop))
    }

    fn end(&self, usage: Usage) -> Bytes {
        let usage = self.chunks.usage(usage).map(|chunk| sse::event(&chunk));
        [usage.unwrap_or_default(), sse::DONE].concat().into()
    }
}
