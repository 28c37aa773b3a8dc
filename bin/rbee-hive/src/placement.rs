//! Finds a device for a model, and reserves its memory at once, so that two workers never count on the same.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use device_monitor::Snapshot;
use hive_contract::{DeviceInfo, DeviceKind, DeviceLoad};
use model_format::{Backend, Facts, KV_BLOCK_TOKENS};
use scheduler::{LEAST_TOKENS, Need, Refused, Room, place};
use shared_contract::{ModelId, WorkerId};

use crate::core::{Core, Held, Table, Worker};
use crate::ledger::Ledger;
use crate::workers::{Grant, Order};
use crate::{engines, owner};

const BLOCK: NonZeroU64 = NonZeroU64::new(KV_BLOCK_TOKENS).expect("a block has tokens");

/// A worker that somebody wants, wherever it fits.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) id: WorkerId,
    pub(crate) reference: String,
    pub(crate) model: ModelId,
    /// Devices of this kind only.
    pub(crate) kind: DeviceKind,
    /// This device only.
    pub(crate) device: Option<String>,
    pub(crate) context_length: Option<u32>,
    pub(crate) slots: Option<u32>,
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) pinned: bool,
}

impl Wish {
    /// The same worker again, on the device that it had.
    pub(crate) fn again(order: &Order) -> Self {
        Self {
            id: order.id.clone(),
            reference: order.reference.clone(),
            model: order.model.clone(),
            kind: order.device.kind,
            device: Some(order.device.id.clone()),
            context_length: order.context_length,
            slots: order.slots,
            keep_alive: order.keep_alive,
            pinned: order.pinned,
        }
    }

    fn admits(&self, device: &DeviceInfo) -> bool {
        device.kind == self.kind && self.device.as_ref().is_none_or(|wanted| *wanted == device.id)
    }
}

/// Chooses a device for the model that has these facts, and enters the worker in the table with its grant. Its process is
/// still to be started.
pub(crate) fn reserve(core: &Core, wish: Wish, facts: &Facts, hold: Held) -> Result<Arc<Order>, Refused> {
    let host = Measured::now(core);
    let mut outcome = Err(Refused { reasons: Vec::new() });
    // Looked at and entered in one step: whoever comes next finds the memory promised.
    core.change_workers(|table| {
        outcome = host.enter(core, table, wish, facts, Some(hold));
        Vec::new()
    });
    outcome
}

/// The same for a worker that waits for its device; `None` if it does not wait any more, because somebody stopped it.
pub(crate) fn reserve_again(core: &Core, order: &Order, facts: &Facts) -> Option<Result<Arc<Order>, Refused>> {
    let host = Measured::now(core);
    let mut outcome = None;
    core.change_workers(|table| {
        // What it was promised until now is its own.
        if table.get(&order.id).is_some_and(Worker::is_waiting)
            && let Some(waiting) = table.remove(&order.id)
        {
            let entered = host.enter(core, table, Wish::again(order), facts, waiting.hold.clone());
            match (&entered, table.get_mut(&order.id)) {
                (Ok(_), Some(worker)) => {
                    worker.is_settled = true;
                    worker.log = waiting.log;
                }
                _ => drop(table.insert(order.id.clone(), waiting)),
            }
            outcome = Some(entered);
        }
        Vec::new()
    });
    outcome
}

/// What is measured of the host at one moment.
struct Measured {
    snapshot: Snapshot,
    loads: Vec<DeviceLoad>,
}

impl Measured {
    fn now(core: &Core) -> Self {
        let snapshot = core.monitor.snapshot();
        let loads = snapshot.monitor(core.uptime(), &core.own_pids()).devices;
        Self { snapshot, loads }
    }

    /// Enters the worker in the table, if there is a device for it.
    fn enter(
        &self,
        core: &Core,
        table: &mut Table,
        wish: Wish,
        facts: &Facts,
        hold: Option<Held>,
    ) -> Result<Arc<Order>, Refused> {
        let need = need(facts, wish.kind, wish.context_length);
        let mut devices = core.devices_in(&self.snapshot);
        devices.retain(|device| wish.admits(device));
        let measured = core.stats_in(&self.snapshot, &self.loads, table.clone());
        let ledger = Ledger {
            sharing: &core.sharing,
            ram_available_mb: self.snapshot.ram_available_mb(),
            loads: &self.loads,
            workers: table,
            measured: &measured,
        };
        let rooms: Vec<Room> = devices
            .iter()
            .map(|device| room(core, &ledger, &need, device))
            .collect();
        let placed = place(&need, &rooms)?;
        let order = Arc::new(Order {
            id: wish.id,
            reference: wish.reference,
            model: wish.model,
            device: devices.swap_remove(placed.index),
            grant: Grant {
                bytes: placed.bytes,
                fixed_bytes: need.fixed_bytes,
                kv_tokens: placed.kv_tokens,
            },
            context_length: wish.context_length,
            slots: wish.slots,
            keep_alive: wish.keep_alive,
            pinned: wish.pinned,
        });
        table.insert(order.id.clone(), Worker::new(Arc::clone(&order), hold));
        Ok(order)
    }
}

