//! The handle: start, take over, list, stop, leave.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use shared_contract::WorkerId;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::cgroup::group_for;
use crate::launch::launch;
use crate::log::{self, Log};
use crate::oom::OomWatch;
use crate::proc::Proc;
use crate::record::Records;
use crate::recover::recover;
use crate::start_number::StartNumbers;
use crate::task::{Beginning, Order, Task};
use crate::{Ending, Error, Event, EventKind, Kept, Options, Record, Recovery, Spec, State, follow};

/// As good as without end, and no time that cannot be told.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Keeps processes. Clones share them. Dropping the last one, or the runtime, leaves the processes alone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) start_numbers: StartNumbers,
    pub(crate) records: Records,
    pub(crate) proc: Proc,
    table: Mutex<Table>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
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
            records: Records::new(&options.records_dir),
            proc: Proc::system(),
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
        let log = Log::new(&options.log_dir, &spec.id);
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
        let group = group_for(options, &spec)?;
        // From before its first moment, so that no kill is missed.
        let oom = OomWatch::new(self.shared.proc.clone(), group);
        let process = launch(&self.shared, &spec, &log, oom.group(), 1).inspect_err(|_| {
            if let Some(group) = oom.group() {
                group.remove();
            }
        })?;
        let pid = process.pid().unwrap_or_default();
        tracing::info!(worker_id = %spec.id, pid, program = %spec.program.to_string_lossy(), "worker process started");
        // Its first event comes before those of its task.
        self.shared.publish(&spec.id, EventKind::Started { pid, starts: 1 });
        let begin = Begin {
            state: State::Running,
            order: Order::Run,
            oom,
            starts: 1,
            beginning: Beginning::Living(process),
        };
        table.keep(&self.shared, spec, log, begin);
        let in_use: Vec<PathBuf> = table.entries.values().map(|entry| entry.kept.log.clone()).collect();
        drop(table);
        if let Err(error) = log::prune(&options.log_dir, options.kept_logs, &in_use) {
            tracing::debug!(%error, "old worker logs stay");
        }
        Ok(pid)
    }

    /// Takes over what an earlier supervisor left in [`Options::records_dir`].
    ///
    /// To be called once, before any start, within a tokio runtime; it reads `/proc` and the records, which takes some
    /// milliseconds, or half a second where a worker was started just before. `respawn` rebuilds the spec of a recorded worker, or says by `None` that it is wanted no more; the
    /// spec's id is taken from the record.
    ///
    /// A worker whose process lives (number, time of start and marks are the recorded ones) is kept as if it had been
    /// started here, with two differences: no event tells of it, and how it ends may stay unknown ([`Exit::Unknown`]), as it
    /// is no child of this process. One whose process is gone is started again if the machine's run is the same. What is
    /// left of earlier supervisors of this folder, and what is wanted no more, is asked to end, and killed after
    /// [`Options::orphan_grace`], in the background. Other processes are never touched.
    ///
    /// [`Exit::Unknown`]: crate::Exit::Unknown
    pub fn recover(&self, respawn: impl Fn(&Record) -> Option<Spec>) -> Recovery {
        recover(&self.shared, &respawn)
    }

    /// Asks a process to end (SIGTERM), kills it after the grace period, and keeps it no longer. Ends when it is gone.
    ///
    /// Of several calls for one process the shortest grace counts.
    pub async fn stop(&self, id: &WorkerId, grace: Duration) -> Result<Ending, Error> {
        let now = Instant::now();
        let kill_at = now.checked_add(grace).unwrap_or(now + LONGEST_GRACE);
        let order = Order::Stop { kill_at };
        let mut ended = {
            let mut table = self.shared.table();
            let entry = table.entries.get(id).ok_or_else(|| Error::Unknown(id.clone()))?;
            if entry.kept.state == State::Failed {
                table.entries.remove(id);
                drop(table);
                self.shared.publish(id, EventKind::Stopped);
                return Ok(Ending::Ended);
            }
            // First, so that no later supervisor brings it back.
            self.shared.records.remove(id);
            entry.orders.send_if_modified(|current| current.tighten(order));
            entry.ended.clone()
        };
        // The other end is gone if the runtime ends, and with it everybody who waits, or if all are left to live.
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

    /// Keeps nothing any more and takes no new processes, but lets all live: the next supervisor of
    /// [`Options::records_dir`] takes them over. Those that are being stopped are left to that one, too.
    pub fn leave(&self) {
        let mut table = self.shared.table();
        table.closed = true;
        for entry in std::mem::take(&mut table.entries).into_values() {
            entry.orders.send_if_modified(|current| current.tighten(Order::Leave));
        }
    }

    /// However this process ends from now on, it is not started again: for one that was asked to end in another way than by
    /// [`Self::stop`], which may still follow.
    pub fn expect_end(&self, id: &WorkerId) -> Result<(), Error> {
        let table = self.shared.table();
        let entry = table.entries.get(id).ok_or_else(|| Error::Unknown(id.clone()))?;
        if let Err(error) = self.shared.records.mark_ending(id) {
            tracing::warn!(worker_id = %id, %error, "worker record cannot be changed");
        }
        entry.orders.send_if_modified(|current| current.tighten(Order::Expect));
        Ok(())
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
        Log::new(&self.shared.options.log_dir, id).tail(lines)
    }

    /// The last `lines` lines that a worker printed, also one that is kept no more, and, if `follow`, those that it prints
    /// until it is kept no more or is given up. Its log is read on over restarts and while it is set aside; lines are cut
    /// at 8 KiB. Needs a tokio runtime.
    pub fn log_lines(
        &self,
        id: &WorkerId,
        lines: usize,
        follow: bool,
    ) -> Result<impl Stream<Item = String> + Send + 'static + use<>, Error> {
        let table = self.shared.table();
        let ended = table.entries.get(id).filter(|_| follow);
        let ended = ended.map(|entry| entry.ended.clone());
        drop(table);
        follow::lines(Log::new(&self.shared.options.log_dir, id), id, lines, ended)
    }
}

