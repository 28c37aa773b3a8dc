//! Brings what happens to worker processes into the hive's table.

use std::sync::Arc;

use hive_contract::{ProcessState, WorkerExit};
use shared_contract::WorkerId;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use worker_supervisor::{Event, EventKind, Kept, State};

use super::look::accompany;
use crate::App;
use crate::changes::Change;
use crate::core::{Core, Table, Worker};

/// What the supervisor says of a process that ended as it was asked to.
const STOPPED: &str = "stopped";

/// Brings what happens to the processes into the table, for as long as it is polled.
pub(crate) async fn follow(app: Arc<App>, mut events: Receiver<Event>) {
    let core = &app.core;
    let mut looks = tokio::task::JoinSet::new();
    // Those of an earlier hive run already.
    for (id, pid) in running(core) {
        looks.spawn(accompany(Arc::clone(&app), id, pid));
    }
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // Ended looks are collected as they end, so that the set does not grow.
            Some(_) = looks.join_next() => continue,
        };
        let started = match event {
            Ok(Event { id, kind }) => {
                match &kind {
                    EventKind::Started { .. } => drop(core.counters.worker_starts.inc()),
                    EventKind::Exited { pid, reason, .. } => exited(core, &id, *pid, reason),
                    _ => {}
                }
                reconcile(core, &id).map(|pid| vec![(id, pid)]).unwrap_or_default()
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "worker events were missed, looking at all workers");
                let ids: Vec<WorkerId> = core.workers().borrow().keys().cloned().collect();
                ids.into_iter()
                    .filter_map(|id| reconcile(core, &id).map(|pid| (id, pid)))
                    .collect()
            }
            Err(RecvError::Closed) => return,
        };
        for (id, pid) in started {
            looks.spawn(accompany(Arc::clone(&app), id, pid));
        }
    }
}

/// The processes that the table knows.
fn running(core: &Core) -> Vec<(WorkerId, u32)> {
    let table = core.workers();
    let running = table.borrow();
    let running = running
        .iter()
        .filter_map(|(id, worker)| Some((id.clone(), worker.pid?)));
    running.collect()
}

/// A process has ended: the queens hear it at once.
fn exited(core: &Core, id: &WorkerId, pid: Option<u32>, reason: &str) {
    core.counters.worker_exits.inc();
    core.change_workers(|table| match table.get_mut(id) {
        // Where events were missed, the table may speak of a later process already.
        Some(worker) if worker.pid.is_none() || worker.pid == pid => {
            worker.pid = None;
            worker.port = None;
            worker.step = None;
            vec![removed(id, pid, &why(worker.farewell.as_deref(), reason))]
        }
        _ => Vec::new(),
    });
}

/// Why a worker ended: what its hive had in mind, and what came of it if that is something else.
fn why(farewell: Option<&str>, reason: &str) -> String {
    match farewell {
        Some(farewell) if reason == STOPPED => farewell.to_owned(),
        Some(farewell) => format!("{farewell}; {reason}"),
        None => reason.to_owned(),
    }
}

fn removed(id: &WorkerId, pid: Option<u32>, reason: &str) -> Change {
    Change::WorkerRemoved(WorkerExit {
        worker_id: id.clone(),
        reason: reason.to_owned(),
        pid,
    })
}

/// Makes the table say of a worker what its supervisor says. Returns the id of a process that is new.
fn reconcile(core: &Core, id: &WorkerId) -> Option<u32> {
    let kept = core.supervisor.get(id);
    let mut started = None;
    core.change_workers(|table| {
        let Some(kept) = kept else {
            return gone(table, id);
        };
        let Some(worker) = table.get_mut(id) else {
            return Vec::new();
        };
        let changes = match kept.pid {
            Some(pid) if worker.pid != Some(pid) => {
                started = Some(pid);
                worker.port = None;
                // One that was told to end before it began ends still.
                if worker.state != ProcessState::Stopping {
                    worker.state = ProcessState::Starting;
                }
                vec![Change::WorkerAdded(id.clone())]
            }
            _ => Vec::new(),
        };
        adopt(worker, kept);
        changes
    });
    started
}

