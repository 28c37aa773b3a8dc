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

use crate::App;

/// Starts the process of a worker that stands in the table, and keeps it. If it cannot be started, it stands there no more.
pub(crate) fn start(app: &App, order: &Order) -> Result<(), worker_supervisor::Error> {
    let spec = app.launcher.spec(order, &app.queens.urls());
    let started = app.core.supervisor.start(spec);
    if started.is_err() {
        app.core.change_workers(|table| {
            table.remove(&order.id);
            Vec::new()
        });
    }
    started.map(drop)
}
