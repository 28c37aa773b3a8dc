//! Memory that this process may still take: what the machine has available, within the limits of its control groups.

use std::path::Path;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Where Linux mounts the control groups.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Names the control groups of this process, one line for each hierarchy.
const CGROUP_MEMBERSHIP: &str = "/proc/self/cgroup";

/// What version 1 says where nothing is limited is this or more: the largest number of whole pages.
const UNLIMITED_V1: u64 = 1 << 62;

/// Bytes that this process may still take; `None` where the system does not tell.
pub(crate) fn available() -> Option<usize> {
    let kinds = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let machine = System::new_with_specifics(kinds).map_or(0, |system| system.available_memory());
    // A system without control groups has no such file.
    let membership = std::fs::read_to_string(CGROUP_MEMBERSHIP).unwrap_or_default();
    let groups = headroom(Path::new(CGROUP_ROOT), &membership);
    let machine = Some(machine).filter(|&bytes| bytes > 0);
    let bytes = machine.into_iter().chain(groups).min()?;
    Some(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The least that the process's control groups leave it, where one of them has a limit. `membership` is the text of
/// `/proc/self/cgroup`. A group that cannot be seen below `root`, as in a container, is left out.
fn headroom(root: &Path, membership: &str) -> Option<u64> {
    let groups = membership.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let version = match controllers {
            "" => Version::Two,
            list if list.split(',').any(|controller| controller == "memory") => Version::One,
            _ => return None,
        };
        Some((version, path.trim_start_matches('/')))
    });
    groups
        .flat_map(|(version, path)| {
            let top = root.join(version.folder());
            // A limit of a group binds those below it, too.
            let groups = Path::new(path).ancestors().map(move |group| top.join(group));
            groups.filter_map(move |group| version.left_in(&group))
        })
        .min()
}

/// The two kinds of control groups.
#[derive(Debug, Clone, Copy)]
enum Version {
    One,
    Two,
}

impl Version {
    /// Its memory hierarchy below the root.
    fn folder(self) -> &'static str {
        match self {
            Self::One => "memory",
            Self::Two => "",
        }
    }

    /// Names of the limit, the use, and the field of `memory.stat` that tells how much of the use the kernel gives up
    /// at once.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::One => ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"],
            Self::Two => ["memory.max", "memory.current", "inactive_file"],
        }
    }

    /// Bytes that a group may still take; `None` where it has no limit or is not there.
    fn left_in(self, group: &Path) -> Option<u64> {
        let [limit, used, reclaimable] = self.names();
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        // The word `max` stands for no limit in version 2.
        let limit = read(limit)?.trim().parse::<u64>().ok()?;
        if limit >= UNLIMITED_V1 {
            return None;
        }
        let used: u64 = read(used)?.trim().parse().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let reclaimable = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            bytes.parse::<u64>().ok().filter(|_| name == reclaimable)
        });
        Some(limit.saturating_sub(used.saturating_sub(reclaimable.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files below it.
    fn groups(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn the_machine_has_memory_left() {
        assert!(available().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_is_used_and_cannot_be_given_up() {
        let root = groups(&[
            ("box/memory.max", "1000\n"),
            ("box/memory.current", "700\n"),
            ("box/memory.stat", "anon 1\ninactive_file 200\nactive_file 50\n"),
        ]);
        assert_eq!(headroom(root.path(), "0::/box\n"), Some(500));
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let root = groups(&[
            ("a/memory.max", "1000\n"),
            ("a/memory.current", "900\n"),
            ("a/b/memory.max", "500\n"),
            ("a/b/memory.current", "100\n"),
            ("a/b/c/memory.max", "max\n"),
            ("a/b/c/memory.current", "100\n"),
        ]);
        assert_eq!(headroom(root.path(), "0::/a/b/c\n"), Some(100));
    }

    #[test]
    fn a_group_beyond_its_limit_leaves_nothing() {
        let root = groups(&[("memory.max", "10\n"), ("memory.current", "20\n")]);
        assert_eq!(headroom(root.path(), "0::/\n"), Some(0));
    }

    #[test]
    fn without_a_limit_the_groups_say_nothing() {
        let root = groups(&[("memory.max", "max\n"), ("memory.current", "20\n")]);
        assert_eq!(headroom(root.path(), "0::/\n"), None);
        assert_eq!(headroom(root.path(), ""), None);
        assert_eq!(headroom(root.path(), "0::/elsewhere\n1:name=systemd:/x\n"), None);
    }

    #[test]
    fn groups_of_the_first_version_are_read_where_the_memory_controller_is() {
        let root = groups(&[
            ("memory/box/memory.limit_in_bytes", "1000\n"),
            ("memory/box/memory.usage_in_bytes", "400\n"),
            ("memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.usage_in_bytes", "5\n"),
        ]);
        let membership = "12:cpu,cpuacct:/other\n4:memory:/box\n0::/\n";
        assert_eq!(headroom(root.path(), membership), Some(700));
    }
}
