//! CPU, main memory and processes of this host, by sysinfo, within the limits of this process's control groups.

use std::fs;
use std::path::Path;
use std::time::Instant;

use sysinfo::{
    CpuRefreshKind, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System as Sysinfo,
};

use crate::cgroup::{CpuQuota, Groups, MemoryLimit};
use crate::{Error, LocalOptions, ProcessReading, System, SystemReading};

const MB: u64 = 1024 * 1024;

/// This host as it is.
#[derive(Debug)]
pub struct LocalSystem {
    sysinfo: Sysinfo,
    groups: Groups,
    /// Processor time that the control group had taken, and when.
    quota: Option<(CpuQuota, Instant)>,
    /// When the processes were last read; their disk figures count from there.
    last: Instant,
}

impl LocalSystem {
    /// Fails on a platform that sysinfo does not know.
    pub fn new(options: &LocalOptions) -> Result<Self, Error> {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let sysinfo = Sysinfo::new_with_specifics(kinds).map_err(|error| Error::System(error.to_string()))?;
        let groups = Groups::new(options);
        Ok(Self {
            sysinfo,
            quota: groups.cpu().map(|quota| (quota, Instant::now())),
            groups,
            last: Instant::now(),
        })
    }

    /// 0 to 100, of all cores or of the quota where that is less.
    fn cpu_usage_percent(&mut self) -> f32 {
        let machine = self.sysinfo.global_cpu_usage();
        let now = Instant::now();
        let quota = self
            .groups
            .cpu()
            .filter(|quota| quota.cores < self.sysinfo.cpus().len() as f64);
        let last = std::mem::replace(&mut self.quota, quota.map(|quota| (quota, now)));
        match (quota, last) {
            (Some(quota), Some((before, at))) => {
                quota_percent(quota, before, now.duration_since(at).as_secs_f64()).unwrap_or(machine)
            }
            _ => machine,
        }
    }

    fn processes(&mut self, pids: &[u32]) -> impl Iterator<Item = (u32, ProcessReading)> {
        let pids: Vec<Pid> = pids.iter().map(|&pid| Pid::from_u32(pid)).collect();
        let kind = ProcessRefreshKind::nothing()
            .without_tasks()
            .with_cpu()
            .with_memory()
            .with_disk_usage();
        self.sysinfo
            .refresh_processes_specifics(ProcessesToUpdate::Some(&pids), true, kind);
        let elapsed = self.last.elapsed().as_secs_f32();
        self.last = Instant::now();
        let rate = move |bytes: u64| {
            if elapsed > 0.0 {
                bytes as f32 / MB as f32 / elapsed
            } else {
                0.0
            }
        };
        let sysinfo = &self.sysinfo;
        pids.into_iter().filter_map(move |pid| {
            let process = sysinfo.process(pid)?;
            let disk = process.disk_usage();
            let reading = ProcessReading {
                cpu_pct: process.cpu_usage(),
                rss_mb: process.memory() / MB,
                io_r_mb_s: rate(disk.read_bytes),
                io_w_mb_s: rate(disk.written_bytes),
                uptime_s: process.run_time(),
            };
            Some((pid.as_u32(), reading))
        })
    }
}

impl System for LocalSystem {
    fn read(&mut self, pids: &[u32]) -> SystemReading {
        self.sysinfo.refresh_cpu_usage();
        self.sysinfo
            .refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let processes = self.processes(pids).collect();
        let machine = MemoryLimit {
            total: self.sysinfo.total_memory(),
            used: self.sysinfo.used_memory(),
            left: self.sysinfo.available_memory(),
        };
        let memory = within(machine, self.groups.memory());
        SystemReading {
            cpu_name: cpu_name(&self.sysinfo),
            cpu_usage_percent: self.cpu_usage_percent(),
            ram_used_mb: memory.used / MB,
            ram_total_mb: memory.total / MB,
            ram_available_mb: memory.left / MB,
            processes,
        }
    }
}

/// The name that this host gives itself.
pub fn host_name() -> Option<String> {
    Sysinfo::host_name().ok().filter(|name| !name.is_empty())
}

/// The name of a process, up to 15 bytes of it; `None` where it may not be read.
pub(crate) fn process_name(proc_root: &Path, pid: u32) -> Option<String> {
    let name = fs::read(proc_root.join(pid.to_string()).join("comm")).ok()?;
    let name = String::from_utf8_lossy(&name);
    Some(name.trim_end().to_owned()).filter(|name| !name.is_empty())
}

