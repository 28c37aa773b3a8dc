//! The fleet in memory: what workers and hives said last.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use heartbeat_registry::{Error, Liveness, Members, Outcome, Receipt, Recorded, Registry, RegistryOptions};
use hive_contract::{HiveHeartbeat, ModelHolder, ModelHolders, ProcessState, ProcessStats, WorkerExit};
use shared_contract::{HiveId, ModelId, WorkerId};
use worker_contract::WorkerHeartbeat;

/// The workers.
#[derive(Debug)]
pub(crate) struct WorkerRegistry(Arc<Registry<WorkerHeartbeat>>);

impl Deref for WorkerRegistry {
    type Target = Registry<WorkerHeartbeat>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl WorkerRegistry {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self(Arc::new(Registry::new(options)))
    }

    /// The registry itself.
    pub(crate) fn shared(&self) -> Arc<Registry<WorkerHeartbeat>> {
        Arc::clone(&self.0)
    }

    /// The workers of a model, whatever their state.
    pub(crate) fn find_workers_by_model(&self, model: &ModelId) -> Members<WorkerHeartbeat> {
        self.0.find_by_model(model)
    }

    /// A hive says that a worker's process ended. `processes` are those that the hive sees now.
    ///
    /// The worker is suspect at once; unless the hive is about to start it again, it is no member any more. Tells whether it
    /// has left by that.
    pub(crate) fn process_ended(
        &self,
        hive: &HiveId,
        exit: &WorkerExit,
        processes: &[ProcessStats],
        now: Instant,
    ) -> bool {
        let Some(worker) = self.0.get(&exit.worker_id) else {
            return false;
        };
        let report = worker.report();
        let info = &report.item.worker;
        if info.hive_id.as_ref().is_some_and(|owner| owner != hive) {
            tracing::warn!(worker = %exit.worker_id, %hive, "a hive reports the end of a worker that is not its own");
            return false;
        }
        let process = process_of(processes, &exit.worker_id);
        if !is_of_beating_process(exit, info.pid, process) {
            return false;
        }
        let about = report.about(now);
        let reason = format!("its hive reports that the process ended: {}", exit.reason);
        self.0.mark_suspect(&exit.worker_id, &about, reason, now);
        let comes_back =
            process.is_some_and(|process| is_running(process) || process.state == ProcessState::Restarting);
        !comes_back && self.0.remove(&exit.worker_id, &about).is_some()
    }
}

/// Whether it is the process with this id, which beats, that ended. An old report, delivered late, is of an earlier one.
fn is_of_beating_process(exit: &WorkerExit, beating: Option<u32>, process: Option<&ProcessStats>) -> bool {
    let is_another = matches!((exit.pid, beating), (Some(ended), Some(beating)) if ended != beating);
    let still_runs = process.is_some_and(|process| is_running(process) && Some(process.pid) == beating);
    !is_another && !still_runs
}

fn is_running(process: &ProcessStats) -> bool {
    matches!(process.state, ProcessState::Starting | ProcessState::Running)
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

    /// Takes a hive's beat, and tells the workers' registry which of its processes ended. Answers with how many workers have
    /// left by that, too.
    pub(crate) fn record_with_exits(
        &self,
        beat: HiveHeartbeat,
        workers: &WorkerRegistry,
        receipt: Receipt,
    ) -> Result<(Recorded, usize), Error> {
        let changes = beat.changes.as_ref();
        let exits = changes
            .map(|changes| changes.workers_removed.clone())
            .unwrap_or_default();
        let told = (!exits.is_empty()).then(|| (beat.hive.id.clone(), beat.workers.clone()));
        let recorded = self.0.record(beat, receipt)?;
        let mut left = 0;
        if let Some((hive, processes)) = told
            && !matches!(recorded.outcome, Outcome::Dropped(_))
        {
            for exit in &exits {
                left += usize::from(workers.process_ended(&hive, exit, &processes, receipt.at));
            }
        }
        Ok((recorded, left))
    }

    /// The hives that are there and have whole files of the model of this reference.
    pub(crate) fn holders(&self, reference: &str, now: Instant) -> ModelHolders {
        let has_it = |hive: &HiveHeartbeat| {
            let models = hive.capabilities.iter().flat_map(|capabilities| &capabilities.models);
            models
                .into_iter()
                .any(|model| model.reference == reference && model.problem.is_none())
        };
        let mut holders: Vec<ModelHolder> = self
            .0
            .list_online(now)
            .iter()
            .filter(|view| has_it(view.item()))
            .map(|view| ModelHolder {
                hive_id: view.item().hive.id.clone(),
                base_url: view.address().base_url().to_owned(),
            })
            .collect();
        holders.sort_by(|a, b| a.hive_id.cmp(&b.hive_id));
        ModelHolders { holders }
    }

    /// Whether a hive that beats runs a worker for this model, or is about to: its first heartbeat is to be expected.
    pub(crate) fn expects(&self, model: &ModelId, now: Instant) -> bool {
        let mut hives = self.0.list_all(now).into_iter();
        hives.any(|hive| {
            hive.liveness != Liveness::Lost
                && hive.item().workers.iter().any(|process| {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(pid: Option<u32>) -> WorkerExit {
        WorkerExit {
            worker_id: WorkerId::new("w").unwrap(),
            reason: "exit code 1".to_owned(),
            pid,
        }
    }

    fn process(pid: u32, state: &str) -> ProcessStats {
        let json = format!(
            r#"{{"pid": {pid}, "group": "llm-worker", "instance": "", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
                 "io_w_mb_s": 0.0, "uptime_s": 0, "state": "{state}", "worker_id": "w"}}"#
        );
        daemon::extract::from_slice(json.as_bytes()).unwrap()
    }

    #[test]
    fn an_exit_is_that_of_the_beating_process_unless_something_says_that_it_is_not() {
        assert!(is_of_beating_process(&exit(Some(7)), Some(7), None));
        assert!(
            !is_of_beating_process(&exit(Some(7)), Some(8), None),
            "the next process beats"
        );
        assert!(
            is_of_beating_process(&exit(Some(7)), None, None),
            "the worker does not say its pid"
        );
        assert!(is_of_beating_process(&exit(None), Some(7), None), "the hive does not");
        let (running, restarting) = (process(8, "running"), process(7, "restarting"));
        assert!(!is_of_beating_process(&exit(None), Some(8), Some(&running)));
        assert!(is_of_beating_process(&exit(None), Some(7), Some(&running)));
        assert!(is_of_beating_process(&exit(None), Some(7), Some(&restarting)));
    }
}
