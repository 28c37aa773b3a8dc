//! `worker_spawn`: fetches the model, finds a device for it, starts a worker and waits until it is ready.

use std::sync::Arc;
use std::time::Duration;

use daemon::ApiError;
use hive_contract::{DeviceInfo, DeviceKind, EngineInfo, JobProgress, Operation, ProcessState};
use jobs::{Failure, Job};
use model_store::{ModelRef, StoredModel};
use scheduler::{Reason, Refused, Why};
use serde_json::{Value, json};
use shared_contract::{ErrorKind, WorkerId};
use worker_supervisor::Exit;

use super::{list, model_ref, models, store_error};
use crate::App;
use crate::core::{Core, Held, Worker};
use crate::engines::obstacle;
use crate::placement::{Wish, reserve};
use crate::workers::{self, Order};

/// Lines of its log that are quoted when a worker does not come up.
const QUOTED_LINES: usize = 10;
/// Why a worker does not come up that somebody ended.
const STOPPED: &str = "it was stopped";
/// Most requests that a worker computes together.
const MAX_SLOTS: u32 = 256;

/// A worker that is to be started here.
#[derive(Debug)]
pub(crate) struct Plan {
    model: ModelRef,
    /// Kinds of devices that may take it, the first that has room for it.
    kinds: Vec<DeviceKind>,
    /// The one that was asked for.
    device: Option<String>,
    context_length: Option<u32>,
    slots: Option<u32>,
    /// Overrides the settings; zero is never.
    keep_alive: Option<Duration>,
}

/// Checks what is asked for against what there is. Whether it fits is seen once the model is here.
pub(crate) fn check(core: &Core, operation: &Operation) -> Result<Plan, ApiError> {
    let Operation::WorkerSpawn {
        model,
        worker,
        device,
        context_length,
        slots,
        keep_alive_s,
    } = operation
    else {
        return Err(ApiError::internal("this plans workers only"));
    };
    if *context_length == Some(0) {
        return Err(ApiError::invalid(
            "context_length",
            "context_length: a request takes at least 1 token",
        ));
    }
    if slots.is_some_and(|slots| !(1..=MAX_SLOTS).contains(&slots)) {
        let message = format!("slots: a worker computes from 1 to {MAX_SLOTS} requests together");
        return Err(ApiError::invalid("slots", message));
    }
    Ok(Plan {
        model: model_ref(core, model)?,
        kinds: pick_kinds(&core.devices(), &core.engines, *worker, device.as_deref())?,
        device: device.clone(),
        context_length: *context_length,
        slots: *slots,
        keep_alive: keep_alive_s.map(Duration::from_secs),
    })
}

/// Does it.
pub(crate) async fn perform(app: &App, plan: Plan, job: &Arc<Job>) -> Result<Value, Failure> {
    job.step("resolve");
    // Held from here on, so that no other pull makes room at its cost.
    let hold = app
        .core
        .store
        .hold(&plan.model)
        .await
        .map_err(|error| store_error(&error))?;
    let stored = models::pull(app, &plan.model, job).await?;
    job.step("place");
    let order = place(app, plan, &stored, Held::new(hold), job).await?;
    job.say(format!(
        "starting worker {} for {} on {}, with {} MiB and a cache of {} tokens",
        order.id,
        order.model,
        order.device.id,
        order.grant.bytes >> 20,
        order.grant.kv_tokens
    ));
    job.step("start");
    workers::start(app, &order).await.map_err(|error| start_error(&error))?;
    job.step("load");
    let outcome = tokio::select! {
        outcome = until_ready(&app.core, &order, job) => outcome,
        () = tokio::time::sleep(app.config.load_timeout) => Err(too_late(app, &order.id)),
        () = job.cancelled().cancelled() => Err(Failure::Cancelled),
    };
    let worker = match outcome {
        Ok(worker) => worker,
        Err(failure) => {
            // What was not wanted, or did not come up, is not left behind. It may have ended already.
            let _ = workers::stop(app, &order.id, None).await;
            return Err(failure);
        }
    };
    Ok(json!({
        "worker_id": order.id,
        "model": order.model,
        "device": order.device.id,
        "port": worker.port,
        "pid": worker.pid,
        "granted_mb": order.grant.bytes >> 20,
        "kv_tokens": order.grant.kv_tokens,
        "keep_alive_s": order.keep_alive.map_or(0, |limit| limit.as_secs()),
    }))
}

