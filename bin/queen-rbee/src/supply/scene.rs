//! The fleet as a placement sees it: a scheduler's problem, made of what hives and workers told and of what the queen has
//! promised since.
//!
//! Memory told by a hive lags behind: a worker that was ordered a moment ago does not show in it. So each order is a
//! [`Promise`] against the device until the hive's own word has the worker, and never counts twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heartbeat_registry::{Liveness, Report};
use hive_contract::{DeviceInfo, DeviceKind, EngineInfo, HiveHeartbeat, MonitorData, ProcessState, ProcessStats};
use scheduler::{Device, Host, Problem, Strategy, Tenant};
use shared_contract::{HiveId, ModelId, WorkerId};

use super::errand::Errand;
use super::known::KnownModel;
use crate::telemetry::Told;

/// A worker is not stopped for another model before it was without a request for this long, so that the pauses of a client
/// that goes on asking do not cost a load each,
const REST: Duration = Duration::from_millis(500);
/// unless the other model has waited for this long.
const REST_PATIENCE: Duration = Duration::from_secs(3);
/// A model that has waited for this long gets its turn even where another one is never without a request, if that has been
/// served for as long: its worker answers what it has, and then makes room.
pub(crate) const TURN: Duration = Duration::from_secs(10);

/// A hive at one moment: the newer of its heartbeat and its telemetry.
#[derive(Debug, Clone)]
pub(crate) struct HostNow {
    pub(crate) id: HiveId,
    pub(crate) liveness: Liveness,
    /// Why it takes no orders.
    pub(crate) closed: Option<String>,
    pub(crate) report: Arc<Report<HiveHeartbeat>>,
    pub(crate) told: Option<Arc<Told>>,
}

impl HostNow {
    fn monitor(&self) -> &MonitorData {
        match &self.told {
            Some(told) => &told.event.monitor,
            None => &self.report.item.monitor,
        }
    }

    /// Its worker processes.
    pub(crate) fn processes(&self) -> &[ProcessStats] {
        match &self.told {
            Some(told) => &told.event.workers,
            None => &self.report.item.workers,
        }
    }

    /// Whether it tells of this worker.
    pub(crate) fn has(&self, worker: &WorkerId) -> bool {
        self.process(worker).is_some()
    }

    fn process(&self, worker: &WorkerId) -> Option<&ProcessStats> {
        let mut processes = self.processes().iter();
        processes.find(|process| process.worker_id.as_ref() == Some(worker))
    }

    /// Memory that it says can be promised of a device; `None` where it does not tell.
    pub(crate) fn free_bytes(&self, device: &str, kind: DeviceKind) -> Option<u64> {
        let monitor = self.monitor();
        let free_mb = match kind {
            DeviceKind::Cpu => monitor.ram_free_mb.or_else(|| {
                let total = Some(monitor.ram_total_mb).filter(|total| *total > 0)?;
                Some(total.saturating_sub(monitor.ram_used_mb))
            }),
            _ => {
                let load = monitor.devices.iter().find(|load| load.id == device)?;
                load.vram_free_mb
                    .or_else(|| Some(load.vram_total_mb?.saturating_sub(load.vram_used_mb?)))
            }
        };
        free_mb.map(|mb| mb << 20)
    }

    /// Whether the machine's owner is at work on the device of a process.
    pub(crate) fn has_owner(&self, process: &ProcessStats) -> bool {
        let mut devices = self.monitor().devices.iter();
        devices.any(|load| Some(&load.id) == process.device.as_ref() && load.owner.is_some())
    }

    /// Its devices, once it has said so.
    pub(crate) fn devices(&self) -> &[DeviceInfo] {
        let capabilities = self.report.item.capabilities.as_ref();
        capabilities.map_or(&[], |capabilities| &capabilities.devices)
    }

    fn engines(&self) -> &[EngineInfo] {
        let capabilities = self.report.item.capabilities.as_ref();
        capabilities.map_or(&[], |capabilities| &capabilities.engines)
    }
}

/// A worker that was ordered, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) hive: HiveId,
    pub(crate) device: String,
    pub(crate) model: ModelId,
    /// Memory that it will take.
    pub(crate) bytes: u64,
    /// Who makes room for it.
    pub(crate) evict: Vec<WorkerId>,
    /// Workers of the model that were there before it.
    pub(crate) earlier: BTreeSet<WorkerId>,
    /// Which one it is, once the hive has said so.
    pub(crate) worker: Option<WorkerId>,
}

