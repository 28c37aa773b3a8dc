//! The last known state of the host, in the words of the hive's contract.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hive_contract::{DeviceInfo, DeviceKind, DeviceLoad, MonitorData, ProcessStats};

use crate::poller::Timed;
use crate::{Gpu, GpuProcess, GpuReading, Named, SystemReading};

/// Id of the main processor among the devices.
const CPU: &str = "cpu";

/// The host as it was last seen. Cheap to take.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) system: Option<Arc<Timed<SystemReading>>>,
    pub(crate) gpus: Vec<DriverState>,
    /// A reading older than this is no longer believed.
    pub(crate) limit: Duration,
    /// When the polling began.
    pub(crate) started: Instant,
    pub(crate) taken: Instant,
}

/// What one source of GPUs last said.
#[derive(Debug, Clone)]
pub(crate) struct DriverState {
    pub(crate) driver: &'static str,
    pub(crate) reading: Option<Arc<Timed<GpuReading>>>,
}

/// A process on a GPU that is none of the hive's.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignProcess {
    /// Process id.
    pub pid: u32,
    /// Its name, where it may be read.
    pub name: Option<String>,
    /// Device memory that it holds, where the driver tells.
    pub memory_mb: Option<u64>,
    /// Share of the device's time, 0 to 100, where the driver tells.
    pub util_percent: Option<f32>,
}

impl Snapshot {
    /// Devices on which a worker can run: the CPU, and each GPU that answers. Memory of a GPU that does not tell is 0,
    /// and nothing is reserved.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let system = self.system.as_ref().map(|reading| &reading.value);
        let cpu = DeviceInfo {
            id: CPU.to_owned(),
            kind: DeviceKind::Cpu,
            name: system.map_or_else(String::new, |system| system.cpu_name.clone()),
            memory_total_mb: system.map_or(0, |system| system.ram_total_mb),
            memory_reserved_mb: 0,
            uuid: None,
            compute_capability: None,
        };
        let gpus = self.gpus().filter(|gpu| gpu.problem.is_none());
        std::iter::once(cpu).chain(gpus.map(device_info)).collect()
    }

    /// Load of the host; `uptime` is the hive's, `ours` are its workers' processes. What a hive knows alone (free memory,
    /// the owner) is left open.
    pub fn monitor(&self, uptime: Duration, ours: &BTreeSet<u32>) -> MonitorData {
        let system = self.system.as_ref().map(|reading| &reading.value);
        let loads = self.gpus.iter().flat_map(|source| {
            let fresh = self.driver_late(source).is_none();
            source.gpus().iter().map(move |gpu| device_load(gpu, fresh, ours))
        });
        MonitorData {
            cpu_usage_percent: system.map_or(0.0, |system| system.cpu_usage_percent),
            ram_used_mb: system.map_or(0, |system| system.ram_used_mb),
            ram_total_mb: system.map_or(0, |system| system.ram_total_mb),
            ram_free_mb: None,
            uptime_s: uptime.as_secs(),
            devices: loads.collect(),
        }
    }

    /// Main memory that this host can still give, in MB; `None` until it was read.
    pub fn ram_available_mb(&self) -> Option<u64> {
        self.system.as_ref().map(|reading| reading.value.ram_available_mb)
    }

    /// The GPU with this id, as it was last seen, lost or not.
    pub fn device(&self, id: &str) -> Option<&Gpu> {
        self.gpus().find(|gpu| gpu.id() == id)
    }

    /// Named processes on a GPU that are not among `ours`, the one that holds most memory first. A driver that hangs
    /// leaves what it said last: an owner is not gone because nobody can look.
    pub fn foreign(&self, device_id: &str, ours: &BTreeSet<u32>) -> Vec<ForeignProcess> {
        let Some(gpu) = self.device(device_id) else {
            return Vec::new();
        };
        let mut foreign: Vec<ForeignProcess> = gpu
            .processes
            .iter()
            .filter(|(pid, _)| !ours.contains(pid))
            .map(|(&pid, process)| ForeignProcess {
                pid,
                name: process.name.clone(),
                memory_mb: process.memory_mb,
                util_percent: process.util_percent,
            })
            .collect();
        foreign.sort_by_key(|process| (std::cmp::Reverse(process.memory_mb), process.pid));
        foreign
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
        for source in &self.gpus {
            let Some(gpu) = source.gpus().iter().find(|gpu| gpu.id() == device) else {
                continue;
            };
            stats.total_vram_mb = gpu.memory_total_mb;
            if self.driver_late(source).is_none()
                && let Some(process) = gpu.processes.get(&stats.pid)
            {
                stats.vram_mb = process.memory_mb;
                stats.gpu_util_pct = process.util_percent;
            }
        }
    }

    /// What is wrong with the host, for people: a driver that failed or hangs, GPUs that are lost.
    pub fn problem(&self) -> Option<String> {
        self.gpus
            .iter()
            .find_map(|source| self.driver_problem(source))
            .or_else(|| {
                let late = self.late(self.system.as_ref().map(|reading| reading.at))?;
                Some(format!("CPU and memory have not been read for {} s", late.as_secs()))
            })
    }

    fn driver_problem(&self, source: &DriverState) -> Option<String> {
        if let Some(late) = self.driver_late(source) {
            return Some(format!(
                "the {} has not answered for {} s",
                source.driver,
                late.as_secs()
            ));
        }
        if let Some(GpuReading::Failed { reason }) = source.reading.as_ref().map(|reading| &reading.value) {
            return Some(reason.clone());
        }
        let problem = source.gpus().iter().find_map(|gpu| gpu.problem.as_deref())?;
        let lost = source
            .gpus()
            .iter()
            .filter(|gpu| gpu.problem.as_deref() == Some(problem));
        let ids: Vec<String> = lost.map(Gpu::id).collect();
        Some(format!("{}: {problem}", ids.join(", ")))
    }

    fn gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().flat_map(DriverState::gpus)
    }

    fn driver_late(&self, source: &DriverState) -> Option<Duration> {
        self.late(source.reading.as_ref().map(|reading| reading.at))
    }

    fn late(&self, read: Option<Instant>) -> Option<Duration> {
        let age = self.taken.saturating_duration_since(read.unwrap_or(self.started));
        Some(age).filter(|age| *age > self.limit)
    }
}

