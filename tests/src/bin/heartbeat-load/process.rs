//! What the system says of a process (Linux: proc(5)).

use std::time::Duration;

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
    /// Resident memory.
    pub(crate) rss_bytes: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self, String> {
        let stat = read(pid, "stat")?;
        let status = read(pid, "status")?;
        // The name in parentheses may hold spaces; user and system time are the 14th and 15th field in all.
        let ticks: u64 = stat
            .rsplit(')')
            .next()
            .into_iter()
            .flat_map(|rest| rest.split_whitespace().skip(11).take(2))
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        let rss_kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .ok_or_else(|| format!("find VmRSS of process {pid}"))?;
        Ok(Self {
            // Linux shows a hundredth of a second to programs, whatever its own clock.
            cpu: Duration::from_millis(ticks * 10),
            rss_bytes: rss_kib * 1_024,
        })
    }
}

fn read(pid: u32, file: &str) -> Result<String, String> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))
}
