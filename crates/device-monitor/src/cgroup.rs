//! Limits of the control groups that this process is in, on Linux: in a container they are the machine.
//!
//! Versions 1 and 2, each as it is mounted below one root. A file that is not there means that nothing is known of what it
//! would tell; a group that cannot be seen below the root, as in a container, is left out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::LocalOptions;

/// What version 1 says where nothing is limited is this or more: the largest number of whole pages.
const UNLIMITED_V1: u64 = 1 << 62;

/// Bytes of main memory that this process may still take: what the machine has available, within the limits of its control
/// groups. `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let kinds = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let machine = System::new_with_specifics(kinds).map_or(0, |system| system.available_memory());
    let groups = Groups::new(&LocalOptions::default()).memory();
    let machine = Some(machine).filter(|&bytes| bytes > 0);
    machine.into_iter().chain(groups.map(|memory| memory.left)).min()
}

/// The control groups of this process.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    root: PathBuf,
    /// Names the groups, one line for each hierarchy.
    membership: PathBuf,
}

/// Limits on memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// The tightest limit.
    pub(crate) total: u64,
    /// What the group with that limit uses, less what the kernel gives up at once.
    pub(crate) used: u64,
    /// The least that any group leaves.
    pub(crate) left: u64,
}

/// The tightest limit on processor time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CpuQuota {
    /// Cores' worth of time that the group may take.
    pub(crate) cores: f64,
    /// Time that it took since it was made.
    pub(crate) used: Duration,
}

impl Groups {
    pub(crate) fn new(options: &LocalOptions) -> Self {
        Self {
            root: options.cgroup_root.clone(),
            membership: options.proc_root.join("self/cgroup"),
        }
    }

    /// What the groups leave of memory, where one of them has a limit.
    pub(crate) fn memory(&self) -> Option<MemoryLimit> {
        let limits = self.of("memory").into_iter().filter_map(|group| group.memory());
        limits.reduce(|tightest, next| {
            let left = tightest.left.min(next.left);
            let limit = if next.total < tightest.total { next } else { tightest };
            MemoryLimit { left, ..limit }
        })
    }

    /// What the groups leave of processor time, where one of them has a quota.
    pub(crate) fn cpu(&self) -> Option<CpuQuota> {
        let quotas = self.of("cpu").into_iter().filter_map(|group| group.cpu());
        quotas.min_by(|a, b| a.cores.total_cmp(&b.cores))
    }

    /// The groups that this controller puts the process in, from its own upwards: a limit binds all that is below it.
    fn of(&self, controller: &str) -> Vec<Group> {
        // A system without control groups has no such file.
        let membership = fs::read_to_string(&self.membership).unwrap_or_default();
        let own = membership.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let version = match controllers {
                "" => Version::Two,
                list if list.split(',').any(|name| name == controller) => Version::One,
                _ => return None,
            };
            Some((version, controllers, path.trim_start_matches('/')))
        });
        own.flat_map(|(version, list, path)| {
            let top = match version {
                // Controllers that are mounted together stand under both names, or under all of theirs alone.
                Version::One => [controller, list]
                    .map(|name| self.root.join(name))
                    .into_iter()
                    .find(|top| top.is_dir())
                    .unwrap_or_else(|| self.root.join(controller)),
                Version::Two => self.root.clone(),
            };
            Path::new(path).ancestors().map(move |path| Group {
                version,
                folder: top.join(path),
                usage: self.root.join("cpuacct").join(path),
            })
        })
        .collect()
    }
}

/// The two kinds of control groups.
#[derive(Debug, Clone, Copy)]
enum Version {
    One,
    Two,
}

/// One control group.
#[derive(Debug)]
struct Group {
    version: Version,
    folder: PathBuf,
    /// Its folder in version 1's controller that counts processor time, where that is mounted by itself.
    usage: PathBuf,
}

