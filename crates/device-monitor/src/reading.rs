//! What a source reads at once, and the traits that a simulated host implements in tests.

use std::collections::HashMap;

/// CPU, main memory and processes of a host. Lives on the monitor's own thread, so it may block.
pub trait System: Send + 'static {
    /// Reads everything as it is now, and these processes; one that does not exist is left out.
    fn read(&mut self, pids: &[u32]) -> SystemReading;
}

/// GPUs of a host. Lives on the monitor's own thread, so it may block.
pub trait Gpus: Send + 'static {
    /// Reads all of them as they are now.
    fn read(&mut self) -> GpuReading;
}

/// CPU, main memory and the watched processes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SystemReading {
    /// Brand of the processor.
    pub cpu_name: String,
    /// All cores together, 0 to 100.
    pub cpu_usage_percent: f32,
    /// Main memory in use.
    pub ram_used_mb: u64,
    /// Main memory that there is.
    pub ram_total_mb: u64,
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
    /// There is no driver, and none was seen before: a host without GPUs, which is fine.
    Absent {
        /// What was tried.
        reason: String,
    },
    /// The driver answers.
    Present(Vec<Gpu>),
    /// The driver answered before, and does no more.
    Failed {
        /// What it says.
        reason: String,
    },
}

/// One GPU. What it does not tell is `None`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Gpu {
    /// Position in PCI bus order.
    pub index: u32,
    /// The vendor's unique id.
    pub uuid: Option<String>,
    /// For people.
    pub name: Option<String>,
    /// For example `8.9`.
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
    /// What runs on it, by process id.
    pub processes: HashMap<u32, GpuProcess>,
    /// Why it cannot be used, for example because it fell off the bus.
    pub problem: Option<String>,
}

impl Gpu {
    /// Id on this host, for example `cuda:0`.
    pub fn id(&self) -> String {
        format!("cuda:{}", self.index)
    }
}

/// One process on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuProcess {
    /// Device memory that it holds.
    pub memory_mb: Option<u64>,
    /// Share of the device's time, 0 to 100.
    pub util_percent: Option<f32>,
}
