//! What the hives tell every second of their hosts and worker processes, joined with what the workers say of themselves.
//!
//! A worker that beats and a process that its hive sees are one entry if they have one worker id. What a hive told more than
//! [`FRESH`] ago is no telemetry: then the processes in its newest heartbeat stand in, as long as the hive is not lost.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use heartbeat_registry::{MemberView, Report};
use hive_contract::{DeviceLoad, HiveHeartbeat, MonitorData, ProcessStats, TelemetryEvent};
use router::candidate;
use scheduler::Standing;
use shared_contract::{HiveId, ModelId, WorkerId};
use worker_contract::WorkerHeartbeat;

use crate::registry::{HiveRegistry, WorkerRegistry};

/// How long telemetry tells of the present.
pub(crate) const FRESH: Duration = Duration::from_secs(5);

/// The newest telemetry of each hive. All methods take `&self`.
#[derive(Debug)]
pub(crate) struct TelemetryRegistry {
    workers: Arc<WorkerRegistry>,
    hives: Arc<HiveRegistry>,
    newest: RwLock<HashMap<HiveId, Arc<Told>>>,
}

/// One telemetry event, and when it came.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) event: TelemetryEvent,
    pub(crate) at: Instant,
}

/// One worker, of whom its heartbeat, its hive or both tell.
#[derive(Debug, Clone)]
pub(crate) struct WorkerEntry {
    pub(crate) worker_id: WorkerId,
    /// The hive that it names, or that tells of its process.
    pub(crate) hive_id: Option<HiveId>,
    /// What it says of itself; `None` if it is no member: it is about to start, or has left.
    pub(crate) beat: Option<MemberView<WorkerHeartbeat>>,
    /// What its hive says of its process; `None` if no hive started it, or the hive is not heard of.
    pub(crate) process: Option<ProcessStats>,
    /// Memory of its device that nobody uses, where that is known.
    pub(crate) vram_free_mb: Option<u64>,
}

/// What is known of a hive's host: the newer of two sources.
enum Host {
    Told(Arc<Told>),
    Beat(Arc<Report<HiveHeartbeat>>),
}

impl Host {
    fn processes(&self) -> &[ProcessStats] {
        match self {
            Self::Told(told) => &told.event.workers,
            Self::Beat(report) => &report.item.workers,
        }
    }

    fn process(&self, worker: &WorkerId) -> Option<&ProcessStats> {
        self.processes()
            .iter()
            .find(|process| process.worker_id.as_ref() == Some(worker))
    }

    fn device(&self, id: &str) -> Option<&DeviceLoad> {
        let monitor: &MonitorData = match self {
            Self::Told(told) => &told.event.monitor,
            Self::Beat(report) => &report.item.monitor,
        };
        monitor.devices.iter().find(|device| device.id == id)
    }

    /// Memory of a device that a new worker can get, as the hive says it; where it does not, what nobody uses. `process` is
    /// one that runs on it: it knows the device's size where the hive cannot tell its load, and then at least its own share
    /// is subtracted.
    fn vram_free_mb(&self, device: Option<&str>, process: Option<&ProcessStats>) -> Option<u64> {
        let load = device.and_then(|id| self.device(id));
        if let Some(free) = load.and_then(|load| load.vram_free_mb) {
            return Some(free);
        }
        let total = load.and_then(|load| load.vram_total_mb);
        let used = load.and_then(|load| load.vram_used_mb);
        let total = total.or(process.and_then(|process| process.total_vram_mb))?;
        let used = used.or(process.and_then(|process| process.vram_mb))?;
        Some(total.saturating_sub(used))
    }
}

impl TelemetryRegistry {
    pub(crate) fn new(workers: Arc<WorkerRegistry>, hives: Arc<HiveRegistry>) -> Self {
        Self {
            workers,
            hives,
            newest: RwLock::default(),
        }
    }

    /// Takes what a hive told at `now`.
    pub(crate) fn record(&self, event: TelemetryEvent, now: Instant) {
        let told = Arc::new(Told { event, at: now });
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        newest.insert(told.event.hive_id.clone(), told);
    }

    /// Forgets what a hive told that is no longer followed.
    pub(crate) fn forget(&self, hive: &HiveId) {
        let mut newest = self.newest.write().unwrap_or_else(PoisonError::into_inner);
        newest.remove(hive);
    }

