//! `POST /v1/embeddings`.

use axum::extract::{Request, State as FromState};
use axum::response::{IntoResponse, Response};
use daemon::extract::json_body;
use daemon::{ApiError, Json};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use openai_api::{EmbeddingList, EmbeddingRequest, Prompt, Usage};

use shared_contract::ErrorKind;

use super::manners::{Manners, tell_ignored};
use super::{Shared, answer, check_model, prompts, refused, served};
use crate::metrics::{Endpoint, Outcome};
use crate::state::Served;

pub(super) async fn create(FromState(state): Shared, request: Request) -> Result<Response, ApiError> {
    let mut ticket = super::begin(&state, Endpoint::Embeddings, &request);
    let manners = Manners::of(request.headers())?;
    let body = json_body(request, &state).await?;
    let request = EmbeddingRequest::parse(&body).map_err(refused)?;
    manners.check(&request.ignored)?;
    check_model(&state, &request.model)?;
    let served = served(&state)?;
    request.check_width(served.hidden_size).map_err(refused)?;

    let names = prompts::names("input", request.inputs.len());
    for (input, name) in request.inputs.iter().zip(&names) {
        if let Prompt::Text(text) = input {
            answer::check_text_size(&served, name, text.len())?;
        }
    }
    let inputs = prompts::encode(&served, request.inputs, &names).await?;
    let inputs: Vec<_> = inputs.into_iter().map(|(_, tokens)| tokens).collect();
    let tokens: usize = inputs.iter().map(Vec::len).sum();
    ticket.begun();
    let vectors = embed(&served, inputs, &names).await.inspect_err(|error| {
        let is_fault = error.kind() == ErrorKind::Internal;
        ticket.end(if is_fault { Outcome::Failed } else { Outcome::Refused });
    })?;
    ticket.end(Outcome::Finished);
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    ticket.used(&Usage::new(tokens, 0));

    let list = EmbeddingList::new(request.model.into(), vectors, request.encoding_format, tokens);
    Ok(tell_ignored(Json(list).into_response(), &request.ignored))
}

/// The vectors of all inputs, in order, of the length 1. As many are computed at a time as there are slots, so that one
/// request does not fill the queue.
async fn embed(served: &Served, inputs: Vec<Vec<u32>>, names: &[String]) -> Result<Vec<Vec<f32>>, ApiError> {
    let inputs = inputs.into_iter().zip(names.to_vec());
    let vectors = inputs.map(|(tokens, name)| embed_one(served, tokens, name));
    stream::iter(vectors)
        .buffered(served.engine.max_sequences())
        .try_collect()
        .await
}

async fn embed_one(served: &Served, tokens: Vec<u32>, name: String) -> Result<Vec<f32>, ApiError> {
    let embedding = served.engine.embed(tokens, served.pooling);
    let embedding = embedding.map_err(|error| answer::not_taken(&name, error))?;
    embedding.await.map(normalised).map_err(ApiError::internal)
}

/// The vector with the length 1; one of no length stays as it is.
fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    let squares = vector.iter().map(|&value| f64::from(value).powi(2));
    let length = squares.sum::<f64>().sqrt();
    if length > 0.0 {
        for value in &mut vector {
            *value = (f64::from(*value) / length) as f32;
        }
    }
    vector
}
