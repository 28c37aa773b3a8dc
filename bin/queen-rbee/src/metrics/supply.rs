//! Metrics of the supply: workers that it brings up, and those that make room.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::add;
use crate::supply::Trigger;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TriggerLabels {
    trigger: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// What came of one order to bring up a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadResult {
    /// It takes requests.
    Ready,
    /// Its hive could not do it.
    Failed,
    /// The fleet had changed before the hive was told.
    GivenUp,
}

/// The handles.
#[derive(Debug)]
pub(crate) struct SupplyMetrics {
    begun: Family<TriggerLabels, Counter>,
    ended: Family<ResultLabels, Counter>,
    evictions: Counter,
}

impl SupplyMetrics {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        Self {
            begun: add(
                registry,
                "model_loads",
                "Workers that the queen set out to bring up, by why",
            ),
            ended: add(
                registry,
                "model_load_results",
                "What came of workers that the queen set out to bring up",
            ),
            evictions: add(
                registry,
                "evictions",
                "Idle workers that were ended to make room for another model",
            ),
        }
    }

    /// A place was found for a worker.
    pub(crate) fn begun(&self, trigger: &Trigger) {
        let trigger = match trigger {
            Trigger::Demand { .. } => "demand",
            Trigger::Line { .. } => "line",
            Trigger::Serve { .. } => "serve",
        };
        self.begun.get_or_create(&TriggerLabels { trigger }).inc();
    }

    /// The worker is there, or will not be.
    pub(crate) fn ended(&self, result: LoadResult) {
        let result = match result {
            LoadResult::Ready => "ready",
            LoadResult::Failed => "failed",
            LoadResult::GivenUp => "given_up",
        };
        self.ended.get_or_create(&ResultLabels { result }).inc();
    }

    /// So many workers made room.
    pub(crate) fn evicted(&self, workers: usize) {
        self.evictions.inc_by(workers as u64);
    }
}
