//! The lines of all models.

use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use heartbeat_registry::Registry;
use shared_contract::ModelId;
use worker_contract::WorkerHeartbeat;

use crate::health::Clock;
use crate::line::Line;
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// One line for each model that was asked for.
pub(crate) struct Lines {
    lines: RwLock<HashMap<ModelId, Arc<Line>>>,
    max_waiting: usize,
    workers: Arc<Registry<WorkerHeartbeat>>,
    metrics: Arc<Metrics>,
    upstream: Arc<Upstream>,
    clock: Clock,
}

impl Lines {
    pub(crate) fn new(
        max_waiting: usize,
        workers: Arc<Registry<WorkerHeartbeat>>,
        metrics: Arc<Metrics>,
        upstream: Arc<Upstream>,
    ) -> Self {
        Self {
            lines: RwLock::default(),
            max_waiting,
            workers,
            metrics,
            upstream,
            clock: Clock::start(),
        }
    }

    /// The line of a model, if it was asked for before.
    pub(crate) fn find(&self, model: &str) -> Option<Arc<Line>> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.get(model).cloned()
    }

    /// The line of a model that there is.
    pub(crate) fn of(&self, model: &ModelId) -> Arc<Line> {
        if let Some(line) = self.find(model.as_str()) {
            return line;
        }
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry(model.clone()).or_insert_with(|| {
            let (workers, metrics) = (Arc::clone(&self.workers), Arc::clone(&self.metrics));
            let upstream = Arc::clone(&self.upstream);
            Arc::new(Line::new(
                model.clone(),
                self.max_waiting,
                workers,
                metrics,
                upstream,
                self.clock,
            ))
        });
        Arc::clone(line)
    }

    /// All lines.
    pub(crate) fn all(&self) -> Vec<Arc<Line>> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.values().cloned().collect()
    }

    /// Forgets the lines that nobody uses, of models without workers. So there are never more than models were served
    /// within the registry's retention, and models that there are.
    pub(crate) fn prune(&self) {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, line| Arc::strong_count(line) > 1 || !line.is_deserted());
        for line in lines.values() {
            line.forget_those_that_left();
        }
    }
}
