//! The worker's heartbeat, as sent and as remembered.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{HeartbeatItem, HeartbeatPayload, ModelId, Stamp, WorkerId};

use crate::{WorkerInfo, WorkerStatus};

/// `POST /v1/worker-heartbeat`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerHeartbeat {
    /// What the worker is and does.
    pub worker: WorkerInfo,
    /// The sender's wall clock.
    pub timestamp: DateTime<Utc>,
    /// Grows with every beat of one incarnation.
    #[serde(default)]
    pub seq: u64,
    /// How busy it is.
    #[serde(default)]
    pub load: WorkerLoad,
}

/// How busy a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLoad {
    /// Sequences being decoded or prefilled.
    pub running: u32,
    /// Requests that wait for a slot.
    pub waiting: u32,
    /// Tokens held in the KV cache.
    pub kv_used_tokens: u64,
    /// Tokens that the KV cache can hold.
    pub kv_total_tokens: u64,
    /// Tokens decoded per second, recently.
    pub tokens_per_second: f64,
}

impl HeartbeatPayload for WorkerHeartbeat {
    const PATH: &'static str = "/v1/worker-heartbeat";

    fn stamp(&mut self, stamp: Stamp) {
        self.worker.incarnation = stamp.incarnation;
        self.seq = stamp.seq;
        self.timestamp = stamp.timestamp;
    }
}

impl HeartbeatItem for WorkerHeartbeat {
    type Id = WorkerId;
    const KIND: &'static str = "worker";

    fn id(&self) -> &WorkerId {
        &self.worker.id
    }
    fn order(&self) -> (u64, u64) {
        (self.worker.incarnation, self.seq)
    }
    fn timestamp(&self) -> DateTime<Utc> {
        self.timestamp
    }
    fn is_goodbye(&self) -> bool {
        self.worker.status == WorkerStatus::Stopped
    }
    fn is_available(&self) -> bool {
        matches!(self.worker.status, WorkerStatus::Ready | WorkerStatus::Busy)
    }
    fn model(&self) -> Option<&ModelId> {
        Some(&self.worker.model_id)
    }
    fn host(&self) -> Option<&str> {
        self.worker.host.as_deref()
    }
    fn port(&self) -> u16 {
        self.worker.port
    }
    fn wants_full(&self) -> bool {
        false
    }
    fn inherit(&mut self, _previous: &Self) {}
    fn is_news_after(&self, previous: &Self) -> bool {
        description(&self.worker) != description(&previous.worker)
    }
}

/// What of a worker changes seldom. That its slots are all taken is load, and so is how far it has loaded its model.
fn description(worker: &WorkerInfo) -> impl PartialEq + '_ {
    let WorkerInfo {
        id: _,
        incarnation: _,
        model_id,
        device,
        port,
        status,
        implementation,
        version,
        host,
        hive_id,
        slots,
        context_length,
        model_revision,
        endpoints,
        features,
        pid,
        status_detail,
    } = worker;
    let status = match status {
        WorkerStatus::Busy => WorkerStatus::Ready,
        status => *status,
    };
    let step = status_detail
        .as_ref()
        .map(|detail| (detail.phase.as_deref(), detail.reason.as_deref()));
    (
        (model_id, device, port, host, hive_id, pid),
        (
            implementation,
            version,
            slots,
            context_length,
            model_revision,
            (endpoints, features),
        ),
        (status, step),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StatusDetail;

    fn beat(status: WorkerStatus, phase: &str, progress: f32) -> WorkerHeartbeat {
        let worker = WorkerInfo {
            status,
            status_detail: Some(StatusDetail {
                phase: Some(phase.into()),
                progress: Some(progress),
                reason: None,
            }),
            ..serde_json::from_str(
                r#"{"id": "w", "model_id": "m", "device": "cpu", "port": 1, "status": "ready",
                    "implementation": "x", "version": "0"}"#,
            )
            .unwrap()
        };
        WorkerHeartbeat {
            worker,
            timestamp: DateTime::UNIX_EPOCH,
            seq: 0,
            load: WorkerLoad::default(),
        }
    }

    #[test]
    fn load_and_progress_are_no_news_and_a_new_status_or_step_is() {
        let news = |a: &WorkerHeartbeat, b: &WorkerHeartbeat| b.is_news_after(a);
        let ready = beat(WorkerStatus::Ready, "", 0.0);
        assert!(!news(&ready, &beat(WorkerStatus::Busy, "", 0.0)));
        assert!(news(&ready, &beat(WorkerStatus::Draining, "", 0.0)));
        let loading = beat(WorkerStatus::Starting, "load", 0.1);
        assert!(!news(&loading, &beat(WorkerStatus::Starting, "load", 0.9)));
        assert!(news(&loading, &beat(WorkerStatus::Starting, "warm-up", 0.0)));
        assert!(news(&loading, &ready));
    }
}
