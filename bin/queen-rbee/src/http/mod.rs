//! The queen's endpoints. Handlers extract, call and answer.

mod fleet;
mod health;
mod heartbeats;
mod holders;
mod openai;
mod stream;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use daemon::{Guard, auth};

use crate::State;

/// Largest body of a request to a model.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// Largest heartbeat.
const MAX_HEARTBEAT_BYTES: usize = 1 << 20;

/// All routes.
pub(crate) fn router(state: &Arc<State>) -> Router {
    let config = &state.config;
    let fleet_guard = Guard::new(config.token.clone(), "--token");
    // The operator's token opens what a key opens, but does not close it: without keys, everybody may use the models.
    let keys = config.api_keys.iter().cloned();
    let master = config.token.clone().filter(|_| !config.api_keys.is_empty());
    let model_guard = Guard::new(keys.chain(master), "--api-key");

    let fleet = Router::new()
        .route("/v1/worker-heartbeat", post(heartbeats::worker))
        .route("/v1/hive-heartbeat", post(heartbeats::hive))
        .route("/v1/heartbeats/stream", get(stream::heartbeats))
        .route("/v1/fleet", get(fleet::fleet))
        .route("/v1/workers", get(workers::workers))
        .route("/v1/model-holders", get(holders::holders))
        .layer(DefaultBodyLimit::max(MAX_HEARTBEAT_BYTES))
        .route_layer(from_fn_with_state(fleet_guard, auth::require));
    let openai = Router::new()
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .route_layer(from_fn_with_state(model_guard, auth::require));
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics));
    fleet.merge(openai).merge(open).with_state(Arc::clone(state))
}