/// What a model takes of a device of this kind.
fn need(facts: &Facts, kind: DeviceKind, asked: Option<u32>) -> Need {
    let backend = match kind {
        DeviceKind::Cpu => Backend::Cpu,
        _ => Backend::Gpu,
    };
    let memory = facts.memory(backend);
    let trained = match facts.context_length {
        0 => LEAST_TOKENS,
        tokens => tokens.into(),
    };
    Need::new(
        memory.total(0),
        memory.kv_bytes_per_token,
        BLOCK,
        trained,
        asked.map(u64::from),
    )
}

fn room(core: &Core, ledger: &Ledger<'_>, need: &Need, device: &DeviceInfo) -> Room {
    let free_bytes = ledger.free(&device.id, device.kind);
    let most_bytes = match device.kind {
        DeviceKind::Cpu => core.sharing.worker_memory_max.unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    let closed = engines::obstacle(&core.engines, device)
        .or_else(|| {
            let owners = core.owners();
            let owner = owners.on(&device.id)?;
            Some(format!("its owner is at work: {}", owner::describe(owner)))
        })
        .or_else(|| beyond(need, most_bytes))
        .or_else(|| match free_bytes {
            Some(_) => None,
            None => Some("it does not tell how much of its memory is in use".to_owned()),
        });
    Room {
        id: device.id.clone(),
        total_bytes: device.memory_total_mb << 20,
        free_bytes: free_bytes.unwrap_or(0).min(most_bytes),
        closed,
    }
}

/// Why a model cannot be served where a worker may take `most_bytes`, whatever is free; `None` if it can.
fn beyond(need: &Need, most_bytes: u64) -> Option<String> {
    let least = need.bytes(need.least_tokens);
    (least > most_bytes).then(|| {
        format!(
            "it takes {} MiB with a cache of {} tokens, and a worker may take {} MiB (--worker-memory-max of the hive)",
            least.div_ceil(1 << 20),
            need.least_tokens,
            most_bytes >> 20
        )
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a model of 8 billion parameters in four bits each.
    pub(crate) fn facts() -> Facts {
        Facts {
            family: "llama".into(),
            name: None,
            parameters: 8_000_000_000,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            context_length: 8192,
            vocab_size: 128_256,
            width: 4096,
            hidden: 14_336,
            quantization: "Q4_K".into(),
            weight_bytes: 5 << 30,
            cpu_weight_bytes: 6 << 30,
            gpu_weight_bytes: 5 << 30,
            kv_bytes_per_token: 128 << 10,
            cpu_kv_bytes_per_token: 128 << 10,
            chat: true,
        }
    }

    #[test]
    fn what_a_model_takes_depends_on_what_computes_with_it() {
        let (cpu, gpu) = (
            need(&facts(), DeviceKind::Cpu, None),
            need(&facts(), DeviceKind::Cuda, None),
        );
        assert!(cpu.fixed_bytes > 6 << 30);
        assert!(gpu.fixed_bytes > 5 << 30 && gpu.fixed_bytes < cpu.fixed_bytes);
        assert_eq!((gpu.least_tokens, gpu.wanted_tokens), (4096, 8192));
        // What is planned is what the model's header says, to the byte.
        assert_eq!(gpu.bytes(8192), facts().memory(Backend::Gpu).total(8192));
    }

    #[test]
    fn a_model_that_takes_more_than_a_worker_may_is_told_so() {
        let need = need(&facts(), DeviceKind::Cpu, None);
        assert_eq!(beyond(&need, need.bytes(4096)), None);
        let why = beyond(&need, need.bytes(4096) - 1).unwrap();
        assert!(
            why.contains("--worker-memory-max") && why.contains("4096 tokens"),
            "{why}"
        );
    }

    #[test]
    fn a_model_that_does_not_say_what_it_was_made_for_gets_the_least() {
        let silent = Facts {
            context_length: 0,
            ..facts()
        };
        assert_eq!(need(&silent, DeviceKind::Cpu, None).least_tokens, LEAST_TOKENS);
    }
}
