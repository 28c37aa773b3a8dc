//! `GET /v1/heartbeats/stream`: what happens in the fleet, as it happens.
//!
//! Memory is bounded by the registries' event buffers: a reader that is too slow misses the oldest events, and is told so.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use axum::response::Response;
use axum::response::sse::Event;
use daemon::sse;
use futures_util::{Stream, StreamExt, stream};
use heartbeat_registry::{MemberView, RegistryEvent};
use hive_contract::HiveHeartbeat;
use shared_contract::{HeartbeatItem, timing};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{MissedTickBehavior, interval};
use worker_contract::WorkerHeartbeat;

use crate::State;
use crate::fleet::{Counts, Happening, HiveEvent, HiveView, Lagged, QueenBeat, WorkerEvent, WorkerView};

pub(super) async fn heartbeats(Shared(state): Shared<Arc<State>>) -> Response {
    let workers = members(state.workers.subscribe(), worker_event);
    let hives = members(state.hives.subscribe(), hive_event);
    let shutdown = state.shutdown.clone();
    let events = stream::select(queen(state), stream::select(workers, hives));
    // A stream without an end must not hold up the draining.
    let end = async move { shutdown.requested().await };
    sse::response(events.take_until(Box::pin(end)))
}

/// The queen's own beat, at once and then at her pace.
fn queen(state: Arc<State>) -> impl Stream<Item = Event> {
    let mut ticks = interval(timing::QUEEN_BEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    stream::unfold((state, ticks), |(state, mut ticks)| async move {
        ticks.tick().await;
        let event = sse::event(&queen_beat(&state)).event("queen");
        Some((event, (state, ticks)))
    })
}

fn queen_beat(state: &State) -> QueenBeat {
    let now = Instant::now();
    let count = |gauge: i64| u64::try_from(gauge).unwrap_or(0);
    QueenBeat {
        queen: super::fleet::queen(state, now),
        workers: Counts::of(&state.workers.list_all(now)),
        hives: Counts::of(&state.hives.list_all(now)),
        inflight_requests: count(state.metrics.inflight.get()),
        waiting_requests: count(state.metrics.waiting.get()),
    }
}

/// The events of one registry; ends with it.
fn members<T: HeartbeatItem>(
    events: Receiver<RegistryEvent<T>>,
    show: fn(Happening, &MemberView<T>, Instant) -> Event,
) -> impl Stream<Item = Event> {
    stream::unfold(events, move |mut events| async move {
        let event = match events.recv().await {
            Ok(event) => {
                let now = Instant::now();
                // The member as it was told of, not as it may have become since.
                let view = MemberView {
                    report: event.report,
                    ..event.member.view(now)
                };
                show(Happening::new(event.kind, &view, now), &view, now).event(T::KIND)
            }
            Err(RecvError::Lagged(missed)) => {
                let kind = T::KIND.to_owned();
                sse::event(&Lagged { kind, missed }).event("lagged")
            }
            Err(RecvError::Closed) => return None,
        };
        Some((event, events))
    })
}

fn worker_event(happening: Happening, view: &MemberView<WorkerHeartbeat>, now: Instant) -> Event {
    sse::event(&WorkerEvent {
        change: happening.change,
        from: happening.from,
        to: happening.to,
        reason: happening.reason,
        worker: WorkerView::new(view, now),
    })
}

fn hive_event(happening: Happening, view: &MemberView<HiveHeartbeat>, now: Instant) -> Event {
    sse::event(&HiveEvent {
        change: happening.change,
        from: happening.from,
        to: happening.to,
        reason: happening.reason,
        hive: HiveView::new(view, now),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use chrono::Utc;
    use heartbeat_registry::RegistryOptions;
    use http_body_util::BodyExt;

    use super::*;
    use crate::registry::WorkerRegistry;

    #[tokio::test]
    async fn a_slow_reader_misses_the_oldest_events_and_is_told_how_many() {
        let registry = WorkerRegistry::new(RegistryOptions {
            event_capacity: 4,
            ..RegistryOptions::default()
        });
        let mut body = sse::response(members(registry.subscribe(), worker_event)).into_body();
        for seq in 1..=9 {
            let beat = daemon::extract::from_slice(
                format!(
                    r#"{{"worker": {{"id": "w", "model_id": "m", "device": "cpu", "port": 1, "status": "ready",
                         "implementation": "x", "version": "0", "incarnation": 1}},
                        "timestamp": "2025-10-24T10:00:00Z", "seq": {seq}}}"#
                )
                .as_bytes(),
            )
            .unwrap();
            let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
            registry.record(beat, peer, Instant::now(), Utc::now()).unwrap();
        }
        let mut next = async || {
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            String::from_utf8(frame.to_vec()).unwrap()
        };
        let first = next().await;
        // Ten events: the first beat is also a joining.
        assert!(
            first.contains("event: lagged") && first.contains(r#""missed":6"#),
            "{first}"
        );
        assert!(next().await.contains("event: worker"));
    }
}
