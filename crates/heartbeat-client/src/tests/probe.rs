//! A payload that shows what the client did to it, and its source.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use shared_contract::{Delivery, HeartbeatAck, HeartbeatPayload, Stamp};

use crate::Source;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Probe {
    pub(super) status: String,
    pub(super) full: bool,
    pub(super) incarnation: u64,
    pub(super) seq: u64,
    pub(super) timestamp: String,
}

impl HeartbeatPayload for Probe {
    const PATH: &'static str = "/v1/probe-heartbeat";

    fn stamp(&mut self, stamp: Stamp) {
        self.incarnation = stamp.incarnation;
        self.seq = stamp.seq;
        self.timestamp = stamp.timestamp.to_rfc3339();
    }
}

pub(super) struct ProbeSource {
    pub(super) status: Mutex<&'static str>,
    /// Sequence number of the last acknowledged payload.
    pub(super) delivered: AtomicU64,
}

impl ProbeSource {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            status: Mutex::new("starting"),
            delivered: AtomicU64::new(0),
        })
    }

    pub(super) fn set(&self, status: &'static str) {
        *self.status.lock().unwrap() = status;
    }
}

impl Source<Probe> for ProbeSource {
    fn build(&self, delivery: Delivery) -> Probe {
        Probe {
            status: (*self.status.lock().unwrap()).to_owned(),
            full: delivery == Delivery::Full,
            incarnation: 0,
            seq: 0,
            timestamp: String::new(),
        }
    }

    fn delivered(&self, payload: &Probe, _ack: &HeartbeatAck) {
        self.delivered.store(payload.seq, Ordering::SeqCst);
    }
}

pub(super) fn ack() -> HeartbeatAck {
    HeartbeatAck {
        status: "ok".to_owned(),
        message: "noted".to_owned(),
        interval_ms: 30_000,
        ttl_ms: 90_000,
        want_full: false,
        queen_id: None,
        dropped: None,
        known_incarnation: None,
    }
}