    /// What was told after one moment and not after the other, in no order.
    pub(crate) fn told_between(&self, after: Instant, until: Instant) -> Vec<Arc<Told>> {
        let newest = self.newest.read().unwrap_or_else(PoisonError::into_inner);
        let told = newest.values().filter(|told| told.at > after && told.at <= until);
        told.cloned().collect()
    }

    /// The process of a worker, as the hive that it names sees it.
    pub(crate) fn process_of(&self, worker: &WorkerHeartbeat, now: Instant) -> Option<ProcessStats> {
        let host = self.host(worker.worker.hive_id.as_ref()?, now)?;
        host.process(&worker.worker.id).cloned()
    }

    /// What a hive told after this moment and not too long ago.
    pub(crate) fn told_since(&self, hive: &HiveId, after: Instant, now: Instant) -> Option<Arc<Told>> {
        let newest = self.newest.read().unwrap_or_else(PoisonError::into_inner);
        let told = newest.get(hive).cloned();
        told.filter(|told| told.at >= after && now.saturating_duration_since(told.at) <= FRESH)
    }

    /// Every worker that beats or whose hive sees its process, in the order of their ids.
    pub(crate) fn get_all_workers(&self, now: Instant) -> Vec<WorkerEntry> {
        self.find(|_| true, now)
    }

    /// The workers that take work and have none.
    pub(crate) fn find_idle_workers(&self, now: Instant) -> Vec<WorkerEntry> {
        self.find(WorkerEntry::is_idle, now)
    }

    /// The workers that serve a model, or are started to.
    pub(crate) fn find_workers_with_model(&self, model: &ModelId, now: Instant) -> Vec<WorkerEntry> {
        self.find(|entry| entry.serves(model), now)
    }

    /// The workers on whose device at least so much memory is known to be free.
    pub(crate) fn find_workers_with_vram_capacity(&self, mb: u64, now: Instant) -> Vec<WorkerEntry> {
        self.find(|entry| entry.has_vram(mb), now)
    }

    fn find(&self, keep: impl Fn(&WorkerEntry) -> bool, now: Instant) -> Vec<WorkerEntry> {
        let views = self.workers.list_all(now);
        let hosts: HashMap<HiveId, Host> = self
            .hives
            .list_all(now)
            .iter()
            .filter_map(|hive| Some((hive.id().clone(), self.host(hive.id(), now)?)))
            .collect();
        let beating: HashSet<&WorkerId> = views.iter().map(MemberView::id).collect();
        let mut entries = Vec::with_capacity(views.len());
        for (hive, host) in &hosts {
            for process in host.processes() {
                let stranger = process.worker_id.as_ref().filter(|id| !beating.contains(id));
                entries.extend(stranger.map(|id| WorkerEntry {
                    worker_id: id.clone(),
                    hive_id: Some(hive.clone()),
                    beat: None,
                    process: Some(process.clone()),
                    vram_free_mb: host.vram_free_mb(process.device.as_deref(), Some(process)),
                }));
            }
        }
        drop(beating);
        for view in views {
            let info = &view.item().worker;
            let host = info.hive_id.as_ref().and_then(|hive| hosts.get(hive));
            let process = host.and_then(|host| host.process(&info.id));
            entries.push(WorkerEntry {
                worker_id: info.id.clone(),
                hive_id: info.hive_id.clone(),
                vram_free_mb: host.and_then(|host| host.vram_free_mb(Some(&info.device), process)),
                process: process.cloned(),
                beat: Some(view),
            });
        }
        entries.retain(keep);
        entries.sort_unstable_by(|a, b| (&a.worker_id, &a.hive_id).cmp(&(&b.worker_id, &b.hive_id)));
        entries
    }

    /// What is known of a host now.
    fn host(&self, hive: &HiveId, now: Instant) -> Option<Host> {
        let newest = self.newest.read().unwrap_or_else(PoisonError::into_inner);
        let told = newest.get(hive).cloned();
        drop(newest);
        match told.filter(|told| now.saturating_duration_since(told.at) <= FRESH) {
            Some(told) => Some(Host::Told(told)),
            None => {
                let view = self.hives.view(hive, now)?;
                (view.liveness != heartbeat_registry::Liveness::Lost).then_some(Host::Beat(view.report))
            }
        }
    }
}

impl WorkerEntry {
    /// Whether it takes work and has none, by its own load and the queen's leases.
    pub(crate) fn is_idle(&self) -> bool {
        self.beat.as_ref().is_some_and(|view| {
            let candidate = candidate(&view.report, view.liveness, view.outstanding);
            candidate.standing == Standing::Ready && candidate.load() == 0
        })
    }