/// What the machine and the control groups' limit, where there is one, give together.
fn within(machine: MemoryLimit, limit: Option<MemoryLimit>) -> MemoryLimit {
    let Some(limit) = limit else {
        return machine;
    };
    let left = machine.left.min(limit.left);
    let tightest = if limit.total < machine.total { limit } else { machine };
    MemoryLimit { left, ..tightest }
}

/// Share of its quota that a group took in these seconds. `None` where that cannot be told: no time went by, or the group
/// is another one.
fn quota_percent(now: CpuQuota, before: CpuQuota, seconds: f64) -> Option<f32> {
    let taken = now.used.checked_sub(before.used)?.as_secs_f64();
    // The kernel lets a group run a little beyond its quota, and pays back later.
    let percent = 100.0 * taken / (now.cores * seconds);
    percent.is_finite().then(|| percent.min(100.0) as f32)
}

fn cpu_name(sysinfo: &Sysinfo) -> String {
    match sysinfo.cpus().first().map(|cpu| cpu.brand().trim()) {
        Some(brand) if !brand.is_empty() => brand.to_owned(),
        _ => format!("{} processor", std::env::consts::ARCH),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cgroup::tests::machine;

    fn local() -> LocalSystem {
        LocalSystem::new(&LocalOptions::default()).unwrap()
    }

    #[test]
    fn this_host_has_a_named_cpu_and_memory() {
        let reading = local().read(&[]);
        assert!(!reading.cpu_name.is_empty());
        assert!(reading.ram_total_mb > 0 && reading.ram_used_mb <= reading.ram_total_mb);
        assert!(reading.ram_available_mb > 0 && reading.ram_available_mb <= reading.ram_total_mb);
        assert!((0.0..=100.0).contains(&reading.cpu_usage_percent));
        assert!(reading.processes.is_empty());
    }

    #[test]
    fn the_limit_of_a_container_is_the_memory_that_there_is() {
        let files = [
            ("memory.max", "67108864\n"),
            ("memory.current", "50331648\n"),
            ("memory.stat", "inactive_file 16777216\n"),
        ];
        let (_folder, options) = machine("0::/\n", &files);
        let reading = LocalSystem::new(&options).unwrap().read(&[]);
        assert_eq!(
            (reading.ram_total_mb, reading.ram_used_mb, reading.ram_available_mb),
            (64, 32, 32)
        );
    }

    #[test]
    fn a_machine_that_has_less_left_than_the_limit_says_so() {
        let gib = |total: u64, used: u64, left: u64| MemoryLimit {
            total: total << 30,
            used: used << 30,
            left: left << 30,
        };
        assert_eq!(within(gib(64, 60, 4), Some(gib(32, 10, 22))), gib(32, 10, 4));
        assert_eq!(within(gib(64, 60, 4), Some(gib(128, 10, 118))), gib(64, 60, 4));
        // A group further up, larger than the machine, may be nearly full by others' doing.
        assert_eq!(within(gib(64, 10, 54), Some(gib(128, 127, 1))), gib(64, 10, 1));
        assert_eq!(within(gib(64, 60, 4), None), gib(64, 60, 4));
    }

    #[test]
    fn processor_time_counts_in_percent_of_the_quota() {
        let quota = |used| CpuQuota {
            cores: 0.5,
            used: Duration::from_millis(used),
        };
        assert_eq!(quota_percent(quota(1250), quota(1000), 1.0), Some(50.0));
        assert_eq!(quota_percent(quota(1600), quota(1000), 1.0), Some(100.0));
        assert_eq!(quota_percent(quota(1000), quota(1000), 0.0), None);
        assert_eq!(quota_percent(quota(100), quota(1000), 1.0), None);
    }

    #[test]
    fn only_the_asked_processes_are_read_and_one_that_is_gone_is_left_out() {
        let mut system = local();
        let own = std::process::id();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let reading = system.read(&[own, child.id()]);
        assert_eq!(reading.processes.keys().copied().collect::<Vec<_>>(), [own]);
        assert!(reading.processes[&own].rss_mb > 0);
        assert!(system.read(&[]).processes.is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_a_name_while_it_lives() {
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(
            process_name(Path::new("/proc"), std::process::id()).as_deref(),
            Some(own.trim_end())
        );
        assert_eq!(process_name(Path::new("/nowhere"), 1), None);
    }
}
