//! The GPU of an Apple processor, which lives on main memory.

use hive_contract::DeviceKind;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::{Gpu, GpuReading, Gpus, Named};

const MB: u64 = 1024 * 1024;

/// The one GPU of this machine.
#[derive(Debug)]
pub struct Apple {
    system: Option<System>,
}

impl Apple {
    /// Reads by sysinfo.
    pub fn new() -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        Self {
            system: System::new_with_specifics(kinds).ok(),
        }
    }
}

impl Default for Apple {
    fn default() -> Self {
        Self::new()
    }
}

impl Gpus for Apple {
    fn driver(&self) -> &'static str {
        "Apple GPU"
    }

    fn read(&mut self) -> GpuReading {
        let Some(system) = &mut self.system else {
            return GpuReading::Absent {
                reason: "this machine's memory cannot be read".to_owned(),
            };
        };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let name = system.cpus().first().map(|cpu| cpu.brand().to_owned());
        // Macs with Intel processors have GPUs of other makers.
        if !name.as_ref().is_some_and(|name| name.starts_with("Apple")) {
            return GpuReading::Absent {
                reason: "no Apple processor".to_owned(),
            };
        }
        GpuReading::Present(vec![Gpu {
            name,
            memory_total_mb: Some(system.total_memory() / MB),
            memory_used_mb: Some(system.used_memory() / MB),
            named: Named::None,
            ..Gpu::new(DeviceKind::Metal, 0)
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_is_there_where_the_processor_is_apples_and_nowhere_else() {
        let mut apple = Apple::new();
        let brand = apple.system.as_ref().unwrap().cpus()[0].brand().to_owned();
        match apple.read() {
            GpuReading::Present(gpus) => {
                assert!(brand.starts_with("Apple"));
                assert_eq!((gpus.len(), gpus[0].id().as_str()), (1, "metal:0"));
                assert!(gpus[0].memory_total_mb > gpus[0].memory_used_mb);
            }
            other => assert!(!brand.starts_with("Apple"), "{other:?}"),
        }
    }
}
