//! `GET /v1/heartbeats/stream`: what happens in the fleet, as it happens.
//!
//! First a `snapshot`, then every change with an id, beats and telemetry once a second, and the queen's own beat. A reader
//! that says which event it had last goes on after it, as long as the changes since are kept.
//!
//! Memory is bounded for each reader by one snapshot or one pulse on its way: it takes the next event from what all readers
//! share when its connection has room. If the changes that it has not read are no longer kept, it gets a new snapshot.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use daemon::{ApiError, Query};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, header};
use serde::Deserialize;
use shared_contract::ErrorKind;

use crate::State;
use crate::changes::{Listener, MAX_READERS, News, Next, Pulse, frame, queen_beat};
use crate::metrics::Counted;

/// What a reader without a place is asked to wait.
const RETRY_S: u32 = 30;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resume {
    /// For readers that cannot set the header on their first request, as an `EventSource` in a browser.
    last_event_id: Option<String>,
}

pub(super) async fn heartbeats(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    query: Result<Query<Resume>, ApiError>,
) -> Result<Response, ApiError> {
    let Query(resume) = query?;
    // A browser that connects again repeats its query, and has the newer id in the header.
    let header = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let place = header
        .or(resume.last_event_id.as_deref())
        .and_then(|id| state.changes.place(id));
    let listener = state.changes.listen().ok_or_else(too_many)?;
    let shutdown = state.shutdown.clone();
    // A stream without an end must not hold up the draining.
    let end = async move { shutdown.requested().await };
    let events = events(state, listener, place).take_until(Box::pin(end));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, Body::from_stream(events.map(Ok::<_, Infallible>))).into_response())
}

fn too_many() -> ApiError {
    let message = format!("{MAX_READERS} readers follow this stream already; try again when one has left");
    ApiError::new(ErrorKind::NoCapacity, message).retry_after(RETRY_S)
}

/// The events after a place, or after a snapshot.
fn events(state: Arc<State>, listener: Listener, place: Option<u64>) -> impl Stream<Item = Bytes> {
    let reader = Reader {
        listener,
        _counted: Counted::one_of(&state.metrics.stream_readers),
        place,
        queen_beat: None,
        is_greeted: false,
        pulse: Arc::default(),
        told: 0,
        state,
    };
    stream::unfold(reader, |mut reader| async move { Some((reader.next().await, reader)) })
}

/// One reader of the stream.
struct Reader {
    state: Arc<State>,
    listener: Listener,
    /// Number of the newest change that it was told; `None` if only a snapshot helps.
    place: Option<u64>,
    queen_beat: Option<Bytes>,
    /// Whether the queen has told it of herself.
    is_greeted: bool,
    pulse: Arc<Pulse>,
    /// How much of the pulse it was told.
    told: usize,
    _counted: Counted,
}

impl Reader {
    /// The next event; waits for it.
    async fn next(&mut self) -> Bytes {
        loop {
            if let Some(event) = self.at_hand() {
                return event;
            }
            match self.listener.news().await {
                News::Changes => {}
                News::QueenBeat(beat) => self.queen_beat = Some(beat),
                News::Pulse(pulse) => self.begin(pulse),
            }
        }
    }

    fn begin(&mut self, pulse: Arc<Pulse>) {
        self.pulse = pulse;
        self.told = 0;
    }

    /// The next event, if there is one.
    fn at_hand(&mut self) -> Option<Bytes> {
        let Some(place) = self.place else {
            return Some(self.snapshot());
        };
        let next = self.state.changes.after(place);
        if next == Next::Gone {
            return Some(self.snapshot());
        }
        if !std::mem::replace(&mut self.is_greeted, true) {
            return Some(frame("queen", None, &queen_beat(&self.state, Instant::now())));
        }
        if self.told == self.pulse.frames.len()
            && let Some(pulse) = self.listener.take_pulse()
        {
            self.begin(pulse);
        }
        // Before the changes that came after it: a beat must not be told after its sender's leaving.
        if place == self.pulse.place
            && let Some(event) = self.pulse.frames.get(self.told)
        {
            self.told += 1;
            return Some(event.clone());
        }
        let Next::Change(event) = next else {
            return self.queen_beat.take();
        };
        self.place = Some(place + 1);
        Some(event)
    }

    fn snapshot(&mut self) -> Bytes {
        let (place, snapshot) = self.state.changes.snapshot(|place| {
            let id = self.state.changes.event_id(place);
            frame("snapshot", Some(&id), &self.state.fleet(Instant::now()))
        });
        self.place = Some(place);
        self.pulse = Arc::default();
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use daemon::Shutdown;
    use futures_util::FutureExt;
    use futures_util::stream::BoxStream;

    use super::*;
    use crate::changes::MAX_CHANGES;
    use crate::config::Config;

    fn state() -> Arc<State> {
        Arc::new(State::new(Config::default(), Shutdown::new()).unwrap())
    }

    fn push(state: &State, number: usize) {
        state.changes.push("worker", &number);
    }

    fn read(state: &Arc<State>, place: Option<u64>) -> BoxStream<'static, Bytes> {
        let listener = state.changes.listen().unwrap();
        events(Arc::clone(state), listener, place).boxed()
    }

