//! Watches what changes on this host by itself: devices that come and go, a driver that fails, and the machine's owner,
//! for whom workers make room if the settings say so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hive_contract::{DeviceInfo, OwnerProcess, ProcessState};
use model_store::ModelRef;
use shared_contract::WorkerId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::App;
use crate::core::{Core, Table, Worker};
use crate::owner::{self, Seen, Turn};
use crate::placement::reserve_again;
use crate::workers::{self, Order};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Watches for as long as it is polled.
pub(crate) async fn watch(app: Arc<App>) {
    let mut last = look(&app.core);
    let mut yielding = Yielding::new(Arc::clone(&app));
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = look(&app.core);
        if now != last {
            let (devices, has_problem) = (now.0.len(), now.1);
            tracing::info!(devices, has_problem, "this host's devices changed");
            last = now;
            app.core.tell();
        }
        yielding.look();
    }
}

fn look(core: &Core) -> (Vec<DeviceInfo>, bool) {
    (core.devices(), core.monitor.snapshot().problem().is_some())
}

/// How workers and the machine's owner share the GPUs.
struct Yielding {
    app: Arc<App>,
    /// Workers on their way out.
    leaving: JoinSet<()>,
    /// Workers on their way back, one after the other.
    returning: JoinSet<()>,
}

impl Yielding {
    fn new(app: Arc<App>) -> Self {
        Self {
            app,
            leaving: JoinSet::new(),
            returning: JoinSet::new(),
        }
    }

    fn look(&mut self) {
        while self.leaving.try_join_next().is_some() {}
        while self.returning.try_join_next().is_some() {}
        for turn in owner_turns(&self.app.core) {
            self.app.core.tell();
            match turn {
                Turn::Came { device, owner } => {
                    tracing::info!(
                        device,
                        owner = owner::describe(&owner),
                        "the machine's owner is at work"
                    );
                    if self.app.core.sharing.yield_to_owner {
                        self.make_room(&device, &owner);
                    }
                }
                Turn::Left { device } => tracing::info!(device, "the machine's owner has let go"),
            }
        }
        let free = waiting(&self.app.core);
        if self.returning.is_empty() && !free.is_empty() {
            let app = Arc::clone(&self.app);
            self.returning.spawn(async move {
                for order in free {
                    bring_back(&app, &order).await;
                }
            });
        }
    }

    /// Stops the workers of a device; those that had been ready wait in the table to come back.
    fn make_room(&mut self, device: &str, owner: &OwnerProcess) {
        let why = format!("yielded to {}", owner::name(owner));
        let mut ids = Vec::new();
        self.app.core.change_workers(|table| {
            ids = take_leave(table, device);
            Vec::new()
        });
        for id in ids {
            let (app, why) = (Arc::clone(&self.app), why.clone());
            app.core.counters.yields.inc();
            self.leaving.spawn(async move {
                // It may have ended by itself meanwhile.
                let _ = workers::retire(&app, &id, why).await;
            });
        }
    }
}

/// Looks who uses the GPUs.
fn owner_turns(core: &Core) -> Vec<Turn> {
    let snapshot = core.monitor.snapshot();
    let ours = core.own_pids();
    let loads = snapshot.monitor(core.uptime(), &ours).devices;
    let table = core.workers().borrow().clone();
    let look_at = |device: &DeviceInfo| {
        let load = loads.iter().find(|load| load.id == device.id);
        let there = table.values().filter(|worker| worker.order.device.id == device.id);
        owner::look_at(
            snapshot.device(&device.id)?,
            load.and_then(|load| load.vram_used_mb),
            &snapshot.foreign(&device.id, &ours),
            &there.filter_map(|worker| worker.pid).collect(),
            core.sharing.owner_vram,
        )
    };
    let devices = snapshot.devices().into_iter();
    let seen: BTreeMap<String, Seen> = devices
        .filter_map(|device| Some((device.id.clone(), look_at(&device)?)))
        .collect();
    core.owners().look(seen, Instant::now())
}

/// The workers that are to leave a device. Those that had been ready come back, unless they were ending already; the job of
/// one that had not fails.
fn take_leave(table: &mut Table, device: &str) -> Vec<WorkerId> {
    let there = table.iter_mut().filter(|(_, worker)| {
        worker.order.device.id == device && worker.state != ProcessState::Failed && !worker.is_waiting()
    });
    let leave = |(id, worker): (&WorkerId, &mut Worker)| {
        // One that drains without limit would keep the owner from his device.
        if worker.state != ProcessState::Stopping {
            worker.yields = worker.is_settled;
        }
        id.clone()
    };
    there.map(leave).collect()
}

