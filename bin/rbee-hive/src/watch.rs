//! Watches what changes on this host by itself: devices that come and go, a driver that fails, and the machine's owner,
//! for whom workers make room if the settings say so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hive_contract::{DeviceInfo, OwnerProcess, ProcessState};
use model_store::ModelRef;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::core::{Core, Held};
use crate::owner::{self, Turn};
use crate::placement::{Wish, reserve};
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
    /// Workers that made room and wait for their device.
    waiting: Vec<Arc<Order>>,
    /// Workers on their way out or back in; each ends with what is to wait again.
    moving: JoinSet<Option<Arc<Order>>>,
}

impl Yielding {
    fn new(app: Arc<App>) -> Self {
        Self {
            app,
            waiting: Vec::new(),
            moving: JoinSet::new(),
        }
    }

    fn look(&mut self) {
        while let Some(moved) = self.moving.try_join_next() {
            self.waiting.extend(moved.ok().flatten());
        }
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
        let calm = {
            let owners = self.app.core.owners();
            let is_calm = |order: &Arc<Order>| owners.is_calm(&order.device.id);
            self.waiting.extract_if(.., |order| is_calm(order)).collect::<Vec<_>>()
        };
        for order in calm {
            self.moving.spawn(bring_back(Arc::clone(&self.app), order));
        }
    }

    /// Stops the workers of a device; those that had been ready wait to come back.
    fn make_room(&mut self, device: &str, owner: &OwnerProcess) {
        let why = format!("yielded to {}", owner::name(owner));
        for (order, comes_back) in workers_on(&self.app.core, device) {
            let (app, why) = (Arc::clone(&self.app), why.clone());
            app.core.counters.yields.inc();
            self.moving.spawn(async move {
                // It may have ended by itself meanwhile.
                let _ = workers::retire(&app, &order.id, why).await;
                comes_back.then_some(order)
            });
        }
    }
}

/// Looks who uses the GPUs.
fn owner_turns(core: &Core) -> Vec<Turn> {
    let snapshot = core.monitor.snapshot();
    let ours: BTreeSet<u32> = core.own_pids();
    let seen: BTreeMap<String, Option<OwnerProcess>> = snapshot
        .devices()
        .into_iter()
        .filter(|device| snapshot.device(&device.id).is_some())
        .map(|device| {
            let foreign = snapshot.foreign(&device.id, &ours);
            let owner = owner::at_work(&foreign, core.sharing.owner_vram);
            (device.id, owner)
        })
        .collect();
    core.owners().look(seen, Instant::now())
}

/// The workers on a device that are not ending already, and whether each is to come back: one that is still on its first
/// start is not, its job fails.
fn workers_on(core: &Core, device: &str) -> Vec<(Arc<Order>, bool)> {
    let table = core.workers();
    let table = table.borrow();
    let workers = table.values().filter(|worker| {
        worker.order.device.id == device && !matches!(worker.state, ProcessState::Stopping | ProcessState::Failed)
    });
    let workers = workers.map(|worker| {
        let is_new = worker.state == ProcessState::Starting && worker.restarts == 0 && worker.adopted_pid.is_none();
        (Arc::clone(&worker.order), !is_new)
    });
    workers.collect()
}

/// Starts a worker again on the device that it had left. Returns its order if the owner was faster.
async fn bring_back(app: Arc<App>, order: Arc<Order>) -> Option<Arc<Order>> {
    match start_again(&app, &order).await {
        Ok(()) => {
            tracing::info!(worker_id = %order.id, device = order.device.id, "worker is back on its device");
            None
        }
        Err(_) if app.core.owners().on(&order.device.id).is_some() => Some(order),
        Err(why) => {
            tracing::warn!(worker_id = %order.id, device = order.device.id, why, "worker cannot come back to its device");
            None
        }
    }
}

async fn start_again(app: &App, order: &Order) -> Result<(), String> {
    let reference: ModelRef = order.reference.parse().map_err(text)?;
    let store = &app.core.store;
    let hold = Held::new(store.hold(&reference).await.map_err(text)?);
    // It may have been removed while nobody used it.
    let never = CancellationToken::new();
    let stored = store.pull(&reference, |_| {}, &never).await.map_err(text)?;
    let facts = app.core.facts.of(&stored.path).await?;
    let order = reserve(&app.core, Wish::again(order), &facts, hold).map_err(text)?;
    workers::start(app, &order).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
