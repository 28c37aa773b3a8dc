//! Server-sent events as bytes, so that one rendering serves all readers.

use bytes::Bytes;
use serde::Serialize;

/// A complete event with JSON data.
pub(crate) fn frame(event: &str, id: Option<&str>, data: &impl Serialize) -> Bytes {
    of_json(event, id, &json(data))
}

/// The data of an event. JSON as it is written here has no line breaks, so that one `data:` line holds it.
pub(super) fn json(data: &impl Serialize) -> Vec<u8> {
    // Only a map with keys that are not text fails, and no contract has one.
    serde_json::to_vec(data).unwrap_or_else(|error| unreachable!("a contract that is no JSON: {error}"))
}

/// A complete event with data that is JSON already.
pub(super) fn of_json(event: &str, id: Option<&str>, json: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(json.len() + event.len() + id.map_or(0, str::len) + 32);
    let mut line = |name: &[u8], value: &[u8]| {
        text.extend_from_slice(name);
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.push(b'\n');
    };
    line(b"event", event.as_bytes());
    if let Some(id) = id {
        line(b"id", id.as_bytes());
    }
    line(b"data", json);
    text.push(b'\n');
    text.into()
}
