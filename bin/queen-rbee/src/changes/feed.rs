//! Feeds the hub: follows the registries' events, and gathers beats and telemetry once a second.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use heartbeat_registry::{EventKind, MemberView, RegistryEvent};
use hive_contract::HiveHeartbeat;
use shared_contract::{HeartbeatItem, HiveId, WorkerId, timing};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Interval, MissedTickBehavior, interval};
use worker_contract::WorkerHeartbeat;

use super::frame;
use crate::State;
use crate::fleet::{Counts, Happening, HiveEvent, HiveView, QueenBeat, WorkerEvent};

/// Pause between two pulses: what comes oftener is told once, as it is by then.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the registries from now on, for as long as it is polled.
pub(crate) fn follow(state: Arc<State>) -> impl Future<Output = ()> {
    let workers = state.workers.subscribe();
    let hives = state.hives.subscribe();
    let feed = Feed {
        state,
        beating_workers: HashSet::new(),
        beating_hives: HashSet::new(),
        gathered: Instant::now(),
    };
    feed.run(workers, hives)
}

/// Tells readers at once if the queen has begun or ceased to doubt her own view.
pub(crate) fn note_own_view(state: &State) {
    let is_degraded = state.workers.preservation().is_some() || state.hives.preservation().is_some();
    if state.changes.note_degraded(is_degraded) {
        state.changes.push("queen", &queen_beat(state, Instant::now()));
    }
}

/// Data of the `queen` event.
pub(crate) fn queen_beat(state: &State, now: Instant) -> QueenBeat {
    let count = |gauge: i64| u64::try_from(gauge).unwrap_or(0);
    QueenBeat {
        queen: state.queen(now),
        workers: Counts::of(&state.workers.list_all(now)),
        hives: Counts::of(&state.hives.list_all(now)),
        inflight_requests: count(state.metrics.inflight.get()),
        waiting_requests: count(state.metrics.waiting.get()),
    }
}

/// Who is told of with the next pulse: each member once, whatever it sent.
struct Feed {
    state: Arc<State>,
    beating_workers: HashSet<WorkerId>,
    beating_hives: HashSet<HiveId>,
    /// Up to when telemetry has been told.
    gathered: Instant,
}

impl Feed {
    async fn run(
        mut self,
        mut workers: Receiver<RegistryEvent<WorkerHeartbeat>>,
        mut hives: Receiver<RegistryEvent<HiveHeartbeat>>,
    ) {
        let mut pulse = ticks(PULSE_INTERVAL);
        let mut queen_beat = ticks(timing::QUEEN_BEAT_INTERVAL);
        loop {
            let is_open = tokio::select! {
                event = workers.recv() => self.heard(event, Self::worker),
                event = hives.recv() => self.heard(event, Self::hive),
                _ = pulse.tick() => self.pulse(),
                _ = queen_beat.tick() => self.queen_beat(),
            };
            if !is_open {
                return;
            }
        }
    }

    /// False at the end of the registry's events.
    fn heard<T: HeartbeatItem>(
        &mut self,
        event: Result<RegistryEvent<T>, RecvError>,
        take: fn(&mut Self, &RegistryEvent<T>),
    ) -> bool {
        match event {
            Ok(event) => take(self, &event),
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(
                    kind = T::KIND,
                    missed,
                    "events were missed, readers of the stream get new snapshots"
                );
                self.state.changes.break_off();
            }
            Err(RecvError::Closed) => return false,
        }
        true
    }

    fn worker(&mut self, event: &RegistryEvent<WorkerHeartbeat>) {
        if event.kind == EventKind::Beat {
            if self.state.changes.has_readers() {
                self.beating_workers.insert(event.member.id().clone());
            }
            return;
        }
        let now = Instant::now();
        // The member as it was told of, not as it may have become since.
        let view = event.member.view_of(Arc::clone(&event.report), now);
        let data = worker_event(&self.state, event.kind, &view, now);
        self.state.changes.push(WorkerHeartbeat::KIND, &data);
    }

    fn hive(&mut self, event: &RegistryEvent<HiveHeartbeat>) {
        if event.kind == EventKind::Beat {
            if self.state.changes.has_readers() {
                self.beating_hives.insert(event.member.id().clone());
            }
            return;
        }
        let now = Instant::now();
        let view = event.member.view_of(Arc::clone(&event.report), now);
        self.state
            .changes
            .push(HiveHeartbeat::KIND, &hive_event(event.kind, &view, now));
    }

    /// Tells who beat since the last pulse, as they are now, and what was told of the hosts.
    fn pulse(&mut self) -> bool {
        let now = Instant::now();
        let told_after = std::mem::replace(&mut self.gathered, now);
        let (workers, hives) = (
            std::mem::take(&mut self.beating_workers),
            std::mem::take(&mut self.beating_hives),
        );
        if !self.state.changes.has_readers() {
            return true;
        }
        let mut frames: Vec<Bytes> = Vec::new();
        for view in workers.iter().filter_map(|id| self.state.workers.view(id, now)) {
            let data = worker_event(&self.state, EventKind::Beat, &view, now);
            frames.push(frame(WorkerHeartbeat::KIND, None, &data));
        }
        for view in hives.iter().filter_map(|id| self.state.hives.view(id, now)) {
            let data = hive_event(EventKind::Beat, &view, now);
            frames.push(frame(HiveHeartbeat::KIND, None, &data));
        }
        for told in self.state.telemetry.told_between(told_after, now) {
            frames.push(frame("telemetry", None, &told.event));
        }
        if !frames.is_empty() {
            self.state.changes.publish_pulse(frames);
        }
        true
    }

    fn queen_beat(&self) -> bool {
        if self.state.changes.has_readers() {
            let data = queen_beat(&self.state, Instant::now());
            self.state.changes.publish_queen_beat(frame("queen", None, &data));
        }
        true
    }
}

fn ticks(pause: Duration) -> Interval {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn worker_event(state: &State, kind: EventKind, view: &MemberView<WorkerHeartbeat>, now: Instant) -> WorkerEvent {
    let happening = Happening::new(kind, view, now);
    WorkerEvent {
        change: happening.change,
        timestamp: Utc::now(),
        from: happening.from,
        to: happening.to,
        reason: happening.reason,
        worker: state.worker(view, now),
    }
}

fn hive_event(kind: EventKind, view: &MemberView<HiveHeartbeat>, now: Instant) -> HiveEvent {
    let happening = Happening::new(kind, view, now);
    HiveEvent {
        change: happening.change,
        timestamp: Utc::now(),
        from: happening.from,
        to: happening.to,
        reason: happening.reason,
        hive: HiveView::new(view, now),
    }
}