    /// A reader that has the snapshot and the queen's greeting, and reads no further by itself.
    fn greeted(state: &Arc<State>) -> BoxStream<'static, Bytes> {
        let mut reader = read(state, None);
        assert!(at_hand(&mut reader).unwrap().starts_with("event: snapshot\n"));
        assert!(at_hand(&mut reader).unwrap().starts_with("event: queen\ndata: "));
        reader
    }

    /// The next event, if the reader need not wait for it.
    fn at_hand(reader: &mut BoxStream<'static, Bytes>) -> Option<String> {
        let event = reader.next().now_or_never()??;
        Some(String::from_utf8(event.to_vec()).unwrap())
    }

    fn change(state: &State, number: usize) -> String {
        let id = state.changes.event_id(number as u64);
        format!("event: worker\nid: {id}\ndata: {number}\n\n")
    }

    #[tokio::test]
    async fn a_reader_that_stopped_gets_every_change_that_is_kept_in_order() {
        let state = state();
        let mut reader = greeted(&state);
        (1..=MAX_CHANGES).for_each(|number| push(&state, number));
        for number in 1..=MAX_CHANGES {
            assert_eq!(at_hand(&mut reader), Some(change(&state, number)));
        }
        assert_eq!(at_hand(&mut reader), None);
    }

    #[tokio::test]
    async fn a_reader_that_stopped_for_too_long_gets_a_new_snapshot_and_goes_on_after_it() {
        let state = state();
        let mut reader = greeted(&state);
        (1..=MAX_CHANGES + 1).for_each(|number| push(&state, number));
        let snapshot = at_hand(&mut reader).unwrap();
        let id = state.changes.event_id(MAX_CHANGES as u64 + 1);
        assert!(
            snapshot.starts_with(&format!("event: snapshot\nid: {id}\n")),
            "{snapshot}"
        );
        assert_eq!(at_hand(&mut reader), None);
        push(&state, MAX_CHANGES + 2);
        assert_eq!(at_hand(&mut reader), Some(change(&state, MAX_CHANGES + 2)));
    }

    #[tokio::test]
    async fn when_the_queen_herself_missed_changes_every_reader_gets_a_new_snapshot() {
        let state = state();
        push(&state, 1);
        let mut reader = greeted(&state);
        state.changes.break_off();
        assert!(at_hand(&mut reader).unwrap().starts_with("event: snapshot\n"));
        assert_eq!(at_hand(&mut reader), None);
    }

    #[tokio::test]
    async fn a_reader_that_says_where_it_was_gets_no_snapshot() {
        let state = state();
        (1..=3).for_each(|number| push(&state, number));
        let mut reader = read(&state, Some(1));
        assert!(at_hand(&mut reader).unwrap().starts_with("event: queen\n"));
        assert_eq!(at_hand(&mut reader), Some(change(&state, 2)));
        assert_eq!(at_hand(&mut reader), Some(change(&state, 3)));
        assert_eq!(at_hand(&mut reader), None);
        let mut unknown = read(&state, Some(4));
        assert!(at_hand(&mut unknown).unwrap().starts_with("event: snapshot\n"));
    }

    #[tokio::test]
    async fn a_pulse_is_told_between_the_changes_that_it_came_between_and_an_old_one_not_at_all() {
        let state = state();
        let (mut prompt, mut late) = (greeted(&state), greeted(&state));
        push(&state, 1);
        state
            .changes
            .publish_pulse(vec![Bytes::from_static(b"beat a"), Bytes::from_static(b"beat b")]);
        assert_eq!(at_hand(&mut prompt), Some(change(&state, 1)));
        assert_eq!(at_hand(&mut prompt), Some("beat a".to_owned()));
        push(&state, 2);
        assert_eq!(at_hand(&mut prompt), Some("beat b".to_owned()));
        assert_eq!(at_hand(&mut prompt), Some(change(&state, 2)));

        // The late one has missed the first pulse; the newest comes in its place, after the changes before it.
        push(&state, 3);
        state.changes.publish_pulse(vec![Bytes::from_static(b"beat c")]);
        for number in 1..=3 {
            assert_eq!(at_hand(&mut late), Some(change(&state, number)));
        }
        assert_eq!(at_hand(&mut late), Some("beat c".to_owned()));
        assert_eq!(at_hand(&mut late), None);
    }

    #[tokio::test]
    async fn readers_at_the_same_place_share_one_snapshot() {
        let state = state();
        push(&state, 1);
        let snapshot = || read(&state, None).next().now_or_never().unwrap().unwrap();
        let (first, second) = (snapshot(), snapshot());
        assert_eq!(first.as_ptr(), second.as_ptr());
        push(&state, 2);
        let third = snapshot();
        assert_ne!(third.as_ptr(), first.as_ptr());
        let id = state.changes.event_id(2);
        assert!(third.starts_with(format!("event: snapshot\nid: {id}\n").as_bytes()));
    }

    #[tokio::test]
    async fn one_reader_too_many_is_asked_to_come_back_when_another_has_left() {
        let state = state();
        let open = async || {
            heartbeats(
                Shared(Arc::clone(&state)),
                HeaderMap::new(),
                Ok(Query(Resume::default())),
            )
            .await
        };
        let mut readers = Vec::new();
        for _ in 0..MAX_READERS {
            readers.push(open().await.unwrap());
        }
        let refused = open().await.unwrap_err().into_response();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("retry-after"));
        readers.pop();
        assert!(open().await.is_ok());
    }

    #[tokio::test]
    async fn readers_are_counted_while_they_read() {
        let state = state();
        let reader = greeted(&state);
        assert_eq!(state.metrics.stream_readers.get(), 1);
        drop(reader);
        assert_eq!(state.metrics.stream_readers.get(), 0);
    }
}