/// Finds a device for the model and reserves its memory.
async fn place(app: &App, plan: Plan, stored: &StoredModel, hold: Held, job: &Job) -> Result<Arc<Order>, ApiError> {
    let facts = app.core.facts.of(&stored.path).await.map_err(|why| {
        let path = stored.path.display();
        let message = format!("failed to read what model `{}` takes from {path}: {why}", stored.id);
        ApiError::new(ErrorKind::Internal, message)
    })?;
    let trained = facts.context_length;
    if let Some(asked) = plan.context_length.filter(|asked| trained > 0 && *asked > trained) {
        job.say(format!(
            "{} was made for {trained} tokens: it serves that many, not {asked}",
            stored.id
        ));
    }
    let random = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let id = WorkerId::new(format!("worker-{random}")).map_err(ApiError::internal)?;
    let wish = |kind| Wish {
        id: id.clone(),
        reference: plan.model.to_string(),
        model: stored.id.clone(),
        kind,
        device: plan.device.clone(),
        context_length: plan.context_length,
        slots: plan.slots,
        keep_alive: match plan.keep_alive {
            None => app.config.idle_unload,
            Some(limit) => Some(limit).filter(|limit| !limit.is_zero()),
        },
        pinned: plan.keep_alive.is_some_and(|limit| limit.is_zero()),
    };
    let mut refused = Refused { reasons: Vec::new() };
    for &kind in &plan.kinds {
        match reserve(&app.core, wish(kind), &facts, hold.clone()) {
            Ok(order) => {
                if !refused.reasons.is_empty() {
                    job.say(format!(
                        "{} goes to {}; elsewhere: {refused}",
                        stored.id, order.device.id
                    ));
                }
                return Ok(order);
            }
            Err(Refused { reasons }) => refused.reasons.extend(reasons),
        }
    }
    Err(no_room(&stored.id, &refused))
}

fn no_room(model: &shared_contract::ModelId, refused: &Refused) -> ApiError {
    let is_small = |reason: &Reason| matches!(reason.why, Why::TooSmall { .. });
    let remedy = if refused.reasons.iter().any(is_small) {
        "; stop a worker that is not needed, ask for a shorter context_length, or take a smaller model"
    } else {
        ""
    };
    let message = format!("failed to place `{model}`: {refused}{remedy}");
    ApiError::new(ErrorKind::NoCapacity, message)
}

/// Waits until the worker is ready. One that ends by itself before says that it cannot; one that is killed is started
/// again by its supervisor.
async fn until_ready(core: &Core, order: &Order, job: &Job) -> Result<Worker, Failure> {
    let mut table = core.workers();
    let mut told_restarts = None;
    loop {
        let worker = table.borrow_and_update().get(&order.id).cloned();
        let Some(worker) = worker else {
            return Err(did_not_come_up(core, &order.id, STOPPED).into());
        };
        match worker.state {
            ProcessState::Running => return Ok(worker),
            ProcessState::Stopping => {
                let why = worker.farewell.as_deref().unwrap_or(STOPPED);
                return Err(did_not_come_up(core, &order.id, why).into());
            }
            ProcessState::Restarting | ProcessState::Failed => {
                let reason = worker.reason.unwrap_or_default();
                let was_killed = matches!(worker.exit, Some(Exit::Signal(_)));
                if worker.state == ProcessState::Failed || !was_killed {
                    return Err(did_not_come_up(core, &order.id, &reason).into());
                }
                if told_restarts.replace(worker.restarts) != Some(worker.restarts) {
                    job.say(format!("worker {}: {reason}; it is being started again", order.id));
                }
            }
            ProcessState::Starting => {
                if let Some((phase, share)) = worker.step {
                    job.progress(JobProgress {
                        phase,
                        done: (share.unwrap_or(0.0) * 100.0) as u64,
                        total: share.map(|_| 100),
                        unit: "percent".to_owned(),
                        per_second: None,
                        eta_s: None,
                        source: None,
                    });
                }
            }
        }
        if table.changed().await.is_err() {
            return Err(did_not_come_up(core, &order.id, "the hive is ending").into());
        }
    }
}

