//! The last known state of the host, in the words of the hive's contract.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hive_contract::{DeviceInfo, DeviceKind, DeviceLoad, MonitorData, ProcessStats};

use crate::poller::Timed;
use crate::{Gpu, GpuReading, SystemReading};

/// Id of the main processor among the devices.
const CPU: &str = "cpu";

/// The host as it was last seen. Cheap to take.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) system: Option<Arc<Timed<SystemReading>>>,
    pub(crate) gpus: Option<Arc<Timed<GpuReading>>>,
    /// A reading older than this is no longer believed.
    pub(crate) limit: Duration,
    /// When the polling began.
    pub(crate) started: Instant,
    pub(crate) taken: Instant,
}

impl Snapshot {
    /// Devices on which a worker can run: the CPU, and each GPU that answers. Memory of a GPU that does not tell is 0.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let system = self.system.as_ref().map(|reading| &reading.value);
        let cpu = DeviceInfo {
            id: CPU.to_owned(),
            kind: DeviceKind::Cpu,
            name: system.map_or_else(String::new, |system| system.cpu_name.clone()),
            memory_total_mb: system.map_or(0, |system| system.ram_total_mb),
            uuid: None,
            compute_capability: None,
        };
        let gpus = self.gpus().iter().filter(|gpu| gpu.problem.is_none());
        std::iter::once(cpu).chain(gpus.map(device_info)).collect()
    }

    /// Load of the host; `uptime` is the hive's.
    pub fn monitor(&self, uptime: Duration) -> MonitorData {
        let system = self.system.as_ref().map(|reading| &reading.value);
        let fresh = self.gpus_late().is_none();
        MonitorData {
            cpu_usage_percent: system.map_or(0.0, |system| system.cpu_usage_percent),
            ram_used_mb: system.map_or(0, |system| system.ram_used_mb),
            ram_total_mb: system.map_or(0, |system| system.ram_total_mb),
            uptime_s: uptime.as_secs(),
            devices: self.gpus().iter().map(|gpu| device_load(gpu, fresh)).collect(),
        }
    }

    /// Fills in what is measured of the process `stats.pid` on its `stats.device`; the rest is left as it is.
    pub fn measure(&self, stats: &mut ProcessStats) {
        let system = self.system.as_ref().map(|reading| &reading.value);
        if let Some(process) = system.and_then(|system| system.processes.get(&stats.pid)) {
            stats.cpu_pct = process.cpu_pct;
            stats.rss_mb = process.rss_mb;
            stats.io_r_mb_s = process.io_r_mb_s;
            stats.io_w_mb_s = process.io_w_mb_s;
            stats.uptime_s = process.uptime_s;
        }
        let device = stats.device.as_deref().unwrap_or(CPU);
        let Some(gpu) = self.gpus().iter().find(|gpu| gpu.id() == device) else {
            return;
        };
        stats.total_vram_mb = gpu.memory_total_mb;
        if self.gpus_late().is_none()
            && let Some(process) = gpu.processes.get(&stats.pid)
        {
            stats.vram_mb = process.memory_mb;
            stats.gpu_util_pct = process.util_percent;
        }
    }

    /// What is wrong with the host, for people: a driver that failed or hangs, a GPU that is lost.
    pub fn problem(&self) -> Option<String> {
        if let Some(late) = self.gpus_late() {
            return Some(format!("the NVIDIA driver has not answered for {} s", late.as_secs()));
        }
        if let Some(GpuReading::Failed { reason }) = self.gpus.as_ref().map(|reading| &reading.value) {
            return Some(reason.clone());
        }
        let lost = self.gpus().iter().find_map(|gpu| {
            let problem = gpu.problem.as_ref()?;
            Some(format!("{}: {problem}", gpu.id()))
        });
        lost.or_else(|| {
            let late = self.late(self.system.as_ref().map(|reading| reading.at))?;
            Some(format!("CPU and memory have not been read for {} s", late.as_secs()))
        })
    }

    fn gpus(&self) -> &[Gpu] {
        match self.gpus.as_ref().map(|reading| &reading.value) {
            Some(GpuReading::Present(gpus)) => gpus,
            _ => &[],
        }
    }

    fn gpus_late(&self) -> Option<Duration> {
        self.late(self.gpus.as_ref().map(|reading| reading.at))
    }

    fn late(&self, read: Option<Instant>) -> Option<Duration> {
        let age = self.taken.saturating_duration_since(read.unwrap_or(self.started));
        Some(age).filter(|age| *age > self.limit)
    }
}

fn device_info(gpu: &Gpu) -> DeviceInfo {
    DeviceInfo {
        id: gpu.id(),
        kind: DeviceKind::Cuda,
        name: gpu.name.clone().unwrap_or_else(|| "NVIDIA GPU".to_owned()),
        memory_total_mb: gpu.memory_total_mb.unwrap_or(0),
        uuid: gpu.uuid.clone(),
        compute_capability: gpu.compute_capability.clone(),
    }
}

