//! What there is on this host: capabilities, load, workers, model files, health.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use daemon::{ApiError, Json, Query, sse};
use futures_util::StreamExt;
use heartbeat_client::{Error, QueenUrl};
use hive_contract::CapabilitiesReply;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared_contract::{ErrorKind, HealthStatus, HiveId, OperationalStatus, timing};
use tokio_stream::wrappers::IntervalStream;

use super::Shared;
use crate::{mdns, metrics, operations};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CapabilitiesQuery {
    queen_url: Option<String>,
}

/// A queen that names itself is reported to from now on.
pub(super) async fn capabilities(
    State(app): Shared,
    Query(query): Query<CapabilitiesQuery>,
) -> Result<Json<CapabilitiesReply>, ApiError> {
    if let Some(text) = &query.queen_url {
        let url: QueenUrl = text
            .parse()
            .map_err(|why| ApiError::invalid("queen_url", format!("`{text}`: {why}")))?;
        app.queens.pulled_by(&url).map_err(|error| match error {
            Error::TooManyQueens => ApiError::new(ErrorKind::Conflict, error.to_string()).with_param("queen_url"),
            Error::Ended => ApiError::new(ErrorKind::Draining, error.to_string()),
            why => ApiError::invalid("queen_url", why.to_string()),
        })?;
    }
    Ok(Json(CapabilitiesReply {
        hive_id: Some(app.core.identity.id.clone()),
        capabilities: app.core.capabilities(),
    }))
}

/// The load of the host, each second, until the reader leaves or the hive ends.
pub(super) async fn telemetry(State(app): Shared) -> Response {
    let mut ticks = tokio::time::interval(timing::TELEMETRY_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let core = Arc::clone(&app.core);
    let ends = app.shutdown.clone();
    let events = IntervalStream::new(ticks)
        .map(move |_| sse::event(&core.telemetry()))
        .take_until(async move { ends.requested().await });
    sse::response(events)
}

pub(super) async fn workers(State(app): Shared) -> Json<Value> {
    Json(operations::workers::list(&app.core))
}

pub(super) async fn models(State(app): Shared) -> Result<Json<Value>, ApiError> {
    operations::models::list(&app.core).await.map(Json)
}

/// Answer to `GET /health`.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    status: OperationalStatus,
    alive: bool,
    ready: bool,
    health: HealthStatus,
    reason: Option<String>,
    hive_id: HiveId,
    version: &'static str,
    /// What is wrong between the hive and its queens, and what to do.
    queen_problem: Option<String>,
    /// For each address of the hive, what shows that it knows the fleet's token; left out while there is nothing to show.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proofs: Vec<String>,
}

pub(super) async fn health(State(app): Shared) -> Json<Health> {
    let status = app.core.status();
    let (health, reason) = app.core.health();
    Json(Health {
        status,
        alive: true,
        ready: status == OperationalStatus::Ready,
        health,
        reason,
        hive_id: app.core.identity.id.clone(),
        version: env!("CARGO_PKG_VERSION"),
        queen_problem: app.queens.problem(),
        proofs: mdns::proofs(&app),
    })
}

pub(super) async fn metrics(State(app): Shared, headers: HeaderMap) -> Result<Response, ApiError> {
    app.exposition.answer(&headers, &metrics::registry(&app))
}