impl Group {
    /// `None` where it has no limit or is not there.
    fn memory(&self) -> Option<MemoryLimit> {
        // The last is the field of `memory.stat` that tells how much of the use the kernel gives up at once.
        let (limits, used, reclaimable): (&[_], _, _) = match self.version {
            Version::One => (
                &["memory.limit_in_bytes"],
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
            // Beyond the second limit nothing is killed, but the kernel slows the group down until it comes to a halt.
            Version::Two => (&["memory.max", "memory.high"], "memory.current", "inactive_file"),
        };
        // The word `max`, which is no number, stands for no limit in version 2.
        let limits = limits.iter().filter_map(|limit| number(&self.folder.join(limit)));
        let total = limits.min().filter(|&bytes| bytes < UNLIMITED_V1)?;
        let used = number(&self.folder.join(used))?;
        let used = used.saturating_sub(field(&self.folder.join("memory.stat"), reclaimable).unwrap_or(0));
        Some(MemoryLimit {
            total,
            used,
            left: total.saturating_sub(used),
        })
    }

    /// `None` where it has no quota, is not there, or does not tell what it used.
    fn cpu(&self) -> Option<CpuQuota> {
        let (quota, period, used) = match self.version {
            Version::One => {
                // -1, which is no number of this type, stands for no quota.
                let quota = number(&self.folder.join("cpu.cfs_quota_us"))?;
                let period = number(&self.folder.join("cpu.cfs_period_us"))?;
                let beside = number(&self.folder.join("cpuacct.usage"));
                let nanoseconds = beside.or_else(|| number(&self.usage.join("cpuacct.usage")))?;
                (quota, period, Duration::from_nanos(nanoseconds))
            }
            Version::Two => {
                let text = fs::read_to_string(self.folder.join("cpu.max")).ok()?;
                let (quota, period) = text.trim().split_once(' ')?;
                let microseconds = field(&self.folder.join("cpu.stat"), "usage_usec")?;
                let used = Duration::from_micros(microseconds);
                (quota.parse().ok()?, period.parse().ok()?, used)
            }
        };
        let cores = quota as f64 / period as f64;
        (cores.is_finite() && cores > 0.0).then_some(CpuQuota { cores, used })
    }
}

/// The number that a file holds.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number that stands behind a name in a file of such lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (found, number) = line.split_once(' ')?;
        number.parse().ok().filter(|_| found == name)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Folders with these files below `groups`, and a process of this membership.
    pub(crate) fn machine(membership: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, LocalOptions) {
        let folder = tempfile::tempdir().unwrap();
        let files = files.iter().map(|(path, text)| (format!("groups/{path}"), *text));
        for (path, text) in files.chain([("proc/self/cgroup".to_owned(), membership)]) {
            let file = folder.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let options = LocalOptions {
            cgroup_root: folder.path().join("groups"),
            proc_root: folder.path().join("proc"),
            ..LocalOptions::default()
        };
        (folder, options)
    }

    fn memory(membership: &str, files: &[(&str, &str)]) -> Option<MemoryLimit> {
        let (_folder, options) = machine(membership, files);
        Groups::new(&options).memory()
    }

    fn cpu(membership: &str, files: &[(&str, &str)]) -> Option<CpuQuota> {
        let (_folder, options) = machine(membership, files);
        Groups::new(&options).cpu()
    }

    #[test]
    fn the_machine_has_memory_left() {
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_is_used_and_cannot_be_given_up() {
        let files = [
            ("box/memory.max", "1000\n"),
            ("box/memory.current", "700\n"),
            ("box/memory.stat", "anon 1\ninactive_file 200\nactive_file 50\n"),
        ];
        let limit = MemoryLimit {
            total: 1000,
            used: 500,
            left: 500,
        };
        assert_eq!(memory("0::/box\n", &files), Some(limit));
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let files = [
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "900\n"),
            ("a/b/memory.max", "500\n"),
            ("a/b/memory.current", "100\n"),
            ("a/b/c/memory.max", "max\n"),
            ("a/b/c/memory.current", "100\n"),
        ];
        let limit = MemoryLimit {
            total: 500,
            used: 100,
            left: 100,
        };
        assert_eq!(memory("0::/a/b/c\n", &files), Some(limit));
    }

    #[test]
    fn the_limit_beyond_which_a_group_is_slowed_down_counts_too() {
        for (max, high, total) in [("1000", "600", 600), ("max", "600", 600), ("500", "max", 500)] {
            let files = [("memory.max", max), ("memory.high", high), ("memory.current", "100\n")];
            assert_eq!(memory("0::/\n", &files).unwrap().total, total);
        }
    }

    #[test]
    fn a_group_beyond_its_limit_leaves_nothing() {
        let files = [("memory.max", "10\n"), ("memory.current", "20\n")];
        assert_eq!(memory("0::/\n", &files).unwrap().left, 0);
    }

    #[test]
    fn without_a_limit_the_groups_say_nothing() {
        let files = [
            ("memory.max", "max\n"),
            ("memory.current", "20\n"),
            ("cpu.max", "max 100000\n"),
            ("cpu.stat", "usage_usec 5\n"),
        ];
        for membership in ["0::/\n", "", "0::/elsewhere\n1:name=systemd:/x\n"] {
            assert_eq!(memory(membership, &files), None);
            assert_eq!(cpu(membership, &files), None);
        }
    }

    #[test]
    fn groups_of_the_first_version_are_read_where_the_memory_controller_is() {
        let files = [
            ("memory/box/memory.limit_in_bytes", "1000\n"),
            ("memory/box/memory.usage_in_bytes", "400\n"),
            ("memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "5\n"),
        ];
        let limit = memory("12:cpu,cpuacct:/other\n4:memory:/box\n0::/\n", &files).unwrap();
        assert_eq!((limit.total, limit.left), (1000, 700));
    }

    #[test]
    fn a_quota_is_a_number_of_cores_and_the_tightest_counts() {
        let files = [
            ("a/cpu.max", "400000 100000\n"),
            ("a/cpu.stat", "usage_usec 9000000\n"),
            ("a/b/cpu.max", "50000 100000\n"),
            ("a/b/cpu.stat", "usage_usec 2000000\nuser_usec 1\n"),
        ];
        let quota = CpuQuota {
            cores: 0.5,
            used: Duration::from_secs(2),
        };
        assert_eq!(cpu("0::/a/b\n", &files), Some(quota));
    }

    #[test]
    fn a_quota_of_the_first_version_is_read_with_its_use_beside_it_or_in_a_hierarchy_of_its_own() {
        let quota = [
            ("cpu/box/cpu.cfs_quota_us", "200000\n"),
            ("cpu/box/cpu.cfs_period_us", "100000\n"),
        ];
        let expected = CpuQuota {
            cores: 2.0,
            used: Duration::from_secs(3),
        };
        for usage in ["cpu/box/cpuacct.usage", "cpuacct/box/cpuacct.usage"] {
            let files = [quota[0], quota[1], (usage, "3000000000\n")];
            assert_eq!(cpu("3:cpuacct:/box\n2:cpu:/box\n", &files), Some(expected));
        }
        assert_eq!(cpu("2:cpu:/box\n", &quota), None);
        // Mounted together, without the links that stand for each of them.
        let together = [
            ("cpu,cpuacct/box/cpu.cfs_quota_us", "200000\n"),
            ("cpu,cpuacct/box/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/box/cpuacct.usage", "3000000000\n"),
        ];
        assert_eq!(cpu("2:cpu,cpuacct:/box\n", &together), Some(expected));
        let none = [("cpu/cpu.cfs_quota_us", "-1\n"), ("cpu/cpu.cfs_period_us", "100000\n")];
        assert_eq!(cpu("2:cpu:/\n", &none), None);
    }
}
