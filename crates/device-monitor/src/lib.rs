//! The devices of this host and how busy they are.
//!
//! Owns: reading CPU and main memory (always, within the limits of this process's control groups), GPUs (NVIDIA by NVML,
//! AMD and Intel by what the kernel shows below `/sys`, Apple on macOS), and single processes; polling them on own
//! threads; the last known state as a [`Snapshot`].
//! Must not know: workers, heartbeats, HTTP, or any async runtime. Which processes are a hive's own is told to it.
//!
//! A reading that a device does not offer is `None`. A driver that hangs holds up its own thread and nobody else: readers
//! get the last snapshot, which says how old it is.

// It compiles everywhere; elsewhere than on a Mac the tests see to it that it still does.
#[cfg(any(target_os = "macos", test))]
mod apple;
mod cgroup;
mod drm;
mod holders;
mod monitor;
mod nvml;
mod poller;
mod reading;
mod snapshot;
mod system;

#[cfg(any(target_os = "macos", test))]
pub use apple::Apple;
pub use cgroup::available_memory;
pub use drm::Drm;
pub use monitor::{Host, LocalOptions, Monitor, Options};
pub use nvml::Nvml;
pub use reading::{Gpu, GpuProcess, GpuReading, Gpus, Named, ProcessReading, System, SystemReading};
pub use snapshot::{ForeignProcess, Snapshot};
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
