//! From a valid request to an answer: tokens, the engine, and what each refusal means to the client.

use std::sync::Arc;

use axum::response::Response;
use batch_engine::SubmitError;
use daemon::ApiError;
use openai_api::{FinishReason, Usage};
use shared_contract::ErrorKind;

use super::stream::{self, Frames};
use super::{RETRY_BUSY_S, draining};
use crate::generation::{Answer, Order, Piece};
use crate::language::{EncodeError, Language};
use crate::metrics::Ticket;
use crate::state::Served;

/// Makes tokens on a thread where computing for long holds up nobody. `param` is where the prompt came from, `bytes` its
/// length; one that cannot fit is refused at once.
pub(super) async fn encode<F>(
    served: &Served,
    param: &'static str,
    bytes: usize,
    encode: F,
) -> Result<Vec<u32>, ApiError>
where
    F: FnOnce(&dyn Language) -> Result<Vec<u32>, EncodeError> + Send + 'static,
{
    let (fewest, context_length) = (served.language.fewest_tokens(bytes), served.engine.context_length());
    if fewest >= context_length {
        return Err(too_long(param, &format!("at least {fewest}"), context_length));
    }
    let permit = Arc::clone(&served.encoders).acquire_owned().await;
    let permit = permit.map_err(ApiError::internal)?;
    let language = Arc::clone(&served.language);
    let tokens = tokio::task::spawn_blocking(move || {
        let tokens = encode(language.as_ref());
        drop(permit);
        tokens
    });
    tokens.await.map_err(ApiError::internal)?.map_err(|error| match error {
        EncodeError::NoChatTemplate => ApiError::invalid("model", error.to_string()).with_code("no_chat_template"),
        EncodeError::Refused(_) => ApiError::invalid(param, error.to_string()),
        EncodeError::Broken(_) => ApiError::internal(error),
    })
}

fn too_long(param: &'static str, prompt_tokens: &str, context_length: usize) -> ApiError {
    let message = format!(
        "this model's context holds {context_length} tokens, but the prompt has {prompt_tokens} and the answer needs at \
         least one more; shorten `{param}`"
    );
    ApiError::new(ErrorKind::ContextLengthExceeded, message).with_param(param)
}

/// Hands the order to the engine.
pub(super) fn begin(served: &Served, order: Order, ticket: Ticket, param: &'static str) -> Result<Answer, ApiError> {
    Answer::begin(served, order, ticket).map_err(|error| match error {
        SubmitError::EmptyPrompt => ApiError::invalid(param, format!("{param}: the prompt has no tokens")),
        SubmitError::ContextLengthExceeded {
            prompt_tokens,
            context_length,
        } => too_long(param, &prompt_tokens.to_string(), context_length),
        SubmitError::UnknownToken { token, vocab_size } => {
            let message = format!(
                "{param}: token {token} is unknown; this model has the tokens 0 to {}",
                vocab_size - 1
            );
            ApiError::invalid(param, message)
        }
        SubmitError::InvalidTemperature(_) => ApiError::invalid("temperature", format!("temperature: {error}")),
        SubmitError::InvalidTopP(_) => ApiError::invalid("top_p", format!("top_p: {error}")),
        SubmitError::QueueFull { limit } => {
            let message = format!("all slots are taken and {limit} requests are waiting already; try again soon");
            ApiError::new(ErrorKind::RateLimited, message).retry_after(RETRY_BUSY_S)
        }
        SubmitError::Draining => draining(),
        SubmitError::Failed(_) => ApiError::internal(error),
    })
}

/// Waits for the whole answer.
pub(super) async fn collect(mut answer: Answer) -> Result<(String, FinishReason, Usage), ApiError> {
    let mut text = String::new();
    loop {
        match answer.next().await {
            Some(Piece::Text(more)) => text.push_str(&more),
            Some(Piece::Done { reason, usage }) => return Ok((text, reason, usage)),
            Some(Piece::Failed(reason)) => return Err(ApiError::internal(reason)),
            None => return Err(ApiError::internal("the answer has no end")),
        }
    }
}

/// Answers with a stream, once there is something to stream: until then a fault has a status of its own, and a gateway
/// may go elsewhere.
pub(super) async fn stream(mut answer: Answer, frames: impl Frames) -> Result<Response, ApiError> {
    match answer.next().await {
        Some(Piece::Failed(reason)) => Err(ApiError::internal(reason)),
        Some(first) => Ok(stream::response(answer, first, frames)),
        None => Err(ApiError::internal("the answer has no end")),
    }
}
