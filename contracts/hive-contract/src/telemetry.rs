//! How busy a host is: in each heartbeat, and once a second on the hive's telemetry stream.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// Load of a host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MonitorData {
    /// All cores together, 0 to 100.
    pub cpu_usage_percent: f32,
    /// Main memory in use.
    pub ram_used_mb: u64,
    /// Main memory that there is; in a container, what it may take.
    pub ram_total_mb: u64,
    /// Main memory that a new worker can get: what nobody uses, less the reserve and what is promised to workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_free_mb: Option<u64>,
    /// Seconds since the hive started.
    pub uptime_s: u64,
    /// One entry for each GPU.
    pub devices: Vec<DeviceLoad>,
}

/// Load of a device. What the device does not tell is `null`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DeviceLoad {
    /// Device id, for example `cuda:0`.
    pub id: String,
    /// 0 to 100.
    #[serde(default)]
    pub util_percent: Option<f32>,
    /// Device memory in use, by anybody.
    #[serde(default)]
    pub vram_used_mb: Option<u64>,
    /// Device memory that there is.
    #[serde(default)]
    pub vram_total_mb: Option<u64>,
    /// Of the chip.
    #[serde(default)]
    pub temperature_celsius: Option<f32>,
    /// Drawn now.
    #[serde(default)]
    pub power_watts: Option<f32>,
    /// Most that it may draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f32>,
    /// Device memory held by processes that are not this hive's workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_foreign_mb: Option<u64>,
    /// Device memory that a new worker can get: what nobody uses, less the reserve and what is promised to workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vram_free_mb: Option<u64>,
    /// The process by which the machine's owner uses the device; it gets no new workers while that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerProcess>,
}

/// A process that is not a hive's, and large enough to count as the machine's owner at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerProcess {
    /// Process id; 0 where the driver does not name the processes on the device.
    pub pid: u32,
    /// Its name, where it may be read.
    #[serde(default)]
    pub name: Option<String>,
    /// Device memory that it holds.
    pub vram_mb: u64,
}

/// One worker process, as its hive sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessStats {
    /// Process id.
    pub pid: u32,
    /// Kind of process, for example `llm-worker`.
    pub group: String,
    /// The port it listens on, as text; empty until it is known.
    pub instance: String,
    /// Of one core, so above 100 for several.
    pub cpu_pct: f32,
    /// Resident memory.
    pub rss_mb: u64,
    /// Read from disk.
    pub io_r_mb_s: f32,
    /// Written to disk.
    pub io_w_mb_s: f32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Share of the device's time, where it is known.
    #[serde(default)]
    pub gpu_util_pct: Option<f32>,
    /// Device memory that it holds, where it is known.
    #[serde(default)]
    pub vram_mb: Option<u64>,
    /// Device memory that there is, where it is known.
    #[serde(default)]
    pub total_vram_mb: Option<u64>,
    /// The model it serves.
    #[serde(default)]
    pub model: Option<ModelId>,
    /// What the hive knows of the process.
    pub state: ProcessState,
    /// The worker's id.
    #[serde(default)]
    pub worker_id: Option<WorkerId>,
    /// The device it was given.
    #[serde(default)]
    pub device: Option<String>,
    /// Memory of the device that was promised to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_mb: Option<u64>,
    /// Whether it is to run until somebody stops it, however long nobody asks it anything.
    #[serde(default)]
    pub pinned: bool,
}

/// Life of a worker process under its hive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// Started, not yet ready.
    Starting,
    /// Ready or busy.
    Running,
    /// Will be started again: after a pause, as it ended by itself, or once the machine's owner has left its device.
    Restarting,
    /// Asked to end.
    Stopping,
    /// Ended too often; will not be started again.
    Failed,
}

/// One `data:` line of a hive's `GET /v1/heartbeats/stream`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TelemetryEvent {
    /// Whose host.
    pub hive_id: HiveId,
    /// The hive's wall clock.
    pub timestamp: DateTime<Utc>,
    /// Load of the host.
    pub monitor: MonitorData,
    /// Its worker processes.
    pub workers: Vec<ProcessStats>,
}
