//! What is shown of each host, device and worker: the same for the screen and for programs.

use std::time::Duration;

use hive_contract::{DeviceKind, DeviceLoad, ProcessState, ProcessStats};
use queen_rbee::fleet::{HiveView, Liveness, WorkerView};
use serde::Serialize;
use shared_contract::{HealthStatus, OperationalStatus};
use worker_contract::WorkerStatus;

use super::state::{Fleet, Member};
use crate::render::Tone;

/// Memory, by whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Held by the hive's workers.
    pub(super) ours_mb: u64,
    /// Held by anybody else.
    pub(super) others_mb: u64,
    /// All that there is.
    pub(super) total_mb: u64,
}

impl Memory {
    fn new(ours_mb: u64, used_mb: u64, total_mb: u64) -> Option<Self> {
        let used_mb = used_mb.min(total_mb);
        let ours_mb = ours_mb.min(used_mb);
        (total_mb > 0).then_some(Self {
            ours_mb,
            others_mb: used_mb - ours_mb,
            total_mb,
        })
    }

    /// Held by anybody.
    pub(super) fn used_mb(self) -> u64 {
        self.ours_mb + self.others_mb
    }
}

/// A state as a word, and how it is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    /// The word.
    pub(super) word: &'static str,
    /// How it is meant.
    pub(super) tone: Tone,
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word)
    }
}

const fn state(word: &'static str, tone: Tone) -> State {
    State { word, tone }
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct HostRow {
    /// The hive's id.
    pub(super) id: String,
    /// Liveness, or what keeps it from taking orders.
    pub(super) state: State,
    /// Why it is not ready, or what its operator should know.
    pub(super) reason: Option<String>,
    /// All cores together, 0 to 100.
    pub(super) cpu_percent: f32,
    /// Main memory.
    pub(super) ram: Option<Memory>,
    /// Age of its newest heartbeat.
    pub(super) beat_age_ms: u64,
    /// Its GPUs.
    pub(super) devices: Vec<DeviceRow>,
}

/// A GPU. What it does not tell is `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct DeviceRow {
    /// For example `cuda:0`.
    pub(super) id: String,
    /// Of the maker.
    pub(super) name: String,
    /// Device memory.
    pub(super) memory: Option<Memory>,
    /// 0 to 100.
    pub(super) utilisation_percent: Option<f32>,
    /// Of the chip.
    pub(super) temperature_celsius: Option<f32>,
    /// Drawn now.
    pub(super) power_watts: Option<f32>,
    /// Most that it may draw.
    pub(super) power_limit_watts: Option<f32>,
}

/// A worker, or a process that is about to be one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct WorkerRow {
    /// Its id, or the process that has none yet.
    pub(super) id: String,
    /// The model.
    pub(super) model: String,
    /// Its host, where a hive started it.
    pub(super) host: Option<String>,
    /// The device it runs on.
    pub(super) device: String,
    /// Liveness, or what it does.
    pub(super) state: State,
    /// Why it takes no request.
    pub(super) reason: Option<String>,
    /// Requests that it works on.
    pub(super) busy: u32,
    /// Requests that it can work on together.
    pub(super) slots: u32,
    /// Requests that wait for one of its slots.
    pub(super) waiting: u32,
    /// Tokens decoded per second, recently.
    pub(super) tokens_per_second: f64,
    /// Main memory, where its hive measures it.
    pub(super) ram_mb: Option<u64>,
    /// Device memory, where its hive measures it.
    pub(super) vram_mb: Option<u64>,
    /// Age of its newest heartbeat; `null` before the first one.
    pub(super) beat_age_ms: Option<u64>,
}

/// The hosts, in the order of their ids.
pub(super) fn hosts(fleet: &Fleet, now: Duration) -> Vec<HostRow> {
    fleet.hives.values().map(|member| host(member, now)).collect()
}

fn host(member: &Member<HiveView>, now: Duration) -> HostRow {
    let hive = &member.view;
    let ours = hive.workers.iter().map(|process| process.rss_mb).sum();
    let devices = hive.capabilities.iter().flat_map(|capabilities| &capabilities.devices);
    let gpus = devices.filter(|device| device.kind != DeviceKind::Cpu);
    let load_of = |id: &str| hive.monitor.devices.iter().find(|load| load.id == id);
    HostRow {
        id: hive.id.to_string(),
        state: host_state(hive),
        reason: hive.reason.clone().or_else(|| hive.health_reason.clone()),
        cpu_percent: hive.monitor.cpu_usage_percent,
        ram: Memory::new(ours, hive.monitor.ram_used_mb, hive.monitor.ram_total_mb),
        beat_age_ms: millis(member.beat_age(now)),
        devices: gpus
            .map(|gpu| device(&gpu.id, &gpu.name, gpu.memory_total_mb, load_of(&gpu.id), &hive.workers))
            .collect(),
    }
}

