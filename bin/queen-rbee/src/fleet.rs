//! The fleet as it is shown: `GET /v1/fleet` and the events of `GET /v1/heartbeats/stream`.
//!
//! Ages are by the queen's monotonic clock, in milliseconds before the moment of the answer.

use std::time::{Duration, Instant};

use heartbeat_registry::{EventKind, LeaveReason, MemberView};
use hive_contract::{Capabilities, HiveHeartbeat, MonitorData, ProcessStats};
use serde::{Deserialize, Serialize};
use shared_contract::{HealthStatus, HeartbeatItem, HiveId, ModelId, OperationalStatus, QueenId, WorkerId};
use worker_contract::{Endpoint, StatusDetail, WorkerHeartbeat, WorkerLoad, WorkerStatus};

pub use heartbeat_registry::Liveness;

use crate::registry::candidate;

/// Answer to `GET /v1/fleet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    /// Who tells.
    pub queen: QueenView,
    /// In the order of their ids.
    pub hives: Vec<HiveView>,
    /// In the order of their ids.
    pub workers: Vec<WorkerView>,
}

/// The queen herself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueenView {
    /// Names this run of the queen.
    pub id: QueenId,
    /// Of the program.
    pub version: String,
    /// Since the start.
    pub uptime_ms: u64,
    /// The queen has reason to doubt her own view of the fleet, so that nothing is forgotten for the time being.
    pub degraded_view: bool,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Names the worker.
    pub id: WorkerId,
    /// The model it serves.
    pub model_id: ModelId,
    /// The device it runs on.
    pub device: String,
    /// Where the queen reaches it.
    pub base_url: String,
    /// The hive that started it.
    pub hive_id: Option<HiveId>,
    /// What it says it is doing.
    pub status: WorkerStatus,
    /// What belongs to the status.
    pub status_detail: Option<StatusDetail>,
    /// Whether it is there.
    pub liveness: Liveness,
    /// Whether it would take a request now.
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    /// Age of its liveness.
    pub since_ms_ago: u64,
    /// Age of its newest heartbeat.
    pub last_beat_age_ms: u64,
    /// How far its wall clock is ahead of the queen's.
    pub clock_skew_ms: i64,
    /// Requests that it works on together.
    pub slots: u32,
    /// Longest prompt plus answer in tokens; 0 is unknown.
    pub context_length: u32,
    /// Load, as it said last.
    pub load: WorkerLoad,
    /// Requests that the queen has passed to it and that are not over.
    pub leases: u32,
    /// Grows at every start.
    pub incarnation: u64,
    /// Its program.
    pub implementation: String,
    /// Of the program.
    pub version: String,
    /// Revision of the model's file.
    pub model_revision: Option<String>,
    /// Process id on its host.
    pub pid: Option<u32>,
    /// The OpenAI endpoints that its model can serve.
    pub endpoints: Vec<Endpoint>,
}

/// One hive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveView {
    /// Names the hive.
    pub id: HiveId,
    /// Where it is reached.
    pub base_url: String,
    /// What it says it is doing.
    pub operational_status: OperationalStatus,
    /// How well it says its host is.
    pub health_status: HealthStatus,
    /// Why, unless healthy.
    pub health_reason: Option<String>,
    /// Whether it is there.
    pub liveness: Liveness,
    /// Why it is not online.
    pub reason: Option<String>,
    /// Age of its liveness.
    pub since_ms_ago: u64,
    /// Age of its newest heartbeat.
    pub last_beat_age_ms: u64,
    /// How far its wall clock is ahead of the queen's.
    pub clock_skew_ms: i64,
    /// Of the program.
    pub version: String,
    /// Grows at every start.
    pub incarnation: u64,
    /// Load of the host.
    pub monitor: MonitorData,
    /// What the host can do, once it has said so.
    pub capabilities: Option<Capabilities>,
    /// Its worker processes.
    pub workers: Vec<ProcessStats>,
}