fn did_not_come_up(core: &Core, id: &WorkerId, reason: &str) -> ApiError {
    let lines = core.supervisor.log_tail(id, QUOTED_LINES);
    let said = if lines.is_empty() {
        "it printed nothing".to_owned()
    } else {
        format!("its last lines were:\n{}", lines.join("\n"))
    };
    ApiError::new(
        ErrorKind::Internal,
        format!("failed to start worker {id}: {reason}; {said}"),
    )
}

fn too_late(app: &App, id: &WorkerId) -> Failure {
    let seconds = app.config.load_timeout.as_secs();
    let reason = format!("it was not ready within {seconds} s; a longer time can be set with --load-timeout-s");
    did_not_come_up(&app.core, id, &reason).into()
}

fn start_error(error: &worker_supervisor::Error) -> ApiError {
    use worker_supervisor::Error;
    let kind = match error {
        Error::TooMany { .. } => ErrorKind::NoCapacity,
        Error::Closed(_) => ErrorKind::Draining,
        _ => ErrorKind::Internal,
    };
    let remedy = match error {
        Error::Spawn { .. } => "; the worker program can be set with --worker-command of the hive",
        _ => "",
    };
    ApiError::new(kind, format!("failed to {error}{remedy}"))
}

/// The kind of device that is asked for, of which there is one: that of the device, or the CPU.
fn pick_kinds(
    devices: &[DeviceInfo],
    engines: &[EngineInfo],
    kind: Option<DeviceKind>,
    wanted: Option<&str>,
) -> Result<Vec<DeviceKind>, ApiError> {
    if kind == Some(DeviceKind::Unknown) {
        let message = "this hive knows no such kind of worker; use cpu, cuda, metal, rocm or xpu";
        return Err(ApiError::invalid("worker", message));
    }
    let there = list(devices.iter().map(|device| device.id.as_str()));
    let Some(id) = wanted else {
        let Some(kind) = kind else {
            let kinds = usable_kinds(devices, engines);
            let message = format!("this hive has no device that its worker program can use; it has {there}");
            return kinds.ok_or_else(|| ApiError::invalid("worker", message));
        };
        let Some(device) = devices.iter().find(|device| device.kind == kind) else {
            let message =
                format!("this hive has no device for a {kind} worker; it has {there} (see --devices of the hive)");
            return Err(ApiError::invalid("worker", message));
        };
        return check_engines("worker", device, engines);
    };
    let Some(device) = devices.iter().find(|device| device.id == id) else {
        let message = format!("this hive has no device `{id}`; it has {there} (see --devices of the hive)");
        return Err(ApiError::invalid("device", message));
    };
    match kind {
        Some(kind) if kind != device.kind => {
            let message = format!("device `{id}` takes a {} worker, not a {kind} worker", device.kind);
            Err(ApiError::invalid("worker", message))
        }
        _ => check_engines("device", device, engines),
    }
}

/// Kinds of devices on which a worker can run: GPUs first. Where there is none, the CPU, if it may be used: its refusal will
/// say why not.
fn usable_kinds(devices: &[DeviceInfo], engines: &[EngineInfo]) -> Option<Vec<DeviceKind>> {
    let usable = devices.iter().filter(|device| obstacle(engines, device).is_none());
    let (cpu, mut gpus): (Vec<_>, Vec<_>) = usable
        .map(|device| device.kind)
        .partition(|kind| *kind == DeviceKind::Cpu);
    gpus.dedup();
    gpus.extend(cpu);
    let has_cpu = devices.iter().any(|device| device.kind == DeviceKind::Cpu);
    if gpus.is_empty() && has_cpu {
        gpus.push(DeviceKind::Cpu);
    }
    Some(gpus).filter(|kinds| !kinds.is_empty())
}

