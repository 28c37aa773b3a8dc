//! What the hive is and has, for everybody who asks: heartbeats, telemetry, jobs, handlers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use device_monitor::Monitor;
use hive_contract::{Capabilities, CapabilityChanges, EngineInfo, HiveInfo, ModelEntry, ProcessState, TelemetryEvent};
use model_store::{Hold, ModelStore, StoreError, StoredModel};
use shared_contract::{HealthStatus, OperationalStatus, WorkerId};
use tokio::sync::watch;
use worker_supervisor::{Exit, Supervisor};

use crate::changes::{Change, ChangeLog};
use crate::config::Sharing;
use crate::facts::FactsCache;
use crate::heartbeat::Present;
use crate::identity::Identity;
use crate::metrics::Counters;
use crate::model_files::{self, Listed};
use crate::owner::{OwnProcesses, Owners};
use crate::workers::Order;

/// A worker as the hive knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worker {
    /// What it was started for.
    pub(crate) order: Arc<Order>,
    /// Keeps its model's files from being removed.
    pub(crate) hold: Option<Held>,
    pub(crate) state: ProcessState,
    pub(crate) pid: Option<u32>,
    /// Where it listens, once it said so.
    pub(crate) port: Option<u16>,
    /// What it does until it is ready, for example `load`, and how much of it is done, 0 to 1.
    pub(crate) step: Option<(String, Option<f32>)>,
    /// The process that an earlier hive had started.
    pub(crate) adopted_pid: Option<u32>,
    /// Whether the supervisor knows it. Before its first process it does not, nor while it waits for its device.
    pub(crate) is_kept: bool,
    /// Whether it was ready once. Until then a job waits for it, which fails if it ends.
    pub(crate) is_settled: bool,
    /// Whether it makes room for the machine's owner, and comes back to its device afterwards.
    pub(crate) yields: bool,
    /// How long its requests may take, once it was asked to end.
    pub(crate) grace: Option<Duration>,
    /// Why the hive itself ends it, where that is not because somebody asked for it.
    pub(crate) farewell: Option<String>,
    /// How it last ended by itself.
    pub(crate) exit: Option<Exit>,
    /// The same for people, or why it is not started again.
    pub(crate) reason: Option<String>,
    pub(crate) restarts: u32,
    pub(crate) log: PathBuf,
}

impl Worker {
    /// One whose memory is reserved and whose process is still to come.
    pub(crate) fn new(order: Arc<Order>, hold: Option<Held>) -> Self {
        Self {
            order,
            hold,
            state: ProcessState::Starting,
            pid: None,
            port: None,
            step: None,
            adopted_pid: None,
            is_kept: false,
            is_settled: false,
            yields: false,
            grace: None,
            farewell: None,
            exit: None,
            reason: None,
            restarts: 0,
            log: PathBuf::new(),
        }
    }

    /// Whether it has made room for the machine's owner, and waits for its device.
    pub(crate) fn is_waiting(&self) -> bool {
        self.yields && !self.is_kept
    }

    /// It has no process any more, and comes back later. What it was promised stays its own.
    pub(crate) fn wait(&mut self) {
        let why = self.farewell.take().unwrap_or_else(|| "yielded".to_owned());
        *self = Self {
            state: ProcessState::Restarting,
            is_settled: true,
            yields: true,
            reason: Some(format!("{why}; it is started again when its device is free")),
            log: std::mem::take(&mut self.log),
            ..Self::new(Arc::clone(&self.order), self.hold.take())
        };
    }
}

/// A hold on a model's files, shared by the copies of a worker's entry.
#[derive(Debug, Clone)]
pub(crate) struct Held(Arc<Hold>);

