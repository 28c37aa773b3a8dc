//! What `GET /metrics` shows. Gauges are read when they are asked for.

use std::sync::atomic::AtomicU64;

use hive_contract::{DeviceLoad, JobState, Operation, ProcessState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use shared_contract::DropReason;

use crate::App;

const MB: f64 = 1024.0 * 1024.0;

/// All reasons are shown, also those that no queen gives.
const DROP_REASONS: [DropReason; 6] = [
    DropReason::Duplicate,
    DropReason::Reordered,
    DropReason::OlderIncarnation,
    DropReason::Departed,
    DropReason::Conflict,
    DropReason::Unknown,
];

type Value = Gauge<f64, AtomicU64>;

/// What is counted while the hive runs. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    /// Worker processes that were started.
    pub(crate) worker_starts: Counter,
    /// Worker processes that ended.
    pub(crate) worker_exits: Counter,
    /// Worker processes taken over from an earlier hive.
    pub(crate) worker_adoptions: Counter,
    /// Workers stopped because nobody needed them.
    pub(crate) idle_stops: Counter,
    /// Workers stopped because the machine's owner was at work.
    pub(crate) yields: Counter,
    jobs: Family<JobLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    operation: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    device: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

impl Counters {
    /// A job is over.
    pub(crate) fn job_ended(&self, operation: &Operation, state: JobState) {
        let operation = operation.name();
        let state = match state {
            JobState::Running => "running",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        };
        self.jobs.get_or_create(&JobLabels { operation, state }).inc();
    }
}

/// All of it, as it is now.
pub(crate) fn registry(app: &App) -> Registry {
    let mut registry = Registry::with_prefix("rbee_hive");
    counters(&mut registry, &app.core.counters);
    workers(&mut registry, app);
    host(&mut registry, app);
    registry
}

fn counters(registry: &mut Registry, counters: &Counters) {
    registry.register(
        "worker_starts",
        "Worker processes started",
        counters.worker_starts.clone(),
    );
    registry.register(
        "worker_exits",
        "Worker processes that ended",
        counters.worker_exits.clone(),
    );
    registry.register(
        "worker_adoptions",
        "Worker processes taken over from an earlier hive",
        counters.worker_adoptions.clone(),
    );
    registry.register(
        "worker_idle_stops",
        "Workers stopped because nobody needed them",
        counters.idle_stops.clone(),
    );
    registry.register(
        "worker_yields",
        "Workers stopped because the machine's owner was at work",
        counters.yields.clone(),
    );
    registry.register("jobs", "Jobs that are over", counters.jobs.clone());
}

fn workers(registry: &mut Registry, app: &App) {
    let states = Family::<StateLabels, Gauge>::default();
    // All states are shown, also those that no worker is in.
    let words = ["starting", "running", "restarting", "stopping", "failed"];
    for state in words {
        states.get_or_create(&StateLabels { state }).set(0);
    }
    for worker in app.core.workers().borrow().values() {
        let state = match worker.state {
            ProcessState::Starting => "starting",
            ProcessState::Running => "running",
            ProcessState::Restarting => "restarting",
            ProcessState::Stopping => "stopping",
            ProcessState::Failed => "failed",
        };
        states.get_or_create(&StateLabels { state }).inc();
    }
    registry.register("workers", "Workers that this hive keeps", states);
    let (answering, queens) = app.queens.counts();
    gauge(registry, "queens", "Queens that this hive reports to", queens as f64);
    gauge(
        registry,
        "queens_answering",
        "Queens that answer its heartbeats",
        answering as f64,
    );
    let dropping = Family::<ReasonLabels, Gauge>::default();
    for reason in DROP_REASONS {
        let reason = reason.as_str();
        dropping.get_or_create_owned(&ReasonLabels { reason });
    }
    for reason in app.queens.drops() {
        let reason = reason.as_str();
        dropping.get_or_create(&ReasonLabels { reason }).inc();
    }
    registry.register(
        "queens_dropping",
        "Queens that take its heartbeats for no news of it, by the reason",
        dropping,
    );
}

fn host(registry: &mut Registry, app: &App) {
    let telemetry = app.core.telemetry().monitor;
    let cpu = f64::from(telemetry.cpu_usage_percent) / 100.0;
    gauge(registry, "cpu_usage_ratio", "Use of all cores together", cpu);
    let used = telemetry.ram_used_mb as f64 * MB;
    bytes(registry, "ram_used", "Main memory in use", used);
    let total = telemetry.ram_total_mb as f64 * MB;
    bytes(registry, "ram_total", "Main memory that there is", total);

    if let Some(free_mb) = telemetry.ram_free_mb {
        let free = free_mb as f64 * MB;
        bytes(registry, "ram_free", "Main memory that a new worker can get", free);
    }
    for (name, help, figure) in DEVICE_GAUGES {
        per_device(registry, &telemetry.devices, name, help, figure);
    }
}

/// A figure of a device, where it is known.
type Figure = fn(&DeviceLoad) -> Option<f64>;

/// Gauges that there is one of for each device: name, help, figure.
const DEVICE_GAUGES: [(&str, &str, Figure); 9] = [
    ("device_usage_ratio", "Use of a device", |load| {
        Some(f64::from(load.util_percent?) / 100.0)
    }),
    ("device_memory_used_bytes", "Device memory in use", |load| {
        Some(load.vram_used_mb? as f64 * MB)
    }),
    ("device_memory_total_bytes", "Device memory", |load| {
        Some(load.vram_total_mb? as f64 * MB)
    }),
    (
        "device_memory_foreign_bytes",
        "Device memory held by others than this hive's workers",
        |load| Some(load.vram_foreign_mb? as f64 * MB),
    ),
    (
        "device_memory_free_bytes",
        "Device memory that a new worker can get",
        |load| Some(load.vram_free_mb? as f64 * MB),
    ),
    (
        "device_owner_active",
        "1 while the machine's owner uses the device",
        |load| Some(f64::from(u8::from(load.owner.is_some()))),
    ),
    ("device_temperature_celsius", "Temperature", |load| {
        load.temperature_celsius.map(f64::from)
    }),
    ("device_power_watts", "Power drawn", |load| {
        load.power_watts.map(f64::from)
    }),
    ("device_power_limit_watts", "Most power that it may draw", |load| {
        load.power_limit_watts.map(f64::from)
    }),
];

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Value::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn bytes(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Value::default();
    gauge.set(value);
    registry.register_with_unit(name, help, Unit::Bytes, gauge);
}

/// A gauge for each device that tells this figure.
fn per_device(registry: &mut Registry, devices: &[DeviceLoad], name: &str, help: &str, figure: Figure) {
    let family = Family::<DeviceLabels, Value>::default();
    for load in devices {
        if let Some(value) = figure(load) {
            let device = load.id.clone();
            family.get_or_create(&DeviceLabels { device }).set(value);
        }
    }
    registry.register(name, help, family);
}
