//! The fleet in memory: what workers and hives said last, and the choice of a worker by it.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use heartbeat_registry::{
    Error, Lease, Liveness, Member, Members, Outcome, Recorded, Registry, RegistryOptions, Report,
};
use hive_contract::{HiveHeartbeat, ProcessState, ProcessStats, WorkerExit};
use scheduler::{Candidate, Refusal, Standing, Suspects};
use shared_contract::{HeartbeatItem, HiveId, ModelId, WorkerId};
use worker_contract::WorkerHeartbeat;

/// A worker as a member of the fleet.
pub(crate) type Worker = Arc<Member<WorkerHeartbeat>>;

/// The workers.
#[derive(Debug)]
pub(crate) struct WorkerRegistry(Registry<WorkerHeartbeat>);

impl Deref for WorkerRegistry {
    type Target = Registry<WorkerHeartbeat>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl WorkerRegistry {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self(Registry::new(options))
    }

    /// The workers of a model, whatever their state.
    pub(crate) fn find_workers_by_model(&self, model: &ModelId) -> Members<WorkerHeartbeat> {
        self.0.find_by_model(model)
    }

    /// The worker that can best take a request for this model, claimed. `tried` tells who was tried for the request.
    ///
    /// Two callers at once may take the last slot together: whoever needs it exact calls under a lock.
    pub(crate) fn find_best_worker_for_model(
        &self,
        model: &ModelId,
        tried: impl Fn(&Worker, &Report<WorkerHeartbeat>) -> bool,
        suspects: Suspects,
        seed: u64,
    ) -> Result<Lease<WorkerHeartbeat>, Refusal> {
        let workers = self.find_workers_by_model(model);
        let place = choose(&workers, tried, suspects, seed)?;
        workers.get(place).map(Member::claim).ok_or(Refusal::Unknown)
    }

    /// Why no worker can take a request for this model now; `None` if one can.
    pub(crate) fn refusal(&self, model: &ModelId) -> Option<Refusal> {
        choose(&self.find_workers_by_model(model), |_, _| false, Suspects::Avoid, 0).err()
    }

    /// A hive says that a worker's process ended. `processes` are those that the hive sees now.
    ///
    /// The worker is suspect at once; unless the hive is about to start it again, it is no member any more.
    pub(crate) fn process_ended(&self, hive: &HiveId, exit: &WorkerExit, processes: &[ProcessStats], now: Instant) {
        let Some(worker) = self.0.get(&exit.worker_id) else {
            return;
        };
        let report = worker.report();
        let info = &report.item.worker;
        if info.hive_id.as_ref().is_some_and(|owner| owner != hive) {
            tracing::warn!(worker = %exit.worker_id, %hive, "a hive reports the end of a worker that is not its own");
            return;
        }
        let process = process_of(processes, &exit.worker_id);
        let is_running =
            |process: &ProcessStats| matches!(process.state, ProcessState::Starting | ProcessState::Running);
        if process.is_some_and(|process| is_running(process) && Some(process.pid) == info.pid) {
            // An old report, delivered late: it is the next process that beats by now.
            return;
        }
        self.0.mark_suspect(
            &exit.worker_id,
            format!("its hive reports that the process ended: {}", exit.reason),
            now,
        );
        let comes_back =
            process.is_some_and(|process| is_running(process) || process.state == ProcessState::Restarting);
        if !comes_back {
            self.0.remove(&exit.worker_id);
        }
    }
}

fn choose(
    workers: &Members<WorkerHeartbeat>,
    tried: impl Fn(&Worker, &Report<WorkerHeartbeat>) -> bool,
    suspects: Suspects,
    seed: u64,
) -> Result<usize, Refusal> {
    let now = Instant::now();
    let look = |place| match workers.get(place) {
        Some(worker) => {
            let report = worker.report();
            Candidate {
                tried: tried(worker, &report),
                ..candidate(&report, worker.liveness(now), worker.outstanding())
            }
        }
        None => NOBODY,
    };
    scheduler::choose(workers.len(), look, suspects, seed)
}

/// Takes no request: a place beyond the list's end, which nobody draws.
const NOBODY: Candidate = Candidate {
    standing: Standing::Lost,
    slots: 0,
    reported: 0,
    leases_at_report: 0,
    leases: 0,
    tried: true,
};

/// A worker as the scheduler sees it.
pub(crate) fn candidate(report: &Report<WorkerHeartbeat>, liveness: Liveness, leases: u32) -> Candidate {
    let WorkerHeartbeat { worker, load, .. } = &*report.item;
    let standing = match liveness {
        Liveness::Lost => Standing::Lost,
        _ if !report.item.is_available() => Standing::NotReady,
        Liveness::Suspect => Standing::Suspect,
        Liveness::Online => Standing::Ready,
    };
    Candidate {
        standing,
        slots: worker.slots,
        reported: load.running.saturating_add(load.waiting),
        leases_at_report: report.outstanding,
        leases,
        tried: false,
    }
}

/// The hives.
#[derive(Debug)]
pub(crate) struct HiveRegistry(Registry<HiveHeartbeat>);

impl Deref for HiveRegistry {
    type Target = Registry<HiveHeartbeat>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl HiveRegistry {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self(Registry::new(options))
    }

    /// Takes a hive's beat, and tells the workers' registry which of its processes ended.
    pub(crate) fn record_with_exits(
        &self,
        beat: HiveHeartbeat,
        workers: &WorkerRegistry,
        peer: IpAddr,
        now: Instant,
        wall: DateTime<Utc>,
    ) -> Result<Recorded, Error> {
        let hive = beat.hive.id.clone();
        let exits = beat.changes.as_ref().map(|changes| changes.workers_removed.clone());
        let processes = beat.workers.clone();
        let recorded = self.0.record(beat, peer, now, wall)?;
        if recorded.outcome == Outcome::Stale {
            return Ok(recorded);
        }
        for exit in exits.iter().flatten() {
            workers.process_ended(&hive, exit, &processes, now);
        }
        Ok(recorded)
    }

    /// Whether a hive that is there runs a worker for this model, or is about to: its first heartbeat is to be expected.
    pub(crate) fn expects(&self, model: &ModelId, now: Instant) -> bool {
        self.0.list_online(now).iter().any(|hive| {
            hive.item().workers.iter().any(|process| {
                process.model.as_ref() == Some(model)
                    && matches!(
                        process.state,
                        ProcessState::Starting | ProcessState::Running | ProcessState::Restarting
                    )
            })
        })
    }
}

fn process_of<'a>(processes: &'a [ProcessStats], worker: &WorkerId) -> Option<&'a ProcessStats> {
    processes
        .iter()
        .find(|process| process.worker_id.as_ref() == Some(worker))
}
