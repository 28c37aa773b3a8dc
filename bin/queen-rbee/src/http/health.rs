//! `GET /health`, `GET /ready` and `GET /metrics`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use daemon::{ApiError, Json};
use hive_contract::HiveHeartbeat;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use shared_contract::{HeartbeatItem, QueenId};
use worker_contract::WorkerHeartbeat;

use crate::State;
use crate::fleet::Counts;

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

pub(super) async fn metrics(Shared(state): Shared<Arc<State>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let health = look(&state);
    state.metrics.set_members(WorkerHeartbeat::KIND, health.workers);
    state.metrics.set_members(HiveHeartbeat::KIND, health.hives);
    state.metrics.set_view(health.degraded_view, state.pace().interval);
    state.metrics.answer(&headers)
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
