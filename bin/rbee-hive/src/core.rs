//! What the hive is and has, for everybody who asks: heartbeats, telemetry, jobs, handlers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use chrono::Utc;
use device_monitor::Monitor;
use hive_contract::{
    Capabilities, CapabilityChanges, DeviceInfo, EngineInfo, HiveInfo, ModelEntry, ProcessState, ProcessStats,
    TelemetryEvent,
};
use model_store::{ModelStore, StoreError};
use shared_contract::{HealthStatus, ModelId, OperationalStatus, WorkerId};
use tokio::sync::watch;
use worker_supervisor::{Exit, Kept, Supervisor};

use crate::changes::{Change, ChangeLog};
use crate::heartbeat::Present;
use crate::identity::Identity;
use crate::metrics::Counters;
use crate::workers::adopt;

/// Kind of process that workers are, in process stats.
const GROUP: &str = "llm-worker";

/// A worker as the hive knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worker {
    pub(crate) model: ModelId,
    pub(crate) device: String,
    pub(crate) state: ProcessState,
    pub(crate) pid: Option<u32>,
    /// Where it listens, once it said so.
    pub(crate) port: Option<u16>,
    /// What it does until it is ready, for example `load`, and how much of it is done, 0 to 1.
    pub(crate) step: Option<(String, Option<f32>)>,
    /// How it last ended by itself.
    pub(crate) exit: Option<Exit>,
    /// The same for people, or why it is not started again.
    pub(crate) reason: Option<String>,
    pub(crate) restarts: u32,
    pub(crate) log: std::path::PathBuf,
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
    engines: Vec<EngineInfo>,
    started: Instant,
    status: watch::Sender<OperationalStatus>,
    workers: watch::Sender<Table>,
    models: Mutex<Models>,
    changes: Mutex<ChangeLog>,
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
            engines: parts.engines,
            started: Instant::now(),
            status: watch::Sender::new(OperationalStatus::Starting),
            workers: watch::Sender::default(),
            models: Mutex::default(),
            changes: Mutex::default(),
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
        let pids = self.workers.borrow().values().filter_map(|worker| worker.pid).collect();
        self.monitor.watch(pids);
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

    pub(crate) fn devices(&self) -> Vec<DeviceInfo> {
        self.monitor.snapshot().devices()
    }

    pub(crate) fn models(&self) -> Vec<ModelEntry> {
        self.lock_models().entries.clone()
    }

    /// Lists the model files anew, and tells the queens what came and went.
    pub(crate) async fn refresh_models(&self) -> Result<Vec<ModelEntry>, StoreError> {
        let listing = {
            let mut models = self.lock_models();
            models.next += 1;
            models.next
        };
        let entries: Vec<ModelEntry> = self.store.list().await?.into_iter().map(entry).collect();
        let mut models = self.lock_models();
        // Of listings that overlap, the one that began last is the truth.
        if listing > models.listing {
            models.listing = listing;
            let old = std::mem::replace(&mut models.entries, entries.clone());
            drop(models);
            self.log_models(&old, &entries);
        }
        Ok(entries)
    }

    fn log_models(&self, old: &[ModelEntry], new: &[ModelEntry]) {
        let added = new.iter().filter(|entry| !old.contains(entry));
        let removed = old.iter().filter(|entry| !new.iter().any(|other| other.id == entry.id));
        let changes: Vec<Change> = added
            .map(|entry| Change::ModelAdded(entry.clone()))
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

    /// The worker processes. One that has ended is not shown as one that runs, even before the table has heard of it.
    pub(crate) fn process_stats(&self) -> Vec<ProcessStats> {
        let snapshot = self.monitor.snapshot();
        // First the table, so that what the supervisor says otherwise is newer.
        let mut table = self.workers.borrow().clone();
        let kept: BTreeMap<WorkerId, Kept> = self
            .supervisor
            .list()
            .into_iter()
            .map(|kept| (kept.id.clone(), kept))
            .collect();
        table.retain(|id, worker| correct(worker, kept.get(id)));
        let measured = |(id, worker): (&WorkerId, &Worker)| {
            let mut stats = stats_of(id, worker);
            snapshot.measure(&mut stats);
            stats
        };
        table.iter().map(measured).collect()
    }

    /// Everything that a heartbeat can say.
    pub(crate) fn present(&self) -> Present {
        let (health_status, health_reason) = self.health();
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
            monitor: self.monitor.snapshot().monitor(self.started.elapsed()),
            capabilities: self.capabilities(),
            workers: self.process_stats(),
        }
    }

    pub(crate) fn telemetry(&self) -> TelemetryEvent {
        TelemetryEvent {
            hive_id: self.identity.id.clone(),
            timestamp: Utc::now(),
            monitor: self.monitor.snapshot().monitor(self.started.elapsed()),
            workers: self.process_stats(),
        }
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
            format!("worker {id} ({}) failed and is not started again: {why}", worker.model)
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

/// A stored model in the contract's words.
pub(crate) fn entry(model: model_store::StoredModel) -> ModelEntry {
    ModelEntry {
        id: model.id,
        reference: model.reference.to_string(),
        size_bytes: model.size_bytes,
        sha256: model.sha256,
    }
}

/// Makes an entry of the table say what its supervisor says now, if it speaks of a process that has ended. `false` if the
/// worker is not kept any more.
fn correct(worker: &mut Worker, kept: Option<&Kept>) -> bool {
    match (worker.pid, kept) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(pid), Some(kept)) => {
            if kept.pid != Some(pid) {
                worker.port = None;
                worker.state = ProcessState::Starting;
                adopt(worker, kept.clone());
            }
            true
        }
    }
}

