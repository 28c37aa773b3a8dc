//! `GET /v1/workers`: the workers with their processes, filtered.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use daemon::{ApiError, Json, Query};
use serde::Deserialize;
use shared_contract::ModelId;

use crate::State;
use crate::fleet::WorkerList;
use crate::telemetry::WorkerEntry;

/// Conditions that all must hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    /// Those that take work and have none, or those others.
    idle: Option<bool>,
    /// Those that serve this model, or are started to.
    model: Option<ModelId>,
    /// Those on whose device at least so much memory is free.
    vram_mb: Option<u64>,
}

impl Filter {
    fn admits(&self, entry: &WorkerEntry) -> bool {
        self.idle.is_none_or(|idle| entry.is_idle() == idle)
            && self.model.as_ref().is_none_or(|model| entry.serves(model))
            && self.vram_mb.is_none_or(|mb| entry.has_vram(mb))
    }
}

pub(super) async fn workers(
    Shared(state): Shared<Arc<State>>,
    filter: Result<Query<Filter>, ApiError>,
) -> Result<Json<WorkerList>, ApiError> {
    let Query(filter) = filter?;
    let now = Instant::now();
    let telemetry = &state.telemetry;
    let mut found = match filter {
        Filter {
            model: Some(ref model), ..
        } => telemetry.find_workers_with_model(model, now),
        Filter { vram_mb: Some(mb), .. } => telemetry.find_workers_with_vram_capacity(mb, now),
        Filter { idle: Some(true), .. } => telemetry.find_idle_workers(now),
        Filter { .. } => telemetry.get_all_workers(now),
    };
    // One condition holds by now.
    found.retain(|entry| filter.admits(entry));
    Ok(Json(WorkerList::new(found, now)))
}
