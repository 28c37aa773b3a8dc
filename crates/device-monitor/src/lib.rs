//! The devices of this host and how busy they are.
//!
//! Owns: reading CPU and main memory (always), NVIDIA GPUs (through NVML, where there is a driver), and single processes;
//! polling them on own threads; the last known state as a [`Snapshot`].
//! Must not know: workers, heartbeats, HTTP, or any async runtime.
//!
//! A reading that a device does not offer is `None`. A driver that hangs holds up its own thread and nobody else: readers
//! get the last snapshot, which says how old it is.

mod monitor;
mod nvml;
mod poller;
mod reading;
mod snapshot;
mod system;

pub use monitor::{Host, Monitor, Options};
pub use nvml::Nvml;
pub use reading::{Gpu, GpuProcess, GpuReading, Gpus, ProcessReading, System, SystemReading};
pub use snapshot::Snapshot;
pub use system::{LocalSystem, host_name};

/// Why there is no monitor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This platform's process and memory figures cannot be read.
    #[error("read this host's processes and memory: {0}")]
    System(String),
    /// A polling thread could not be started.
    #[error("start the thread that polls the {what}: {source}")]
    Thread {
        /// What it would have polled.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}
