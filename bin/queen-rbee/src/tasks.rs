//! What the queen does by herself: she tells waiting requests who became free, calls back who is new, announces who was
//! lost, and keeps a log of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heartbeat_registry::{EventKind, LeaveReason, RegistryEvent};
use hive_contract::HiveHeartbeat;
use shared_contract::HeartbeatItem;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use worker_contract::WorkerHeartbeat;

use crate::config::Config;
use crate::fleet::{self, Audience};
use crate::reach::CallBack;
use crate::timeline::{Note, TimelineChange, Tone};
use crate::{State, changes, subscriptions, supply, traffic};

/// The longest pause between two sweeps, and so the most by which a loss is announced late.
const MAX_SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(50);
/// When so many sweeps were due and none came, the queen was not running: a stopped process, a host that slept.
pub(crate) const LATE_SWEEPS: u32 = 2;

/// Starts the tasks; they end when the handles are dropped.
pub(crate) fn start(state: &Arc<State>) -> Vec<AbortOnDropHandle<()>> {
    // Subscribed before the first beat can come.
    let workers = watch(state.workers.subscribe(), {
        let state = Arc::clone(state);
        move |seen| match seen {
            Some(event) => {
                offer(&state, event);
                state.timeline.worker(event);
            }
            None => {
                state.router.offer_all();
                state.timeline.forget_missing(&state.workers, &state.hives);
            }
        }
    });
    let hives = watch(state.hives.subscribe(), {
        let state = Arc::clone(state);
        move |seen| match seen {
            Some(event) => state.timeline.hive(event),
            None => state.timeline.forget_missing(&state.workers, &state.hives),
        }
    });
    let call_workers = CallBack::new(Arc::clone(&state.workers), Arc::clone(&state.metrics));
    let call_hives = CallBack::new(Arc::clone(&state.hives), Arc::clone(&state.metrics));
    vec![
        AbortOnDropHandle::new(tokio::spawn(workers)),
        AbortOnDropHandle::new(tokio::spawn(hives)),
        AbortOnDropHandle::new(tokio::spawn(call_workers.run())),
        AbortOnDropHandle::new(tokio::spawn(call_hives.run())),
        AbortOnDropHandle::new(tokio::spawn(changes::follow(Arc::clone(state)))),
        AbortOnDropHandle::new(tokio::spawn(subscriptions::keep(Arc::clone(state)))),
        AbortOnDropHandle::new(tokio::spawn(supply::run(Arc::clone(state)))),
        AbortOnDropHandle::new(tokio::spawn(traffic::sample(Arc::clone(state)))),
        AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(state)))),
    ]
}

/// The pause between two sweeps.
pub(crate) fn sweep_pause(config: &Config) -> Duration {
    (config.heartbeat_ttl / 10).clamp(MIN_SWEEP_INTERVAL, MAX_SWEEP_INTERVAL)
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
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(
                    kind = T::KIND,
                    missed,
                    "more happened at once than this log could follow"
                );
                act(None);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// A worker that takes work may have become free by another thing than its beat: whatever it was, the line looks again.
fn offer(state: &State, event: &RegistryEvent<WorkerHeartbeat>) {
    let is_there = !matches!(event.kind, EventKind::Left { .. }) && event.report.item.is_available();
    if is_there && let Some(line) = state.router.line(&event.report.item.worker.model_id) {
        line.offer();
    }
}

fn log<T: HeartbeatItem>(event: &RegistryEvent<T>) {
    let (kind, id) = (T::KIND, event.member.id());
    match event.kind {
        EventKind::Updated => {}
        EventKind::Joined => tracing::info!(kind, %id, address = %event.report.address, "joined"),
        EventKind::Restarted => tracing::info!(kind, %id, address = %event.report.address, "restarted"),
        EventKind::StateChanged { from, to } => {
            let now = Instant::now();
            let view = event.member.view_of(Arc::clone(&event.report), now);
            let reason = fleet::liveness_reason(&view, now, Audience::Operators);
            tracing::info!(kind, %id, %from, %to, reason, "state changed");
        }
        EventKind::Contended { began: true } => {
            let view = event.member.view_of(Arc::clone(&event.report), Instant::now());
            let other = view.contender.map(|contender| contender.address.to_string());
            tracing::warn!(
                kind, %id, address = %event.report.address, other,
                "two live processes use one id; what the other one says is dropped"
            );
        }
        EventKind::Contended { began: false } => tracing::info!(kind, %id, "the other process with this id is silent"),
        EventKind::Left { reason } => tracing::info!(kind, %id, reason = reason.as_str(), "left"),
    }
}

async fn sweep(state: Arc<State>) {
    let mut ticks = interval(sweep_pause(&state.config));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_degraded = false;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        // The silence of one kind speaks against the queen's view of the other, too.
        let workers = state.workers.cleanup_stale(now, state.hives.holds_back(now));
        let hives = state.hives.cleanup_stale(now, state.workers.holds_back(now));
        let metrics = &state.metrics;
        metrics.worker_beats.left(LeaveReason::Lost, workers.removed.len());
        metrics.hive_beats.left(LeaveReason::Lost, hives.removed.len());
        metrics.set_held_back(WorkerHeartbeat::KIND, workers.held_back);
        metrics.set_held_back(HiveHeartbeat::KIND, hives.held_back);
        changes::note_own_view(&state);
        let queen = state.queen(now);
        match queen.degraded_reason {
            Some(reason) if !was_degraded => {
                tracing::warn!(reason, "the view of the fleet is degraded");
                let text = format!("the queen doubts what she sees: {reason}");
                state
                    .timeline
                    .note(Note::queen(TimelineChange::Degraded, Tone::Warn, text));
            }
            None if was_degraded => {
                tracing::info!("the view of the fleet is whole again");
                let text = "the queen trusts what she sees again";
                state
                    .timeline
                    .note(Note::queen(TimelineChange::Whole, Tone::Good, text));
            }
            _ => {}
        }
        was_degraded = queen.degraded_view;
        state.router.prune();
    }
}
