//! A registry full of workers, as the queen has it.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use chrono::Utc;
use heartbeat_registry::{Pace, Receipt, Registry, RegistryOptions};
use shared_contract::{HiveId, ModelId, WorkerId};
use worker_contract::{Endpoint, WorkerHeartbeat, WorkerInfo, WorkerLoad, WorkerStatus};

/// Numbers of members to compare.
pub(crate) const SIZES: [usize; 3] = [100, 10_000, 100_000];
/// Models that they serve, in turn.
const MODELS: usize = 10;

/// Some model.
pub(crate) fn model(number: usize) -> ModelId {
    ModelId::new(format!("bench/model-{}", number % MODELS)).expect("an id")
}

/// A full heartbeat.
pub(crate) fn beat(number: usize, seq: u64) -> WorkerHeartbeat {
    WorkerHeartbeat {
        worker: WorkerInfo {
            id: WorkerId::new(format!("worker-{number:06}")).expect("an id"),
            model_id: model(number),
            device: "cuda:0".to_owned(),
            port: 9_000,
            status: WorkerStatus::Ready,
            implementation: "llm-worker-rbee".to_owned(),
            version: "0.1.0".to_owned(),
            host: None,
            hive_id: Some(HiveId::new(format!("hive-{}", number / 8)).expect("an id")),
            incarnation: 1_700_000_000_000,
            slots: 8,
            context_length: 8_192,
            model_revision: Some("0123456789abcdef".to_owned()),
            endpoints: vec![Endpoint::ChatCompletions, Endpoint::Completions],
            features: Vec::new(),
            pid: Some(4_711),
            status_detail: None,
        },
        timestamp: Utc::now(),
        seq,
        load: WorkerLoad {
            running: (number % 8) as u32,
            ..WorkerLoad::default()
        },
    }
}

/// How it came.
pub(crate) fn receipt() -> Receipt {
    Receipt {
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        at: Instant::now(),
        wall: Utc::now(),
        pace: Pace::default(),
    }
}

/// So many workers, each of which has beaten once.
pub(crate) fn registry(members: usize) -> Registry<WorkerHeartbeat> {
    let registry = Registry::new(RegistryOptions::default());
    for number in 0..members {
        registry.record(beat(number, 1), receipt()).expect("a good beat");
    }
    registry
}
