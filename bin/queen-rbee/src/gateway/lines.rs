//! The lines of all models.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use daemon::ApiError;
use scheduler::Refusal;
use shared_contract::{ErrorKind, ModelId};

use super::RETRY_LOADING_S;
use super::line::Line;
use crate::metrics::Metrics;
use crate::models;
use crate::registry::{HiveRegistry, WorkerRegistry};

/// One line for each model that was asked for and that the fleet knows.
pub(super) struct Lines {
    lines: RwLock<HashMap<ModelId, Arc<Line>>>,
    max_waiting: usize,
    workers: Arc<WorkerRegistry>,
    hives: Arc<HiveRegistry>,
    metrics: Arc<Metrics>,
}

impl Lines {
    pub(super) fn new(
        max_waiting: usize,
        workers: Arc<WorkerRegistry>,
        hives: Arc<HiveRegistry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            lines: RwLock::default(),
            max_waiting,
            workers,
            hives,
            metrics,
        }
    }

    /// The line of a model, if it was asked for before.
    pub(super) fn find(&self, model: &str) -> Option<Arc<Line>> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.get(model).cloned()
    }

    /// The line of a model that the fleet knows.
    pub(super) fn of_known_model(&self, name: &str) -> Result<Arc<Line>, ApiError> {
        if let Some(line) = self.find(name) {
            return Ok(line);
        }
        let model = ModelId::new(name)
            .ok()
            .filter(|model| !self.workers.find_workers_by_model(model).is_empty() || self.is_expected(model));
        let Some(model) = model else {
            return Err(self.not_found(name));
        };
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry(model.clone()).or_insert_with(|| {
            let (workers, metrics) = (Arc::clone(&self.workers), Arc::clone(&self.metrics));
            Arc::new(Line::new(model, self.max_waiting, workers, metrics))
        });
        Ok(Arc::clone(line))
    }

    /// All lines.
    pub(super) fn all(&self) -> Vec<Arc<Line>> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.values().cloned().collect()
    }

    /// Forgets the lines that nobody uses, of models without workers. So there are never more than models were served
    /// within the registry's retention.
    pub(super) fn prune(&self) {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, line| Arc::strong_count(line) > 1 || !line.is_deserted());
    }

    /// Whether a hive is about to have a worker for this model.
    pub(super) fn is_expected(&self, model: &ModelId) -> bool {
        self.hives.expects(model, Instant::now())
    }

    /// The answer to a request that nobody can take, and that does not wait.
    pub(super) fn refuse(&self, line: &Line, refusal: Refusal) -> ApiError {
        if refusal == Refusal::Unknown {
            return self.not_found(line.model.as_str());
        }
        let (_, reason) = line.why_not();
        let message = format!("no worker for model `{}` can be reached: {reason}", line.model);
        ApiError::new(ErrorKind::NoCapacity, message).retry_after(RETRY_LOADING_S)
    }

    fn not_found(&self, name: &str) -> ApiError {
        ApiError::new(ErrorKind::ModelNotFound, models::not_found(&self.workers, name)).with_param("model")
    }
}
