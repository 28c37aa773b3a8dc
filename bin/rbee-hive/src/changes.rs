//! What changed on this host, so that each queen can be told what it does not know yet.

use std::collections::{BTreeMap, VecDeque};

use hive_contract::{CapabilityChanges, ModelEntry, WorkerExit};
use shared_contract::{ModelId, WorkerId};

/// Changes that are remembered; a queen that missed more learns the rest from the full beat, which lists everything.
const KEPT: usize = 1024;

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    ModelAdded(Box<ModelEntry>),
    ModelRemoved(ModelId),
    WorkerAdded(WorkerId),
    WorkerRemoved(WorkerExit),
}

/// The last changes, numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    changes: VecDeque<Change>,
    /// Number of the last change.
    head: u64,
}

impl ChangeLog {
    pub(crate) fn push(&mut self, change: Change) {
        if self.changes.len() == KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        self.head += 1;
    }

    /// Number of the last change.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// What changed after the change of this number. Of several changes to one thing only the last counts: a worker that
    /// ended and was started again is added, so that news that arrives late does not speak ill of the living.
    pub(crate) fn since(&self, number: u64) -> CapabilityChanges {
        let wanted = usize::try_from(self.head.saturating_sub(number)).unwrap_or(usize::MAX);
        let first = self.changes.len().saturating_sub(wanted);
        let mut models = BTreeMap::new();
        let mut workers = BTreeMap::new();
        for change in self.changes.iter().skip(first) {
            match change {
                Change::ModelAdded(entry) => models.insert(&entry.id, change),
                Change::ModelRemoved(id) => models.insert(id, change),
                Change::WorkerAdded(id) => workers.insert(id, change),
                Change::WorkerRemoved(exit) => workers.insert(&exit.worker_id, change),
            };
        }
        let mut changes = CapabilityChanges::default();
        for change in models.into_values().chain(workers.into_values()) {
            match change.clone() {
                Change::ModelAdded(entry) => changes.models_added.push(*entry),
                Change::ModelRemoved(id) => changes.models_removed.push(id),
                Change::WorkerAdded(id) => changes.workers_added.push(id),
                Change::WorkerRemoved(exit) => changes.workers_removed.push(exit),
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> WorkerId {
        WorkerId::new(text).unwrap()
    }

    fn exit(text: &str) -> WorkerExit {
        WorkerExit {
            worker_id: id(text),
            reason: "exit code 1".into(),
            pid: Some(1),
        }
    }

    #[test]
    fn a_reader_gets_what_came_after_its_last_change() {
        let mut log = ChangeLog::default();
        log.push(Change::WorkerAdded(id("a")));
        let known = log.head();
        assert!(log.since(known).is_empty());
        log.push(Change::WorkerRemoved(exit("a")));
        assert_eq!(log.since(known).workers_removed, [exit("a")]);
    }

    #[test]
    fn a_worker_that_ended_and_was_started_again_is_only_added() {
        let mut log = ChangeLog::default();
        log.push(Change::WorkerRemoved(exit("a")));
        log.push(Change::WorkerAdded(id("a")));
        let changes = log.since(0);
        assert_eq!(changes.workers_added, [id("a")]);
        assert!(changes.workers_removed.is_empty());
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let mut log = ChangeLog::default();
        for number in 0..2 * KEPT {
            log.push(Change::WorkerAdded(id(&format!("w{number}"))));
        }
        assert_eq!(log.since(0).workers_added.len(), KEPT);
        assert_eq!(
            log.since(log.head() - 1).workers_added,
            [id(&format!("w{}", 2 * KEPT - 1))]
        );
    }
}