/// How many members of one kind there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// All that are not forgotten.
    pub total: usize,
    /// Those that beat and that nothing speaks against.
    pub online: usize,
    /// Those with evidence against them.
    pub suspect: usize,
    /// Those that were silent for too long.
    pub lost: usize,
    /// Those that are online and say that they take work.
    pub ready: usize,
}

/// Data of the stream's `queen` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueenBeat {
    /// The queen.
    pub queen: QueenView,
    /// Her workers.
    pub workers: Counts,
    /// Her hives.
    pub hives: Counts,
    /// Requests that are being answered or wait.
    pub inflight_requests: u64,
    /// Those of them that wait for a worker.
    pub waiting_requests: u64,
}

/// What happened to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It was not known before; its beat follows.
    Joined,
    /// A heartbeat was accepted.
    Beat,
    /// It came back as a new process; its beat follows.
    Restarted,
    /// Its liveness changed.
    StateChanged,
    /// It is no member any more.
    Left,
}

/// Data of the stream's `worker` event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerEvent {
    /// What happened.
    pub change: Change,
    /// Liveness before, where it changed.
    pub from: Option<Liveness>,
    /// Liveness after, where it changed.
    pub to: Option<Liveness>,
    /// Why, for a change of liveness and for leaving.
    pub reason: Option<String>,
    /// The worker after it.
    pub worker: WorkerView,
}

/// Data of the stream's `hive` event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveEvent {
    /// What happened.
    pub change: Change,
    /// Liveness before, where it changed.
    pub from: Option<Liveness>,
    /// Liveness after, where it changed.
    pub to: Option<Liveness>,
    /// Why, for a change of liveness and for leaving.
    pub reason: Option<String>,
    /// The hive after it.
    pub hive: HiveView,
}

/// Data of the stream's `lagged` event: the reader was too slow and missed events; `GET /v1/fleet` has the present state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lagged {
    /// `worker` or `hive`.
    pub kind: String,
    /// Events missed.
    pub missed: u64,
}

impl WorkerView {
    pub(crate) fn new(view: &MemberView<WorkerHeartbeat>, now: Instant) -> Self {
        let WorkerHeartbeat { worker, load, .. } = view.item();
        let reason = worker_reason(view, now);
        Self {
            id: worker.id.clone(),
            model_id: worker.model_id.clone(),
            device: worker.device.clone(),
            base_url: view.address().base_url().to_owned(),
            hive_id: worker.hive_id.clone(),
            status: worker.status,
            status_detail: worker.status_detail.clone(),
            liveness: view.liveness,
            ready: reason.is_none(),
            reason,
            since_ms_ago: millis(now.saturating_duration_since(view.since)),
            last_beat_age_ms: millis(view.age(now)),
            clock_skew_ms: view.report.skew_ms,
            slots: worker.slots,
            context_length: worker.context_length,
            load: *load,
            leases: view.outstanding,
            incarnation: worker.incarnation,
            implementation: worker.implementation.clone(),
            version: worker.version.clone(),
            model_revision: worker.model_revision.clone(),
            pid: worker.pid,
            endpoints: worker.endpoints.clone(),
        }
    }
}

impl HiveView {
    pub(crate) fn new(view: &MemberView<HiveHeartbeat>, now: Instant) -> Self {
        let beat = view.item();
        let hive = &beat.hive;
        Self {
            id: hive.id.clone(),
            base_url: view.address().base_url().to_owned(),
            operational_status: hive.operational_status,
            health_status: hive.health_status,
            health_reason: hive.health_reason.clone(),
            liveness: view.liveness,
            reason: liveness_reason(view, now),
            since_ms_ago: millis(now.saturating_duration_since(view.since)),
            last_beat_age_ms: millis(view.age(now)),
            clock_skew_ms: view.report.skew_ms,
            version: hive.version.clone(),
            incarnation: hive.incarnation,
            monitor: beat.monitor.clone(),
            capabilities: beat.capabilities.clone(),
            workers: beat.workers.clone(),
        }
    }
}