/// An old reading tells what the device is, not how busy it is.
fn device_load(gpu: &Gpu, fresh: bool) -> DeviceLoad {
    DeviceLoad {
        id: gpu.id(),
        util_percent: gpu.util_percent.filter(|_| fresh),
        vram_used_mb: gpu.memory_used_mb.filter(|_| fresh),
        vram_total_mb: gpu.memory_total_mb,
        temperature_celsius: gpu.temperature_celsius.filter(|_| fresh),
        power_watts: gpu.power_watts.filter(|_| fresh),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hive_contract::ProcessState;

    use super::*;
    use crate::{GpuProcess, ProcessReading};

    const LIMIT: Duration = Duration::from_secs(5);

    fn snapshot(gpus: GpuReading, age: Duration) -> Snapshot {
        let read = Instant::now();
        let system = SystemReading {
            cpu_name: "Example 9000".into(),
            cpu_usage_percent: 12.5,
            ram_used_mb: 100,
            ram_total_mb: 1000,
            processes: HashMap::from([(
                7,
                ProcessReading {
                    cpu_pct: 150.0,
                    rss_mb: 42,
                    ..ProcessReading::default()
                },
            )]),
        };
        Snapshot {
            system: Some(Arc::new(Timed {
                value: system,
                at: read + age,
            })),
            gpus: Some(Arc::new(Timed { value: gpus, at: read })),
            limit: LIMIT,
            started: read,
            taken: read + age,
        }
    }

    fn gpu() -> Gpu {
        Gpu {
            index: 0,
            name: Some("Example GPU".into()),
            memory_total_mb: Some(24_000),
            memory_used_mb: Some(1_000),
            util_percent: Some(30.0),
            processes: HashMap::from([(
                7,
                GpuProcess {
                    memory_mb: Some(900),
                    util_percent: Some(25.0),
                },
            )]),
            ..Gpu::default()
        }
    }

    fn stats(pid: u32, device: &str) -> ProcessStats {
        ProcessStats {
            pid,
            group: "llm-worker".into(),
            instance: String::new(),
            cpu_pct: 0.0,
            rss_mb: 0,
            io_r_mb_s: 0.0,
            io_w_mb_s: 0.0,
            uptime_s: 0,
            gpu_util_pct: None,
            vram_mb: None,
            total_vram_mb: None,
            model: None,
            state: ProcessState::Running,
            worker_id: None,
            device: Some(device.into()),
        }
    }

    #[test]
    fn a_host_without_a_driver_has_a_cpu_and_no_problem() {
        let absent = GpuReading::Absent {
            reason: "no driver".into(),
        };
        let snapshot = snapshot(absent, Duration::ZERO);
        let devices = snapshot.devices();
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].id.as_str(), devices[0].memory_total_mb), ("cpu", 1000));
        assert!(snapshot.monitor(Duration::ZERO).devices.is_empty());
        assert_eq!(snapshot.problem(), None);
    }

    #[test]
    fn a_gpu_appears_among_the_devices_with_its_load() {
        let snapshot = snapshot(GpuReading::Present(vec![gpu()]), Duration::ZERO);
        assert_eq!(snapshot.devices()[1].id, "cuda:0");
        let monitor = snapshot.monitor(Duration::from_secs(9));
        assert_eq!(monitor.uptime_s, 9);
        assert_eq!(monitor.devices[0].util_percent, Some(30.0));
        assert_eq!(monitor.devices[0].power_watts, None);
    }

    #[test]
    fn a_process_gets_its_own_figures_and_those_of_its_device() {
        let snapshot = snapshot(GpuReading::Present(vec![gpu()]), Duration::ZERO);
        let mut on_gpu = stats(7, "cuda:0");
        snapshot.measure(&mut on_gpu);
        assert_eq!((on_gpu.cpu_pct, on_gpu.rss_mb), (150.0, 42));
        assert_eq!((on_gpu.vram_mb, on_gpu.total_vram_mb), (Some(900), Some(24_000)));
        let mut on_cpu = stats(7, "cpu");
        snapshot.measure(&mut on_cpu);
        assert_eq!((on_cpu.rss_mb, on_cpu.vram_mb), (42, None));
        let mut stranger = stats(8, "cuda:0");
        snapshot.measure(&mut stranger);
        assert_eq!((stranger.rss_mb, stranger.vram_mb), (0, None));
    }

    #[test]
    fn a_lost_gpu_is_no_device_and_a_problem() {
        let lost = Gpu {
            problem: Some("fell off the bus".into()),
            ..gpu()
        };
        let snapshot = snapshot(GpuReading::Present(vec![lost]), Duration::ZERO);
        assert_eq!(snapshot.devices().len(), 1);
        assert_eq!(snapshot.problem().unwrap(), "cuda:0: fell off the bus");
    }

    #[test]
    fn the_load_of_a_driver_that_hangs_is_unknown_not_old() {
        let snapshot = snapshot(GpuReading::Present(vec![gpu()]), LIMIT + Duration::from_secs(1));
        let load = &snapshot.monitor(Duration::ZERO).devices[0];
        assert_eq!((load.util_percent, load.vram_total_mb), (None, Some(24_000)));
        assert!(snapshot.problem().unwrap().contains("has not answered for 6 s"));
        assert_eq!(snapshot.devices().len(), 2);
    }

    #[test]
    fn a_driver_that_never_answered_is_a_problem_once_it_is_late() {
        let absent = GpuReading::Absent {
            reason: "unread".into(),
        };
        let unread = |age| Snapshot {
            gpus: None,
            ..snapshot(absent.clone(), age)
        };
        assert_eq!(unread(LIMIT).problem(), None);
        assert!(
            unread(LIMIT * 2)
                .problem()
                .unwrap()
                .contains("has not answered for 10 s")
        );
    }

    #[test]
    fn a_driver_that_failed_is_a_problem() {
        let failed = GpuReading::Failed {
            reason: "driver gone".into(),
        };
        assert_eq!(snapshot(failed, Duration::ZERO).problem().unwrap(), "driver gone");
    }
}