impl Held {
    pub(crate) fn new(hold: Hold) -> Self {
        Self(Arc::new(hold))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

pub(crate) type Table = BTreeMap<WorkerId, Worker>;

/// The hive's state. Its parts are changed through methods that tell the queens.
pub(crate) struct Core {
    pub(crate) identity: Identity,
    pub(crate) port: u16,
    pub(crate) advertise_host: Option<String>,
    pub(crate) monitor: Monitor,
    pub(crate) store: ModelStore,
    pub(crate) supervisor: Supervisor,
    pub(crate) counters: Counters,
    pub(crate) facts: FactsCache,
    pub(crate) sharing: Sharing,
    pub(crate) engines: Vec<EngineInfo>,
    started: Instant,
    status: watch::Sender<OperationalStatus>,
    workers: watch::Sender<Table>,
    models: Mutex<Models>,
    changes: Mutex<ChangeLog>,
    own: Mutex<OwnProcesses>,
    owners: Mutex<Owners>,
    /// Grows with every change that queens should hear of at once.
    news: watch::Sender<u64>,
}

/// The model files as they were last listed, and by which listing.
#[derive(Debug, Default)]
struct Models {
    entries: Vec<ModelEntry>,
    listing: u64,
    next: u64,
}

/// What a [`Core`] is made of.
pub(crate) struct Parts {
    pub(crate) identity: Identity,
    pub(crate) port: u16,
    pub(crate) advertise_host: Option<String>,
    pub(crate) monitor: Monitor,
    pub(crate) store: ModelStore,
    pub(crate) supervisor: Supervisor,
    pub(crate) engines: Vec<EngineInfo>,
    pub(crate) sharing: Sharing,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            identity: parts.identity,
            port: parts.port,
            advertise_host: parts.advertise_host,
            monitor: parts.monitor,
            store: parts.store,
            supervisor: parts.supervisor,
            counters: Counters::default(),
            facts: FactsCache::default(),
            sharing: parts.sharing,
            engines: parts.engines,
            started: Instant::now(),
            status: watch::Sender::new(OperationalStatus::Starting),
            workers: watch::Sender::default(),
            models: Mutex::default(),
            changes: Mutex::default(),
            own: Mutex::default(),
            owners: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }

    /// Something changed that the queens should hear of at once.
    pub(crate) fn tell(&self) {
        self.news.send_modify(|number| *number += 1);
    }

    /// Changes whenever there is something to tell.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(crate) fn status(&self) -> OperationalStatus {
        *self.status.borrow()
    }

    pub(crate) fn set_status(&self, status: OperationalStatus) {
        self.status.send_replace(status);
        self.tell();
    }

    /// The workers; the receiver wakes at every change of one.
    pub(crate) fn workers(&self) -> watch::Receiver<Table> {
        self.workers.subscribe()
    }

    /// Changes the table of workers; `change` says what came and went.
    pub(crate) fn change_workers(&self, change: impl FnOnce(&mut Table) -> Vec<Change>) {
        let mut news = Vec::new();
        let mut is_news = false;
        self.workers.send_if_modified(|table| {
            let before = table.clone();
            news = change(table);
            // How far a worker has loaded it tells the queens itself.
            is_news = outline(table).ne(outline(&before));
            *table != before
        });
        if !is_news && news.is_empty() {
            return;
        }
        let pids: BTreeSet<u32> = self.workers.borrow().values().filter_map(|worker| worker.pid).collect();
        self.monitor.watch(pids.iter().copied().collect());
        self.own_processes().set(pids, tokio::time::Instant::now());
        let mut log = self.change_log();
        news.into_iter().for_each(|change| log.push(change));
        drop(log);
        self.tell();
    }

    pub(crate) fn last_change(&self) -> u64 {
        self.change_log().head()
    }

    /// The changes after the one of this number, and the number of the last.
    pub(crate) fn changes_since(&self, number: u64) -> (CapabilityChanges, u64) {
        let log = self.change_log();
        (log.since(number), log.head())
    }

    pub(crate) fn models(&self) -> Vec<ModelEntry> {
        self.lock_models().entries.clone()
    }

    /// Lists the model files anew, and tells the queens what came and went.
    pub(crate) async fn refresh_models(&self) -> Result<Listed, StoreError> {
        let listing = {
            let mut models = self.lock_models();
            models.next += 1;
            models.next
        };
        let listed = Listed::new(self.store.list().await?, &self.facts).await;
        let entries = listed.entries();
        let mut models = self.lock_models();
        // Of listings that overlap, the one that began last is the truth.
        if listing > models.listing {
            models.listing = listing;
            let old = std::mem::replace(&mut models.entries, entries.clone());
            drop(models);
            self.log_models(&old, &entries);
        }
        Ok(listed)
    }

    /// A stored model in the contract's words.
    pub(crate) async fn entry(&self, model: &StoredModel) -> ModelEntry {
        model_files::entry(model, &self.facts).await
    }