fn host_state(hive: &HiveView) -> State {
    match (hive.liveness, hive.operational_status, hive.health_status) {
        (Liveness::Online, _, HealthStatus::Unhealthy) => state("unhealthy", Tone::Bad),
        (Liveness::Online, _, _) if hive.drained => state("drained", Tone::Warn),
        (Liveness::Online, OperationalStatus::Starting, _) => state("starting", Tone::Warn),
        (Liveness::Online, OperationalStatus::Draining, _) => state("draining", Tone::Warn),
        (Liveness::Online, OperationalStatus::Stopped, _) => state("stopped", Tone::Warn),
        (Liveness::Online, OperationalStatus::Ready, HealthStatus::Degraded) => state("degraded", Tone::Warn),
        (Liveness::Online, OperationalStatus::Ready, HealthStatus::Healthy) => state("online", Tone::Good),
        (liveness, ..) => absent(liveness),
    }
}

fn absent(liveness: Liveness) -> State {
    match liveness {
        Liveness::Online => state("online", Tone::Good),
        Liveness::Suspect => state("suspect", Tone::Warn),
        Liveness::Unreachable => state("unreachable", Tone::Bad),
        Liveness::Lost => state("lost", Tone::Bad),
    }
}

fn device(id: &str, name: &str, total_mb: u64, load: Option<&DeviceLoad>, processes: &[ProcessStats]) -> DeviceRow {
    let memory = load.and_then(|load| {
        let used = load.vram_used_mb?;
        let measured = || {
            let on_it = processes.iter().filter(|process| process.device.as_deref() == Some(id));
            on_it.filter_map(|process| process.vram_mb).sum()
        };
        let ours = load
            .vram_foreign_mb
            .map_or_else(measured, |foreign| used.saturating_sub(foreign));
        Memory::new(ours, used, load.vram_total_mb.unwrap_or(total_mb))
    });
    DeviceRow {
        id: id.to_owned(),
        name: name.to_owned(),
        memory,
        utilisation_percent: load.and_then(|load| load.util_percent),
        temperature_celsius: load.and_then(|load| load.temperature_celsius),
        power_watts: load.and_then(|load| load.power_watts),
        power_limit_watts: load.and_then(|load| load.power_limit_watts),
    }
}

/// The workers, and behind them the processes of which the queen has not heard yet; each in the order of their ids.
pub(super) fn workers(fleet: &Fleet, now: Duration) -> Vec<WorkerRow> {
    let known = fleet.workers.values().map(|member| worker(member, now));
    let silent = fleet.hives.values().flat_map(|hive| {
        let processes = hive.view.workers.iter().filter(|process| !is_known(fleet, process));
        processes.map(|process| starting(&hive.view, process))
    });
    known.chain(silent).collect()
}

fn is_known(fleet: &Fleet, process: &ProcessStats) -> bool {
    process
        .worker_id
        .as_ref()
        .is_some_and(|id| fleet.workers.contains_key(id.as_str()))
}

fn worker(member: &Member<WorkerView>, now: Duration) -> WorkerRow {
    let worker = &member.view;
    WorkerRow {
        id: worker.id.to_string(),
        model: worker.model_id.to_string(),
        host: worker.hive_id.as_ref().map(ToString::to_string),
        device: worker.device.clone(),
        state: worker_state(worker),
        reason: worker.reason.clone(),
        busy: worker.load.running,
        slots: worker.slots,
        waiting: worker.load.waiting,
        tokens_per_second: worker.load.tokens_per_second,
        ram_mb: worker
            .process
            .as_ref()
            .map(|process| process.rss_mb)
            .filter(|mb| *mb > 0),
        vram_mb: worker.process.as_ref().and_then(|process| process.vram_mb),
        beat_age_ms: Some(millis(member.beat_age(now))),
    }
}