/// What the queen knows of a worker beyond what its hive tells of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conduct {
    /// Since when it has nothing to do; `None`: it has, or is not ready.
    pub(crate) idle_since: Option<Instant>,
    /// Since when it takes requests; `None`: it does not.
    pub(crate) ready_since: Option<Instant>,
    /// Whether requests wait for its model.
    pub(crate) is_awaited: bool,
    /// Whether further workers of its model take requests.
    pub(crate) is_replica: bool,
}

/// All that a placement depends on.
pub(crate) struct Scene<'a> {
    pub(crate) hosts: &'a [HostNow],
    pub(crate) promises: &'a [Promise],
    /// Workers that are being ended.
    pub(crate) leaving: &'a BTreeSet<WorkerId>,
    /// Models whose workers are never to be evicted.
    pub(crate) pinned: &'a dyn Fn(&ModelId) -> bool,
    pub(crate) conduct: &'a dyn Fn(&WorkerId) -> Option<Conduct>,
    pub(crate) now: Instant,
}

/// A model that wants a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) model: &'a KnownModel,
    pub(crate) strategy: Strategy,
    pub(crate) may_evict: bool,
    /// For how long requests have waited for it.
    pub(crate) waited: Duration,
    /// Hives where it failed lately, and what is to be said of it.
    pub(crate) failures: &'a BTreeMap<HiveId, String>,
    /// Whether to suppose that all who work now were idle, and all hives in doubt were there: whether waiting can help.
    pub(crate) in_time: bool,
    /// What an operator asks for, where he does.
    pub(crate) errand: Option<&'a Errand>,
}

impl Scene<'_> {
    /// The problem, in the order of the hives' ids.
    pub(crate) fn problem(&self, wish: &Wish<'_>) -> Problem {
        let seen = seen(self.promises, self.hosts);
        Problem {
            model: wish.model.id.to_string(),
            need: wish.model.need,
            strategy: wish.strategy,
            may_evict: wish.may_evict,
            hosts: self.hosts.iter().map(|host| self.host(host, wish, &seen)).collect(),
        }
    }

    fn host(&self, host: &HostNow, wish: &Wish<'_>, seen: &[Option<&WorkerId>]) -> Host {
        let is_in_doubt = matches!(host.liveness, Liveness::Suspect | Liveness::Unreachable);
        let closed = match &host.closed {
            Some(_) if wish.in_time && is_in_doubt => None,
            closed => closed.clone(),
        };
        let closed = closed
            .or_else(|| match wish.model.reference_on(&host.id) {
                Some(_) => None,
                None => Some("it has no file of the model, which cannot be fetched from elsewhere".to_owned()),
            })
            .or_else(|| wish.failures.get(&host.id).cloned())
            .or_else(|| match host.devices() {
                [] => Some("it has not said yet which devices it has".to_owned()),
                _ => None,
            });
        Host {
            id: host.id.to_string(),
            closed,
            has_file: wish.model.copies.contains_key(&host.id),
            devices: host
                .devices()
                .iter()
                .map(|device| self.device(host, device, wish, seen))
                .collect(),
        }
    }

    fn device(&self, host: &HostNow, device: &DeviceInfo, wish: &Wish<'_>, seen: &[Option<&WorkerId>]) -> Device {
        let told = host.free_bytes(&device.id, device.kind);
        let promised = self.promised(host, &device.id, seen);
        let owner = host.monitor().devices.iter().find(|load| load.id == device.id);
        let owner = owner.and_then(|load| load.owner.as_ref());
        let closed = obstacle(host.engines(), device)
            .or_else(|| wish.errand?.excludes(device))
            .or_else(|| {
                let name = owner?.name.as_deref().unwrap_or("a process");
                Some(format!("its owner is at work: {name}"))
            })
            .or_else(|| match told {
                Some(_) => None,
                None => Some("it does not tell how much of its memory is in use".to_owned()),
            });
        let tenants = host.processes().iter();
        let tenants = tenants.filter(|process| process.device.as_deref() == Some(device.id.as_str()));
        Device {
            id: device.id.clone(),
            is_gpu: device.kind != DeviceKind::Cpu,
            total_bytes: device.memory_total_mb << 20,
            free_bytes: told.unwrap_or(0).saturating_sub(promised),
            closed,
            tenants: tenants.filter_map(|process| self.tenant(process, wish)).collect(),
        }
    }

    /// Memory of a device that is promised and does not show yet, less what those give back who make room for it.
    fn promised(&self, host: &HostNow, device: &str, seen: &[Option<&WorkerId>]) -> u64 {
        let open = self
            .promises
            .iter()
            .zip(seen)
            .filter(|(promise, seen)| seen.is_none() && promise.hive == host.id && promise.device == device);
        open.map(|(promise, _)| {
            let leaving = promise.evict.iter().filter_map(|worker| host.process(worker));
            promise.bytes.saturating_sub(leaving.map(bytes).sum())
        })
        .fold(0, u64::saturating_add)
    }

    fn tenant(&self, process: &ProcessStats, wish: &Wish<'_>) -> Option<Tenant> {
        let (worker, model) = (process.worker_id.as_ref()?, process.model.as_ref()?);
        // One that is not started again takes nothing any more.
        if process.state == ProcessState::Failed {
            return None;
        }
        let conduct = (self.conduct)(worker);
        // Nobody keeps one that is about to go.
        let is_pinned = !self.is_leaving(worker, process) && (process.pinned || (self.pinned)(model));
        let idle = match is_pinned {
            // It is asked for nothing, so that it needs no protection.
            true => conduct
                .and_then(|conduct| conduct.idle_since)
                .map(|since| self.now.saturating_duration_since(since)),
            false => self.idle(worker, process, conduct, wish),
        };
        Some(Tenant {
            worker: worker.to_string(),
            model: model.to_string(),
            bytes: bytes(process),
            idle_ms: idle.map(crate::fleet::millis),
            pinned: is_pinned,
            is_replica: conduct.is_some_and(|conduct| conduct.is_replica),
        })
    }

    /// For how long a worker has had nothing to do that keeps it from making room.
    fn idle(
        &self,
        worker: &WorkerId,
        process: &ProcessStats,
        conduct: Option<Conduct>,
        wish: &Wish<'_>,
    ) -> Option<Duration> {
        if wish.in_time {
            return Some(Duration::ZERO);
        }
        if self.is_leaving(worker, process) || process.state != ProcessState::Running {
            return None;
        }
        let conduct = conduct?;
        if let Some(since) = conduct.idle_since.filter(|_| !conduct.is_awaited) {
            let idle = self.now.saturating_duration_since(since);
            if idle >= REST || wish.waited >= REST_PATIENCE {
                return Some(idle);
            }
        }
        self.owes_turn(&conduct, wish.waited).then_some(Duration::ZERO)
    }

    fn is_leaving(&self, worker: &WorkerId, process: &ProcessStats) -> bool {
        process.state == ProcessState::Stopping || self.leaving.contains(worker)
    }

    fn owes_turn(&self, conduct: &Conduct, waited: Duration) -> bool {
        let served = conduct
            .ready_since
            .map(|since| self.now.saturating_duration_since(since));
        waited >= TURN && served.is_some_and(|served| served >= TURN)
    }
}

