//! `GET /health` and `GET /metrics`: for everybody, always.

use std::time::Instant;

use axum::extract::State as FromState;
use axum::http::HeaderMap;
use axum::response::Response;
use daemon::{ApiError, Json};
use heartbeat_client::Queens;
use serde::{Deserialize, Serialize};
use shared_contract::{ModelId, WorkerId};
use worker_contract::WorkerStatus;

use super::Shared;
use crate::heartbeat;
use crate::state::{Memory, Phase, State};

/// Answer to `GET /health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// What the worker is doing.
    pub status: WorkerStatus,
    /// Always true: it answers.
    pub alive: bool,
    /// Whether it takes requests, at once or after those that wait.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// Step of the start, for example `download`, `load`, `warm_up`.
    pub phase: Option<String>,
    /// How much of the step is done, 0 to 1.
    pub progress: Option<f32>,
    /// The model it serves.
    pub model_id: ModelId,
    /// Its name.
    pub worker_id: WorkerId,
    /// Milliseconds since the last request ended, or since it was ready; `None` while requests are answered or it is not
    /// ready.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// What is wrong between the worker and its queens, and what to do.
    #[serde(default)]
    pub queen_problem: Option<String>,
    /// Memory of the model, once it is ready.
    #[serde(default)]
    pub memory: Option<Memory>,
}

pub(super) async fn health(FromState(state): Shared, FromState(queens): FromState<Queens>) -> Json<Health> {
    Json(of(&state, queens.problem()))
}

fn of(state: &State, queen_problem: Option<String>) -> Health {
    let phase = state.phase();
    let is_busy = state
        .served()
        .is_some_and(|served| served.is_busy(&served.engine.load()));
    let detail = heartbeat::detail(&phase).unwrap_or_default();
    let idle = state.metrics.activity().idle(Instant::now());
    let idle = idle.filter(|_| phase == Phase::Serving);
    let reason = match &phase {
        Phase::Starting(step) => Some(format!("the model is being loaded (step `{}`)", step.name)),
        Phase::Serving => None,
        Phase::Draining => Some("finishing running requests before it ends".to_owned()),
        Phase::Stopped => Some("ended".to_owned()),
        Phase::Failed(reason) => Some(reason.to_string()),
    };
    Health {
        status: heartbeat::status(&phase, is_busy),
        alive: true,
        ready: phase == Phase::Serving,
        reason,
        phase: detail.phase,
        progress: detail.progress,
        model_id: state.identity.model_id.clone(),
        worker_id: state.identity.worker_id.clone(),
        idle_ms: idle.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)),
        queen_problem,
        memory: state.served().map(|served| served.memory),
    }
}

pub(super) async fn metrics(FromState(state): Shared, headers: HeaderMap) -> Result<Response, ApiError> {
    state.metrics.answer(&headers)
}
