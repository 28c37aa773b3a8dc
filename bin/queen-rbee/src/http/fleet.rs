//! `GET /v1/fleet`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use daemon::Json;

use crate::State;
use crate::fleet::FleetView;

pub(super) async fn fleet(Shared(state): Shared<Arc<State>>) -> Json<FleetView> {
    Json(state.fleet(Instant::now()))
}
