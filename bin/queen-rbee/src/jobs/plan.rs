//! Who does what is asked for.

use std::time::Instant;

use daemon::ApiError;
use heartbeat_registry::{Liveness, MemberView};
use hive_contract::{DeviceKind, Operation};
use serde_json::{Value, json};
use shared_contract::{ErrorKind, HiveId, ModelId, WorkerId};
use worker_contract::WorkerHeartbeat;

use super::infer::Question;
use super::request::{JobRequest, OwnOperation, QueenOperation};
use crate::State;
use crate::supply::{BY_HIVE, Errand, HiveApi, HostNow};

/// An operation, and who does it.
pub(super) enum Plan {
    /// One hive.
    Hive {
        hive: HiveId,
        api: HiveApi,
        operation: Operation,
    },
    /// All hives; those that are lost are named in the result.
    Hives {
        hives: Vec<(HiveId, HiveApi)>,
        lost: Vec<(HiveId, String)>,
        operation: Operation,
    },
    /// The hive that the supply decides for.
    Spawn { model: ModelId, errand: Box<Errand> },
    /// The one of several hives on which the model would be started.
    Pull { model: ModelId, errand: Box<Errand> },
    /// The queen, by what she knows of a worker that no hive looks after.
    Show { worker: Value },
    /// Such a worker itself.
    EndAlone {
        worker: WorkerId,
        base_url: String,
        grace_s: Option<u64>,
    },
    /// The queen.
    Status,
    /// Whichever worker the router finds.
    Infer(Question),
}

/// Finds out who does it.
pub(super) fn plan(state: &State, request: &JobRequest, now: Instant) -> Result<Plan, ApiError> {
    let operation = match &request.operation {
        QueenOperation::Own(OwnOperation::Status {}) => return Ok(Plan::Status),
        QueenOperation::Own(OwnOperation::Infer(infer)) => {
            return Question::new(state, infer, request.hive_id.as_ref()).map(Plan::Infer);
        }
        QueenOperation::Hive(operation) => operation,
    };
    let fleet = Fleet {
        state,
        hosts: state.supply.hosts(now),
        now,
    };
    match &request.hive_id {
        Some(hive) => fleet.at(hive, operation),
        None => fleet.anywhere(operation),
    }
}

/// The hives at one moment.
struct Fleet<'a> {
    state: &'a State,
    /// In the order of their ids.
    hosts: Vec<HostNow>,
    now: Instant,
}