/// The workers that wait for a device that is free by now.
fn waiting(core: &Core) -> Vec<Arc<Order>> {
    let waiting: Vec<Arc<Order>> = core
        .workers()
        .borrow()
        .values()
        .filter(|worker| worker.is_waiting())
        .map(|worker| Arc::clone(&worker.order))
        .collect();
    let owners = core.owners();
    waiting
        .into_iter()
        .filter(|order| owners.is_calm(&order.device.id))
        .collect()
}

/// Starts a worker again on the device that it had left. It goes on waiting if the owner was faster.
async fn bring_back(app: &App, order: &Arc<Order>) {
    let why = match start_again(app, order).await {
        Ok(true) => {
            tracing::info!(worker_id = %order.id, device = order.device.id, "worker is back on its device");
            return;
        }
        // Somebody stopped it while it waited.
        Ok(false) => return,
        Err(_) if app.core.owners().on(&order.device.id).is_some() => return,
        Err(why) => why,
    };
    tracing::warn!(worker_id = %order.id, device = order.device.id, why, "worker cannot come back to its device");
    app.core.change_workers(|table| {
        if let Some(worker) = table.get_mut(&order.id).filter(|worker| worker.is_waiting()) {
            worker.yields = false;
            worker.state = ProcessState::Failed;
            worker.reason = Some(format!("it cannot come back to {}: {why}", order.device.id));
        }
        Vec::new()
    });
}

/// `false` if it waits no more.
async fn start_again(app: &App, order: &Order) -> Result<bool, String> {
    let reference: ModelRef = order.reference.parse().map_err(text)?;
    let stored = app.core.store.get(&reference).await.map_err(text)?;
    let stored = stored.ok_or_else(|| format!("its model {} is not here any more", reference.printable()))?;
    let facts = app.core.facts.of(&stored.path).await?;
    let Some(entered) = reserve_again(&app.core, order, &facts) else {
        return Ok(false);
    };
    let order = entered.map_err(text)?;
    workers::start(app, &order).await.map_err(|error| {
        // It stands in the table no more; that it waited in vain is to be seen there.
        let mut worker = Worker::new(Arc::clone(&order), None);
        worker.wait();
        app.core.change_workers(|table| {
            table.insert(order.id.clone(), worker);
            Vec::new()
        });
        text(error)
    })?;
    Ok(true)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::worker;

    #[test]
    fn all_workers_leave_the_owners_device_and_those_come_back_that_were_ready_and_not_ending() {
        let settled = |device, state| Worker {
            is_kept: true,
            is_settled: true,
            ..worker(device, state)
        };
        let mut waiting = worker("cuda:0", ProcessState::Running);
        waiting.wait();
        let mut table: Table = [
            ("draining", settled("cuda:0", ProcessState::Stopping)),
            ("elsewhere", settled("cuda:1", ProcessState::Running)),
            ("failed", settled("cuda:0", ProcessState::Failed)),
            ("new", worker("cuda:0", ProcessState::Starting)),
            ("restarting", settled("cuda:0", ProcessState::Restarting)),
            ("running", settled("cuda:0", ProcessState::Running)),
            ("waiting", waiting),
        ]
        .into_iter()
        .map(|(id, worker)| (WorkerId::new(id).unwrap(), worker))
        .collect();
        let leaving = take_leave(&mut table, "cuda:0");
        let leaving: Vec<&str> = leaving.iter().map(WorkerId::as_str).collect();
        assert_eq!(leaving, ["draining", "new", "restarting", "running"]);
        let come_back = table.iter().filter(|(_, worker)| worker.yields);
        assert_eq!(
            come_back.map(|(id, _)| id.as_str()).collect::<Vec<_>>(),
            ["restarting", "running", "waiting"]
        );
        // The owner who comes again while they leave changes nothing of that.
        for worker in table.values_mut().filter(|worker| worker.is_kept) {
            worker.state = ProcessState::Stopping;
        }
        take_leave(&mut table, "cuda:0");
        let still = table.iter().filter(|(_, worker)| worker.yields);
        assert_eq!(
            still.map(|(id, _)| id.as_str()).collect::<Vec<_>>(),
            ["restarting", "running", "waiting"]
        );
    }
}
