//! `GET /health`, `GET /ready` and `GET /metrics`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use daemon::Json;
use hive_contract::HiveHeartbeat;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use shared_contract::{HeartbeatItem, QueenId};
use worker_contract::WorkerHeartbeat;

use crate::State;
use crate::fleet::Counts;

/// The format that the metrics are written in.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The older format that the same text can be read as.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether she takes requests. A queen without workers does, too: she has an answer to them.
#[derive(Serialize)]
pub(super) struct Readiness {
    /// `ready` or `draining`.
    status: &'static str,
    ready: bool,
}

impl Readiness {
    fn of(state: &State) -> Self {
        let ready = !state.shutdown.is_requested();
        let status = if ready { "ready" } else { "draining" };
        Self { status, ready }
    }
}

#[derive(Serialize)]
pub(super) struct Health {
    #[serde(flatten)]
    readiness: Readiness,
    alive: bool,
    queen_id: QueenId,
    version: &'static str,
    workers: Counts,
    hives: Counts,
    /// She has reason to doubt what she sees of them.
    degraded_view: bool,
}

pub(super) async fn health(Shared(state): Shared<Arc<State>>) -> Json<Health> {
    Json(look(&state))
}

pub(super) async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    let readiness = Readiness::of(&state);
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

pub(super) async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Response {
    let health = look(&state);
    state.metrics.set_members(WorkerHeartbeat::KIND, health.workers);
    state.metrics.set_members(HiveHeartbeat::KIND, health.hives);
    state.metrics.set_view(health.degraded_view, state.pace().interval);
    let reads_openmetrics = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let format = if reads_openmetrics {
        OPENMETRICS
    } else {
        PROMETHEUS_TEXT
    };
    ([(header::CONTENT_TYPE, format)], state.metrics.text()).into_response()
}

fn look(state: &State) -> Health {
    let now = Instant::now();
    Health {
        readiness: Readiness::of(state),
        alive: true,
        queen_id: state.id.clone(),
        version: env!("CARGO_PKG_VERSION"),
        workers: Counts::of(&state.workers, now),
        hives: Counts::of(&state.hives, now),
        degraded_view: state.is_view_degraded(),
    }
}