impl Fleet<'_> {
    /// The named hive does it.
    fn at(&self, hive: &HiveId, operation: &Operation) -> Result<Plan, ApiError> {
        let host = self.hosts.iter().find(|host| host.id == *hive).ok_or_else(|| {
            let message = format!("there is no hive `{hive}`; there are: {}", self.names());
            ApiError::new(ErrorKind::NotFound, message).with_param("hive_id")
        })?;
        let starts_worker = matches!(operation, Operation::WorkerSpawn { .. });
        if starts_worker && self.state.supply.is_drained(hive) {
            let message =
                format!("hive `{hive}` is drained and gets no new workers; undrain it first, or name another one");
            return Err(ApiError::new(ErrorKind::Conflict, message).with_param("hive_id"));
        }
        self.by(host, operation.clone())
    }

    /// This hive does it, if it is there.
    fn by(&self, host: &HostNow, mut operation: Operation) -> Result<Plan, ApiError> {
        if matches!(host.liveness, Liveness::Lost | Liveness::Unreachable) {
            let why = host.closed.as_deref().unwrap_or("it is not there");
            let message = format!("hive `{}` cannot be asked: {why}; there are: {}", host.id, self.names());
            return Err(ApiError::new(ErrorKind::Conflict, message).with_param("hive_id"));
        }
        // A hive knows nothing of the queen's aliases.
        if let Operation::WorkerSpawn { model, .. }
        | Operation::ModelPull { model }
        | Operation::ModelGet { model, .. }
        | Operation::ModelDelete { model } = &mut operation
            && let Some(meant) = self.state.supply.meant_by_alias(model)
        {
            *model = meant;
        }
        Ok(Plan::Hive {
            hive: host.id.clone(),
            api: self.state.supply.api(host),
            operation,
        })
    }

    fn anywhere(&self, operation: &Operation) -> Result<Plan, ApiError> {
        match operation {
            Operation::WorkerGet { worker_id }
            | Operation::WorkerStop { worker_id, .. }
            | Operation::WorkerDrain { worker_id }
            | Operation::WorkerLogs { worker_id, .. } => self.of_worker(worker_id, operation),
            Operation::ModelGet { model, .. } | Operation::ModelDelete { model } => self.of_file(model, operation),
            Operation::WorkerList {} | Operation::ModelList {} | Operation::DeviceList {} => Ok(self.all(operation)),
            Operation::ModelPull { model } => {
                if let Some(only) = self.only_host() {
                    return self.by(only, operation.clone());
                }
                let (model, reference) = self.state.supply.named(model)?;
                let errand = Errand {
                    reference,
                    ..Errand::default()
                };
                Ok(Plan::Pull {
                    model,
                    errand: Box::new(errand),
                })
            }
            Operation::WorkerSpawn {
                model,
                worker,
                device,
                context_length,
                slots,
                keep_alive_s,
            } => {
                let (model, reference) = self.state.supply.named(model)?;
                let errand = Errand {
                    reference,
                    kind: kind(*worker, device.as_deref())?,
                    device: device.clone(),
                    context_length: *context_length,
                    slots: *slots,
                    keep_alive_s: *keep_alive_s,
                    ..Errand::default()
                };
                Ok(Plan::Spawn {
                    model,
                    errand: Box::new(errand),
                })
            }
        }
    }

    fn all(&self, operation: &Operation) -> Plan {
        let (mut hives, mut lost) = (Vec::new(), Vec::new());
        for host in &self.hosts {
            match self.by(host, operation.clone()) {
                Ok(_) => hives.push((host.id.clone(), self.state.supply.api(host))),
                Err(why) => lost.push((host.id.clone(), why.to_string())),
            }
        }
        Plan::Hives {
            hives,
            lost,
            operation: operation.clone(),
        }
    }

    /// The hive that looks after a worker does it; where none does, the worker itself.
    fn of_worker(&self, worker: &WorkerId, operation: &Operation) -> Result<Plan, ApiError> {
        let mut hosts = self.hosts.iter();
        // One that was killed cannot be asked, and started again it does not know the workers that outlived it.
        let keeper = hosts.find(|host| host.liveness == Liveness::Online && host.has(worker));
        if let Some(host) = keeper {
            return self.by(host, operation.clone());
        }
        match self.state.workers.view(worker, self.now) {
            Some(view) => self.unkept(worker, &view, operation),
            None => {
                let teller = self.hosts.iter().find(|host| host.has(worker));
                // One that has ended is known to its hive for a while.
                let host = teller.or_else(|| self.only_host());
                host.map_or_else(|| Err(self.no_worker(worker)), |host| self.by(host, operation.clone()))
            }
        }
    }

    /// What can be done for a worker that no hive looks after now. Told to end, it is not started again: where its hive is
    /// there after all, that takes an orderly end for what it is.
    fn unkept(
        &self,
        worker: &WorkerId,
        view: &MemberView<WorkerHeartbeat>,
        operation: &Operation,
    ) -> Result<Plan, ApiError> {
        let grace_s = match operation {
            Operation::WorkerStop { grace_s, .. } => *grace_s,
            Operation::WorkerDrain { .. } => Some(worker_contract::MAX_GRACE_S),
            Operation::WorkerLogs { .. } => return self.log_of_unkept(worker, view, operation),
            _ => {
                return Ok(Plan::Show {
                    worker: json!(self.state.worker(view, self.now)),
                });
            }
        };
        Ok(Plan::EndAlone {
            worker: worker.clone(),
            base_url: view.address().base_url().to_owned(),
            grace_s,
        })
    }

    /// Its log lies where it was started.
    fn log_of_unkept(
        &self,
        worker: &WorkerId,
        view: &MemberView<WorkerHeartbeat>,
        operation: &Operation,
    ) -> Result<Plan, ApiError> {
        let Some(hive) = &view.item().worker.hive_id else {
            let message = format!(
                "no hive has started worker `{worker}`, so that nobody here has its log; look at where it was started"
            );
            return Err(ApiError::invalid("worker_id", message));
        };
        self.at(hive, operation)
    }

    fn no_worker(&self, worker: &WorkerId) -> ApiError {
        let message = format!(
            "there is no worker `{worker}`; `GET /v1/workers` or `rbee ps` lists those there are. If it has ended, name the \
             hive that had it by {BY_HIVE}: {}",
            self.names()
        );
        ApiError::new(ErrorKind::NotFound, message).with_param("worker_id")
    }

    /// The one hive that has a model's file does it.
    fn of_file(&self, model: &str, operation: &Operation) -> Result<Plan, ApiError> {
        let meant = self.state.supply.ids_meant_by(model);
        let has_it = |host: &&HostNow| {
            let capabilities = host.report.item.capabilities.iter();
            let mut entries = capabilities.flat_map(|it| &it.models);
            entries.any(|entry| entry.reference == model || meant.contains(&entry.id))
        };
        let mut holders: Vec<&HostNow> = self.hosts.iter().filter(has_it).collect();
        if holders.is_empty() {
            // It knows best: what it has told of may be old.
            holders.extend(self.only_host());
        }
        match holders.as_slice() {
            [only] => self.by(only, operation.clone()),
            [] => {
                let message = format!(
                    "no hive has a file of model `{model}`; there are the hives: {}",
                    self.names()
                );
                Err(ApiError::new(ErrorKind::ModelNotFound, message).with_param("model"))
            }
            several => {
                let message = format!(
                    "several hives have model `{model}`: name the one that is meant by {BY_HIVE}: {}",
                    listed(several.iter().map(|host| host.id.as_str()))
                );
                Err(ApiError::invalid("hive_id", message))
            }
        }
    }

    /// The hive, if there is no other one.
    fn only_host(&self) -> Option<&HostNow> {
        match self.hosts.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    fn names(&self) -> String {
        listed(self.hosts.iter().map(|host| host.id.as_str()))
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// The kind of device that is meant; one that the device is not of is a mistake.
fn kind(kind: Option<DeviceKind>, device: Option<&str>) -> Result<Option<DeviceKind>, ApiError> {
    let Some(device) = device else { return Ok(kind) };
    let of_device = device
        .split(':')
        .next()
        .and_then(|word| word.parse::<DeviceKind>().ok());
    match (kind, of_device) {
        (Some(kind), Some(of_device)) if kind != of_device => {
            let message = format!("device {device} is no {kind} device; leave one of both out");
            Err(ApiError::invalid("device", message))
        }
        _ => Ok(kind),
    }
}