/// The supervisor keeps a worker no more: it leaves the table, or waits for its device. One that the supervisor never knew
/// stays: it is about to be started, or waits already.
pub(super) fn gone(table: &mut Table, id: &WorkerId) -> Vec<Change> {
    let Some(worker) = table.get_mut(id).filter(|worker| worker.is_kept) else {
        return Vec::new();
    };
    // That it has ended was told, unless that event was missed; that it will not come back was not.
    let is_news = worker.pid.is_some() || worker.state == ProcessState::Restarting;
    let change = is_news.then(|| removed(id, worker.pid, worker.farewell.as_deref().unwrap_or("ended")));
    if worker.yields {
        worker.wait();
    } else {
        table.remove(id);
    }
    change.into_iter().collect()
}

/// Takes over what the supervisor knows; what only a look at the worker tells stays as it is.
pub(crate) fn adopt(worker: &mut Worker, kept: Kept) {
    worker.is_kept = true;
    worker.pid = kept.pid;
    worker.restarts = kept.starts.saturating_sub(1);
    worker.exit = kept.exit;
    worker.reason = kept.reason;
    worker.log = kept.log;
    worker.state = match (kept.state, worker.state) {
        // Whether it is ready shows in a look at it.
        (State::Running, ProcessState::Running) => ProcessState::Running,
        (State::Running | State::Stopping, ProcessState::Stopping) | (State::Stopping, _) => ProcessState::Stopping,
        (State::Running, _) => ProcessState::Starting,
        (State::Restarting, _) => ProcessState::Restarting,
        (State::Failed, _) => ProcessState::Failed,
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::worker;

    /// The table after the supervisor keeps this worker no more, and what the queens hear.
    fn after(worker: Worker) -> (Option<Worker>, Vec<Change>) {
        let id = WorkerId::new("w").unwrap();
        let mut table = Table::from([(id.clone(), worker)]);
        let changes = gone(&mut table, &id);
        (table.remove(&id), changes)
    }

    #[test]
    fn a_worker_that_is_about_to_be_started_stays_though_nobody_keeps_it_yet() {
        let (left, changes) = after(worker("cpu", ProcessState::Starting));
        assert!(left.is_some() && changes.is_empty());
    }

    #[test]
    fn a_worker_that_was_kept_and_is_no_more_leaves_the_table_even_if_it_never_had_a_process_there() {
        let ended = Worker {
            is_kept: true,
            ..worker("cpu", ProcessState::Starting)
        };
        assert_eq!(after(ended), (None, Vec::new()));
    }

    #[test]
    fn a_worker_that_made_room_for_the_owner_stays_in_sight_with_what_it_was_promised() {
        let yielding = Worker {
            is_kept: true,
            yields: true,
            farewell: Some("yielded to `game` (process 7)".into()),
            log: "/logs/w.log".into(),
            ..worker("cuda:0", ProcessState::Stopping)
        };
        let (left, changes) = after(yielding.clone());
        let left = left.unwrap();
        assert!(left.is_waiting() && changes.is_empty(), "{changes:?}");
        assert_eq!((left.state, &left.log), (ProcessState::Restarting, &yielding.log));
        assert_eq!(left.order, yielding.order);
        assert_eq!(
            left.reason.as_deref(),
            Some("yielded to `game` (process 7); it is started again when its device is free")
        );
        // Later news of the process that it was change nothing.
        assert_eq!(after(left.clone()), (Some(left), Vec::new()));
    }

    #[test]
    fn the_queens_hear_why_the_hive_ended_a_worker_and_how_it_went() {
        assert_eq!(why(None, "stopped"), "stopped");
        assert_eq!(why(Some("idle for 15m"), "stopped"), "idle for 15m");
        assert_eq!(why(Some("idle for 15m"), "exit code 1"), "idle for 15m; exit code 1");
    }
}
