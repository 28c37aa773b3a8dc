//! The queen's endpoints. Handlers extract, call and answer.

mod dialects;
mod fleet;
mod health;
mod heartbeats;
mod holders;
mod openai;
mod placement;
mod stated;
mod stream;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use daemon::{Guard, auth};
use router::Endpoint;

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
        .route("/v1/placement", get(placement::placement))
        .route("/v1/decisions", get(placement::decisions))
        .route(
            "/v1/serve",
            get(stated::list).post(stated::serve).delete(stated::unserve),
        )
        .route("/v1/hives/{id}/drain", post(stated::drain).delete(stated::undrain))
        .layer(DefaultBodyLimit::max(MAX_HEARTBEAT_BYTES))
        .route_layer(from_fn_with_state(fleet_guard, auth::require));
    let relayed = |endpoint| openai::relayed(state, &model_guard, endpoint);
    let openai = Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route_layer(from_fn_with_state(model_guard.clone(), auth::require))
        .route("/v1/chat/completions", relayed(Endpoint::ChatCompletions))
        .route("/v1/completions", relayed(Endpoint::Completions))
        .route("/v1/embeddings", relayed(Endpoint::Embeddings));
    let dialects = dialects::routes(model_guard.clone()).layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES));
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics));
    fleet
        .merge(openai)
        .merge(dialects)
        .merge(open)
        .with_state(Arc::clone(state))
}
