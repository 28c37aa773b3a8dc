//! Takes over the workers that an earlier hive with the same state folder left behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hive_contract::{DeviceInfo, ProcessState};
use model_store::ModelRef;
use shared_contract::WorkerId;
use worker_supervisor::{Record, Recovery, Spec, State};

use super::{Order, adopt};
use crate::App;
use crate::changes::Change;
use crate::core::{Held, Worker};

/// Adopts the workers that live, starts those again that died with their hive, and ends those that nobody can tell what
/// they were for. What follows from it is `follow`'s.
pub(crate) async fn recover(app: &App) {
    let orders: Mutex<BTreeMap<WorkerId, Order>> = Mutex::default();
    let recovery = app.core.supervisor.recover(|record| {
        let (order, spec) = respawn(app, record)?;
        let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.insert(order.id.clone(), order);
        Some(spec)
    });
    log(&recovery);
    let mut orders = orders.into_inner().unwrap_or_else(PoisonError::into_inner);
    let kept = recovery.adopted.into_iter().chain(recovery.restarted);
    for kept in kept {
        let Some(order) = orders.remove(&kept.id) else {
            continue;
        };
        let hold = hold(app, &order).await;
        app.core.change_workers(|table| {
            let mut worker = Worker::new(Arc::new(order), hold);
            let mut changes = Vec::new();
            if kept.state == State::Running {
                app.core.counters.worker_adoptions.inc();
                worker.adopted_pid = kept.pid;
                worker.is_settled = true;
                changes.push(Change::WorkerAdded(kept.id.clone()));
            }
            let id = kept.id.clone();
            adopt(&mut worker, kept);
            debug_assert_ne!(
                worker.state,
                ProcessState::Running,
                "whether it is ready shows in a look at it"
            );
            table.insert(id, worker);
            changes
        });
    }
}

fn respawn(app: &App, record: &Record) -> Option<(Order, Spec)> {
    let mut order = Order::from_label(&record.label).filter(|order| order.id == record.id)?;
    // GPUs are counted anew when one of them is gone; what a worker was given is this one.
    let devices = app.core.monitor.snapshot().devices();
    let same = |device: &DeviceInfo| device.uuid.is_some() && device.uuid == order.device.uuid;
    if let Some(device) = devices.into_iter().find(same) {
        order.device = device;
    }
    if !app.core.sharing.allows(&order.device.id) {
        tracing::info!(
            worker_id = %order.id,
            device = order.device.id,
            "worker of an earlier hive ends: workers may use its device no more (--devices)"
        );
        return None;
    }
    let spec = app.launcher.spec(&order, &app.config.queen_urls);
    Some((order, spec))
}

/// Keeps the model's files for a worker that has them open already, or will open them again.
async fn hold(app: &App, order: &Order) -> Option<Held> {
    let reference: ModelRef = order.reference.parse().ok()?;
    match app.core.store.hold(&reference).await {
        Ok(hold) => Some(Held::new(hold)),
        Err(error) => {
            tracing::warn!(worker_id = %order.id, %error, "the model of an adopted worker is not kept from removal");
            None
        }
    }
}

fn log(recovery: &Recovery) {
    for kept in &recovery.adopted {
        tracing::info!(worker_id = %kept.id, pid = kept.pid, "worker of an earlier hive adopted");
    }
    for kept in &recovery.restarted {
        tracing::info!(worker_id = %kept.id, "worker that died while there was no hive is started again");
    }
    for (id, why) in &recovery.forgotten {
        tracing::info!(worker_id = %id, why, "worker of an earlier hive forgotten");
    }
    for pid in &recovery.orphans {
        tracing::warn!(pid, "ending a worker process that no record names");
    }
}
