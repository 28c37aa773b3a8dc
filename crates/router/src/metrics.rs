//! The router's metrics.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use shared_contract::ModelId;

/// Models with a label of their own; further ones share [`OTHER_MODEL`].
const MAX_MODEL_LABELS: usize = 200;
/// Label of known models beyond [`MAX_MODEL_LABELS`].
const OTHER_MODEL: &str = "other";
/// Label of requests for models that there are not, or that name none.
pub(crate) const UNKNOWN_MODEL: &str = "unknown";

/// Upper bounds in seconds: a relayed token takes a millisecond, a long prompt on a CPU a minute.
const FIRST_BYTE_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];

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

/// All metrics; the handles are cheap to use and never block a reader.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    migrations: Family<OutcomeLabels, Counter>,
    probes: Family<OutcomeLabels, Counter>,
    model_labels: Mutex<HashSet<String>>,
    /// From the request's arrival.
    first_byte: Histogram,
    /// Requests that are being answered or wait.
    pub(crate) inflight: Gauge,
    /// Requests that wait for a worker.
    pub(crate) waiting: Gauge,
    /// Requests whose client left before their end.
    pub(crate) clients_gone: Counter,
    /// Answers that broke off after their first byte, and were not taken up by another worker.
    pub(crate) broken: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let r = registry;
        Self {
            requests: add(r, "requests", "Requests to the OpenAI endpoints"),
            retries: add(r, "retries", "Attempts at a worker that another one had to follow"),
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
            model_labels: Mutex::default(),
            first_byte: {
                let histogram = Histogram::new(FIRST_BYTE_BUCKETS);
                let help = "From a request's arrival to the first byte of its answer";
                r.register("time_to_first_byte_seconds", help, histogram.clone());
                histogram
            },
            inflight: add(r, "inflight_requests", "Requests that are being answered or wait"),
            waiting: add(r, "waiting_requests", "Requests that wait for a worker"),
            clients_gone: add(r, "clients_gone", "Requests whose client left before their end"),
            broken: add(
                r,
                "broken_answers",
                "Answers that broke off after their first byte and that nobody finished",
            ),
        }
    }

    /// Counts an attempt that another one had to follow.
    pub(crate) fn retry(&self, reason: &'static str) {
        self.retries.get_or_create(&RetryLabels { reason }).inc();
    }

    /// Counts a stream that its worker left unfinished.
    pub(crate) fn migration(&self, outcome: &'static str) {
        self.migrations.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts a probe.
    pub(crate) fn probe(&self, outcome: &'static str) {
        self.probes.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Notes how long after a request's arrival its answer began.
    pub(crate) fn first_byte(&self, after: Duration) {
        self.first_byte.observe(after.as_secs_f64());
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

/// Counts the answers for one model by status.
pub(crate) struct Counters {
    label: String,
    metrics: Arc<Metrics>,
    /// Nearly all answers are.
    ok: Counter,
}

impl Counters {
    pub(crate) fn new(label: String, metrics: &Arc<Metrics>) -> Self {
        Self {
            ok: metrics.requests(&label, 200),
            label,
            metrics: Arc::clone(metrics),
        }
    }

    pub(crate) fn count(&self, status: u16) {
        match status {
            200 => self.ok.inc(),
            _ => self.metrics.requests(&self.label, status).inc(),
        };
    }
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
