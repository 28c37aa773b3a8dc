//! CPU, main memory and processes of this host, by sysinfo.

use std::time::Instant;

use sysinfo::{
    CpuRefreshKind, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System as Sysinfo,
};

use crate::{Error, ProcessReading, System, SystemReading};

const MB: u64 = 1024 * 1024;

/// This host as it is.
#[derive(Debug)]
pub struct LocalSystem {
    sysinfo: Sysinfo,
    /// When the processes were last read; their disk figures count from there.
    last: Instant,
}

impl LocalSystem {
    /// Fails on a platform that sysinfo does not know.
    pub fn new() -> Result<Self, Error> {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let sysinfo = Sysinfo::new_with_specifics(kinds).map_err(|error| Error::System(error.to_string()))?;
        Ok(Self {
            sysinfo,
            last: Instant::now(),
        })
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
        SystemReading {
            cpu_name: cpu_name(&self.sysinfo),
            cpu_usage_percent: self.sysinfo.global_cpu_usage(),
            ram_used_mb: self.sysinfo.used_memory() / MB,
            ram_total_mb: self.sysinfo.total_memory() / MB,
            processes,
        }
    }
}

/// The name that this host gives itself.
pub fn host_name() -> Option<String> {
    Sysinfo::host_name().ok().filter(|name| !name.is_empty())
}

fn cpu_name(sysinfo: &Sysinfo) -> String {
    match sysinfo.cpus().first().map(|cpu| cpu.brand().trim()) {
        Some(brand) if !brand.is_empty() => brand.to_owned(),
        _ => format!("{} processor", std::env::consts::ARCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_named_cpu_and_memory() {
        let reading = LocalSystem::new().unwrap().read(&[]);
        assert!(!reading.cpu_name.is_empty());
        assert!(reading.ram_total_mb > 0 && reading.ram_used_mb <= reading.ram_total_mb);
        assert!((0.0..=100.0).contains(&reading.cpu_usage_percent));
        assert!(reading.processes.is_empty());
    }

    #[test]
    fn only_the_asked_processes_are_read_and_one_that_is_gone_is_left_out() {
        let mut system = LocalSystem::new().unwrap();
        let own = std::process::id();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let reading = system.read(&[own, child.id()]);
        assert_eq!(reading.processes.keys().copied().collect::<Vec<_>>(), [own]);
        assert!(reading.processes[&own].rss_mb > 0);
        assert!(system.read(&[]).processes.is_empty());
    }
}
