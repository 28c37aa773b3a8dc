//! The router's metrics.

mod latency;
mod model;

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use shared_contract::ModelId;

use crate::attempt::Failure;
use crate::traffic::Traffic;
use latency::Latency;

pub(crate) use model::ModelMetrics;

/// Models with a label of their own; further ones share [`OTHER_MODEL`].
const MAX_MODEL_LABELS: usize = 200;
/// Label of known models beyond [`MAX_MODEL_LABELS`].
pub(crate) const OTHER_MODEL: &str = "other";
/// Label of requests for models that there are not, or that name none.
pub(crate) const UNKNOWN_MODEL: &str = "unknown";

/// Upper bounds in seconds: a small model on a GPU takes milliseconds, a long prompt on a CPU a minute, a model that has to be
/// fetched first longer.
const FIRST_TOKEN_BOUNDS: &[f64] = &[
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];
/// Upper bounds in seconds: from 1,000 tokens per second to a worker that was lost on the way.
const INTER_TOKEN_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
];
/// Upper bounds in seconds: from an embedding to the longest answer that is waited for.
const DURATION_BOUNDS: &[f64] = &[
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// What becomes of a stream that its worker left unfinished.
const MIGRATION_OUTCOMES: [&str; 6] = ["repeated", "resumed", "continued", "finished", "failed", "refused"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// What is counted for each model.
#[derive(Debug)]
struct Models {
    queue_depth: Family<ModelLabels, Gauge>,
    first_token: Family<ModelLabels, Latency, fn() -> Latency>,
    inter_token: Family<ModelLabels, Latency, fn() -> Latency>,
    duration: Family<ModelLabels, Latency, fn() -> Latency>,
    output_tokens: Family<ModelLabels, Counter>,
}

/// All metrics; the handles are cheap to use and never block a reader.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    migrations: Family<OutcomeLabels, Counter>,
    probes: Family<OutcomeLabels, Counter>,
    models: Models,
    model_labels: Mutex<HashSet<String>>,
    /// Requests that are being answered or wait.
    pub(crate) inflight: Gauge,
    /// Requests that wait for a worker, of whatever model: the sum of the depths of the queues.
    pub(crate) waiting: Gauge,
    /// Requests whose client left before their end.
    pub(crate) clients_gone: Counter,
    /// Answers that broke off after their first byte, and were not taken up by another worker.
    pub(crate) broken: Counter,
    /// The last hour of all this.
    pub(crate) traffic: Traffic,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let r = registry;
        let metrics = Self {
            requests: add(
                r,
                "requests",
                "Requests to the OpenAI endpoints, by the status they were answered with",
            ),
            retries: add(
                r,
                "retries",
                "Attempts at a worker that another one had to follow, by reason",
            ),
            migrations: add(
                r,
                "migrations",
                "Streams that a worker left unfinished, by what became of them",
            ),
            probes: add(
                r,
                "probes",
                "Requests of the queen's own to workers that failed, by what came of them",
            ),
            models: Models::new(r),
            model_labels: Mutex::default(),
            inflight: add(r, "requests_in_flight", "Requests that are being answered or wait"),
            waiting: Gauge::default(),
            clients_gone: add(r, "clients_gone", "Requests whose client left before their end"),
            broken: add(
                r,
                "broken_answers",
                "Answers that broke off after their first byte and that nobody finished",
            ),
            traffic: Traffic::default(),
        };
        metrics.show_all();
        metrics
    }

    /// Shows what has few labels from the start: a rate sees the first only if there was a nought before it.
    fn show_all(&self) {
        for reason in Failure::REASONS {
            self.retries.get_or_create_owned(&RetryLabels { reason });
        }
        for outcome in MIGRATION_OUTCOMES {
            self.migrations.get_or_create_owned(&OutcomeLabels { outcome });
        }
        for outcome in Failure::REASONS.into_iter().chain(["answered"]) {
            self.probes.get_or_create_owned(&OutcomeLabels { outcome });
        }
    }

    /// Counts an attempt that another one had to follow.
    pub(crate) fn retry(&self, reason: &'static str) {
        self.retries.get_or_create(&RetryLabels { reason }).inc();
        self.traffic.retried();
    }

    /// Counts a stream that its worker left unfinished.
    pub(crate) fn migration(&self, outcome: &'static str) {
        self.migrations.get_or_create(&OutcomeLabels { outcome }).inc();
        self.traffic.migrated();
    }

    /// Counts a probe.
    pub(crate) fn probe(&self, outcome: &'static str) {
        self.probes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// The label of a known model; few enough of them for any collector.
    pub(crate) fn model_label(&self, model: &ModelId) -> String {
        let mut labels = self.model_labels.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() < MAX_MODEL_LABELS {
            labels.insert(model.as_str().to_owned());
        }
        match labels.get(model.as_str()) {
            Some(label) => label.clone(),
            None => OTHER_MODEL.to_owned(),
        }
    }

    /// The counter of one model's requests that were answered with one status.
    pub(crate) fn requests(&self, model_label: &str, status: u16) -> Counter {
        self.requests.get_or_create_owned(&RequestLabels {
            model: model_label.to_owned(),
            status,
        })
    }
}

impl Models {
    fn new(registry: &mut Registry) -> Self {
        let r = registry;
        Self {
            queue_depth: add(r, "queue_depth", "Requests that wait for a worker"),
            first_token: latencies(
                r,
                "time_to_first_token_seconds",
                "From a request's arrival to the first token of its stream",
                || Latency::new(FIRST_TOKEN_BOUNDS),
            ),
            inter_token: latencies(
                r,
                "inter_token_latency_seconds",
                "Between two tokens of a stream, as they are relayed",
                || Latency::new(INTER_TOKEN_BOUNDS),
            ),
            duration: latencies(
                r,
                "request_duration_seconds",
                "From a request's arrival to the end of its answer",
                || Latency::new(DURATION_BOUNDS),
            ),
            output_tokens: add(r, "output_tokens", "Tokens of answers, as they are relayed"),
        }
    }
}

/// Registers a histogram for each model, and answers with a handle of it.
fn latencies(
    registry: &mut Registry,
    name: &str,
    help: &str,
    constructor: fn() -> Latency,
) -> Family<ModelLabels, Latency, fn() -> Latency> {
    let family = Family::new_with_constructor(constructor);
    registry.register(name, help, family.clone());
    family
}

/// Registers a metric, and answers with a handle of it.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_beyond_the_bound_share_one_label() {
        let metrics = Metrics::new(&mut Registry::default());
        let label = |number: usize| metrics.model_label(&ModelId::new(format!("model-{number}")).unwrap());
        for number in 0..MAX_MODEL_LABELS {
            assert_eq!(label(number), format!("model-{number}"));
        }
        assert_eq!(label(MAX_MODEL_LABELS), OTHER_MODEL);
        assert_eq!(label(7), "model-7");
    }
}