/// What is known of a worker's process before it is measured.
fn stats_of(id: &WorkerId, worker: &Worker) -> ProcessStats {
    ProcessStats {
        pid: worker.pid.unwrap_or_default(),
        group: GROUP.to_owned(),
        instance: worker.port.map(|port| port.to_string()).unwrap_or_default(),
        cpu_pct: 0.0,
        rss_mb: 0,
        io_r_mb_s: 0.0,
        io_w_mb_s: 0.0,
        uptime_s: 0,
        gpu_util_pct: None,
        vram_mb: None,
        total_vram_mb: None,
        model: Some(worker.model.clone()),
        state: worker.state,
        worker_id: Some(id.clone()),
        device: Some(worker.device.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(state: ProcessState) -> Table {
        let worker = Worker {
            model: ModelId::new("example").unwrap(),
            device: "cpu".into(),
            state,
            pid: None,
            port: None,
            step: None,
            exit: None,
            reason: Some("exit code 3, after 5 failures in a row; its last lines were: secret".into()),
            restarts: 4,
            log: "/logs/w.log".into(),
        };
        Table::from([(WorkerId::new("w").unwrap(), worker)])
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
    fn a_process_that_has_ended_does_not_run_whatever_the_table_says() {
        let kept = |pid, state| Kept {
            id: WorkerId::new("w").unwrap(),
            state,
            pid,
            starts: 1,
            exit: None,
            reason: None,
            log: "/logs/w.log".into(),
        };
        let running = Worker {
            pid: Some(7),
            port: Some(9301),
            ..table(ProcessState::Running).into_values().next().unwrap()
        };
        let corrected = |kept: Option<Kept>| {
            let mut worker = running.clone();
            correct(&mut worker, kept.as_ref()).then_some((worker.state, worker.pid, worker.port))
        };
        use worker_supervisor::State;
        assert_eq!(
            corrected(Some(kept(Some(7), State::Running))),
            Some((ProcessState::Running, Some(7), Some(9301)))
        );
        assert_eq!(
            corrected(Some(kept(None, State::Restarting))),
            Some((ProcessState::Restarting, None, None))
        );
        assert_eq!(
            corrected(Some(kept(Some(8), State::Running))),
            Some((ProcessState::Starting, Some(8), None))
        );
        assert_eq!(corrected(None), None, "it ended and does not come back");
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
