//! The worker's endpoints. Handlers extract, call, answer.

mod answer;
mod chat;
mod completions;
mod count_tokens;
mod embeddings;
mod health;
mod infer;
mod manners;
mod models;
mod prompts;
mod queens;
mod reader;
mod resumption;
mod stream;
mod structured;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRef, Request, State as FromState};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use daemon::{ApiError, Guard, Json, PageGuard, Secret, auth, origin};
use heartbeat_client::Queens;
use openai_api::InvalidRequest;
use serde::Serialize;
use shared_contract::ErrorKind;
use worker_contract::{DrainRequest, MAX_GRACE_S};

use crate::account::Account;
use crate::metrics::{Endpoint, Ticket};
use crate::state::{Phase, Served, State};

pub use health::Health;

/// Largest request body: room for a prompt of a very long context, with its JSON around it.
pub const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// After so many seconds a client may try again.
const RETRY_LOADING_S: u32 = 2;
const RETRY_BUSY_S: u32 = 1;
const RETRY_DRAINING_S: u32 = 1;

type Shared = FromState<Arc<State>>;

/// What the handlers work with.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) state: Arc<State>,
    pub(crate) queens: Queens,
}

impl FromRef<App> for Arc<State> {
    fn from_ref(app: &App) -> Self {
        Self::clone(&app.state)
    }
}

impl FromRef<App> for Queens {
    fn from_ref(app: &App) -> Self {
        app.queens.clone()
    }
}

/// All endpoints; the token, if there is one, guards all but `/health` and `/metrics`, and no web page may use them but those
/// that `pages` lets in.
pub(crate) fn router(app: App, token: Option<Secret>, pages: PageGuard) -> Router {
    let guard = Guard::new(token, "--token");
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/count_tokens", post(count_tokens::count))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/infer", post(infer::create))
        .route("/v1/drain", post(drain))
        .route("/v1/queens", post(queens::add))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .route_layer(from_fn_with_state(guard, auth::require))
        .route_layer(from_fn_with_state(pages, origin::require));
    Router::new()
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .merge(guarded)
        .with_state(app)
}

#[derive(Serialize)]
struct Draining {
    status: &'static str,
}

/// Begins to drain, as a signal does, and answers at once.
async fn drain(FromState(state): Shared, body: Bytes) -> Result<(StatusCode, Json<Draining>), ApiError> {
    let request: DrainRequest = if body.is_empty() {
        DrainRequest::default()
    } else {
        daemon::extract::from_slice(&body)?
    };
    if let Some(grace_s) = request.grace_s {
        if grace_s > MAX_GRACE_S {
            let message = format!("grace_s: at most {MAX_GRACE_S}, got {grace_s}");
            return Err(ApiError::invalid("grace_s", message));
        }
        state.grace.send_replace(Duration::from_secs(grace_s));
    }
    state.shutdown.request();
    Ok((StatusCode::ACCEPTED, Json(Draining { status: "draining" })))
}

/// Follows a request that has just come.
fn begin(state: &Arc<State>, endpoint: Endpoint, request: &Request) -> Ticket {
    state.metrics.begin(endpoint, Account::of(state, request.extensions()))
}

/// The model, if it can be asked now.
fn served(state: &State) -> Result<Arc<Served>, ApiError> {
    match (state.phase(), state.served()) {
        (Phase::Serving, Some(served)) if !state.shutdown.is_requested() => Ok(Arc::clone(served)),
        (Phase::Failed(_), _) => Err(ApiError::new(
            ErrorKind::Internal,
            "this worker's model failed; its /health and its log say why",
        )),
        (Phase::Starting(step), _) if !state.shutdown.is_requested() => {
            let percent = step
                .progress
                .map(|progress| format!(", {:.0} %", progress * 100.0))
                .unwrap_or_default();
            let message = format!(
                "the model is being loaded (step `{}`{percent}); try again soon",
                step.name
            );
            Err(ApiError::new(ErrorKind::ModelLoading, message).retry_after(RETRY_LOADING_S))
        }
        _ => Err(draining()),
    }
}

/// Refuses a model that is not this worker's.
fn check_model(state: &State, asked: &str) -> Result<(), ApiError> {
    let there = &state.identity.model_id;
    if asked == there.as_str() {
        tracing::Span::current().record("gen_ai.request.model", asked);
        return Ok(());
    }
    let message = format!("the model `{asked}` is not here; this worker serves `{there}`");
    Err(ApiError::new(ErrorKind::ModelNotFound, message).with_param("model"))
}

fn draining() -> ApiError {
    let message = "this worker is shutting down and takes nothing new";
    ApiError::new(ErrorKind::Draining, message).retry_after(RETRY_DRAINING_S)
}

fn refused(error: InvalidRequest) -> ApiError {
    let code = error.code.as_str();
    match error.param {
        Some(param) => ApiError::invalid(param, error.message),
        None => ApiError::new(ErrorKind::InvalidRequest, error.message),
    }
    .with_code(code)
}
