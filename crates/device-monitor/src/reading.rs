//! What a source reads at once, and the traits that a simulated host implements in tests.

use std::collections::HashMap;

use hive_contract::DeviceKind;

/// CPU, main memory and processes of a host. Lives on the monitor's own thread, so it may block.
pub trait System: Send + 'static {
    /// Reads everything as it is now, and these processes; one that does not exist is left out.
    fn read(&mut self, pids: &[u32]) -> SystemReading;
}

/// GPUs that one driver shows. Lives on a thread of its own, so it may block.
pub trait Gpus: Send + 'static {
    /// Who answers, for people, for example `NVIDIA driver`.
    fn driver(&self) -> &'static str;

    /// Reads all of them as they are now. No two sources of a host give a GPU of the same kind.
    fn read(&mut self) -> GpuReading;
}

/// CPU, main memory and the watched processes. Where control groups limit this process, their limits are the host.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SystemReading {
    /// Brand of the processor.
    pub cpu_name: String,
    /// All cores together, or the quota, 0 to 100.
    pub cpu_usage_percent: f32,
    /// Main memory in use.
    pub ram_used_mb: u64,
    /// Main memory that there is.
    pub ram_total_mb: u64,
    /// Main memory that can still be taken. Less than total minus used where another limit is tighter.
    pub ram_available_mb: u64,
    /// By process id.
    pub processes: HashMap<u32, ProcessReading>,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ProcessReading {
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
}

/// What could be learnt of the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub enum GpuReading {
    /// There is no driver, and none was seen before: a host without such GPUs, which is fine.
    Absent {
        /// What was tried.
        reason: String,
    },
    /// These GPUs are or were there; one that is lost says so.
    Present(Vec<Gpu>),
    /// There is a driver, and it shows nothing.
    Failed {
        /// What it says.
        reason: String,
    },
}

/// One GPU. What it does not tell is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// Backend that it needs.
    pub kind: DeviceKind,
    /// Position among those of its kind in PCI bus order, as first seen: it stays when another one goes.
    pub index: u32,
    /// The vendor's unique id.
    pub uuid: Option<String>,
    /// For people.
    pub name: Option<String>,
    /// CUDA compute capability, for example `8.9`.
    pub compute_capability: Option<String>,
    /// Device memory that there is.
    pub memory_total_mb: Option<u64>,
    /// Device memory in use, by anybody.
    pub memory_used_mb: Option<u64>,
    /// 0 to 100.
    pub util_percent: Option<f32>,
    /// Of the chip.
    pub temperature_celsius: Option<f32>,
    /// Drawn now.
    pub power_watts: Option<f32>,
    /// Most that it may draw.
    pub power_limit_watts: Option<f32>,
    /// What runs on it, by process id: computing or drawing.
    pub processes: HashMap<u32, GpuProcess>,
    /// Whose processes `processes` names.
    pub named: Named,
    /// Why it cannot be used, for example because it fell off the bus.
    pub problem: Option<String>,
}

impl Gpu {
    /// One of which nothing else is known.
    pub fn new(kind: DeviceKind, index: u32) -> Self {
        Self {
            kind,
            index,
            uuid: None,
            name: None,
            compute_capability: None,
            memory_total_mb: None,
            memory_used_mb: None,
            util_percent: None,
            temperature_celsius: None,
            power_watts: None,
            power_limit_watts: None,
            processes: HashMap::new(),
            named: Named::default(),
            problem: None,
        }
    }

    /// Id on this host, for example `cuda:0`.
    pub fn id(&self) -> String {
        format!("{}:{}", self.kind, self.index)
    }
}

/// Which of a GPU's processes a driver names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Named {
    /// All of them.
    #[default]
    All,
    /// Those of this user, among them the hive's workers.
    Own,
    /// None, though there may be some: in many containers, and by old drivers.
    None,
}

/// One process on a GPU.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuProcess {
    /// Its name, where it may be read.
    pub name: Option<String>,
    /// Device memory that it holds.
    pub memory_mb: Option<u64>,
    /// Share of the device's time, 0 to 100.
    pub util_percent: Option<f32>,
}
