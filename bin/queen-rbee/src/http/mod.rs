//! The queen's endpoints. Handlers extract, call and answer.

mod access;
mod dashboard;
mod dialects;
mod fleet;
mod health;
mod heartbeats;
mod holders;
mod jobs;
mod openai;
mod placement;
mod scrape_targets;
mod stated;
mod stream;
mod timeline;
mod traffic;
mod workers;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use daemon::{Guard, PageGuard, auth, error, origin};
use http::Uri;
use router::Endpoint;

use crate::State;

pub(crate) use access::JobLine;
pub(crate) use openai::{invalid, refused};

/// Largest body of a request to a model.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// Largest heartbeat.
const MAX_HEARTBEAT_BYTES: usize = 1 << 20;
/// Paths whose lines in the access log are at the level debug: probes, scrapes and heartbeats.
pub(crate) const QUIET: &[&str] = &[
    "/health",
    "/ready",
    "/metrics",
    "/v1/worker-heartbeat",
    "/v1/hive-heartbeat",
];

/// All routes.
pub(crate) fn router(state: &Arc<State>) -> Router {
    let config = &state.config;
    let fleet_guard = Guard::new(config.token.clone(), "--token");
    // The operator's token opens what a key opens, but does not close it: without keys, everybody may use the models.
    let keys = config.api_keys.iter().cloned();
    let master = config.token.clone().filter(|_| !config.api_keys.is_empty());
    let model_guard = Guard::new(keys.chain(master), "--api-key");
    let is_local = config.address.ip().is_loopback();
    // A tunnel or a proxy leads others here by the name that is told to them.
    let advertised = config.advertise_url.as_ref().and_then(|url| url.parse::<Uri>().ok());
    let pages = |guard: &Guard| {
        PageGuard::new(guard.is_open() && is_local)
            .allowing(&config.allow_origins, "--allow-origin")
            .named(advertised.as_ref().and_then(Uri::host))
    };
    let (fleet_pages, model_pages) = (pages(&fleet_guard), pages(&model_guard));
    let own_pages = dashboard::routes().route_layer(from_fn_with_state(fleet_pages.clone(), origin::require_host));
    // Probes and scrapers come by any name, and are told nothing of value.
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics));
    of_fleet(state, fleet_guard, fleet_pages, &model_guard)
        .merge(of_models(state, model_guard, model_pages))
        .merge(open)
        .merge(own_pages)
        .with_state(Arc::clone(state))
}

/// What operators, their tools and the fleet's members call.
fn of_fleet(state: &State, guard: Guard, pages: PageGuard, models: &Guard) -> Router<Arc<State>> {
    Router::new()
        .route("/v1/worker-heartbeat", post(heartbeats::worker))
        .route("/v1/hive-heartbeat", post(heartbeats::hive))
        .route("/v1/heartbeats/stream", get(stream::heartbeats))
        .route("/v1/fleet", get(fleet::fleet))
        .route("/v1/workers", get(workers::workers))
        .route("/v1/model-holders", get(holders::holders))
        .route("/v1/placement", get(placement::placement))
        .route("/v1/decisions", get(placement::decisions))
        .route("/v1/timeline", get(timeline::timeline))
        .route("/v1/traffic", get(traffic::traffic))
        .route("/v1/scrape-targets", get(scrape_targets::list))
        .route(
            "/v1/serve",
            get(stated::list).post(stated::serve).delete(stated::unserve),
        )
        .route("/v1/hives/{id}/drain", post(stated::drain).delete(stated::undrain))
        .route("/v1/jobs", jobs::create(models))
        .merge(::jobs::http::routes(state.jobs.clone()))
        .layer(DefaultBodyLimit::max(MAX_HEARTBEAT_BYTES))
        .route_layer(from_fn_with_state(guard, auth::require))
        .route_layer(from_fn_with_state(pages, origin::require))
}

/// What programs that use the models call.
fn of_models(state: &Arc<State>, guard: Guard, pages: PageGuard) -> Router<Arc<State>> {
    let relayed = |endpoint| openai::relayed(state, (&guard, &pages), endpoint);
    let openai = Router::new()
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route_layer(from_fn_with_state(guard.clone(), auth::require))
        .route_layer(from_fn_with_state(pages.clone(), origin::require_page))
        .route("/v1/chat/completions", relayed(Endpoint::ChatCompletions))
        .route("/v1/completions", relayed(Endpoint::Completions))
        .route("/v1/embeddings", relayed(Endpoint::Embeddings));
    let dialects = dialects::routes(guard)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .route_layer(from_fn_with_state(pages.clone(), origin::require_page));
    let models = openai.merge(dialects);
    if !pages.allows_others() {
        return models;
    }
    // Around all guards: a preflight carries no key, and a page must be able to read why it is refused.
    models
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(from_fn_with_state(pages, origin::cors))
}
