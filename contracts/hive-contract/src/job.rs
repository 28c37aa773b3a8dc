//! Jobs: work that takes longer than a request. `POST /v1/jobs` starts one at once; its stream replays from the start.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{ErrorObject, WorkerId};

use crate::DeviceKind;

/// Body of `POST /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Fetches the model if it is not there, then starts a worker; done when the worker is ready.
    WorkerSpawn {
        /// Model reference or catalogue name.
        model: String,
        /// Backend; left out: that of the device, or the CPU.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<DeviceKind>,
        /// Device id; left out: the first device of that kind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Lists the hive's workers.
    WorkerList,
    /// Drains a worker and ends its process.
    WorkerStop {
        /// Which one.
        worker_id: WorkerId,
    },
    /// Fetches and verifies a model file.
    ModelPull {
        /// Model reference or catalogue name.
        model: String,
    },
    /// Lists the model files on this host.
    ModelList,
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
}

/// Answer to `GET /v1/jobs/{id}`, and one entry of `GET /v1/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Names the job.
    pub job_id: String,
    /// What was asked.
    pub operation: Operation,
    /// Where it stands.
    pub state: JobState,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Its last event.
    pub last_event: Option<JobEvent>,
}