impl DriverState {
    fn gpus(&self) -> &[Gpu] {
        match self.reading.as_ref().map(|reading| &reading.value) {
            Some(GpuReading::Present(gpus)) => gpus,
            _ => &[],
        }
    }
}

fn device_info(gpu: &Gpu) -> DeviceInfo {
    DeviceInfo {
        id: gpu.id(),
        kind: gpu.kind,
        name: gpu.name.clone().unwrap_or_else(|| format!("{} GPU", gpu.kind)),
        memory_total_mb: gpu.memory_total_mb.unwrap_or(0),
        memory_reserved_mb: 0,
        uuid: gpu.uuid.clone(),
        compute_capability: gpu.compute_capability.clone(),
    }
}

/// An old reading tells what the device is, not how busy it is.
fn device_load(gpu: &Gpu, fresh: bool, ours: &BTreeSet<u32>) -> DeviceLoad {
    DeviceLoad {
        id: gpu.id(),
        util_percent: gpu.util_percent.filter(|_| fresh),
        vram_used_mb: gpu.memory_used_mb.filter(|_| fresh),
        vram_total_mb: gpu.memory_total_mb,
        temperature_celsius: gpu.temperature_celsius.filter(|_| fresh),
        power_watts: gpu.power_watts.filter(|_| fresh),
        power_limit_watts: gpu.power_limit_watts,
        vram_foreign_mb: foreign_mb(gpu, ours).filter(|_| fresh),
        vram_free_mb: None,
        owner: None,
    }
}

