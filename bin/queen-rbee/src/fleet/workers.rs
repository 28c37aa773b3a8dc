//! Answer to `GET /v1/workers`.

use std::time::Instant;

use hive_contract::ProcessStats;
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, WorkerId};

use super::WorkerView;
use crate::telemetry::WorkerEntry;

/// Answer to `GET /v1/workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerList {
    /// In the order of their ids.
    pub workers: Vec<ListedWorker>,
}

/// One worker, of whom its heartbeat, its hive or both tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedWorker {
    /// Names the worker.
    pub worker_id: WorkerId,
    /// The hive that it names, or that tells of its process.
    pub hive_id: Option<HiveId>,
    /// Whether it takes work and has none.
    pub idle: bool,
    /// Memory of its device that nobody uses, where that is known.
    pub vram_free_mb: Option<u64>,
    /// What it says of itself; `null` if it is no member: it is about to start, or has left.
    pub worker: Option<WorkerView>,
    /// What its hive says of its process, now or in its newest heartbeat; `null` if no hive started it, or the hive is lost.
    pub process: Option<ProcessStats>,
}

impl WorkerList {
    pub(crate) fn new(entries: Vec<WorkerEntry>, now: Instant) -> Self {
        let workers = entries.into_iter().map(|entry| ListedWorker::new(entry, now)).collect();
        Self { workers }
    }
}

impl ListedWorker {
    fn new(entry: WorkerEntry, now: Instant) -> Self {
        Self {
            idle: entry.is_idle(),
            worker: entry
                .beat
                .as_ref()
                .map(|view| WorkerView::new(view, entry.process.clone(), now)),
            worker_id: entry.worker_id,
            hive_id: entry.hive_id,
            vram_free_mb: entry.vram_free_mb,
            process: entry.process,
        }
    }
}
