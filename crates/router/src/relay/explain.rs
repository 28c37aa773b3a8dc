//! What a worker answered in place of a stream, as an event for a client that has a stream already.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use openai_api::sse;
use serde_json::Value;
use shared_contract::{ErrorBody, ErrorKind, ErrorObject};

use super::events;

/// Longest refusal that is read.
const MAX_BYTES: usize = 64 << 10;

/// The body of a refusal, while it comes.
#[derive(Debug)]
pub(super) struct Explanation {
    status: StatusCode,
    read: BytesMut,
}

impl Explanation {
    pub(super) fn of(status: StatusCode, first: Option<&Bytes>) -> Self {
        Self {
            status,
            read: first.map(|first| BytesMut::from(&**first)).unwrap_or_default(),
        }
    }

    /// More of it. Whether it has become too long.
    pub(super) fn add(&mut self, data: &[u8]) -> bool {
        self.read.extend_from_slice(data);
        self.read.len() > MAX_BYTES
    }

    /// The event: the worker's own error where it is one.
    pub(super) fn event(&self) -> Bytes {
        match serde_json::from_slice::<Value>(&self.read) {
            Ok(body) if body.get("error").is_some() => sse::event(&body),
            _ => {
                let message = format!("the worker answered {} where a stream was asked for", self.status);
                error(ErrorKind::UpstreamFailed.object(message, None))
            }
        }
    }
}

/// The code of the error that an event tells, where it has one.
pub(super) fn code(event: &[u8]) -> Option<String> {
    let data = &event[events::fields(event).data?];
    let body: Value = serde_json::from_slice(data).ok()?;
    match &body["error"]["code"] {
        Value::String(code) => Some(code.clone()),
        // Some servers give the status.
        Value::Number(code) => Some(code.to_string()),
        _ => None,
    }
}

/// The event for an error.
pub(super) fn error(error: ErrorObject) -> Bytes {
    sse::event(&ErrorBody { error })
}
