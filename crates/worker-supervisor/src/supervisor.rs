//! The handle: start, list, stop, kill.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared_contract::WorkerId;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::log::{self, Log};
use crate::start_number::StartNumbers;
use crate::task::{self, Order, Task};
use crate::{Ending, Error, Event, EventKind, Kept, Options, Spec, State};

/// Keeps processes. Clones share them. Dropping the last one, or the runtime, leaves the processes alone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) start_numbers: StartNumbers,
    table: Mutex<Table>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Table {
    closed: bool,
    entries: BTreeMap<WorkerId, Entry>,
}

#[derive(Debug)]
struct Entry {
    kept: Kept,
    orders: watch::Sender<Order>,
    ended: watch::Receiver<Option<Ending>>,
}

impl Supervisor {
    /// Keeps no process yet.
    pub fn new(options: Options) -> Self {
        let (events, _) = broadcast::channel(options.event_capacity);
        let shared = Shared {
            options,
            start_numbers: StartNumbers::default(),
            table: Mutex::default(),
            events,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Starts a process and keeps it until it is stopped, ends with status 0, or fails too often. Returns its id.
    ///
    /// Needs a tokio runtime. If it cannot be started this first time, it is not kept.
    pub fn start(&self, spec: Spec) -> Result<u32, Error> {
        let options = &self.shared.options;
        let log = Log::new(&options.log_dir, spec.id.as_str());
        let mut table = self.shared.table();
        if table.closed {
            return Err(Error::Closed(spec.id));
        }
        if table.entries.contains_key(&spec.id) {
            return Err(Error::Duplicate(spec.id));
        }
        if table.entries.len() >= options.max_workers {
            return Err(Error::TooMany {
                id: spec.id,
                limit: options.max_workers,
            });
        }
        let child = task::launch(&spec, &log, &self.shared.start_numbers)?;
        let pid = child.id().unwrap_or_default();
        let (orders, their_orders) = watch::channel(Order::Run);
        let (ending, ended) = watch::channel(None);
        let id = spec.id.clone();
        let kept = Kept {
            id: id.clone(),
            state: State::Running,
            pid: Some(pid),
            starts: 1,
            exit: None,
            reason: None,
            log: log.path().to_owned(),
        };
        table.entries.insert(id.clone(), Entry { kept, orders, ended });
        let in_use: Vec<PathBuf> = table.entries.values().map(|entry| entry.kept.log.clone()).collect();
        drop(table);
        if let Err(error) = log::prune(&options.log_dir, options.kept_logs, &in_use) {
            tracing::debug!(%error, "old worker logs stay");
        }
        tracing::info!(worker_id = %id, pid, program = %spec.program.to_string_lossy(), "worker process started");
        self.shared.publish(&id, EventKind::Started { pid, starts: 1 });
        let task = Task::new(Arc::clone(&self.shared), spec, log, their_orders);
        tokio::spawn(task.run(child, ending));
        Ok(pid)
    }

    /// Asks a process to end (SIGTERM), kills it after the grace period, and keeps it no longer. Ends when it is gone.
    ///
    /// Of several calls for one process the shortest grace counts.
    pub async fn stop(&self, id: &WorkerId, grace: Duration) -> Result<Ending, Error> {
        let order = Order::Stop {
            kill_at: Instant::now() + grace,
        };
        let mut ended = {
            let mut table = self.shared.table();
            let entry = table.entries.get(id).ok_or_else(|| Error::Unknown(id.clone()))?;
            if entry.kept.state == State::Failed {
                table.entries.remove(id);
                drop(table);
                self.shared.publish(id, EventKind::Stopped);
                return Ok(Ending::Ended);
            }
            entry.orders.send_if_modified(|current| current.tighten(order));
            entry.ended.clone()
        };
        // The other end is gone only if the runtime ends, and with it everybody who waits.
        let ending = ended.wait_for(Option::is_some).await.ok().and_then(|ending| *ending);
        Ok(ending.unwrap_or(Ending::Ended))
    }

    /// Stops all processes and takes no new ones. Ends when all are gone.
    pub async fn stop_all(&self, grace: Duration) {
        let ids: Vec<WorkerId> = {
            let mut table = self.shared.table();
            table.closed = true;
            table.entries.keys().cloned().collect()
        };
        let mut stops = tokio::task::JoinSet::new();
        for id in ids {
            let supervisor = self.clone();
            stops.spawn(async move { supervisor.stop(&id, grace).await });
        }
        while let Some(stopped) = stops.join_next().await {
            if let Ok(Err(error)) = stopped {
                // It ended by itself in the meantime.
                tracing::debug!(%error, "nothing to stop");
            }
        }
    }

    /// Kills all processes at once and takes no new ones. Ends when all are gone.
    pub async fn kill_all(&self) {
        self.stop_all(Duration::ZERO).await;
    }

    /// All kept processes, in the order of their ids.
    pub fn list(&self) -> Vec<Kept> {
        self.shared
            .table()
            .entries
            .values()
            .map(|entry| entry.kept.clone())
            .collect()
    }

    /// One of them.
    pub fn get(&self, id: &WorkerId) -> Option<Kept> {
        self.shared.table().entries.get(id).map(|entry| entry.kept.clone())
    }

    /// Everything that happens from now on. A reader that lagged looks at [`Self::list`].
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// The last lines that a process printed in its current or last run.
    pub fn log_tail(&self, id: &WorkerId, lines: usize) -> Vec<String> {
        Log::new(&self.shared.options.log_dir, id.as_str()).tail(lines)
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a process, then tells.
    pub(crate) fn update(&self, id: &WorkerId, change: impl FnOnce(&mut Kept)) {
        if let Some(entry) = self.table().entries.get_mut(id) {
            change(&mut entry.kept);
        }
    }

    pub(crate) fn forget(&self, id: &WorkerId) {
        self.table().entries.remove(id);
    }

    pub(crate) fn publish(&self, id: &WorkerId, kind: EventKind) {
        // Nobody listens: the table has the state.
        let _ = self.events.send(Event { id: id.clone(), kind });
    }
}
