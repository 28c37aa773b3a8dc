//! The hive's heartbeat: a pure function of what the hive is, and what one queen knows of it.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::Utc;
use heartbeat_client::Source;
use hive_contract::{Capabilities, CapabilityChanges, HiveHeartbeat, HiveInfo, MonitorData, ProcessStats};
use shared_contract::{Delivery, HeartbeatAck};

use crate::core::Core;

/// The hive as it is now.
#[derive(Debug)]
pub(crate) struct Present {
    pub(crate) info: HiveInfo,
    pub(crate) monitor: MonitorData,
    pub(crate) capabilities: Capabilities,
    pub(crate) workers: Vec<ProcessStats>,
}

/// What one queen has acknowledged.
#[derive(Debug, Default)]
struct Known {
    capabilities: Option<Capabilities>,
    /// Number of the last change it was told.
    change: u64,
    /// Number of the last change in the beat that is under way.
    sent: u64,
}

/// The beat for a queen that knows these capabilities, and has not heard of these changes.
fn build(now: Present, known: Option<&Capabilities>, changes: CapabilityChanges, delivery: Delivery) -> HiveHeartbeat {
    let is_news = delivery == Delivery::Full || known != Some(&now.capabilities);
    HiveHeartbeat {
        hive: now.info,
        timestamp: Utc::now(),
        seq: 0,
        monitor: now.monitor,
        capabilities: is_news.then_some(now.capabilities),
        changes: Some(changes).filter(|changes| !changes.is_empty()),
        workers: now.workers,
    }
}

/// Builds the beats for one queen, and remembers what it knows.
pub(crate) struct QueenSource {
    core: Arc<Core>,
    known: Mutex<Known>,
}

impl QueenSource {
    /// For a queen that knows nothing yet; its first beat is full, so earlier changes are no news.
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let change = core.last_change();
        Self {
            core,
            known: Mutex::new(Known {
                change,
                ..Known::default()
            }),
        }
    }
}

impl Source<HiveHeartbeat> for QueenSource {
    fn build(&self, delivery: Delivery) -> HiveHeartbeat {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // First the changes, then the state: a change in between is told twice rather than never.
        let (changes, sent) = self.core.changes_since(known.change);
        known.sent = sent;
        build(self.core.present(), known.capabilities.as_ref(), changes, delivery)
    }

    fn delivered(&self, beat: &HiveHeartbeat, _ack: &HeartbeatAck) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.change = known.sent;
        if let Some(capabilities) = &beat.capabilities {
            known.capabilities = Some(capabilities.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use hive_contract::{DeviceInfo, DeviceKind};
    use shared_contract::{HealthStatus, HiveId, OperationalStatus, WorkerId};

    use super::*;

    fn present(devices: usize) -> Present {
        let device = |n| DeviceInfo {
            id: format!("cuda:{n}"),
            kind: DeviceKind::Cuda,
            name: "Example GPU".into(),
            memory_total_mb: 1,
            memory_reserved_mb: 0,
            uuid: None,
            compute_capability: None,
        };
        Present {
            info: HiveInfo {
                id: HiveId::new("hive-1").unwrap(),
                hostname: String::new(),
                port: 7835,
                operational_status: OperationalStatus::Ready,
                health_status: HealthStatus::Healthy,
                health_reason: None,
                version: "0.1.0".into(),
                incarnation: 1,
            },
            monitor: MonitorData::default(),
            capabilities: Capabilities {
                devices: (0..devices).map(device).collect(),
                ..Capabilities::default()
            },
            workers: Vec::new(),
        }
    }

    #[test]
    fn a_brief_beat_leaves_out_what_the_queen_knows() {
        let known = present(1).capabilities;
        let beat = build(present(1), Some(&known), CapabilityChanges::default(), Delivery::Brief);
        assert_eq!((beat.capabilities, beat.changes), (None, None));
    }

    #[test]
    fn a_full_beat_says_everything_again() {
        let known = present(1).capabilities;
        let beat = build(present(1), Some(&known), CapabilityChanges::default(), Delivery::Full);
        assert_eq!(beat.capabilities, Some(known));
    }

    #[test]
    fn new_capabilities_are_sent_without_being_asked_for() {
        let known = present(1).capabilities;
        let beat = build(present(2), Some(&known), CapabilityChanges::default(), Delivery::Brief);
        assert_eq!(beat.capabilities.unwrap().devices.len(), 2);
    }

    #[test]
    fn changes_are_sent_where_there_are_any() {
        let changes = CapabilityChanges {
            workers_added: vec![WorkerId::new("w").unwrap()],
            ..CapabilityChanges::default()
        };
        let beat = build(present(0), None, changes.clone(), Delivery::Brief);
        assert_eq!(beat.changes, Some(changes));
    }
}
