//! Jobs: work that takes longer than a request. `POST /v1/jobs` starts one at once; its stream replays from the start.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{ErrorObject, HiveId, WorkerId};

use crate::DeviceKind;

/// Body of `POST /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Fetches the model if it is not there, then starts a worker; done when the worker is ready.
    WorkerSpawn {
        /// Model reference or catalogue name.
        model: String,
        /// Backend; left out: that of the device; without a device, a GPU's if one can be used and takes it, else the CPU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<DeviceKind>,
        /// Device id; left out: a device of that kind on which it fits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Longest prompt plus answer in tokens; left out: what the model was made for, or what fits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        context_length: Option<u32>,
        /// Requests that are computed together; left out: the worker's default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slots: Option<u32>,
        /// Seconds without a request after which it is stopped, 0: never; left out: the hive's `--idle-unload`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_alive_s: Option<u64>,
    },
    /// Lists the hive's workers.
    WorkerList {},
    /// One worker.
    WorkerGet {
        /// Which one.
        worker_id: WorkerId,
    },
    /// Lets a worker finish its requests within a grace period, then ends its process.
    WorkerStop {
        /// Which one.
        worker_id: WorkerId,
        /// Seconds that its requests may take; left out: the hive's `--grace-s`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_s: Option<u64>,
    },
    /// Lets a worker finish its requests, however long they take, then ends its process.
    WorkerDrain {
        /// Which one.
        worker_id: WorkerId,
    },
    /// What a worker prints: its last lines, and with `follow` those to come until it is gone. An event's message has one or
    /// more of them.
    WorkerLogs {
        /// Which one; one that ended not long ago has its log, too.
        worker_id: WorkerId,
        /// How many of the last lines, at most 10,000; left out: 100.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u32>,
        /// Whether to go on.
        #[serde(default)]
        follow: bool,
    },
    /// Fetches and verifies a model file.
    ModelPull {
        /// Model reference or catalogue name.
        model: String,
    },
    /// Lists the model files on this host.
    ModelList {},
    /// One model of this host, with its files.
    ModelGet {
        /// Model reference, catalogue name or id.
        model: String,
        /// Whether to read its files and compare their checksums.
        #[serde(default)]
        verify: bool,
    },
    /// Removes a model's files, unless a worker uses them.
    ModelDelete {
        /// Model reference, catalogue name or id.
        model: String,
    },
    /// Lists the devices with their load.
    DeviceList {},
}

impl Operation {
    /// The word by which the wire names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::WorkerSpawn { .. } => "worker_spawn",
            Self::WorkerList {} => "worker_list",
            Self::WorkerGet { .. } => "worker_get",
            Self::WorkerStop { .. } => "worker_stop",
            Self::WorkerDrain { .. } => "worker_drain",
            Self::WorkerLogs { .. } => "worker_logs",
            Self::ModelPull { .. } => "model_pull",
            Self::ModelList {} => "model_list",
            Self::ModelGet { .. } => "model_get",
            Self::ModelDelete { .. } => "model_delete",
            Self::DeviceList {} => "device_list",
        }
    }
}

/// Answer to `POST /v1/jobs`, status 202.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAccepted {
    /// Names the job.
    pub job_id: String,
    /// Path of its event stream on this daemon.
    pub stream_url: String,
}

/// Life of a job: `running` to one of the three others, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// At work.
    Running,
    /// Done; the last event may carry a `result`.
    Succeeded,
    /// Ended by an error, which the last event carries.
    Failed,
    /// Ended by `DELETE /v1/jobs/{id}`.
    Cancelled,
}

impl JobState {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        self != Self::Running
    }
}

/// One `data:` line of `GET /v1/jobs/{id}/stream`; the last one has a final state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Number of the event in its job, from 0; also the SSE `id`.
    pub seq: u64,
    /// The daemon's wall clock.
    pub timestamp: DateTime<Utc>,
    /// State from this event on.
    pub state: JobState,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How far a step is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<JobProgress>,
    /// What came of it; shape by operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// How far a step of a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobProgress {
    /// Step, for example `download`, `verify`, `load`.
    pub phase: String,
    /// Done so far, in `unit`.
    pub done: u64,
    /// All there is to do, where it is known.
    #[serde(default)]
    pub total: Option<u64>,
    /// For example `bytes`, `percent`.
    pub unit: String,
    /// Units per second, lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u64>,
    /// Seconds that the rest will take at this speed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// Where it comes from, for people, for example `hive gpu-box-2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Answer to `GET /v1/jobs/{id}`, and one entry of `GET /v1/jobs`. A queen's jobs have more operations than a hive's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus<O = Operation> {
    /// Names the job.
    pub job_id: String,
    /// What was asked.
    pub operation: O,
    /// The hive that does it for a queen, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hive_id: Option<HiveId>,
    /// Where it stands.
    pub state: JobState,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Its last event.
    pub last_event: Option<JobEvent>,
}

/// Answer to `GET /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobList<O = Operation> {
    /// The newest first.
    pub jobs: Vec<JobStatus<O>>,
}