impl Counts {
    pub(crate) fn of<T: HeartbeatItem>(views: &[MemberView<T>]) -> Self {
        let mut counts = Self {
            total: views.len(),
            ..Self::default()
        };
        for view in views {
            match view.liveness {
                Liveness::Online => {
                    counts.online += 1;
                    counts.ready += usize::from(view.item().is_available());
                }
                Liveness::Suspect => counts.suspect += 1,
                Liveness::Lost => counts.lost += 1,
            }
        }
        counts
    }
}

/// What an event says besides the member itself.
pub(crate) struct Happening {
    pub(crate) change: Change,
    pub(crate) from: Option<Liveness>,
    pub(crate) to: Option<Liveness>,
    pub(crate) reason: Option<String>,
}

impl Happening {
    pub(crate) fn new<T: HeartbeatItem>(kind: EventKind, view: &MemberView<T>, now: Instant) -> Self {
        let plain = |change| Self {
            change,
            from: None,
            to: None,
            reason: None,
        };
        match kind {
            EventKind::Joined => plain(Change::Joined),
            EventKind::Beat => plain(Change::Beat),
            EventKind::Restarted => plain(Change::Restarted),
            EventKind::StateChanged { from, to } => Self {
                from: Some(from),
                to: Some(to),
                reason: liveness_reason(view, now),
                ..plain(Change::StateChanged)
            },
            EventKind::Left { reason } => Self {
                reason: Some(leave_reason(reason, view)),
                ..plain(Change::Left)
            },
        }
    }
}

fn leave_reason<T: HeartbeatItem>(reason: LeaveReason, view: &MemberView<T>) -> String {
    match (reason, &view.report.suspicion) {
        (LeaveReason::Goodbye, _) => "said goodbye".to_owned(),
        (LeaveReason::Lost, _) => "lost for too long".to_owned(),
        (LeaveReason::Removed, Some(suspicion)) => suspicion.reason.to_string(),
        (LeaveReason::Removed, None) => "removed".to_owned(),
    }
}

/// Why a worker would not take a request now; `None` if it would.
pub(crate) fn worker_reason(view: &MemberView<WorkerHeartbeat>, now: Instant) -> Option<String> {
    if let Some(reason) = liveness_reason(view, now) {
        return Some(reason);
    }
    let worker = &view.item().worker;
    let word = match worker.status {
        WorkerStatus::Ready | WorkerStatus::Busy => {
            let candidate = candidate(&view.report, view.liveness, view.outstanding);
            return (candidate.load() >= candidate.slots).then(|| match worker.slots {
                1 => "its one slot is taken".to_owned(),
                slots => format!("all {slots} slots are taken"),
            });
        }
        WorkerStatus::Starting => "starting",
        WorkerStatus::Draining => "draining",
        WorkerStatus::Stopped => "stopped",
        WorkerStatus::Failed => "failed",
    };
    let mut text = word.to_owned();
    if let Some(detail) = &worker.status_detail {
        if let Some(phase) = &detail.phase {
            text.push_str(&format!(", {phase}"));
        }
        if let Some(progress) = detail.progress {
            text.push_str(&format!(" {:.0} %", progress * 100.0));
        }
        if let Some(reason) = &detail.reason {
            text.push_str(&format!(": {reason}"));
        }
    }
    Some(text)
}

fn liveness_reason<T: HeartbeatItem>(view: &MemberView<T>, now: Instant) -> Option<String> {
    match (view.liveness, &view.report.suspicion) {
        (Liveness::Online, _) => None,
        (Liveness::Suspect, Some(suspicion)) => Some(suspicion.reason.to_string()),
        (Liveness::Suspect, None) => Some("suspect".to_owned()),
        (Liveness::Lost, _) => Some(format!("no heartbeat for {:.1} s", view.age(now).as_secs_f64())),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
