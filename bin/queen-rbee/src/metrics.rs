//! The queen's metrics, as `GET /metrics` shows them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use shared_contract::ModelId;

use crate::fleet::Counts;

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
struct MemberLabels {
    kind: &'static str,
    liveness: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BeatLabels {
    kind: &'static str,
    outcome: &'static str,
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

/// All metrics; the handles are cheap to use and never block a reader.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    members: Family<MemberLabels, Gauge>,
    beats: Family<BeatLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    model_labels: Mutex<HashSet<String>>,
    /// From the request's arrival.
    first_byte: Histogram,
    /// Requests that are being answered or wait.
    pub(crate) inflight: Gauge,
    /// Requests that wait for a worker.
    pub(crate) waiting: Gauge,
    /// Requests whose client left before their end.
    pub(crate) clients_gone: Counter,
    /// Answers that broke off after their first byte.
    pub(crate) broken: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("rbee");
        let members = Family::<MemberLabels, Gauge>::default();
        registry.register("members", "Members of the fleet by liveness", members.clone());
        let beats = Family::<BeatLabels, Counter>::default();
        registry.register("heartbeats", "Heartbeats received", beats.clone());
        let requests = Family::<RequestLabels, Counter>::default();
        registry.register("requests", "Requests to the OpenAI endpoints", requests.clone());
        let retries = Family::<RetryLabels, Counter>::default();
        registry.register(
            "retries",
            "Attempts at a worker that another one had to follow",
            retries.clone(),
        );
        let first_byte = Histogram::new(FIRST_BYTE_BUCKETS);
        registry.register(
            "time_to_first_byte_seconds",
            "From a request's arrival to the first byte of its answer",
            first_byte.clone(),
        );
        let inflight = Gauge::default();
        registry.register(
            "inflight_requests",
            "Requests that are being answered or wait",
            inflight.clone(),
        );
        let waiting = Gauge::default();
        registry.register("waiting_requests", "Requests that wait for a worker", waiting.clone());
        let clients_gone = Counter::default();
        registry.register(
            "clients_gone",
            "Requests whose client left before their end",
            clients_gone.clone(),
        );
        let broken = Counter::default();
        registry.register(
            "broken_answers",
            "Answers that broke off after their first byte",
            broken.clone(),
        );
        Self {
            registry,
            members,
            beats,
            requests,
            retries,
            model_labels: Mutex::default(),
            first_byte,
            inflight,
            waiting,
            clients_gone,
            broken,
        }
    }

    /// Takes the counts that the next [`text`](Self::text) shows for a kind of members.
    pub(crate) fn set_members(&self, kind: &'static str, counts: Counts) {
        let gauges = [
            ("online", counts.online),
            ("suspect", counts.suspect),
            ("lost", counts.lost),
        ];
        for (liveness, count) in gauges {
            self.members
                .get_or_create(&MemberLabels { kind, liveness })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn beat(&self, kind: &'static str, outcome: &'static str) {
        self.beats.get_or_create(&BeatLabels { kind, outcome }).inc();
    }

    pub(crate) fn retry(&self, reason: &'static str) {
        self.retries.get_or_create(&RetryLabels { reason }).inc();
    }

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

    /// In the OpenMetrics text format, which Prometheus' older text format can be read as.
    pub(crate) fn text(&self) -> String {
        let mut text = String::with_capacity(4_096);
        // Writing to a string cannot fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_beyond_the_bound_share_one_label() {
        let metrics = Metrics::new();
        let label = |number: usize| metrics.model_label(&ModelId::new(format!("model-{number}")).unwrap());
        for number in 0..MAX_MODEL_LABELS {
            assert_eq!(label(number), format!("model-{number}"));
        }
        assert_eq!(label(MAX_MODEL_LABELS), OTHER_MODEL);
        assert_eq!(label(7), "model-7");
    }
}
