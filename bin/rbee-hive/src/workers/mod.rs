//! The hive's workers: what they are started for, what is learnt of them while they live, and how they end.

mod follow;
mod look;
mod order;
mod recover;
mod stop;

pub(crate) use follow::{adopt, follow};
#[cfg(test)]
pub(crate) use order::tests;
pub(crate) use order::{Grant, Launcher, Order};
pub(crate) use recover::recover;
pub(crate) use stop::{drain, retire, stop};

use hive_contract::ProcessState;

use crate::App;

/// Starts the process of a worker that stands in the table, and keeps it. If it cannot be started, it stands there no more.
/// One that was told to end meanwhile is ended again.
pub(crate) async fn start(app: &App, order: &Order) -> Result<(), worker_supervisor::Error> {
    let supervisor = &app.core.supervisor;
    let started = supervisor.start(app.launcher.spec(order, &app.queens.urls()));
    let mut is_wanted = false;
    app.core.change_workers(|table| {
        match table.get_mut(&order.id) {
            Some(worker) if started.is_ok() => {
                worker.is_kept = true;
                is_wanted = worker.state != ProcessState::Stopping;
            }
            _ => drop(table.remove(&order.id)),
        }
        Vec::new()
    });
    started?;
    if !is_wanted {
        // It may have ended already.
        let _ = supervisor.stop(&order.id, app.launcher.stop_limit(None)).await;
    }
    if supervisor.get(&order.id).is_none() {
        // Its last news may have come when the table did not count on any.
        app.core.change_workers(|table| follow::gone(table, &order.id));
    }
    Ok(())
}
