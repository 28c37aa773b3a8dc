//! What a process takes, under the names that all programs use for it.
//!
//! Source: <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>. Linux tells it in `/proc`; elsewhere
//! only the start is known.

use std::fmt;
use std::fs;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::show;

/// Ticks of `/proc/self/stat` in a second: fixed in the kernel's interface on all that rbee runs on.
const TICKS_PER_S: f64 = 100.0;

/// Reads what this process takes at each scrape.
#[derive(Debug)]
pub(super) struct Process {
    started: Duration,
}

impl Process {
    /// `started`: since the epoch.
    pub(super) fn started(started: Duration) -> Self {
        Self { started }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let started = ConstGauge::new(self.started.as_secs_f64());
        let help = "When the daemon started, in seconds since the epoch";
        show(encoder, "process_start_time_seconds", help, &started)?;
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).ok();
        if let Some(seconds) = read("stat").as_deref().and_then(cpu_seconds) {
            let help = "Processor time spent, by user and system together";
            show(encoder, "process_cpu_seconds", help, &ConstCounter::new(seconds))?;
        }
        if let Some(bytes) = read("status").as_deref().and_then(resident_bytes) {
            let help = "Memory held";
            show(encoder, "process_resident_memory_bytes", help, &ConstGauge::new(bytes))?;
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The one that reads them is among them.
            let open = entries.count().saturating_sub(1) as u64;
            let help = "File descriptors in use, connections among them";
            show(encoder, "process_open_fds", help, &ConstGauge::new(open))?;
        }
        if let Some(limit) = read("limits").as_deref().and_then(max_fds) {
            let help = "Most file descriptors that may be in use";
            show(encoder, "process_max_fds", help, &ConstGauge::new(limit))?;
        }
        Ok(())
    }
}

/// From `/proc/self/stat`. The second field is the program's name in brackets, in which anything may stand.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    // The 14th and the 15th field of all: time as user and in the kernel.
    let mut times = fields.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / TICKS_PER_S)
}

/// From `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let kilobytes = field(status, "VmRSS:")?.parse::<u64>().ok()?;
    kilobytes.checked_mul(1024)
}

/// From `/proc/self/limits`; the first of the two columns binds. `None` if there is no limit.
fn max_fds(limits: &str) -> Option<u64> {
    field(limits, "Max open files")?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_where_the_kernel_writes_them() {
        let stat = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 100 5 6\n";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("42 (x) S 1"), None);
        assert_eq!(resident_bytes("VmHWM:\t  90 kB\nVmRSS:\t    8 kB\n"), Some(8 * 1024));
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files   unlimited   unlimited   files\n"), None);
    }
}