    /// Whether it serves the model, or is started to.
    pub(crate) fn serves(&self, model: &ModelId) -> bool {
        let named = match (&self.beat, &self.process) {
            (Some(view), _) => Some(&view.item().worker.model_id),
            (None, process) => process.as_ref().and_then(|process| process.model.as_ref()),
        };
        named == Some(model)
    }

    /// Whether at least so much memory of its device is known to be free.
    pub(crate) fn has_vram(&self, mb: u64) -> bool {
        self.vram_free_mb.is_some_and(|free| free >= mb)
    }
}

/// Whether all numbers are finite. One that is too large for its field becomes infinite, which JSON cannot say again.
pub(crate) fn is_finite(event: &TelemetryEvent) -> bool {
    let devices = event.monitor.devices.iter();
    let devices = devices.flat_map(|load| [load.util_percent, load.temperature_celsius, load.power_watts]);
    let processes = event.workers.iter();
    let processes = processes.flat_map(|it| {
        [
            Some(it.cpu_pct),
            Some(it.io_r_mb_s),
            Some(it.io_w_mb_s),
            it.gpu_util_pct,
        ]
    });
    let cpu = Some(event.monitor.cpu_usage_percent);
    devices.chain(processes).chain([cpu]).flatten().all(f32::is_finite)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use chrono::Utc;
    use heartbeat_registry::{Pace, Receipt, RegistryOptions};
    use serde_json::{Value, json};

    use super::*;

    struct Bed {
        telemetry: TelemetryRegistry,
        now: Instant,
    }

    impl Bed {
        fn new() -> Self {
            let options = RegistryOptions::default();
            let workers = Arc::new(WorkerRegistry::new(options));
            let hives = Arc::new(HiveRegistry::new(options));
            Self {
                telemetry: TelemetryRegistry::new(workers, hives),
                now: Instant::now(),
            }
        }

        fn receipt(&self) -> Receipt {
            Receipt {
                peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
                at: self.now,
                wall: Utc::now(),
                pace: Pace::default(),
            }
        }

        fn worker(&self, id: &str, hive: Option<&str>, running: u32) {
            let beat = json!({
                "worker": {"id": id, "model_id": "m", "device": "cuda:0", "port": 1, "status": "ready",
                           "implementation": "test", "version": "0", "hive_id": hive, "slots": 4},
                "timestamp": Utc::now(), "load": {"running": running}});
            let beat = serde_json::from_value(beat).unwrap();
            self.telemetry.workers.record(beat, self.receipt()).unwrap();
        }

        fn hive(&self, id: &str, processes: &Value) {
            let beat = json!({
                "hive": {"id": id, "hostname": "", "port": 2, "operational_status": "ready",
                         "health_status": "healthy", "version": "0"},
                "timestamp": Utc::now(), "workers": processes});
            let beat = serde_json::from_value(beat).unwrap();
            self.telemetry.hives.record(beat, self.receipt()).unwrap();
        }

        fn tell(&self, hive: &str, devices: &Value, processes: &Value) {
            let event = json!({"hive_id": hive, "timestamp": Utc::now(), "monitor": {"devices": devices},
                               "workers": processes});
            self.telemetry.record(serde_json::from_value(event).unwrap(), self.now);
        }

        fn all(&self) -> Vec<WorkerEntry> {
            self.telemetry.get_all_workers(self.now)
        }
    }

    fn process(worker: &str, pid: u32) -> Value {
        json!({"pid": pid, "group": "llm-worker", "instance": "1", "cpu_pct": 0.0, "rss_mb": 0, "io_r_mb_s": 0.0,
               "io_w_mb_s": 0.0, "uptime_s": 0, "model": "m", "state": "running", "worker_id": worker,
               "device": "cuda:0", "vram_mb": 4_000, "total_vram_mb": 24_000})
    }

    fn ids(entries: &[WorkerEntry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.worker_id.as_str()).collect()
    }

    fn pids(entries: &[WorkerEntry]) -> Vec<Option<u32>> {
        let pid = |entry: &WorkerEntry| entry.process.as_ref().map(|process| process.pid);
        entries.iter().map(pid).collect()
    }

    #[test]
    fn beating_workers_and_processes_are_one_list_joined_by_worker_id() {
        let bed = Bed::new();
        bed.worker("alone", None, 0);
        bed.worker("both", Some("h"), 0);
        bed.hive("h", &json!([]));
        bed.tell("h", &json!([]), &json!([process("starting", 7), process("both", 8)]));
        let all = bed.all();
        assert_eq!(ids(&all), ["alone", "both", "starting"]);
        assert_eq!(pids(&all), [None, Some(8), Some(7)]);
        assert!(all[2].beat.is_none());
        assert_eq!(all[2].hive_id.as_ref().unwrap().as_str(), "h");
    }

    #[test]
    fn another_hives_process_with_a_workers_id_is_not_the_workers() {
        let bed = Bed::new();
        bed.worker("w", Some("h"), 0);
        bed.hive("h", &json!([]));
        bed.hive("other", &json!([process("w", 9)]));
        assert_eq!((ids(&bed.all()), pids(&bed.all())), (vec!["w"], vec![None]));
    }

    #[test]
    fn telemetry_is_believed_for_five_seconds_and_then_the_newest_heartbeat_until_its_hive_is_lost() {
        let mut bed = Bed::new();
        bed.worker("w", Some("h"), 0);
        bed.hive("h", &json!([process("w", 1)]));
        assert_eq!(pids(&bed.all()), [Some(1)]);
        bed.tell("h", &json!([]), &json!([process("w", 2)]));
        bed.now += FRESH;
        assert_eq!(pids(&bed.all()), [Some(2)]);
        bed.now += Duration::from_millis(1);
        assert_eq!(pids(&bed.all()), [Some(1)]);
        bed.tell("h", &json!([]), &json!([process("w", 3)]));
        bed.telemetry.forget(&HiveId::new("h").unwrap());
        assert_eq!(pids(&bed.all()), [Some(1)]);
        bed.now += Pace::default().ttl;
        assert_eq!(pids(&bed.all()), [None]);
    }

    #[test]
    fn idle_is_who_takes_work_and_has_none() {
        let bed = Bed::new();
        bed.worker("busy", None, 1);
        bed.worker("claimed", None, 0);
        bed.worker("free", None, 0);
        bed.hive("h", &json!([process("starting", 1)]));
        let claimed = bed.telemetry.workers.get(&WorkerId::new("claimed").unwrap()).unwrap();
        let lease = claimed.claim();
        assert_eq!(ids(&bed.telemetry.find_idle_workers(bed.now)), ["free"]);
        drop(lease);
        assert_eq!(ids(&bed.telemetry.find_idle_workers(bed.now)), ["claimed", "free"]);
    }

    #[test]
    fn a_model_is_found_before_its_worker_beats() {
        let bed = Bed::new();
        bed.worker("w", None, 0);
        bed.hive("h", &json!([process("starting", 1)]));
        let found = |model: &str| {
            bed.telemetry
                .find_workers_with_model(&ModelId::new(model).unwrap(), bed.now)
        };
        assert_eq!(ids(&found("m")), ["starting", "w"]);
        assert!(found("other").is_empty());
    }

    #[test]
    fn free_memory_is_what_nobody_on_the_device_uses() {
        let bed = Bed::new();
        bed.worker("none", None, 0);
        bed.worker("shared", Some("h"), 0);
        bed.hive("h", &json!([]));
        let devices = json!([{"id": "cuda:0", "vram_used_mb": 20_000, "vram_total_mb": 24_000}]);
        bed.tell("h", &devices, &json!([process("shared", 1)]));
        // Without the device's own load, the process's share is all that is known to be used.
        bed.hive("i", &json!([process("unmonitored", 1)]));
        let found = |mb| bed.telemetry.find_workers_with_vram_capacity(mb, bed.now);
        assert_eq!(ids(&found(0)), ["shared", "unmonitored"]);
        assert_eq!(ids(&found(4_000)), ["shared", "unmonitored"]);
        assert_eq!(ids(&found(4_001)), ["unmonitored"]);
        assert!(found(20_001).is_empty());
    }

    #[test]
    fn a_number_that_is_too_large_for_its_field_is_noticed() {
        let told = |cpu: &str| {
            let text = format!(
                r#"{{"hive_id": "h", "timestamp": "2025-10-30T15:13:00Z", "monitor": {{"cpu_usage_percent": {cpu}}},
                     "workers": []}}"#
            );
            // Whether such a number is infinite or an error hangs on a feature of the parser.
            serde_json::from_str(&text).is_ok_and(|told| is_finite(&told))
        };
        assert!(told("3.5"));
        assert!(!told("1e300"));
    }
}
