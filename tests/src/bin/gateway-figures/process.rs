//! What the system says of processes (Linux: proc(5)).

use std::time::Duration;

use crate::Result;

/// CPU time of all threads that a process has now, to the nanosecond.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let threads = std::fs::read_dir(&folder).map_err(|error| format!("read {folder}: {error}"))?;
    let mut nanos = 0;
    for thread in threads.flatten() {
        // A thread may have ended since the folder was read. The first number is the time on a CPU.
        let stat = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        nanos += stat
            .split(' ')
            .next()
            .and_then(|word| word.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident memory of a process, in bytes.
pub(crate) fn rss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))?;
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib << 10)
        .ok_or_else(|| format!("find VmRSS in {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu(pid).unwrap() > Duration::ZERO);
        assert!(rss(pid).unwrap() > 1 << 16);
    }
}
