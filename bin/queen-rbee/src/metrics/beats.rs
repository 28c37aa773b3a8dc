//! What is counted of heartbeats. Every handle is resolved at the start: a beat costs a few additions and no look-up.

use std::time::Duration;

use heartbeat_registry::{LeaveReason, Outcome, Recorded};
use hive_contract::HiveHeartbeat;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use shared_contract::{DropReason, HeartbeatItem};
use worker_contract::WorkerHeartbeat;

use super::{KindLabels, add};

/// Upper bounds in seconds, around the usual interval of 30 s and the usual TTL of 90 s.
const GAP_BUCKETS: [f64; 14] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 90.0, 180.0, 600.0, 3_600.0,
];
/// Upper bounds in seconds: from a good clock over the network's delay to a clock in the wrong time zone.
const SKEW_BUCKETS: [f64; 11] = [0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 1_800.0, 3_600.0, 86_400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    kind: &'static str,
    reason: &'static str,
}

/// What is counted of one kind's heartbeats.
#[derive(Debug)]
pub(crate) struct BeatMetrics {
    new: Counter,
    updated: Counter,
    restarted: Counter,
    goodbye: Counter,
    dropped: Counter,
    refused: Counter,
    dropped_by: Dropped,
    left: Left,
    gap: Histogram,
    missed: Counter,
    skew: Histogram,
}

#[derive(Debug)]
struct Dropped {
    duplicate: Counter,
    reordered: Counter,
    older_incarnation: Counter,
    departed: Counter,
    conflict: Counter,
    unknown: Counter,
}

#[derive(Debug)]
struct Left {
    goodbye: Counter,
    lost: Counter,
    ended: Counter,
}

/// The families that the handles of all kinds come from.
struct Families {
    outcomes: Family<OutcomeLabels, Counter>,
    dropped: Family<ReasonLabels, Counter>,
    left: Family<ReasonLabels, Counter>,
    missed: Family<KindLabels, Counter>,
    gaps: Family<KindLabels, Histogram, fn() -> Histogram>,
    skews: Family<KindLabels, Histogram, fn() -> Histogram>,
}

impl BeatMetrics {
    /// Registers the metrics; answers with those of the workers and those of the hives.
    pub(super) fn of_both_kinds(registry: &mut Registry) -> (Self, Self) {
        let families = Families {
            outcomes: add(registry, "heartbeats", "Heartbeats received"),
            dropped: add(
                registry,
                "heartbeats_dropped",
                "Heartbeats that told nothing new, by reason",
            ),
            left: add(registry, "members_left", "Members that are none any more, by reason"),
            missed: add(
                registry,
                "heartbeats_missed",
                "Heartbeats that were due and did not come, as seen at the next one",
            ),
            gaps: Family::new_with_constructor(|| Histogram::new(GAP_BUCKETS)),
            skews: Family::new_with_constructor(|| Histogram::new(SKEW_BUCKETS)),
        };
        registry.register(
            "heartbeat_gap_seconds",
            "Time between two heartbeats of one member",
            families.gaps.clone(),
        );
        registry.register(
            "clock_skew_seconds",
            "Distance between a sender's wall clock and the queen's, either way",
            families.skews.clone(),
        );
        (
            Self::of_kind(WorkerHeartbeat::KIND, &families),
            Self::of_kind(HiveHeartbeat::KIND, &families),
        )
    }

    fn of_kind(kind: &'static str, families: &Families) -> Self {
        let outcome = |outcome| families.outcomes.get_or_create_owned(&OutcomeLabels { kind, outcome });
        let dropped = |reason: DropReason| {
            let reason = reason.as_str();
            families.dropped.get_or_create_owned(&ReasonLabels { kind, reason })
        };
        let left = |reason| families.left.get_or_create_owned(&ReasonLabels { kind, reason });
        Self {
            new: outcome("new"),
            updated: outcome("updated"),
            restarted: outcome("restarted"),
            goodbye: outcome("goodbye"),
            dropped: outcome("dropped"),
            refused: outcome("refused"),
            dropped_by: Dropped {
                duplicate: dropped(DropReason::Duplicate),
                reordered: dropped(DropReason::Reordered),
                older_incarnation: dropped(DropReason::OlderIncarnation),
                departed: dropped(DropReason::Departed),
                conflict: dropped(DropReason::Conflict),
                unknown: dropped(DropReason::Unknown),
            },
            left: Left {
                goodbye: left("goodbye"),
                lost: left("lost"),
                ended: left("ended"),
            },
            gap: families.gaps.get_or_create_owned(&KindLabels { kind }),
            missed: families.missed.get_or_create_owned(&KindLabels { kind }),
            skew: families.skews.get_or_create_owned(&KindLabels { kind }),
        }
    }

    /// Counts a beat that the registry took or dropped.
    pub(crate) fn recorded(&self, recorded: &Recorded) {
        match recorded.outcome {
            Outcome::New => self.new.inc(),
            Outcome::Updated => self.updated.inc(),
            Outcome::Restarted => self.restarted.inc(),
            Outcome::Goodbye => self.goodbye.inc(),
            Outcome::Dropped(reason) => {
                self.dropped_by.counter(reason).inc();
                self.dropped.inc()
            }
        };
        if let Some(gap) = recorded.gap {
            self.gap.observe(gap.as_secs_f64());
        }
        self.missed.inc_by(recorded.missed);
        let skew = Duration::from_millis(recorded.skew_ms.unsigned_abs());
        self.skew.observe(skew.as_secs_f64());
    }

    /// Counts a beat that was not valid.
    pub(crate) fn refused(&self) {
        self.refused.inc();
    }

    /// Counts members that are none any more.
    pub(crate) fn left(&self, reason: LeaveReason, count: usize) {
        let counter = match reason {
            LeaveReason::Goodbye => &self.left.goodbye,
            LeaveReason::Lost => &self.left.lost,
            LeaveReason::Ended => &self.left.ended,
        };
        counter.inc_by(count as u64);
    }
}

impl Dropped {
    fn counter(&self, reason: DropReason) -> &Counter {
        match reason {
            DropReason::Duplicate => &self.duplicate,
            DropReason::Reordered => &self.reordered,
            DropReason::OlderIncarnation => &self.older_incarnation,
            DropReason::Departed => &self.departed,
            DropReason::Conflict => &self.conflict,
            DropReason::Unknown => &self.unknown,
        }
    }
}
