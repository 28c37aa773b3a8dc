//! The hive's heartbeat, as sent and as remembered.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{
    HealthStatus, HeartbeatItem, HeartbeatPayload, HiveId, ModelId, OperationalStatus, Stamp, WorkerId,
};

use crate::{Capabilities, CapabilityChanges, MonitorData, ProcessState, ProcessStats};

/// What a hive is. Everything but `health_reason` and `incarnation` is required on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveInfo {
    /// Names this host's hive; kept on its disk.
    pub id: HiveId,
    /// Host name or address under which the hive says it can be reached; empty means the address of its heartbeat.
    pub hostname: String,
    /// The port on which it listens.
    pub port: u16,
    /// What it is doing.
    pub operational_status: OperationalStatus,
    /// How well its host is.
    pub health_status: HealthStatus,
    /// Why, unless healthy.
    #[serde(default)]
    pub health_reason: Option<String>,
    /// Version of the program.
    pub version: String,
    /// Grows at every start.
    #[serde(default)]
    pub incarnation: u64,
}

/// `POST /v1/hive-heartbeat`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveHeartbeat {
    /// What the hive is and does.
    pub hive: HiveInfo,
    /// The sender's wall clock.
    pub timestamp: DateTime<Utc>,
    /// Grows with every beat of one incarnation.
    #[serde(default)]
    pub seq: u64,
    /// Load of the host.
    #[serde(default)]
    pub monitor: MonitorData,
    /// What the host can do: on discovery, when asked for, and on change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// What changed since the last beat that the queen acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<CapabilityChanges>,
    /// One entry for each worker process that the hive sees.
    #[serde(default)]
    pub workers: Vec<ProcessStats>,
}

impl HeartbeatPayload for HiveHeartbeat {
    const PATH: &'static str = "/v1/hive-heartbeat";

    fn stamp(&mut self, stamp: Stamp) {
        self.hive.incarnation = stamp.incarnation;
        self.seq = stamp.seq;
        self.timestamp = stamp.timestamp;
    }
}

impl HeartbeatItem for HiveHeartbeat {
    type Id = HiveId;
    const KIND: &'static str = "hive";

    fn id(&self) -> &HiveId {
        &self.hive.id
    }
    fn order(&self) -> (u64, u64) {
        (self.hive.incarnation, self.seq)
    }
    fn timestamp(&self) -> DateTime<Utc> {
        self.timestamp
    }
    fn is_goodbye(&self) -> bool {
        self.hive.operational_status == OperationalStatus::Stopped
    }
    fn is_available(&self) -> bool {
        self.hive.operational_status == OperationalStatus::Ready && self.hive.health_status != HealthStatus::Unhealthy
    }
    fn model(&self) -> Option<&ModelId> {
        None
    }
    fn host(&self) -> Option<&str> {
        Some(self.hive.hostname.as_str()).filter(|host| !host.is_empty())
    }
    fn port(&self) -> u16 {
        self.hive.port
    }
    fn wants_full(&self) -> bool {
        self.capabilities.is_none()
    }
    fn inherit(&mut self, previous: &Self) {
        if self.capabilities.is_none() {
            self.capabilities.clone_from(&previous.capabilities);
        }
    }
    fn is_news_after(&self, previous: &Self) -> bool {
        self.hive != previous.hive
            || self.capabilities != previous.capabilities
            || !self
                .workers
                .iter()
                .map(outline)
                .eq(previous.workers.iter().map(outline))
    }
}

/// What of a worker process changes seldom.
fn outline(process: &ProcessStats) -> (Option<&WorkerId>, u32, &str, ProcessState) {
    (
        process.worker_id.as_ref(),
        process.pid,
        &process.instance,
        process.state,
    )
}