/// Memory of the device that processes other than `ours` hold: what they say, else what ours leave of the memory in use.
/// `None` where the device does not tell, or where the driver names nobody and some of it may be ours.
fn foreign_mb(gpu: &Gpu, ours: &BTreeSet<u32>) -> Option<u64> {
    let (own, others): (Vec<_>, Vec<_>) = gpu.processes.iter().partition(|(pid, _)| ours.contains(pid));
    let sum = |processes: &[(&u32, &GpuProcess)]| -> Option<u64> {
        processes.iter().map(|(_, process)| process.memory_mb).sum()
    };
    match gpu.named {
        Named::All => sum(&others).or_else(|| Some(gpu.memory_used_mb?.saturating_sub(sum(&own)?))),
        Named::Own => Some(gpu.memory_used_mb?.saturating_sub(sum(&own)?)),
        Named::None => gpu.memory_used_mb.filter(|_| ours.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hive_contract::ProcessState;

    use super::*;
    use crate::ProcessReading;

    const LIMIT: Duration = Duration::from_secs(5);
    const UP: Duration = Duration::from_secs(9);

    fn snapshot(gpus: GpuReading, age: Duration) -> Snapshot {
        let read = Instant::now();
        let system = SystemReading {
            cpu_name: "Example 9000".into(),
            cpu_usage_percent: 12.5,
            ram_used_mb: 100,
            ram_total_mb: 1000,
            ram_available_mb: 850,
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
            gpus: vec![driver("NVIDIA driver", gpus, read)],
            limit: LIMIT,
            started: read,
            taken: read + age,
        }
    }

    fn driver(driver: &'static str, gpus: GpuReading, at: Instant) -> DriverState {
        DriverState {
            driver,
            reading: Some(Arc::new(Timed { value: gpus, at })),
        }
    }

    fn absent() -> GpuReading {
        GpuReading::Absent {
            reason: "no driver".into(),
        }
    }

    fn process(memory_mb: Option<u64>) -> GpuProcess {
        GpuProcess {
            name: Some("game".into()),
            memory_mb,
            util_percent: Some(25.0),
        }
    }

    fn gpu() -> Gpu {
        Gpu {
            name: Some("Example GPU".into()),
            memory_total_mb: Some(24_000),
            memory_used_mb: Some(1_000),
            util_percent: Some(30.0),
            power_limit_watts: Some(450.0),
            processes: HashMap::from([(7, process(Some(900)))]),
            ..Gpu::new(DeviceKind::Cuda, 0)
        }
    }

    fn present(gpu: Gpu) -> Snapshot {
        snapshot(GpuReading::Present(vec![gpu]), Duration::ZERO)
    }

    fn pids(pids: &[u32]) -> BTreeSet<u32> {
        pids.iter().copied().collect()
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
            granted_mb: None,
            pinned: false,
        }
    }

    #[test]
    fn a_host_without_a_driver_has_a_cpu_and_no_problem() {
        let snapshot = snapshot(absent(), Duration::ZERO);
        let devices = snapshot.devices();
        assert_eq!(devices.len(), 1);
        assert_eq!((devices[0].id.as_str(), devices[0].memory_total_mb), ("cpu", 1000));
        assert!(snapshot.monitor(UP, &pids(&[])).devices.is_empty());
        assert_eq!((snapshot.problem(), snapshot.ram_available_mb()), (None, Some(850)));
    }

    #[test]
    fn a_gpu_appears_among_the_devices_with_its_load() {
        let snapshot = present(gpu());
        assert_eq!(snapshot.devices()[1].id, "cuda:0");
        assert_eq!(snapshot.device("cuda:0"), Some(&gpu()));
        assert_eq!(snapshot.device("cuda:1"), None);
        let monitor = snapshot.monitor(UP, &pids(&[]));
        assert_eq!(monitor.uptime_s, 9);
        let load = &monitor.devices[0];
        assert_eq!((load.util_percent, load.power_limit_watts), (Some(30.0), Some(450.0)));
        assert_eq!(load.power_watts, None);
    }

    #[test]
    fn gpus_of_several_makers_stand_side_by_side() {
        let mut snapshot = present(gpu());
        let rocm = Gpu::new(DeviceKind::Rocm, 0);
        let at = snapshot.started;
        snapshot
            .gpus
            .push(driver("other driver", GpuReading::Present(vec![rocm]), at));
        let ids: Vec<_> = snapshot.devices().into_iter().map(|device| device.id).collect();
        assert_eq!(ids, ["cpu", "cuda:0", "rocm:0"]);
        assert_eq!(snapshot.devices()[2].name, "rocm GPU");
    }

    #[test]
    fn a_process_gets_its_own_figures_and_those_of_its_device() {
        let snapshot = present(gpu());
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
    fn foreign_processes_are_those_that_are_not_ours_the_largest_first() {
        let processes = [(7, Some(900)), (8, None), (9, Some(40)), (10, Some(4_000))];
        let snapshot = present(Gpu {
            processes: processes.map(|(pid, memory)| (pid, process(memory))).into(),
            ..gpu()
        });
        let foreign = snapshot.foreign("cuda:0", &pids(&[7]));
        let order: Vec<_> = foreign.iter().map(|process| (process.pid, process.memory_mb)).collect();
        assert_eq!(order, [(10, Some(4_000)), (9, Some(40)), (8, None)]);
        assert_eq!(foreign[0].name.as_deref(), Some("game"));
        assert!(snapshot.foreign("cuda:1", &pids(&[])).is_empty());
    }

    /// What foreign processes hold of a GPU of whose memory 5,000 MB are in use.
    fn foreign_mb(named: Named, processes: &[(u32, Option<u64>)], ours: &[u32]) -> Option<u64> {
        let processes = processes.iter().map(|&(pid, memory)| (pid, process(memory)));
        let snapshot = present(Gpu {
            memory_used_mb: Some(5_000),
            named,
            processes: processes.collect(),
            ..gpu()
        });
        snapshot.monitor(UP, &pids(ours)).devices[0].vram_foreign_mb
    }

    #[test]
    fn foreign_memory_is_what_foreign_processes_say_that_they_hold() {
        let processes = [(7, Some(900)), (9, Some(40)), (10, Some(4_000))];
        assert_eq!(foreign_mb(Named::All, &processes, &[7]), Some(4_040));
        assert_eq!(foreign_mb(Named::All, &processes, &[7, 9, 10]), Some(0));
        assert_eq!(foreign_mb(Named::All, &[], &[7]), Some(0));
    }

    #[test]
    fn foreign_memory_is_what_ours_leave_where_the_others_do_not_say() {
        assert_eq!(foreign_mb(Named::All, &[(7, Some(900)), (8, None)], &[7]), Some(4_100));
        assert_eq!(foreign_mb(Named::All, &[(7, Some(9_000)), (8, None)], &[7]), Some(0));
        assert_eq!(
            foreign_mb(Named::Own, &[(7, Some(900)), (8, Some(40))], &[7]),
            Some(4_100)
        );
        assert_eq!(foreign_mb(Named::None, &[], &[]), Some(5_000));
    }

    #[test]
    fn foreign_memory_is_unknown_where_it_cannot_be_told_from_ours() {
        assert_eq!(foreign_mb(Named::None, &[], &[7]), None);
        assert_eq!(foreign_mb(Named::All, &[(7, None), (8, None)], &[7]), None);
    }

    #[test]
    fn a_lost_gpu_is_listed_without_figures_is_no_device_and_is_a_problem() {
        let lost = |index| Gpu {
            problem: Some("fell off the bus".into()),
            ..Gpu::new(DeviceKind::Cuda, index)
        };
        let snapshot = snapshot(GpuReading::Present(vec![lost(0), gpu(), lost(2)]), Duration::ZERO);
        assert_eq!(snapshot.devices().len(), 2);
        let loads = snapshot.monitor(UP, &pids(&[])).devices;
        assert_eq!((loads.len(), loads[0].vram_total_mb), (3, None));
        assert_eq!(snapshot.problem().unwrap(), "cuda:0, cuda:2: fell off the bus");
    }

    #[test]
    fn the_load_of_a_driver_that_hangs_is_unknown_not_old() {
        let snapshot = snapshot(GpuReading::Present(vec![gpu()]), LIMIT + Duration::from_secs(1));
        let load = &snapshot.monitor(UP, &pids(&[])).devices[0];
        assert_eq!((load.util_percent, load.vram_total_mb), (None, Some(24_000)));
        assert_eq!((load.vram_used_mb, load.vram_foreign_mb), (None, None));
        assert_eq!(
            snapshot.problem().unwrap(),
            "the NVIDIA driver has not answered for 6 s"
        );
        assert_eq!(snapshot.devices().len(), 2);
    }

    #[test]
    fn an_owner_is_not_gone_because_the_driver_hangs() {
        let snapshot = snapshot(GpuReading::Present(vec![gpu()]), LIMIT * 2);
        assert_eq!(snapshot.foreign("cuda:0", &pids(&[])).len(), 1);
    }

    #[test]
    fn a_driver_that_never_answered_is_a_problem_once_it_is_late() {
        let unread = |age| {
            let mut snapshot = snapshot(absent(), age);
            snapshot.gpus[0].reading = None;
            snapshot
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
