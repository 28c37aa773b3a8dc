//! What a client can know of how its request was answered.

use std::sync::Arc;
use std::time::Duration;

use heartbeat_registry::Report;
use http::HeaderValue;
use shared_contract::{HiveId, WorkerId};
use worker_contract::WorkerHeartbeat;

/// How a request was answered: by whom, after what.
#[derive(Debug, Default)]
pub(crate) struct Receipt {
    /// The request's id, where the queen gave it one.
    pub(crate) request_id: Option<HeaderValue>,
    /// Time spent in the line, over all attempts.
    pub(crate) queue: Duration,
    /// Workers that the request was sent to.
    pub(crate) attempts: u32,
    /// Workers that took up the stream of another one.
    pub(crate) migrations: u32,
    /// What the worker that answered said last before it was asked.
    pub(crate) report: Option<Arc<Report<WorkerHeartbeat>>>,
}

impl Receipt {
    /// Who answered.
    pub(crate) fn worker(&self) -> Option<&WorkerId> {
        Some(&self.report.as_ref()?.item.worker.id)
    }

    /// Whose worker that is.
    pub(crate) fn hive(&self) -> Option<&HiveId> {
        self.report.as_ref()?.item.worker.hive_id.as_ref()
    }

    /// Revision of the model that it serves.
    pub(crate) fn revision(&self) -> Option<&str> {
        self.report.as_ref()?.item.worker.model_revision.as_deref()
    }

    /// [`queue`](Self::queue) in whole milliseconds.
    pub(crate) fn queue_ms(&self) -> u64 {
        u64::try_from(self.queue.as_millis()).unwrap_or(u64::MAX)
    }
}
