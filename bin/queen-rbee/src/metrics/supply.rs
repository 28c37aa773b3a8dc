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

impl LoadResult {
    fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
        }
    }
}

/// The handles.
#[derive(Debug)]
pub(crate) struct SupplyMetrics {
    begun: Family<TriggerLabels, Counter>,
    ended: Family<ResultLabels, Counter>,
    evictions: Counter,
}

impl SupplyMetrics {
    /// Registers them. All are shown from the start: a rate sees the first only if there was a nought before it.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let begun: Family<TriggerLabels, Counter> = add(
            registry,
            "model_loads",
            "Workers that the queen set out to bring up, by why",
        );
        for trigger in ["demand", "line", "serve", "operator"] {
            begun.get_or_create_owned(&TriggerLabels { trigger });
        }
        let ended: Family<ResultLabels, Counter> = add(
            registry,
            "model_load_results",
            "What came of workers that the queen set out to bring up",
        );
        for result in [LoadResult::Ready, LoadResult::Failed, LoadResult::GivenUp] {
            ended.get_or_create_owned(&ResultLabels { result: result.word() });
        }
        Self {
            begun,
            ended,
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
            Trigger::Operator => "operator",
        };
        self.begun.get_or_create(&TriggerLabels { trigger }).inc();
    }

    /// The worker is there, or will not be.
    pub(crate) fn ended(&self, result: LoadResult) {
        self.ended.get_or_create(&ResultLabels { result: result.word() }).inc();
    }

    /// So many workers made room.
    pub(crate) fn evicted(&self, workers: usize) {
        self.evictions.inc_by(workers as u64);
    }
}
