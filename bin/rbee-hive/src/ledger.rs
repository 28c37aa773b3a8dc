//! How much memory of each device can be promised: what nobody holds, less the owner's reserve and what workers have still
//! to take of their grants.

use hive_contract::{DeviceKind, DeviceLoad, ProcessState, ProcessStats};
use scheduler::{Promise, free_bytes};

use crate::config::Sharing;
use crate::core::Table;

const MIB: u64 = 1 << 20;

/// What is known of the host's memory at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ledger<'a> {
    pub(crate) sharing: &'a Sharing,
    /// Main memory that can be had.
    pub(crate) ram_available_mb: Option<u64>,
    /// The GPUs' load.
    pub(crate) loads: &'a [DeviceLoad],
    /// Who was promised what.
    pub(crate) workers: &'a Table,
    /// What is measured of them.
    pub(crate) measured: &'a [ProcessStats],
}

impl Ledger<'_> {
    /// What can be promised of a device, in bytes; `None` where it does not tell how much of it is in use.
    pub(crate) fn free(&self, device: &str, kind: DeviceKind) -> Option<u64> {
        let available_mb = match kind {
            DeviceKind::Cpu => self.ram_available_mb?,
            _ => {
                let load = self.loads.iter().find(|load| load.id == device)?;
                load.vram_total_mb?.saturating_sub(load.vram_used_mb?)
            }
        };
        let promises = self.promises(device, kind);
        Some(free_bytes(available_mb * MIB, self.sharing.reserve(kind), promises))
    }

    /// What was promised to the workers on a device.
    fn promises(&self, device: &str, kind: DeviceKind) -> impl Iterator<Item = Promise> {
        let workers = self.workers.iter();
        // One that is not started again takes nothing any more.
        let workers =
            workers.filter(move |(_, worker)| worker.order.device.id == device && worker.state != ProcessState::Failed);
        workers.map(move |(id, worker)| {
            let grant = &worker.order.grant;
            let stats = self.measured.iter().find(|stats| stats.worker_id.as_ref() == Some(id));
            Promise {
                granted_bytes: grant.bytes,
                held_bytes: stats.map_or(0, |stats| held(stats, kind, grant.fixed_bytes)),
            }
        })
    }
}

/// What a worker holds of its device's memory.
fn held(stats: &ProcessStats, kind: DeviceKind, fixed_bytes: u64) -> u64 {
    match (kind, stats.vram_mb, stats.state) {
        (DeviceKind::Cpu, _, _) => stats.rss_mb * MIB,
        (_, Some(held_mb), _) => held_mb * MIB,
        // The driver does not tell whose memory it is; a worker that is ready has its weights.
        (_, None, ProcessState::Running) => fixed_bytes,
        (_, None, _) => 0,
    }
}

#[cfg(test)]
mod tests {
    use shared_contract::WorkerId;

    use super::*;
    use crate::core::tests::worker;
    use crate::measure::stats_of;

    fn sharing() -> Sharing {
        Sharing {
            reserve_vram: 512 * MIB,
            reserve_ram: 1024 * MIB,
            ..Sharing::default()
        }
    }

    fn load(used_mb: Option<u64>) -> DeviceLoad {
        DeviceLoad {
            id: "cuda:0".into(),
            vram_total_mb: Some(24_000),
            vram_used_mb: used_mb,
            ..DeviceLoad::default()
        }
    }

    /// Of the device `cuda:0`, with one worker on it that was granted 3 GiB, 1 GiB of it fixed.
    fn free(used_mb: Option<u64>, state: ProcessState, vram_mb: Option<u64>) -> Option<u64> {
        let workers = Table::from([(WorkerId::new("w").unwrap(), worker("cuda:0", state))]);
        let (id, worker) = workers.first_key_value().unwrap();
        let measured = [ProcessStats {
            vram_mb,
            ..stats_of(id, worker)
        }];
        let ledger = Ledger {
            sharing: &sharing(),
            ram_available_mb: Some(5000),
            loads: &[load(used_mb)],
            workers: &workers,
            measured: &measured,
        };
        assert_eq!(ledger.free("cpu", DeviceKind::Cpu), Some((5000 - 1024) * MIB));
        ledger.free("cuda:0", DeviceKind::Cuda).map(|bytes| bytes / MIB)
    }

    #[test]
    fn a_promise_counts_until_its_memory_is_taken() {
        let all = 24_000 - 512 - 3072;
        assert_eq!(free(Some(0), ProcessState::Starting, None), Some(all));
        assert_eq!(free(Some(2000), ProcessState::Running, Some(2000)), Some(all));
        assert_eq!(
            free(Some(5072), ProcessState::Running, Some(5072)),
            Some(all - 2000),
            "it takes more than it may"
        );
        assert_eq!(
            free(Some(2000), ProcessState::Restarting, Some(0)),
            Some(all - 2000),
            "somebody else's"
        );
    }

    #[test]
    fn where_the_driver_names_nobody_a_ready_worker_is_taken_to_hold_its_weights() {
        let all = 24_000 - 512 - 3072;
        assert_eq!(free(Some(1024), ProcessState::Running, None), Some(all));
        assert_eq!(free(Some(1024), ProcessState::Starting, None), Some(all - 1024));
    }

    #[test]
    fn one_that_is_given_up_is_promised_nothing_and_a_silent_device_promises_nothing() {
        assert_eq!(free(Some(0), ProcessState::Failed, None), Some(24_000 - 512));
        assert_eq!(free(None, ProcessState::Running, None), None);
    }
}
