//! The queen's metrics, as `GET /metrics` shows them.

mod beats;
mod counted;
mod supply;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::response::Response;
use daemon::ApiError;
use daemon::metrics::Exposition;
use hive_contract::HiveHeartbeat;
use http::HeaderMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use shared_contract::HeartbeatItem;
use worker_contract::WorkerHeartbeat;

use crate::fleet::Counts;

pub(crate) use beats::BeatMetrics;
pub(crate) use counted::Counted;
pub(crate) use supply::{LoadResult, SupplyMetrics};

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

/// All metrics; the handles are cheap to use and never block a reader.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    exposition: Exposition,
    members: Family<MemberLabels, Gauge>,
    conflicts: Family<KindLabels, Gauge>,
    held_back: Family<KindLabels, Gauge>,
    callbacks: Family<CallLabels, Counter>,
    /// 1 while the queen doubts her own view.
    degraded_view: Gauge,
    heartbeat_interval: Gauge<f64, AtomicU64>,
    /// Of the workers' heartbeats.
    pub(crate) worker_beats: BeatMetrics,
    /// Of the hives' heartbeats.
    pub(crate) hive_beats: BeatMetrics,
    /// Telemetry streams of hives that the queen reads.
    pub(crate) telemetry_subscriptions: Gauge,
    /// Readers of the queen's own stream.
    pub(crate) stream_readers: Gauge,
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
            callbacks: callbacks(r),
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
            registry,
            exposition: Exposition::start(),
        }
    }

    /// Takes the counts that the next [`answer`](Self::answer) shows for a kind of members.
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

    /// Takes what the next [`answer`](Self::answer) shows of the queen's view as a whole.
    pub(crate) fn set_view(&self, is_degraded: bool, interval: Duration) {
        self.degraded_view.set(is_degraded.into());
        self.heartbeat_interval.set(interval.as_secs_f64());
    }

    /// Counts a call to where a member says it is.
    pub(crate) fn callback(&self, kind: &'static str, result: &'static str) {
        self.callbacks.get_or_create(&CallLabels { kind, result }).inc();
    }

    /// Where parts of the queen that keep metrics of their own register them.
    pub(crate) fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The answer to `GET /metrics`.
    pub(crate) fn answer(&self, headers: &HeaderMap) -> Result<Response, ApiError> {
        self.exposition.answer(headers, &self.registry)
    }
}

/// All of them are shown from the start: a rate sees the first only if there was a nought before it.
fn callbacks(registry: &mut Registry) -> Family<CallLabels, Counter> {
    let callbacks = add::<Family<CallLabels, Counter>>(
        registry,
        "callbacks",
        "Calls of the queen to where a member says it is, by what came of them",
    );
    for kind in [WorkerHeartbeat::KIND, HiveHeartbeat::KIND] {
        for result in ["reached", "unreachable"] {
            callbacks.get_or_create_owned(&CallLabels { kind, result });
        }
    }
    callbacks
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
