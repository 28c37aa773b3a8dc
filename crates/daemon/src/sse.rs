//! Server-sent events with JSON data.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde::Serialize;

/// A comment line is sent after this long without an event, so that proxies and readers know the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An event with JSON data.
pub fn event<T: Serialize>(data: &T) -> Event {
    // Only a map with keys that are not text fails, and no contract has one.
    Event::default()
        .json_data(data)
        .unwrap_or_else(|error| Event::default().comment(error.to_string()))
}

/// Answers with a stream of events.
pub fn response(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    Sse::new(events.map(Ok::<_, Infallible>))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}
