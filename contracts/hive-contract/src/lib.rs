//! What a hive says of itself and its host, and what it can be asked to do.
//!
//! Owns: [`HiveInfo`], [`HiveHeartbeat`], monitor data, capabilities and their changes, process stats, telemetry, jobs.
//! Must not know: how devices are read, models fetched or processes kept.

mod capabilities;
mod heartbeat;
mod job;
mod models;
mod telemetry;

pub use capabilities::{
    Capabilities, CapabilitiesReply, CapabilityChanges, DeviceInfo, DeviceKind, EngineInfo, MemoryNeed, MemoryNeeds,
    ModelEntry, ModelFacts, ParseDeviceError, WorkerExit,
};
pub use heartbeat::{HiveHeartbeat, HiveInfo};
pub use job::{JobAccepted, JobEvent, JobList, JobProgress, JobState, JobStatus, Operation};
pub use models::{ModelDetail, ModelFileEntry, ModelHolder, ModelHolders};
pub use telemetry::{DeviceLoad, MonitorData, OwnerProcess, ProcessState, ProcessStats, TelemetryEvent};
