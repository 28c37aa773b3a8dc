//! Whether the kernel has killed a process because memory ran out.

use crate::cgroup::Group;
use crate::proc::Proc;

/// Watches the counter of such kills: that of the process's own group, or else the whole machine's.
#[derive(Debug)]
pub(crate) struct OomWatch {
    proc: Proc,
    group: Option<Group>,
    /// The counter at the last two looks. Of the machine's counter only what came lately counts, as it may mean others; two
    /// looks, as a large process takes some time to go after it was counted.
    looks: [Option<u64>; 2],
}

impl OomWatch {
    pub(crate) fn new(proc: Proc, group: Option<Group>) -> Self {
        let mut watch = Self {
            proc,
            group: None,
            looks: [None; 2],
        };
        watch.begin(group);
        watch
    }

    /// The group that is watched.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// A process begins, in this group: what came before does not count.
    pub(crate) fn begin(&mut self, group: Option<Group>) {
        self.group = group;
        self.looks = [self.count(); 2];
    }

    /// To be called regularly.
    pub(crate) fn look(&mut self) {
        self.looks = [self.looks[1], self.count()];
    }

    /// Something was killed lately.
    pub(crate) fn has_grown(&self) -> bool {
        match (self.looks[0], self.count()) {
            (Some(before), Some(now)) => now > before,
            _ => false,
        }
    }

    fn count(&self) -> Option<u64> {
        match &self.group {
            Some(group) => Some(group.oom_kills()),
            None => self.proc.oom_kills(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_kill_counts_for_two_looks_and_no_longer() {
        let root = tempfile::tempdir().unwrap();
        let set = |kills: u64| fs::write(root.path().join("vmstat"), format!("oom_kill {kills}\n")).unwrap();
        set(4);
        let mut watch = OomWatch::new(Proc::at(root.path()), None);
        assert!(!watch.has_grown());
        set(5);
        assert!(watch.has_grown());
        watch.look();
        assert!(watch.has_grown());
        watch.look();
        assert!(!watch.has_grown());
        set(6);
        watch.begin(None);
        assert!(!watch.has_grown());
    }

    #[test]
    fn without_a_counter_nothing_is_claimed() {
        assert!(!OomWatch::new(Proc::at("/nowhere"), None).has_grown());
    }
}