/// The device's kind, if a program for it was built at all: a model need not be fetched to find that out.
fn check_engines(param: &str, device: &DeviceInfo, engines: &[EngineInfo]) -> Result<Vec<DeviceKind>, ApiError> {
    let is_built = engines.is_empty() || engines.iter().any(|engine| engine.kinds.contains(&device.kind));
    match obstacle(engines, device).filter(|_| !is_built) {
        Some(why) => Err(ApiError::invalid(param, why)),
        None => Ok(vec![device.kind]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(kinds: &[DeviceKind]) -> EngineInfo {
        EngineInfo {
            implementation: "llm-worker-rbee".into(),
            version: "0.1.0".into(),
            kinds: kinds.to_vec(),
            cuda_capability: None,
        }
    }

    fn pick_with(
        engines: &[EngineInfo],
        kind: Option<DeviceKind>,
        wanted: Option<&str>,
    ) -> Result<Vec<DeviceKind>, String> {
        let devices = ["cpu", "cuda:0", "cuda:1"].map(|id| workers::tests::order(id).device);
        pick_kinds(&devices, engines, kind, wanted).map_err(|error| error.to_string())
    }

    fn pick(kind: Option<DeviceKind>, wanted: Option<&str>) -> Result<Vec<DeviceKind>, String> {
        pick_with(&[engine(&[DeviceKind::Cpu, DeviceKind::Cuda])], kind, wanted)
    }

    #[test]
    fn the_kind_follows_from_what_is_asked_for() {
        assert_eq!(pick(Some(DeviceKind::Cuda), None), Ok(vec![DeviceKind::Cuda]));
        assert_eq!(pick(None, Some("cuda:1")), Ok(vec![DeviceKind::Cuda]));
        assert_eq!(pick(Some(DeviceKind::Cuda), Some("cuda:1")), Ok(vec![DeviceKind::Cuda]));
        assert_eq!(pick(None, Some("cpu")), Ok(vec![DeviceKind::Cpu]));
    }

    #[test]
    fn where_nothing_is_asked_for_a_gpu_that_can_be_used_comes_before_the_cpu() {
        assert_eq!(pick(None, None), Ok(vec![DeviceKind::Cuda, DeviceKind::Cpu]));
        let cpu_only = [engine(&[DeviceKind::Cpu])];
        assert_eq!(pick_with(&cpu_only, None, None), Ok(vec![DeviceKind::Cpu]));
        assert_eq!(pick_with(&[], None, None), Ok(vec![DeviceKind::Cpu]));
    }

    #[test]
    fn a_kind_for_which_no_program_was_built_is_refused_before_anything_is_fetched() {
        let cpu_only = [engine(&[DeviceKind::Cpu])];
        for wrong in [
            pick_with(&cpu_only, Some(DeviceKind::Cuda), None),
            pick_with(&cpu_only, None, Some("cuda:1")),
        ] {
            assert!(wrong.unwrap_err().contains("--worker-command"));
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_with_those_that_are() {
        for wrong in [pick(Some(DeviceKind::Metal), None), pick(None, Some("cuda:7"))] {
            assert!(wrong.unwrap_err().contains("cpu, cuda:0, cuda:1"));
        }
        let unknown = pick(Some(DeviceKind::Unknown), Some("cuda:0")).unwrap_err();
        assert!(unknown.contains("use cpu, cuda"), "{unknown}");
        let mismatch = pick(Some(DeviceKind::Cpu), Some("cuda:0")).unwrap_err();
        assert!(mismatch.contains("takes a cuda worker"), "{mismatch}");
    }
}
