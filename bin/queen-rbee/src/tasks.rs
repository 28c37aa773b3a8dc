//! What the queen does by herself: she tells waiting requests who became free, announces who was lost, and keeps a log of
//! both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heartbeat_registry::{EventKind, RegistryEvent};
use shared_contract::HeartbeatItem;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use worker_contract::WorkerHeartbeat;

use crate::State;

/// The longest pause between two sweeps, and so the most by which a loss is announced late.
const MAX_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(50);

/// Starts the tasks; they end when the handles are dropped.
pub(crate) fn start(state: &Arc<State>) -> [AbortOnDropHandle<()>; 3] {
    // Subscribed before the first beat can come.
    let workers = watch(state.workers.subscribe(), {
        let state = Arc::clone(state);
        move |seen| match seen {
            Some(event) => offer(&state, event),
            None => state.gateway.offer_all(),
        }
    });
    let hives = watch(state.hives.subscribe(), |_| {});
    [
        AbortOnDropHandle::new(tokio::spawn(workers)),
        AbortOnDropHandle::new(tokio::spawn(hives)),
        AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(state)))),
    ]
}

/// Follows a registry's events, writes the changes to the log, and passes on each event; `None` stands for those missed.
async fn watch<T: HeartbeatItem>(
    mut events: Receiver<RegistryEvent<T>>,
    act: impl Fn(Option<&RegistryEvent<T>>) + Send,
) {
    loop {
        match events.recv().await {
            Ok(event) => {
                log(&event);
                act(Some(&event));
            }
            Err(RecvError::Lagged(_)) => act(None),
            Err(RecvError::Closed) => return,
        }
    }
}

/// A worker that takes work may have become free: whatever it was, the line looks again.
fn offer(state: &State, event: &RegistryEvent<WorkerHeartbeat>) {
    let is_news = !matches!(event.kind, EventKind::Left { .. });
    if is_news && event.report.item.is_available() {
        state.gateway.offer(&event.report.item.worker.model_id);
    }
}

fn log<T: HeartbeatItem>(event: &RegistryEvent<T>) {
    let (kind, id) = (T::KIND, event.member.id());
    match event.kind {
        EventKind::Beat => {}
        EventKind::Joined => tracing::info!(kind, %id, address = %event.report.address, "joined"),
        EventKind::Restarted => tracing::info!(kind, %id, address = %event.report.address, "restarted"),
        EventKind::StateChanged { from, to } => {
            let reason = event.report.suspicion.as_ref().map(|suspicion| &*suspicion.reason);
            tracing::info!(kind, %id, %from, %to, reason, "state changed");
        }
        EventKind::Left { reason } => tracing::info!(kind, %id, ?reason, "left"),
    }
}

async fn sweep(state: Arc<State>) {
    let pause = (state.config.heartbeat_ttl / 10).clamp(MIN_SWEEP_INTERVAL, MAX_SWEEP_INTERVAL);
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        state.workers.cleanup_stale(now);
        state.hives.cleanup_stale(now);
        state.gateway.prune();
    }
}
