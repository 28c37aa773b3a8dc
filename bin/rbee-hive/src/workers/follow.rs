//! Brings what happens to worker processes into the hive's table.

use std::sync::Arc;

use hive_contract::{ProcessState, WorkerExit};
use shared_contract::WorkerId;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use worker_supervisor::{Event, EventKind, Kept, State};

use super::look::accompany;
use crate::App;
use crate::changes::Change;
use crate::core::{Core, Worker};

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
        if kept.is_none() && table.get(id).is_some_and(Worker::is_reserved) {
            return Vec::new();
        }
        let Some(kept) = kept else {
            // That it has ended was told, unless that event was missed; that it will not come back was not.
            let gone = table
                .remove(id)
                .filter(|worker| worker.pid.is_some() || worker.state == ProcessState::Restarting);
            return gone
                .map(|worker| removed(id, worker.pid, "ended"))
                .into_iter()
                .collect();
        };
        let Some(worker) = table.get_mut(id) else {
            return Vec::new();
        };
        let changes = match kept.pid {
            Some(pid) if worker.pid != Some(pid) => {
                started = Some(pid);
                worker.port = None;
                worker.state = ProcessState::Starting;
                vec![Change::WorkerAdded(id.clone())]
            }
            _ => Vec::new(),
        };
        adopt(worker, kept);
        changes
    });
    started
}

/// Takes over what the supervisor knows; what only a look at the worker tells stays as it is.
pub(crate) fn adopt(worker: &mut Worker, kept: Kept) {
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

    #[test]
    fn the_queens_hear_why_the_hive_ended_a_worker_and_how_it_went() {
        assert_eq!(why(None, "stopped"), "stopped");
        assert_eq!(why(Some("idle for 15m"), "stopped"), "idle for 15m");
        assert_eq!(why(Some("idle for 15m"), "exit code 1"), "idle for 15m; exit code 1");
    }
}
