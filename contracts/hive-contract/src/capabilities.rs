//! What a host can do: its devices, its model files, its engines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared_contract::{HiveId, ModelId, WorkerId};

/// Everything a placement needs to know of a host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Devices on which a worker can run; the CPU is always one.
    pub devices: Vec<DeviceInfo>,
    /// Model files on its disk.
    pub models: Vec<ModelEntry>,
    /// Worker programs that it can start.
    pub engines: Vec<EngineInfo>,
}

/// Answer to `GET /v1/capabilities`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CapabilitiesReply {
    /// Who answers; from a hive that does not say so, `None`.
    #[serde(default)]
    pub hive_id: Option<HiveId>,
    /// What its host can do.
    #[serde(flatten)]
    pub capabilities: Capabilities,
}

/// What changed since the last beat that the queen acknowledged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CapabilityChanges {
    /// Model files that arrived.
    pub models_added: Vec<ModelEntry>,
    /// Model files that went.
    pub models_removed: Vec<ModelId>,
    /// Workers that were started.
    pub workers_added: Vec<WorkerId>,
    /// Workers whose process ended.
    pub workers_removed: Vec<WorkerExit>,
}

impl CapabilityChanges {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A worker process that ended, as its hive saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerExit {
    /// Which worker.
    pub worker_id: WorkerId,
    /// For example `stopped`, `exit code 1`, `killed by signal 9`.
    pub reason: String,
    /// The process that ended: the worker may run again as another one by the time this is read.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Id on this host: `cpu`, `cuda:0`, `metal:0`.
    pub id: String,
    /// Backend it needs.
    pub kind: DeviceKind,
    /// For people, for example `NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// Memory that a model can use; of the CPU: main memory, or the limit of the container.
    pub memory_total_mb: u64,
    /// Of that, what the hive leaves to the machine's owner.
    #[serde(default)]
    pub memory_reserved_mb: u64,
    /// The vendor's unique id, where it has one.
    #[serde(default)]
    pub uuid: Option<String>,
    /// CUDA compute capability, for example `8.9`.
    #[serde(default)]
    pub compute_capability: Option<String>,
}

/// Backend of a device, and of the worker program that can use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Main processor.
    #[default]
    Cpu,
    /// NVIDIA GPU.
    Cuda,
    /// Apple GPU.
    Metal,
    /// AMD GPU.
    Rocm,
    /// Intel GPU.
    Xpu,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl DeviceKind {
    /// The word used in device ids.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Rocm => "rocm",
            Self::Xpu => "xpu",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no device kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseDeviceError(String);

impl fmt::Display for ParseDeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no device kind; use cpu, cuda, metal, rocm or xpu", self.0)
    }
}

impl std::error::Error for ParseDeviceError {}

impl FromStr for DeviceKind {
    type Err = ParseDeviceError;

    /// Reads the kind off `cuda` or off a device id such as `cuda:0`.
    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        match text.split(':').next() {
            Some("cpu") => Ok(Self::Cpu),
            Some("cuda") => Ok(Self::Cuda),
            Some("metal") => Ok(Self::Metal),
            Some("rocm") => Ok(Self::Rocm),
            Some("xpu") => Ok(Self::Xpu),
            _ => Err(ParseDeviceError(text.to_owned())),
        }
    }
}

/// A model on a host's disk: one file, or a folder of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// As clients name it.
    pub id: ModelId,
    /// Where it came from, as `rbee pull` takes it.
    pub reference: String,
    /// Size on disk.
    pub size_bytes: u64,
    /// Checksum of the file, where it was computed.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Commit of the hub's repository from which it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What its header says; `None` where it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<ModelFacts>,
    /// Why it cannot be used: a file that is damaged, and the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What a model's header says, without its weights being read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Architecture, for example `llama`.
    pub family: String,
    /// The name that its files give it.
    #[serde(default)]
    pub name: Option<String>,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// Layers of the decoder.
    pub layers: u32,
    /// Query heads of a layer.
    pub heads: u32,
    /// Key and value heads of a layer.
    pub kv_heads: u32,
    /// Tokens that it was made for.
    pub context_length: u32,
    /// How the weights are stored, for example `Q4_K_M` or `BF16`.
    pub quantization: String,
    /// Bytes of the weights, as they lie in the files.
    pub weight_bytes: u64,
    /// Bytes that one token takes in the KV cache.
    pub kv_bytes_per_token: u64,
    /// Whether it has a chat template.
    #[serde(default)]
    pub chat: bool,
    /// What a worker with it takes of a device's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryNeeds>,
}

/// What a worker takes of a device's memory, by what computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryNeeds {
    /// On the main processor.
    pub cpu: MemoryNeed,
    /// On a GPU.
    pub gpu: MemoryNeed,
    /// Tokens by which the KV cache grows.
    pub block_tokens: u32,
}

/// What a worker takes of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryNeed {
    /// With an empty KV cache: weights, scratch, the process itself.
    pub fixed_bytes: u64,
    /// For each token in the KV cache.
    pub kv_bytes_per_token: u64,
}

/// A worker program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Program, for example `llm-worker-rbee`.
    pub implementation: String,
    /// Its version.
    pub version: String,
    /// Device kinds for which it was built.
    pub kinds: Vec<DeviceKind>,
    /// CUDA compute capability for which its kernels were compiled, for example `8.9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_capability: Option<String>,
}
