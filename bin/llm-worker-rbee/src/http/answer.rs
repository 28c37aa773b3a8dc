//! From a valid request to an answer: tokens, the engine, and what each refusal means to the client.

use std::sync::Arc;

use batch_engine::SubmitError;
use chrono::Utc;
use daemon::ApiError;
use openai_api::Usage;
use shared_contract::ErrorKind;
use uuid::Uuid;
use worker_contract::Resume;

use super::{RETRY_BUSY_S, draining};
use crate::answers::{Answers, Whole};
use crate::generation::Order;
use crate::language::{EncodeError, Language};
use crate::metrics::Ticket;
use crate::state::Served;

/// Refuses a prompt of so many bytes that cannot fit, before anything is computed. `param` is where it came from.
pub(super) fn check_size(served: &Served, param: &str, bytes: usize) -> Result<(), ApiError> {
    let (fewest, context_length) = (served.language.fewest_tokens(bytes), served.engine.context_length());
    if fewest >= context_length {
        return Err(too_long(param, &format!("at least {fewest}"), context_length));
    }
    Ok(())
}

/// The same for a text to embed, which leaves no room for an answer.
pub(super) fn check_text_size(served: &Served, param: &str, bytes: usize) -> Result<(), ApiError> {
    let (fewest, context_length) = (served.language.fewest_tokens(bytes), served.engine.context_length());
    if fewest > context_length {
        return Err(text_too_long(param, &format!("at least {fewest}"), context_length));
    }
    Ok(())
}

/// Makes tokens and grammars on a thread where computing for long holds up nobody.
pub(super) async fn prepare<T, F>(served: &Served, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce(&dyn Language) -> Result<T, ApiError> + Send + 'static,
{
    let permit = Arc::clone(&served.encoders).acquire_owned().await;
    let permit = permit.map_err(ApiError::internal)?;
    let language = Arc::clone(&served.language);
    let prepared = tokio::task::spawn_blocking(move || {
        let prepared = work(language.as_ref());
        drop(permit);
        prepared
    });
    prepared.await.map_err(ApiError::internal)?
}

/// What a prompt that has no tokens means to the client.
pub(super) fn unencodable(param: &str, error: &EncodeError) -> ApiError {
    match error {
        EncodeError::NoChatTemplate => ApiError::invalid("model", error.to_string()).with_code("no_chat_template"),
        EncodeError::Refused(_) => ApiError::invalid(param, error.to_string()),
        EncodeError::Broken(_) => ApiError::internal(error),
    }
}

fn too_long(param: &str, prompt_tokens: &str, context_length: usize) -> ApiError {
    // Agents' libraries know by these first words that they have to shorten the conversation.
    let message = format!(
        "the prompt is too long: this model's context holds {context_length} tokens, but the prompt has {prompt_tokens} and \
         the answer needs at least one more; shorten `{param}`"
    );
    ApiError::new(ErrorKind::ContextLengthExceeded, message).with_param(param)
}

fn text_too_long(param: &str, tokens: &str, context_length: usize) -> ApiError {
    let message = format!(
        "this model's context holds {context_length} tokens, but the text has {tokens}; shorten or split `{param}`"
    );
    ApiError::new(ErrorKind::ContextLengthExceeded, message).with_param(param)
}

/// Id and time of an answer: a new id of this kind and the present, or what the answer had before.
pub(super) fn head(kind: &str, resume: Option<Resume>) -> (Arc<str>, i64) {
    match resume {
        Some(resume) => (resume.id.into(), resume.created),
        None => {
            let id = format!("{kind}-{}", Uuid::new_v4().simple());
            (id.into(), Utc::now().timestamp())
        }
    }
}

/// Hands the orders to the engine, `per_prompt` for each prompt. `params` names where the prompts came from, `count` what
/// made them so many.
pub(super) fn begin(
    served: &Served,
    orders: Vec<Order>,
    per_prompt: u32,
    ticket: Ticket,
    (params, count): (&[String], &str),
) -> Result<Answers, ApiError> {
    if orders.len() > served.capacity {
        let message = format!(
            "{count}: this worker computes and queues at most {} answers at a time, this request asks for {}",
            served.capacity,
            orders.len()
        );
        return Err(ApiError::invalid(count, message));
    }
    let begun = Answers::begin(served, orders, per_prompt, ticket);
    begun.map_err(|(prompt, error)| not_taken(&params[prompt], error))
}

/// What the engine's refusal means to the client. `param` is where the prompt, or the text to embed, came from.
pub(super) fn not_taken(param: &str, error: SubmitError) -> ApiError {
    match error {
        SubmitError::EmptyPrompt => ApiError::invalid(param, format!("{param}: there are no tokens in it")),
        SubmitError::ContextLengthExceeded {
            prompt_tokens,
            context_length,
        } => too_long(param, &prompt_tokens.to_string(), context_length),
        SubmitError::TextTooLong { tokens, context_length } => {
            text_too_long(param, &tokens.to_string(), context_length)
        }
        SubmitError::UnknownToken { token, vocab_size } => {
            let message = format!(
                "{param}: token {token} is unknown; this model has the tokens 0 to {}",
                vocab_size - 1
            );
            ApiError::invalid(param, message)
        }
        SubmitError::UnknownBiasToken { token, vocab_size } => {
            let message = format!(
                "logit_bias: token {token} is unknown; this model has the tokens 0 to {}",
                vocab_size - 1
            );
            ApiError::invalid("logit_bias", message)
        }
        SubmitError::InvalidSampling { field, .. } => ApiError::invalid(field, error.to_string()),
        SubmitError::QueueFull { limit } => {
            let message = format!("all slots are taken and {limit} requests are waiting already; try again soon");
            ApiError::new(ErrorKind::RateLimited, message).retry_after(RETRY_BUSY_S)
        }
        SubmitError::Draining => draining(),
        SubmitError::TooManyLogprobs(_) | SubmitError::Failed(_) => ApiError::internal(error),
    }
}

/// Waits for the whole of all answers.
pub(super) async fn collect(answers: Answers) -> Result<(Vec<Whole>, Usage), ApiError> {
    answers.collect().await.map_err(ApiError::internal)
}
