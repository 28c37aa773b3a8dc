//! The models that the fleet serves, as clients see them.

use std::time::Instant;

use openai_api::Model;
use serde::Serialize;
use shared_contract::ModelId;
use worker_contract::WorkerStatus;

use crate::registry::{WorkerRegistry, candidate};

/// One model of `GET /v1/models`: OpenAI's fields, and the state of its workers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ServedModel {
    #[serde(flatten)]
    model: Model,
    state: ModelState,
    /// Workers that are online.
    workers: usize,
    /// Those of them that would take a request now.
    ready_workers: usize,
    /// Longest prompt plus answer in tokens of the worker with the longest; 0 is unknown.
    context_length: u32,
}

/// What a request for a model would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ModelState {
    /// A free worker.
    Ready,
    /// Workers that are all taken.
    Busy,
    /// Workers that are starting.
    Loading,
}

/// The models that online workers serve, or will once they have loaded them; sorted.
pub(crate) fn served(workers: &WorkerRegistry, created: i64) -> Vec<ServedModel> {
    let models = workers.models();
    models
        .iter()
        .filter_map(|model| find(workers, model, created))
        .collect()
}

/// One of them.
pub(crate) fn find(workers: &WorkerRegistry, model: &ModelId, created: i64) -> Option<ServedModel> {
    let now = Instant::now();
    let mut served = ServedModel {
        model: Model::new(model.as_str(), created),
        state: ModelState::Loading,
        workers: 0,
        ready_workers: 0,
        context_length: 0,
    };
    for worker in workers.find_workers_by_model(model).iter() {
        let view = worker.view(now);
        let info = &view.item().worker;
        if !worker.is_online(now) {
            continue;
        }
        match info.status {
            WorkerStatus::Ready | WorkerStatus::Busy => {
                let candidate = candidate(&view.report, view.liveness, view.outstanding);
                served.ready_workers += usize::from(candidate.load() < candidate.slots);
                served.state = ModelState::Busy;
            }
            WorkerStatus::Starting => {}
            WorkerStatus::Draining | WorkerStatus::Stopped | WorkerStatus::Failed => continue,
        }
        served.workers += 1;
        served.context_length = served.context_length.max(info.context_length);
    }
    if served.ready_workers > 0 {
        served.state = ModelState::Ready;
    }
    (served.workers > 0).then_some(served)
}

/// What a client is told that asks for a model that there is not.
pub(crate) fn not_found(workers: &WorkerRegistry, model: &str) -> String {
    let mut names: Vec<String> = served(workers, 0).into_iter().map(|served| served.model.id).collect();
    let count = names.len();
    names.truncate(MAX_NAMES);
    match count {
        0 => format!(
            "model `{model}` does not exist: no worker serves any model yet; start one with `rbee up` or `rbee spawn MODEL`"
        ),
        count if count > MAX_NAMES => format!(
            "model `{model}` does not exist; there are {} and {} more",
            names.join(", "),
            count - MAX_NAMES
        ),
        _ => format!("model `{model}` does not exist; there are: {}", names.join(", ")),
    }
}

/// Names in one error message.
const MAX_NAMES: usize = 20;