fn worker_state(worker: &WorkerView) -> State {
    match (worker.liveness, worker.status) {
        (Liveness::Online, WorkerStatus::Starting) => state("starting", Tone::Warn),
        (Liveness::Online, WorkerStatus::Ready) => state("ready", Tone::Good),
        (Liveness::Online, WorkerStatus::Busy) => state("busy", Tone::Good),
        (Liveness::Online, WorkerStatus::Draining) => state("draining", Tone::Warn),
        (Liveness::Online, WorkerStatus::Stopped) => state("stopped", Tone::Plain),
        (Liveness::Online, WorkerStatus::Failed) => state("failed", Tone::Bad),
        (liveness, _) => absent(liveness),
    }
}

fn starting(hive: &HiveView, process: &ProcessStats) -> WorkerRow {
    let id = process.worker_id.as_ref().map(ToString::to_string);
    WorkerRow {
        id: id.unwrap_or_else(|| format!("pid {}", process.pid)),
        model: process.model.as_ref().map(ToString::to_string).unwrap_or_default(),
        host: Some(hive.id.to_string()),
        device: process.device.clone().unwrap_or_default(),
        state: match process.state {
            ProcessState::Starting => state("starting", Tone::Warn),
            ProcessState::Running => state("unheard", Tone::Warn),
            ProcessState::Restarting => state("restarting", Tone::Warn),
            ProcessState::Stopping => state("stopping", Tone::Warn),
            ProcessState::Failed => state("failed", Tone::Bad),
        },
        reason: None,
        busy: 0,
        slots: 0,
        waiting: 0,
        tokens_per_second: 0.0,
        ram_mb: Some(process.rss_mb).filter(|mb| *mb > 0),
        vram_mb: process.vram_mb,
        beat_age_ms: None,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fleet::tests::{hive, worker};
    use crate::top::state::tests::snapshot;

    /// A host with a GPU on which somebody else works, too.
    pub(in crate::top) fn gpu_host(id: &str) -> Value {
        let mut host = hive(id);
        host["health_status"] = "healthy".into();
        host["capabilities"]["devices"] = json!([
            {"id": "cpu", "kind": "cpu", "name": "CPU", "memory_total_mb": 64_000},
            {"id": "cuda:0", "kind": "cuda", "name": "NVIDIA RTX 4090", "memory_total_mb": 24_000},
        ]);
        host["monitor"]["devices"] = json!([{
            "id": "cuda:0", "util_percent": 97.0, "vram_used_mb": 18_000, "vram_total_mb": 24_000,
            "vram_foreign_mb": 6_000, "temperature_celsius": 71.0, "power_watts": 320.4, "power_limit_watts": 450.0,
        }]);
        host
    }

    fn fleet(hives: &[Value], workers: &[Value]) -> Fleet {
        let mut fleet = Fleet::default();
        fleet.apply(snapshot(hives, workers), Duration::ZERO);
        fleet
    }

    #[test]
    fn memory_is_divided_into_ours_and_others() {
        let host = &hosts(&fleet(&[gpu_host("box")], &[]), Duration::ZERO)[0];
        assert_eq!(host.devices.len(), 1, "main memory is the host's own row");
        let memory = host.devices[0].memory.unwrap();
        assert_eq!(
            (memory.ours_mb, memory.others_mb, memory.total_mb),
            (12_000, 6_000, 24_000)
        );
        let ram = host.ram.unwrap();
        assert_eq!((ram.ours_mb, ram.others_mb, ram.total_mb), (0, 1_500, 64_000));
    }

    #[test]
    fn workers_that_hold_more_than_is_used_do_not_break_the_sum() {
        let memory = Memory::new(900, 500, 400).unwrap();
        assert_eq!((memory.ours_mb, memory.others_mb), (400, 0));
        assert_eq!(Memory::new(0, 0, 0), None);
    }

    #[test]
    fn a_process_that_only_starts_is_shown_before_its_first_beat() {
        let mut host = hive("gpu-box");
        let process = |id: &str| {
            json!({"pid": 7, "group": "llm-worker", "instance": "", "cpu_pct": 0.0, "rss_mb": 300, "io_r_mb_s": 0.0,
                   "io_w_mb_s": 0.0, "uptime_s": 1, "state": "starting", "worker_id": id, "model": "m", "device": "cpu"})
        };
        host["workers"] = json!([process("w-1"), process("w-2")]);
        let rows = workers(&fleet(&[host], &[worker("w-1")]), Duration::ZERO);
        let shown: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.state.word)).collect();
        assert_eq!(shown, [("w-1", "ready"), ("w-2", "starting")]);
    }
}