    fn log_models(&self, old: &[ModelEntry], new: &[ModelEntry]) {
        let added = new.iter().filter(|entry| !old.contains(entry));
        let removed = old.iter().filter(|entry| !new.iter().any(|other| other.id == entry.id));
        let changes: Vec<Change> = added
            .map(|entry| Change::ModelAdded(Box::new(entry.clone())))
            .chain(removed.map(|entry| Change::ModelRemoved(entry.id.clone())))
            .collect();
        if changes.is_empty() {
            return;
        }
        let mut log = self.change_log();
        changes.into_iter().for_each(|change| log.push(change));
        drop(log);
        self.tell();
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities {
            devices: self.devices(),
            models: self.models(),
            engines: self.engines.clone(),
        }
    }

    /// How well the host is, and why not well.
    pub(crate) fn health(&self) -> (HealthStatus, Option<String>) {
        health(&self.workers.borrow(), self.monitor.snapshot().problem())
    }

    /// Everything that a heartbeat can say.
    pub(crate) fn present(&self) -> Present {
        let (health_status, health_reason) = self.health();
        let (monitor, workers) = self.measure();
        Present {
            info: HiveInfo {
                id: self.identity.id.clone(),
                hostname: self.advertise_host.clone().unwrap_or_default(),
                port: self.port,
                operational_status: self.status(),
                health_status,
                health_reason,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                incarnation: self.identity.incarnation,
            },
            monitor,
            capabilities: self.capabilities(),
            workers,
        }
    }

    pub(crate) fn telemetry(&self) -> TelemetryEvent {
        let (monitor, workers) = self.measure();
        TelemetryEvent {
            hive_id: self.identity.id.clone(),
            timestamp: Utc::now(),
            monitor,
            workers,
        }
    }

    /// Time since the hive started.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Where the machine's owner is at work.
    pub(crate) fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn own_processes(&self) -> MutexGuard<'_, OwnProcesses> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_log(&self) -> MutexGuard<'_, ChangeLog> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_models(&self) -> MutexGuard<'_, Models> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn health(workers: &Table, problem: Option<String>) -> (HealthStatus, Option<String>) {
    let failed = workers
        .iter()
        .filter(|(_, worker)| worker.state == ProcessState::Failed)
        .map(|(id, worker)| {
            // What its log says is for those who ask the hive.
            let why = worker.reason.as_deref().unwrap_or_default();
            let why = why.split(';').next().unwrap_or_default();
            format!(
                "worker {id} ({}) failed and is not started again: {why}",
                worker.order.model
            )
        });
    let reasons: Vec<String> = failed.chain(problem).collect();
    if reasons.is_empty() {
        (HealthStatus::Healthy, None)
    } else {
        (HealthStatus::Degraded, Some(reasons.join("; ")))
    }
}

/// What queens are told of workers at once.
fn outline(table: &Table) -> impl Iterator<Item = (&WorkerId, ProcessState, Option<u32>, Option<u16>)> {
    table
        .iter()
        .map(|(id, worker)| (id, worker.state, worker.pid, worker.port))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::workers::tests::order;

    /// One on this device, in this state.
    pub(crate) fn worker(device: &str, state: ProcessState) -> Worker {
        Worker {
            state,
            reason: Some("exit code 3, after 5 failures in a row; its last lines were: secret".into()),
            ..Worker::new(Arc::new(order(device)), None)
        }
    }

    fn table(state: ProcessState) -> Table {
        Table::from([(WorkerId::new("w").unwrap(), worker("cpu", state))])
    }

    #[test]
    fn a_worker_that_is_given_up_and_a_driver_that_fails_degrade_the_hive_with_the_reason() {
        assert_eq!(
            health(&table(ProcessState::Restarting), None),
            (HealthStatus::Healthy, None)
        );
        let (status, reason) = health(&table(ProcessState::Failed), Some("no answer from the driver".into()));
        assert_eq!(status, HealthStatus::Degraded);
        let reason = reason.unwrap();
        assert!(
            reason.contains("worker w (example)") && reason.contains("exit code 3"),
            "{reason}"
        );
        assert!(
            reason.contains("no answer from the driver") && !reason.contains("secret"),
            "{reason}"
        );
    }

    #[test]
    fn progress_of_a_load_is_no_news_and_a_new_state_is() {
        let before = table(ProcessState::Starting);
        let mut after = before.clone();
        let worker = after.values_mut().next().unwrap();
        worker.step = Some(("load".into(), Some(0.5)));
        assert!(outline(&before).eq(outline(&after)));
        assert!(outline(&before).ne(outline(&table(ProcessState::Running))));
    }
}
