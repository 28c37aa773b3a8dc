//! The hive's endpoints. Handlers extract, call, answer.

mod host;
mod jobs;
pub(crate) mod models;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use daemon::{Guard, PageGuard, auth, origin};

use crate::App;

/// Largest request body: an operation with a long reference is far below.
const MAX_BODY_BYTES: usize = 64 * 1024;

type Shared = State<Arc<App>>;

/// All endpoints; the token, if there is one, guards all but `/health` and `/metrics`, and no web page may use them.
pub(crate) fn router(app: Arc<App>) -> Router {
    let config = &app.config;
    let guard = Guard::new(config.token.clone(), "--token");
    let pages = PageGuard::new(guard.is_open() && config.address.ip().is_loopback());
    let pages = pages.named(config.advertise_host.as_deref());
    let guarded = Router::new()
        .route("/v1/capabilities", get(host::capabilities))
        .route("/capabilities", get(host::capabilities))
        .route("/v1/heartbeats/stream", get(host::telemetry))
        .route("/v1/workers", get(host::workers))
        .route("/v1/models", get(host::models))
        .route("/v1/models/{id}", get(models::detail))
        .route("/v1/models/{id}/file", get(models::file))
        .route("/v1/jobs", post(jobs::create))
        .merge(::jobs::http::routes(app.jobs.clone()))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .route_layer(from_fn_with_state(guard, auth::require))
        .route_layer(from_fn_with_state(pages, origin::require));
    Router::new()
        .route("/health", get(host::health))
        .route("/metrics", get(host::metrics))
        .merge(guarded)
        .with_state(app)
}
