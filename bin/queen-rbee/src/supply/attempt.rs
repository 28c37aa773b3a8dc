//! One place carried out: room is made, a hive is told to start the worker, and its job is followed until the worker takes
//! requests.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hive_contract::{DeviceKind, JobEvent, Operation};
use router::{Hold, Router};
use scheduler::Choice;
use serde_json::Value;
use shared_contract::{HiveId, ModelId, WorkerId};

use super::Service;
use super::books::Stage;
use super::guards::Leaving;
use super::hive::{HiveApi, OrderError};
use super::load::wait;
use super::scene::{HostNow, Promise};
use super::view::Trigger;
use crate::jobs::Job;

/// How long a worker that is ready by its hive's word may take to say so itself.
const BEAT_LIMIT: Duration = Duration::from_secs(30);
/// Seconds without a request after which a worker that is stated to run may be stopped: for as long as nobody needs the
/// room, never. It is not pinned by that.
const FOR_GOOD_S: u64 = 10 * 365 * 24 * 3600;

/// A worker that is there.
pub(super) struct Brought {
    pub(super) worker: WorkerId,
    /// What its hive says of it.
    pub(super) result: Value,
}

/// A place, promised.
pub(super) struct Go {
    pub(super) model: ModelId,
    pub(super) decision: u64,
    pub(super) choice: Choice,
    pub(super) hive: HiveId,
    /// What the hive is asked for.
    pub(super) reference: String,
    pub(super) kind: DeviceKind,
    pub(super) evict: Vec<WorkerId>,
    /// Those that make room although they are busy: their time is up.
    pub(super) yields: BTreeSet<WorkerId>,
    pub(super) api: HiveApi,
}

/// Why a place was no place after all.
pub(super) enum Setback {
    /// The fleet has changed in between.
    Changed,
    /// The hive could not do it.
    Failed(String),
    /// The operator has cancelled it.
    Cancelled,
}

impl Service {
    /// Makes room and has the worker started.
    pub(super) async fn attempt(
        &self,
        id: u64,
        router: &Router,
        go: Go,
        job: Option<&Job>,
    ) -> Result<Brought, Setback> {
        let leaving = Leaving::new(self, go.evict.clone());
        let mut holds: Vec<Hold> = Vec::new();
        for worker in &go.evict {
            match router.hold(worker) {
                Some(hold) => holds.push(hold),
                // Nobody asks one that is no member, and the time of the others is up.
                None if go.yields.contains(worker) || self.shared.workers.get(worker).is_none() => {}
                // It was given a request in this moment.
                None => return Err(Setback::Changed),
            }
        }
        if !go.evict.is_empty() {
            self.stage(id, Stage::of("makes room"), job);
            self.make_room(&go).await?;
        }
        drop(holds);
        drop(leaving);
        if self.is_drained(&go.hive) {
            return Err(Setback::Changed);
        }
        if job.is_some_and(|job| job.cancelled().is_cancelled()) {
            return Err(Setback::Cancelled);
        }
        let result = self.order_worker(id, &go, job).await?;
        let worker = result.get("worker_id").and_then(|id| id.as_str());
        let worker = worker.and_then(|id| WorkerId::new(id).ok());
        let worker =
            worker.ok_or_else(|| Setback::Failed("its hive did not say which worker it started".to_owned()))?;
        self.started(id, &worker);
        match self.until_ready(&worker).await {
            true => Ok(Brought { worker, result }),
            // Or it would be started there again and again.
            false => Err(Setback::Failed(format!(
                "worker {worker} runs by its hive's word, and takes no requests of this queen"
            ))),
        }
    }

    /// Has the hive start the worker, and follows it to the end.
    async fn order_worker(&self, id: u64, go: &Go, job: Option<&Job>) -> Result<Value, Setback> {
        self.stage(id, Stage::of("starts"), None);
        let order = self.spawn_order(id, go);
        let on_event = |event: &JobEvent| {
            if let Some(stage) = stage_of(event, Instant::now()) {
                // The hive's own words are told to the job.
                self.stage(id, stage, None);
            }
        };
        let result = match job {
            None => go.api.order(&order, on_event).await,
            Some(job) => {
                job.is_done_by(go.hive.clone());
                job.say(format!("starting on {} {}", go.hive, go.choice.device));
                go.api.order_for(job, &order, on_event).await
            }
        };
        result.map_err(|error| match error {
            OrderError::Cancelled if job.is_some_and(|job| job.cancelled().is_cancelled()) => Setback::Cancelled,
            error => Setback::Failed(error.to_string()),
        })
    }

    fn spawn_order(&self, id: u64, go: &Go) -> Operation {
        let mut books = self.books();
        let load = books.load_mut(id);
        let errand = load.as_ref().and_then(|load| load.errand.clone()).unwrap_or_default();
        let is_stated = load
            .as_ref()
            .is_some_and(|load| matches!(load.trigger, Trigger::Serve { .. }));
        let stated = self.shared.stated.now();
        let is_pinned = load.is_some_and(|load| stated.serve.get(&load.model).is_some_and(|serve| serve.pin));
        Operation::WorkerSpawn {
            model: go.reference.clone(),
            worker: None,
            device: Some(go.choice.device.clone()),
            context_length: errand.context_length,
            slots: errand.slots,
            keep_alive_s: match is_stated {
                true => Some(if is_pinned { 0 } else { FOR_GOOD_S }),
                false => errand.keep_alive_s,
            },
        }
    }

    /// Waits until a worker that is ready by its hive's word has taken requests; `false` if it does not come to that.
    async fn until_ready(&self, worker: &WorkerId) -> bool {
        let mut happened = self.shared.happened.subscribe();
        let wait = async {
            loop {
                happened.mark_unchanged();
                let member = self.shared.workers.get(worker);
                if member.is_some_and(|member| member.is_available(Instant::now())) {
                    return;
                }
                wait(&mut happened).await;
            }
        };
        tokio::time::timeout(BEAT_LIMIT, wait).await.is_ok()
    }

    fn started(&self, id: u64, worker: &WorkerId) {
        let mut books = self.books();
        let Some(load) = books.load_mut(id) else { return };
        if let Some(promise) = &mut load.promise {
            promise.worker = Some(worker.clone());
        }
        let (model, is_stated) = (load.model.clone(), matches!(load.trigger, Trigger::Serve { .. }));
        drop(books);
        if is_stated {
            self.belongs(model, worker.clone());
        }
    }
}

/// What stands in the books for a place until its worker shows.
pub(super) fn promise(model: &ModelId, go: &Go, hosts: &[HostNow]) -> Promise {
    let host = hosts.iter().find(|host| host.id == go.hive);
    let processes = host.into_iter().flat_map(HostNow::processes);
    Promise {
        hive: go.hive.clone(),
        device: go.choice.device.clone(),
        model: model.clone(),
        bytes: go.choice.bytes,
        evict: go.evict.clone(),
        earlier: processes.filter_map(|process| process.worker_id.clone()).collect(),
        worker: None,
    }
}

/// How far a hive's job is, for clients.
fn stage_of(event: &JobEvent, now: Instant) -> Option<Stage> {
    let progress = event.progress.as_ref()?;
    let share = progress.total.filter(|total| *total > 0);
    Some(Stage {
        words: progress.phase.chars().filter(|c| !c.is_control()).take(40).collect(),
        progress: share.map(|total| progress.done as f32 / total as f32),
        due: progress.eta_s.map(|seconds| now + Duration::from_secs(seconds)),
        waits_for_room: false,
    })
}