/// The worker by which each promise shows in what its hive tells; each has one of its own.
pub(crate) fn seen<'a>(promises: &'a [Promise], hosts: &'a [HostNow]) -> Vec<Option<&'a WorkerId>> {
    let hosts: HashMap<&HiveId, &HostNow> = hosts.iter().map(|host| (&host.id, host)).collect();
    let mut taken: BTreeSet<&WorkerId> = promises.iter().filter_map(|promise| promise.worker.as_ref()).collect();
    let mut find = |promise: &'a Promise| {
        let host: &'a HostNow = hosts.get(&promise.hive).copied()?;
        if let Some(worker) = &promise.worker {
            return host.has(worker).then_some(worker);
        }
        let places = host.processes().iter().filter(|process| {
            process.model.as_ref() == Some(&promise.model) && process.device.as_ref() == Some(&promise.device)
        });
        let mut workers = places.filter_map(|process| process.worker_id.as_ref());
        let worker = workers.find(|worker| !promise.earlier.contains(*worker) && !taken.contains(*worker))?;
        taken.insert(worker);
        Some(worker)
    };
    promises.iter().map(&mut find).collect()
}

/// Memory of its device that is free once a worker is gone, and was not before.
fn bytes(process: &ProcessStats) -> u64 {
    let held_mb = match process.device.as_deref() {
        Some("cpu") | None => Some(process.rss_mb),
        Some(_) => process.vram_mb,
    };
    process.granted_mb.max(held_mb).unwrap_or(0) << 20
}

/// Why none of these worker programs runs on a device; `None` if one does.
fn obstacle(engines: &[EngineInfo], device: &DeviceInfo) -> Option<String> {
    if engines.is_empty() {
        return Some("its hive has no worker program: set --worker-command of the hive".to_owned());
    }
    if !engines.iter().any(|engine| engine.kinds.contains(&device.kind)) {
        return Some(format!("its hive's worker program is not built for {}", device.kind));
    }
    None
}

#[cfg(test)]
mod tests;
