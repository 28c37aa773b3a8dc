//! Feeds the hub: follows the registries' events, and gathers beats and telemetry once a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use heartbeat_registry::{MemberView, Registry, RegistryEvent};
use hive_contract::HiveHeartbeat;
use shared_contract::{HeartbeatItem, timing};
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
        gathered: Instant::now(),
    };
    feed.run(workers, hives)
}

/// Tells readers at once if the queen has begun or ceased to doubt her own view.
pub(crate) fn note_own_view(state: &State) {
    if state.changes.note_degraded(state.is_view_degraded()) {
        state.changes.push("queen", &queen_beat(state, Instant::now()));
    }
}

/// Data of the `queen` event.
pub(crate) fn queen_beat(state: &State, now: Instant) -> QueenBeat {
    QueenBeat {
        queen: state.queen(now),
        workers: Counts::of(&state.workers, now),
        hives: Counts::of(&state.hives, now),
        inflight_requests: state.router.inflight() as u64,
        waiting_requests: state.router.waiting_in_all() as u64,
    }
}

struct Feed {
    state: Arc<State>,
    /// Up to when beats and telemetry have been told.
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
        let now = Instant::now();
        // The member as it was told of, not as it may have become since.
        let view = event.member.view_of(Arc::clone(&event.report), now);
        let data = worker_event(&self.state, Happening::new(event.kind, &view, now), &view, now);
        self.state.changes.push(WorkerHeartbeat::KIND, &data);
    }

    fn hive(&mut self, event: &RegistryEvent<HiveHeartbeat>) {
        let now = Instant::now();
        let view = event.member.view_of(Arc::clone(&event.report), now);
        self.state.changes.push(
            HiveHeartbeat::KIND,
            &hive_event(&self.state, Happening::new(event.kind, &view, now), &view, now),
        );
    }

    /// Tells who beat since the last pulse, as they are now, and what was told of the hosts.
    fn pulse(&mut self) -> bool {
        self.state.changes.forget_snapshot();
        let now = Instant::now();
        let told_after = std::mem::replace(&mut self.gathered, now);
        if !self.state.changes.has_readers() {
            return true;
        }
        let mut frames: Vec<Bytes> = Vec::new();
        for view in beaten_since(&self.state.workers, told_after, now) {
            let data = worker_event(&self.state, Happening::beat(), &view, now);
            frames.push(frame(WorkerHeartbeat::KIND, None, &data));
        }
        for view in beaten_since(&self.state.hives, told_after, now) {
            frames.push(frame(
                HiveHeartbeat::KIND,
                None,
                &hive_event(&self.state, Happening::beat(), &view, now),
            ));
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

/// The members whose newest beat came after a moment, each once, whatever it sent since.
fn beaten_since<T: HeartbeatItem>(members: &Registry<T>, moment: Instant, now: Instant) -> Vec<MemberView<T>> {
    let mut beaten = Vec::new();
    members.for_each(|member| {
        let report = member.report();
        if report.last_seen > moment {
            beaten.push(member.view_of(report, now));
        }
    });
    beaten
}

fn ticks(pause: Duration) -> Interval {
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn worker_event(state: &State, happening: Happening, view: &MemberView<WorkerHeartbeat>, now: Instant) -> WorkerEvent {
    WorkerEvent {
        change: happening.change,
        timestamp: Utc::now(),
        from: happening.from,
        to: happening.to,
        reason: happening.reason,
        worker: state.worker(view, now),
    }
}

fn hive_event(state: &State, happening: Happening, view: &MemberView<HiveHeartbeat>, now: Instant) -> HiveEvent {
    HiveEvent {
        change: happening.change,
        timestamp: Utc::now(),
        from: happening.from,
        to: happening.to,
        reason: happening.reason,
        hive: HiveView::new(view, state.supply.is_drained(view.id()), now),
    }
}
