//! What programs get instead of a picture.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::rows::{self, HostRow, WorkerRow};
use super::{Link, Watch};

/// One line of `rbee top --json`.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    timestamp: DateTime<Utc>,
    /// Whether the queen is heard now; if not, the rest is what was heard last.
    live: bool,
    /// Names the queen's run.
    queen: Option<String>,
    /// Requests that are being answered or wait.
    in_flight: u64,
    /// Those of them that wait for a worker.
    waiting: u64,
    /// What all workers make together.
    tokens_per_second: f64,
    hosts: Vec<HostRow>,
    workers: Vec<WorkerRow>,
}

impl Line {
    /// What is known at this moment.
    pub(super) fn new(watch: &Watch, timestamp: DateTime<Utc>, now: Duration) -> Self {
        let fleet = &watch.fleet;
        let queen = fleet.queen.as_ref();
        Self {
            timestamp,
            live: matches!(watch.link, Link::Live),
            queen: queen.map(|beat| beat.queen.id.to_string()),
            in_flight: queen.map_or(0, |beat| beat.inflight_requests),
            waiting: queen.map_or(0, |beat| beat.waiting_requests),
            tokens_per_second: fleet.tokens_per_second(),
            hosts: rows::hosts(fleet, now),
            workers: rows::workers(fleet, now),
        }
    }
}
