//! `GET /v1/fleet`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use daemon::Json;

use crate::State;
use crate::fleet::{FleetView, HiveView, QueenView, WorkerView, millis};

pub(super) async fn fleet(Shared(state): Shared<Arc<State>>) -> Json<FleetView> {
    let now = Instant::now();
    Json(FleetView {
        queen: queen(&state, now),
        hives: state
            .hives
            .list_all(now)
            .iter()
            .map(|view| HiveView::new(view, now))
            .collect(),
        workers: state
            .workers
            .list_all(now)
            .iter()
            .map(|view| WorkerView::new(view, now))
            .collect(),
    })
}

pub(super) fn queen(state: &State, now: Instant) -> QueenView {
    QueenView {
        id: state.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: millis(now.saturating_duration_since(state.started)),
        degraded_view: false,
    }
}
