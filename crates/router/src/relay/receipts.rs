//! The receipt of an answer, as its client gets it: in the headers, and again, complete, in the chunk with the usage, where
//! one was asked for (`stream_options.include_usage`).
//!
//! A stream that waited for more than a second has begun before it had a worker: its headers name none, nor does any header
//! tell of a migration, as that comes later. The chunk with the usage does both.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use serde::Serialize;

use crate::receipt::Receipt;

/// Whose worker answered.
const HIVE: HeaderName = HeaderName::from_static("x-rbee-hive");
/// Who answered.
const WORKER: HeaderName = HeaderName::from_static("x-rbee-worker");
/// Revision of the model that it serves.
const REVISION: HeaderName = HeaderName::from_static("x-rbee-model-revision");
/// Milliseconds spent in the line.
const QUEUE: HeaderName = HeaderName::from_static("x-rbee-queue-ms");
/// How many workers were tried.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-rbee-attempts");
/// How many workers took up what another one had begun.
const MIGRATIONS: HeaderName = HeaderName::from_static("x-rbee-migrations");

/// The member `rbee` of the chunk with the usage.
#[derive(Serialize)]
struct Member<'a> {
    request_id: Option<&'a str>,
    hive: Option<&'a str>,
    worker: Option<&'a str>,
    model_revision: Option<&'a str>,
    queue_ms: u64,
    attempts: u32,
    migrations: u32,
}

/// Puts the receipt, as it is now, into the head of an answer.
pub(super) fn put(headers: &mut HeaderMap, receipt: &Receipt) {
    let names = [
        (HIVE, receipt.hive().map(|hive| hive.as_str())),
        (WORKER, receipt.worker().map(|worker| worker.as_str())),
        (REVISION, receipt.revision()),
    ];
    for (header, name) in names {
        if let Some(value) = name.and_then(|name| HeaderValue::from_bytes(name.as_bytes()).ok()) {
            headers.insert(header, value);
        }
    }
    headers.insert(QUEUE, HeaderValue::from(receipt.queue_ms()));
    headers.insert(ATTEMPTS, HeaderValue::from(receipt.attempts));
    headers.insert(MIGRATIONS, HeaderValue::from(receipt.migrations));
}

/// What is put before the last brace of the chunk with the usage: `,"rbee":{...}`.
pub(super) fn member(receipt: &Receipt) -> Vec<u8> {
    let member = Member {
        request_id: receipt.request_id.as_ref().and_then(|id| id.to_str().ok()),
        hive: receipt.hive().map(|hive| hive.as_str()),
        worker: receipt.worker().map(|worker| worker.as_str()),
        model_revision: receipt.revision(),
        queue_ms: receipt.queue_ms(),
        attempts: receipt.attempts,
        migrations: receipt.migrations,
    };
    let mut bytes = b",\"rbee\":".to_vec();
    serde_json::to_writer(&mut bytes, &member).expect("texts and numbers can be written as JSON");
    bytes
}
