//! What the kernel tells of processes, in `/proc`. Where that is not there nothing is known, which means: nobody's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::env::{MARK, WORKER_MARK};

/// A `/proc` folder.
#[derive(Debug, Clone)]
pub(crate) struct Proc {
    root: PathBuf,
}

/// A process as `stat` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) parent: u32,
    /// Clock ticks from the machine's start to its own.
    pub(crate) start_ticks: u64,
    /// It has ended, and nobody has asked how.
    pub(crate) is_zombie: bool,
    /// How it ended, as wait(2) tells it; 0 while it lives.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "only processes held by a pidfd are asked")
    )]
    pub(crate) exit_status: i32,
}

/// By whom and as what a process was started, by the environment that it was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Marks {
    /// As this worker, by the supervisors of this name.
    Worker { instance: String, worker: String },
    /// By others; or it is another user's, or gone.
    None,
    /// No environment: it has none, or is just turning into another program (execve(2)), and has it in a moment.
    Unclear,
}

impl Proc {
    pub(crate) fn system() -> Self {
        Self::at("/proc")
    }

    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Names the run of the machine.
    pub(crate) fn boot_id(&self) -> Option<String> {
        let text = fs::read_to_string(self.root.join("sys/kernel/random/boot_id")).ok()?;
        Some(text.trim().to_owned())
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }

    pub(crate) fn stat(&self, pid: u32) -> Option<Stat> {
        parse_stat(&fs::read_to_string(self.of(pid).join("stat")).ok()?)
    }

    pub(crate) fn marks(&self, pid: u32) -> Marks {
        let Ok(environ) = fs::read(self.of(pid).join("environ")) else {
            return Marks::None;
        };
        if environ.is_empty() && self.has_memory(pid) {
            return Marks::Unclear;
        }
        let value = |name: &str| {
            let mut variables = environ.split(|byte| *byte == 0);
            let value = variables.find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
            String::from_utf8(value.to_vec()).ok()
        };
        match (value(MARK), value(WORKER_MARK)) {
            (Some(instance), Some(worker)) => Marks::Worker { instance, worker },
            _ => Marks::None,
        }
    }

    /// Not so for threads of the kernel and for what has ended.
    fn has_memory(&self, pid: u32) -> bool {
        fs::read_to_string(self.of(pid).join("statm")).is_ok_and(|sizes| !sizes.starts_with("0 "))
    }

    /// Processes that the kernel killed because memory ran out, on this machine since its start.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        counter(&self.root.join("vmstat"), "oom_kill")
    }

    fn of(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string())
    }
}

/// The number behind `name` in a file of `name number` lines.
pub(crate) fn counter(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// See proc_pid_stat(5): the second field is a name in brackets that may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    // The third field on: state, parent, ...; the 22nd is the start time, the 52nd and last one the exit status.
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        start_ticks: fields.get(22 - 3)?.parse().ok()?,
        is_zombie: matches!(*fields.first()?, "Z" | "X"),
        exit_status: fields.get(52 - 3)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_name_cannot_pass_for_its_other_fields() {
        let unused = "0 ".repeat(29);
        let text = format!("77 (a) S 1 (b) Z 42 77 77 0 -1 4194304 90 0 0 0 0 0 0 0 20 0 1 0 31337 {unused} 768\n");
        let stat = Stat {
            parent: 42,
            start_ticks: 31337,
            is_zombie: true,
            exit_status: 3 << 8,
        };
        assert_eq!(parse_stat(&text), Some(stat));
        assert_eq!(parse_stat("77 (a) S 1"), None);
    }

    #[test]
    fn marks_are_whole_variables_and_both_are_needed() {
        let root = tempfile::tempdir().unwrap();
        for (pid, environ) in [
            ("1", "PATH=/bin\0RBEE_SUPERVISOR=us\0RBEE_WORKER_ID=w\0"),
            ("2", "XRBEE_SUPERVISOR=us\0RBEE_WORKER_ID=w\0"),
            ("3", "RBEE_SUPERVISOR_X=us\0RBEE_WORKER_ID=w\0"),
            ("4", ""),
            ("5", ""),
        ] {
            fs::create_dir(root.path().join(pid)).unwrap();
            fs::write(root.path().join(pid).join("environ"), environ).unwrap();
        }
        fs::write(root.path().join("4/statm"), "0 0 0 0 0 0 0\n").unwrap();
        fs::write(root.path().join("5/statm"), "700 100 90 9 0 80 0\n").unwrap();
        let proc = Proc::at(root.path());
        let marks = Marks::Worker {
            instance: "us".into(),
            worker: "w".into(),
        };
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|pid| proc.marks(pid)),
            [
                marks,
                Marks::None,
                Marks::None,
                Marks::None,
                Marks::Unclear,
                Marks::None
            ]
        );
        let mut pids = proc.pids();
        pids.sort_unstable();
        assert_eq!(pids, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_counter_is_found_by_its_whole_name() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("vmstat"), "oom_kill_x 9\noom_kill 3\n").unwrap();
        assert_eq!(Proc::at(root.path()).oom_kills(), Some(3));
        assert_eq!(Proc::at("/nowhere").oom_kills(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_very_process_is_told_of() {
        let stat = Proc::system().stat(std::process::id()).unwrap();
        assert_eq!(stat.parent, std::os::unix::process::parent_id());
        assert!(!stat.is_zombie);
        assert!(Proc::system().boot_id().is_some());
    }
}
