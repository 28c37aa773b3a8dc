//! The supply as it is shown: where a model would go and why, what was decided, what must always run, which hives are
//! drained.

use chrono::{DateTime, Utc};
use scheduler::{Decision, Problem};
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// What a request for a model would find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// A free worker.
    Ready,
    /// Workers that are all taken.
    Busy,
    /// Workers that are starting, or a file that is being fetched for one.
    Loading,
    /// No worker; a hive has the file.
    OnDisk,
    /// No worker and no file; a hive could fetch it.
    Available,
}

impl ModelState {
    /// The word that the wire has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Loading => "loading",
            Self::OnDisk => "on_disk",
            Self::Available => "available",
        }
    }
}

/// Answer to `GET /v1/placement?model=`: what would be decided for the model now, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacementView {
    /// The model.
    pub model: ModelId,
    /// The name that was asked for, where it is an alias of the model.
    #[serde(default)]
    pub alias: Option<String>,
    /// What a request for it would find.
    pub state: ModelState,
    /// What a hive is asked to start, as `rbee pull` takes it.
    pub reference: String,
    /// Size of its files; `None` where nobody knows yet.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Why the need in `problem` is an estimate; `None` where a hive has read the model's header.
    #[serde(default)]
    pub estimate: Option<String>,
    /// Who serves it, or will.
    pub workers: Vec<ServingView>,
    /// A worker that is being brought up for it.
    #[serde(default)]
    pub loading: Option<LoadingView>,
    /// Requests that wait for it.
    pub waiting: usize,
    /// Hives on which it could not be started lately.
    #[serde(default)]
    pub failures: Vec<FailureView>,
    /// What was looked at.
    pub problem: Problem,
    /// What would be done if one more worker were wanted now.
    pub decision: Decision,
}

/// A worker of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingView {
    /// Which one.
    pub worker: WorkerId,
    /// Whose it is; `None` where no hive started it.
    pub hive: Option<HiveId>,
    /// The device it runs on.
    pub device: String,
    /// Whether it would take a request now.
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// A worker that is being brought up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadingView {
    /// The hive that does it; `None` while room is being made or looked for.
    pub hive: Option<HiveId>,
    /// The device that it is for.
    pub device: Option<String>,
    /// What is being done, for people: `download 43 %`.
    pub words: String,
    /// How much of that step is done, 0 to 1.
    pub progress: Option<f32>,
    /// How long it will still take, where that is known.
    pub eta_ms: Option<u64>,
    /// Since it was begun.
    pub for_ms: u64,
}

/// A hive on which a model could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureView {
    /// Which hive.
    pub hive: HiveId,
    /// What it said.
    pub reason: String,
    /// When it will be tried again.
    pub retry_in_ms: u64,
}

/// Answer to `GET /v1/decisions?limit=`: the newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionList {
    /// The newest first.
    pub decisions: Vec<DecisionView>,
}

/// One decision about where a model goes, as it was made. `scheduler::decide(&problem)` gives the same again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionView {
    /// Counts from 1 in one run of the queen.
    pub id: u64,
    /// The queen's wall clock.
    pub timestamp: DateTime<Utc>,
    /// Why it had to be made.
    pub trigger: Trigger,
    /// What was known.
    pub problem: Problem,
    /// What was decided.
    pub decision: Decision,
    /// What came of it.
    pub outcome: DecisionOutcome,
}

/// Why a model had to be placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Trigger {
    /// Requests waited and nobody served it.
    Demand {
        /// How many waited.
        waiting: usize,
    },
    /// Its line was longer than it may be for too long.
    Line {
        /// How many waited.
        waiting: usize,
        /// Workers that it had.
        running: usize,
    },
    /// It is stated that so many must run.
    Serve {
        /// How many are wanted.
        wanted: usize,
        /// Workers that it had.
        running: usize,
    },
    /// An operator asked for a worker, and left it to the queen where.
    Operator,
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DecisionOutcome {
    /// No device takes it.
    Nowhere,
    /// Room is made, or the hive is at work.
    UnderWay,
    /// The worker is there.
    Ready {
        /// Which one.
        worker: WorkerId,
        /// Since the decision.
        after_ms: u64,
    },
    /// It did not come up.
    Failed {
        /// Why.
        reason: String,
    },
    /// Nobody wanted it any more, or the queen ended.
    GivenUp,
}

/// Body of `POST /v1/serve`: what must always run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeRequest {
    /// A model's id, an alias, a catalogue name or a reference, as `rbee pull` takes it.
    pub model: String,
    /// Workers that must run; 0 ends the statement.
    #[serde(default = "one")]
    pub replicas: u32,
    /// Whether its workers are never evicted or stopped for being idle.
    #[serde(default)]
    pub pin: bool,
}

fn one() -> u32 {
    1
}

/// Answer to `GET /v1/serve`, in the order of the models' names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeList {
    /// In the order of the models' names.
    pub models: Vec<ServeView>,
}

/// A model that must always run; answer to `POST /v1/serve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServeView {
    /// The model.
    pub model: ModelId,
    /// What hives are asked to start.
    pub reference: String,
    /// Workers that must run.
    pub replicas: u32,
    /// Whether they are never evicted or stopped for being idle.
    pub pin: bool,
    /// Workers that take requests.
    pub running: u32,
    /// Workers that are being brought up.
    pub starting: u32,
    /// Whether all run that must.
    pub is_met: bool,
    /// Why not, where nothing is under way.
    pub reason: Option<String>,
}

/// Answer to `POST` and `DELETE /v1/hives/{id}/drain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Which hive.
    pub hive: HiveId,
    /// Whether it takes nothing new.
    pub is_drained: bool,
    /// Its workers that are still there: they end once their requests are answered and replacements are up.
    pub workers: Vec<WorkerId>,
    /// What stands in the way of the end, where something does.
    pub reason: Option<String>,
}
