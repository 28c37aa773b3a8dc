//! Workers that beat, for tests.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use heartbeat_registry::{Pace, Receipt, Registry, RegistryOptions};
use worker_contract::WorkerHeartbeat;

/// Slots of each worker.
pub(crate) const SLOTS: u32 = 3;

/// The heartbeat of a ready worker of the model `m`.
pub(crate) fn heartbeat(id: &str, incarnation: u64) -> WorkerHeartbeat {
    let json = format!(
        r#"{{"worker": {{"id": "{id}", "model_id": "m", "device": "cpu", "port": 1, "status": "ready",
             "implementation": "x", "version": "0", "slots": {SLOTS}, "incarnation": {incarnation}}},
             "timestamp": "2025-10-24T10:00:00Z"}}"#
    );
    serde_json::from_str(&json).unwrap()
}

/// Records a heartbeat from this host.
pub(crate) fn record(workers: &Registry<WorkerHeartbeat>, beat: WorkerHeartbeat) {
    let receipt = Receipt {
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        at: Instant::now(),
        wall: chrono::Utc::now(),
        pace: Pace::default(),
    };
    workers.record(beat, receipt).unwrap();
}

/// A ready worker of the model `m` beats.
pub(crate) fn beat(workers: &Registry<WorkerHeartbeat>, id: &str, incarnation: u64) {
    record(workers, heartbeat(id, incarnation));
}

/// Ready workers of the model `m`.
pub(crate) fn registry(ids: &[&str]) -> Arc<Registry<WorkerHeartbeat>> {
    let workers = Arc::new(Registry::new(RegistryOptions::default()));
    for id in ids {
        beat(&workers, id, 1);
    }
    workers
}
