//! What is measured of the host and its workers, together with what was promised and who else is there.

use std::collections::{BTreeMap, BTreeSet};

use device_monitor::{Named, Snapshot};
use hive_contract::{DeviceInfo, DeviceKind, DeviceLoad, MonitorData, ProcessState, ProcessStats};
use shared_contract::WorkerId;
use tokio::time::Instant;
use worker_supervisor::Kept;

use crate::core::{Core, Table, Worker};
use crate::ledger::Ledger;
use crate::workers::adopt;

/// Kind of process that workers are, in process stats.
const GROUP: &str = "llm-worker";
/// Id of the main processor among the devices.
const CPU: &str = "cpu";

impl Core {
    /// Devices that workers may use.
    pub(crate) fn devices(&self) -> Vec<DeviceInfo> {
        self.devices_in(&self.monitor.snapshot())
    }

    pub(crate) fn devices_in(&self, snapshot: &Snapshot) -> Vec<DeviceInfo> {
        let mut devices = snapshot.devices();
        devices.retain(|device| self.sharing.allows(&device.id));
        for device in &mut devices {
            device.memory_reserved_mb = (self.sharing.reserve(device.kind) >> 20).min(device.memory_total_mb);
        }
        devices
    }

    /// The load of the host and its worker processes.
    pub(crate) fn measure(&self) -> (MonitorData, Vec<ProcessStats>) {
        let snapshot = self.monitor.snapshot();
        // First the table, so that what the supervisor says otherwise is newer.
        let table = self.workers().borrow().clone();
        let mut data = snapshot.monitor(self.uptime(), &self.own_pids());
        let stats = self.stats_in(&snapshot, &data.devices, table.clone());
        let ledger = Ledger {
            sharing: &self.sharing,
            ram_available_mb: snapshot.ram_available_mb(),
            loads: &data.devices,
            workers: &table,
            measured: &stats,
        };
        let free_mb = |device: &str, kind| ledger.free(device, kind).map(|bytes| bytes >> 20);
        let ram_free_mb = free_mb(CPU, DeviceKind::Cpu);
        let gpus_free_mb: Vec<_> = data
            .devices
            .iter()
            .map(|load| free_mb(&load.id, load.id.parse().unwrap_or(DeviceKind::Unknown)))
            .collect();
        data.ram_free_mb = ram_free_mb;
        let owners = self.owners();
        for (load, free_mb) in data.devices.iter_mut().zip(gpus_free_mb) {
            load.vram_free_mb = free_mb;
            load.owner = owners.on(&load.id).cloned();
        }
        drop(owners);
        (data, stats)
    }

    /// The processes of the workers in a table. One that has ended is not shown as one that runs, even before the table has heard of it.
    pub(crate) fn stats_in(&self, snapshot: &Snapshot, loads: &[DeviceLoad], mut table: Table) -> Vec<ProcessStats> {
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
            if stats.vram_mb.is_none() && holds_nothing(snapshot, loads, &stats) {
                stats.vram_mb = Some(0);
            }
            stats
        };
        table.iter().map(measured).collect()
    }

    /// The hive's own processes: all others on a device are foreign.
    pub(crate) fn own_pids(&self) -> BTreeSet<u32> {
        // One that was started just now may not stand in the table yet.
        let kept = self.supervisor.list().into_iter().filter_map(|kept| kept.pid);
        let mut pids = self.own_processes().pids(Instant::now());
        pids.extend(kept);
        pids
    }
}

/// Whether the driver, which names all processes of the worker's device, does not name this one: it has not begun to use
/// the device, or had not when the driver was asked.
fn holds_nothing(snapshot: &Snapshot, loads: &[DeviceLoad], stats: &ProcessStats) -> bool {
    let device = stats.device.as_deref().unwrap_or(CPU);
    let is_fresh = loads
        .iter()
        .any(|load| load.id == device && load.vram_used_mb.is_some());
    let gpu = snapshot.device(device);
    is_fresh && gpu.is_some_and(|gpu| gpu.named == Named::All && !gpu.processes.contains_key(&stats.pid))
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
pub(crate) fn stats_of(id: &WorkerId, worker: &Worker) -> ProcessStats {
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
        model: Some(worker.order.model.clone()),
        state: worker.state,
        worker_id: Some(id.clone()),
        device: Some(worker.order.device.id.clone()),
        granted_mb: Some(worker.order.grant.bytes >> 20),
        pinned: worker.order.pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::worker;

    #[test]
    fn a_process_that_has_ended_does_not_run_whatever_the_table_says() {
        let kept = |pid, state| Kept {
            id: WorkerId::new("w").unwrap(),
            label: String::new(),
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
            ..worker("cpu", ProcessState::Running)
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
    fn a_worker_is_shown_with_its_device_and_what_it_was_granted() {
        let stats = stats_of(&WorkerId::new("w").unwrap(), &worker("cuda:1", ProcessState::Starting));
        assert_eq!(
            (stats.device.as_deref(), stats.granted_mb),
            (Some("cuda:1"), Some(3072))
        );
    }
}