/// How the keeping of a worker begins.
pub(crate) struct Begin {
    pub(crate) state: State,
    pub(crate) order: Order,
    pub(crate) oom: OomWatch,
    /// Times that it was started before, the living process included.
    pub(crate) starts: u32,
    pub(crate) beginning: Beginning,
}

impl Table {
    pub(crate) fn has(&self, id: &WorkerId) -> bool {
        self.entries.contains_key(id)
    }

    /// Numbers of the processes that are kept.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.entries.values().filter_map(|entry| entry.kept.pid)
    }

    /// Enters a worker and begins its task.
    pub(crate) fn keep(&mut self, shared: &Arc<Shared>, spec: Spec, log: Log, begin: Begin) -> Kept {
        let (orders, their_orders) = watch::channel(begin.order);
        let (ending, ended) = watch::channel(None);
        let id = spec.id.clone();
        let kept = Kept {
            id: id.clone(),
            label: spec.label.clone(),
            state: begin.state,
            pid: match &begin.beginning {
                Beginning::Living(process) => process.pid(),
                Beginning::After(_) => None,
            },
            starts: begin.starts,
            exit: None,
            reason: None,
            log: log.path().to_owned(),
        };
        let entry = Entry {
            kept: kept.clone(),
            orders,
            ended,
        };
        self.entries.insert(id, entry);
        let task = Task::new(Arc::clone(shared), spec, log, begin.oom, their_orders, begin.starts);
        tokio::spawn(task.run(begin.beginning, ending));
        kept
    }
}

impl Shared {
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a process, then tells.
    pub(crate) fn update(&self, id: &WorkerId, change: impl FnOnce(&mut Kept)) {
        if let Some(entry) = self.table().entries.get_mut(id) {
            change(&mut entry.kept);
        }
    }

    /// Takes it out of the list and of the records.
    pub(crate) fn forget(&self, id: &WorkerId) {
        self.records.remove(id);
        self.table().entries.remove(id);
    }

    pub(crate) fn publish(&self, id: &WorkerId, kind: EventKind) {
        // Nobody listens: the table has the state.
        let _ = self.events.send(Event { id: id.clone(), kind });
    }
}
