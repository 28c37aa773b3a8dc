//! The two kinds of senders, as far as the simulation cares what a beat says.

use chrono::{DateTime, Utc};
use hive_contract::{Capabilities, HiveHeartbeat, HiveInfo, MonitorData};
use shared_contract::{
    Delivery, HealthStatus, HeartbeatItem, HeartbeatPayload, HiveId, ModelId, OperationalStatus, WorkerId,
};
use worker_contract::{Endpoint, WorkerHeartbeat, WorkerInfo, WorkerLoad, WorkerStatus};

/// What a simulated process says of itself. The number of the process travels as its version, which nobody interprets: so the
/// oracle knows who is behind what the registry shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'a> {
    /// Which id it uses.
    pub slot: usize,
    /// Which process it is.
    pub process: usize,
    /// The host that it names, if it names one.
    pub host: Option<&'a str>,
    /// Its port.
    pub port: u16,
    /// Whether it takes work.
    pub ready: bool,
    /// Whether this is its goodbye.
    pub goodbye: bool,
}

/// A kind of beat that can be simulated.
pub(super) trait Kind: HeartbeatItem + HeartbeatPayload {
    /// The id of one slot.
    fn id_of(slot: usize) -> Self::Id;
    /// A beat, but for its stamp.
    fn compose(said: Said<'_>, delivery: Delivery) -> Self;
    /// The process that sent it.
    fn process(&self) -> usize;
    /// Whether it carries, after merging, all that a full beat carries.
    fn is_whole(&self) -> bool;
}

impl Kind for WorkerHeartbeat {
    fn id_of(slot: usize) -> WorkerId {
        WorkerId::new(format!("w{slot}")).expect("it is short and plain")
    }

    fn compose(said: Said<'_>, _delivery: Delivery) -> Self {
        Self {
            worker: WorkerInfo {
                id: Self::id_of(said.slot),
                model_id: ModelId::new(["a", "b", "c"][said.slot % 3]).expect("it is short and plain"),
                device: "cpu".to_owned(),
                port: said.port,
                status: match said {
                    Said { goodbye: true, .. } => WorkerStatus::Stopped,
                    Said { ready: true, .. } => WorkerStatus::Ready,
                    _ => WorkerStatus::Busy,
                },
                implementation: "simulated".to_owned(),
                version: said.process.to_string(),
                host: said.host.map(str::to_owned),
                hive_id: None,
                incarnation: 0,
                slots: 1,
                context_length: 0,
                model_revision: None,
                endpoints: vec![Endpoint::ChatCompletions],
                features: Vec::new(),
                pid: None,
                status_detail: None,
            },
            timestamp: DateTime::<Utc>::UNIX_EPOCH,
            seq: 0,
            load: WorkerLoad::default(),
        }
    }

    fn process(&self) -> usize {
        self.worker
            .version
            .parse()
            .expect("the version is the process's number")
    }

    fn is_whole(&self) -> bool {
        true
    }
}

impl Kind for HiveHeartbeat {
    fn id_of(slot: usize) -> HiveId {
        HiveId::new(format!("h{slot}")).expect("it is short and plain")
    }

    fn compose(said: Said<'_>, delivery: Delivery) -> Self {
        Self {
            hive: HiveInfo {
                id: Self::id_of(said.slot),
                hostname: said.host.unwrap_or_default().to_owned(),
                port: said.port,
                operational_status: match said {
                    Said { goodbye: true, .. } => OperationalStatus::Stopped,
                    _ => OperationalStatus::Ready,
                },
                health_status: if said.ready {
                    HealthStatus::Healthy
                } else {
                    HealthStatus::Degraded
                },
                health_reason: None,
                version: said.process.to_string(),
                incarnation: 0,
            },
            timestamp: DateTime::<Utc>::UNIX_EPOCH,
            seq: 0,
            monitor: MonitorData::default(),
            capabilities: (delivery == Delivery::Full).then(Capabilities::default),
            changes: None,
            workers: Vec::new(),
        }
    }

    fn process(&self) -> usize {
        self.hive.version.parse().expect("the version is the process's number")
    }

    fn is_whole(&self) -> bool {
        self.capabilities.is_some()
    }
}
