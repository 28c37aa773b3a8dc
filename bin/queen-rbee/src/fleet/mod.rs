//! The fleet as it is shown: `GET /v1/fleet` and the events of `GET /v1/heartbeats/stream`.
//!
//! Ages are by the queen's monotonic clock, in milliseconds before the moment of the answer.

mod happening;
mod reason;
mod view;
mod workers;

use chrono::{DateTime, Utc};
use hive_contract::{Capabilities, MonitorData, ProcessStats};
use serde::{Deserialize, Serialize};
use shared_contract::{HealthStatus, HiveId, ModelId, OperationalStatus, QueenId, WorkerId};
use worker_contract::{Endpoint, StatusDetail, WorkerLoad, WorkerStatus};

pub use heartbeat_registry::{LeaveReason, Liveness};
pub use workers::{ListedWorker, WorkerList};

pub(crate) use happening::Happening;
pub(crate) use reason::{Audience, hive_reason, liveness_reason, worker_reason};
pub(crate) use view::{gone, millis};

/// Answer to `GET /v1/fleet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    /// Who tells.
    pub queen: QueenView,
    /// In the order of their ids.
    pub hives: Vec<HiveView>,
    /// In the order of their ids.
    pub workers: Vec<WorkerView>,
    /// Who has left and not come back; the newest first, at most 100.
    #[serde(default)]
    pub gone: Vec<GoneView>,
}

/// Somebody who is no member any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneView {
    /// `worker` or `hive`.
    pub kind: String,
    /// Its name.
    pub id: String,
    /// Why it left.
    pub reason: LeaveReason,
    /// How long ago.
    pub ms_ago: u64,
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
    /// What the reason is.
    #[serde(default)]
    pub degraded_reason: Option<String>,
    /// Pause between two heartbeats that hives and workers are asked for now.
    #[serde(default)]
    pub interval_ms: u64,
    /// Silence after which they are lost.
    #[serde(default)]
    pub ttl_ms: u64,
}

/// A second live sender that uses a member's name. The member is the one that had the name first; nothing that the other
/// one says is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictView {
    /// Where the other one is reached.
    pub base_url: String,
    /// Of the other one.
    pub incarnation: u64,
    /// Age of its newest heartbeat.
    pub last_beat_age_ms: u64,
    /// Heartbeats that it has sent since it was noticed.
    pub beats: u64,
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
    /// Why it is not ready, or else what its operator should know.
    pub reason: Option<String>,
    /// Age of its liveness.
    pub since_ms_ago: u64,
    /// Age of its newest heartbeat.
    pub last_beat_age_ms: u64,
    /// How far its wall clock is ahead of the queen's.
    pub clock_skew_ms: i64,
    /// Heartbeats that came since it joined.
    #[serde(default)]
    pub beats: u64,
    /// Heartbeats that were due since it joined and did not come.
    #[serde(default)]
    pub missed_beats: u64,
    /// Who else uses its name.
    #[serde(default)]
    pub conflict: Option<ConflictView>,
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
    /// Its process, as its hive sees it.
    #[serde(default)]
    pub process: Option<ProcessStats>,
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
    /// Whether it would take an order now.
    #[serde(default)]
    pub ready: bool,
    /// Why it is not ready, or else what its operator should know.
    pub reason: Option<String>,
    /// Age of its liveness.
    pub since_ms_ago: u64,
    /// Age of its newest heartbeat.
    pub last_beat_age_ms: u64,
    /// How far its wall clock is ahead of the queen's.
    pub clock_skew_ms: i64,
    /// Heartbeats that came since it joined.
    #[serde(default)]
    pub beats: u64,
    /// Heartbeats that were due since it joined and did not come.
    #[serde(default)]
    pub missed_beats: u64,
    /// Who else uses its name.
    #[serde(default)]
    pub conflict: Option<ConflictView>,
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
    /// Whether an operator drains it: it gets no new workers.
    #[serde(default)]
    pub drained: bool,
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
    /// Those that beat and do not answer where they say they are.
    #[serde(default)]
    pub unreachable: usize,
    /// Those that were silent for too long.
    pub lost: usize,
    /// Those that are online and say that they take work.
    pub ready: usize,
    /// Those whose name a second live sender uses.
    #[serde(default)]
    pub contended: usize,
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
    /// A heartbeat was accepted that says more than how busy it is.
    Updated,
    /// It came back as a new process; its beat follows.
    Restarted,
    /// Its liveness changed.
    StateChanged,
    /// A second live sender that uses its name was noticed, or has fallen silent.
    Contended,
    /// It is no member any more.
    Left,
}

/// Data of the stream's `worker` event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerEvent {
    /// What happened.
    pub change: Change,
    /// The queen's wall clock when it was told first: the ages inside are of that moment.
    pub timestamp: DateTime<Utc>,
    /// Liveness before, where it changed.
    pub from: Option<Liveness>,
    /// Liveness after, where it changed.
    pub to: Option<Liveness>,
    /// Why, for a change of liveness, a conflict and for leaving.
    pub reason: Option<String>,
    /// The worker after it.
    pub worker: WorkerView,
}

/// Data of the stream's `hive` event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveEvent {
    /// What happened.
    pub change: Change,
    /// The queen's wall clock when it was told first: the ages inside are of that moment.
    pub timestamp: DateTime<Utc>,
    /// Liveness before, where it changed.
    pub from: Option<Liveness>,
    /// Liveness after, where it changed.
    pub to: Option<Liveness>,
    /// Why, for a change of liveness, a conflict and for leaving.
    pub reason: Option<String>,
    /// The hive after it.
    pub hive: HiveView,
}
