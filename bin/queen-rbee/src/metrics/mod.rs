//! The queen's metrics, as `GET /metrics` shows them.

mod beats;
mod counted;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use shared_contract::ModelId;

use crate::fleet::Counts;

pub(crate) use beats::BeatMetrics;
pub(crate) use counted::Counted;

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
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    kind: &'static str,
    result: &'static str,
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
    conflicts: Family<KindLabels, Gauge>,
    held_back: Family<KindLabels, Gauge>,
    callbacks: Family<CallLabels, Counter>,
    /// 1 while the queen doubts her own view.
    degraded_view: Gauge,
    heartbeat_interval: Gauge<f64, AtomicU64>,
    requests: Family<RequestLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    model_labels: Mutex<HashSet<String>>,
    /// Of the workers' heartbeats.
    pub(crate) worker_beats: BeatMetrics,
    /// Of the hives' heartbeats.
    pub(crate) hive_beats: BeatMetrics,
    /// Telemetry streams of hives that the queen reads.
    pub(crate) telemetry_subscriptions: Gauge,
    /// Readers of the queen's own stream.
    pub(crate) stream_readers: Gauge,
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
        let r = &mut registry;
        let (worker_beats, hive_beats) = BeatMetrics::of_both_kinds(r);
        Self {
            members: add(r, "members", "Members of the fleet by liveness"),
            conflicts: add(r, "conflicts", "Members whose name a second live sender claims"),
            held_back: add(
                r,
                "members_held_back",
                "Members that would have been forgotten, were the queen's view not in doubt",
            ),
            callbacks: add(r, "callbacks", "Calls of the queen to where a member says it is"),
            degraded_view: add(r, "degraded_view", "1 while the queen doubts her own view of the fleet"),
            heartbeat_interval: add(
                r,
                "heartbeat_interval_seconds",
                "Pause between heartbeats that senders are asked for",
            ),
            worker_beats,
            hive_beats,
            telemetry_subscriptions: add(
                r,
                "telemetry_subscriptions",
                "Telemetry streams of hives that the queen reads",
            ),
            stream_readers: add(r, "stream_readers", "Readers of the queen's stream of events"),
            requests: add(r, "requests", "Requests to the OpenAI endpoints"),
            retries: add(r, "retries", "Attempts at a worker that another one had to follow"),
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
            broken: add(r, "broken_answers", "Answers that broke off after their first byte"),
            registry,
        }
    }

    /// Takes the counts that the next [`text`](Self::text) shows for a kind of members.
    pub(crate) fn set_members(&self, kind: &'static str, counts: Counts) {
        let gauges = [
            ("online", counts.online),
            ("suspect", counts.suspect),
            ("unreachable", counts.unreachable),
            ("lost", counts.lost),
        ];
        for (liveness, count) in gauges {
            self.members
                .get_or_create(&MemberLabels { kind, liveness })
                .set(whole(count));
        }
        self.conflicts
            .get_or_create(&KindLabels { kind })
            .set(whole(counts.contended));
    }

    /// Takes how many a sweep would have forgotten, were the view not in doubt.
    pub(crate) fn set_held_back(&self, kind: &'static str, members: usize) {
        self.held_back.get_or_create(&KindLabels { kind }).set(whole(members));
    }

    /// Takes what the next [`text`](Self::text) shows of the queen's view as a whole.
    pub(crate) fn set_view(&self, is_degraded: bool, interval: Duration) {
        self.degraded_view.set(is_degraded.into());
        self.heartbeat_interval.set(interval.as_secs_f64());
    }

    /// Counts a call to where a member says it is.
    pub(crate) fn callback(&self, kind: &'static str, result: &'static str) {
        self.callbacks.get_or_create(&CallLabels { kind, result }).inc();
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

/// Registers a metric, and answers with a handle of it.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
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
